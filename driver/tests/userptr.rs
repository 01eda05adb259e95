//! Userptr on live Linux, on memory of this process: it needs userfaultfd.
#![cfg(not(feature = "shuttle"))]

#[path = "../../isomem/tests/apart/mod.rs"]
mod apart;
mod live;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;

use isomem::{Mm, PAGE_SIZE};
use isomem_core::mirror::range::FaultError;
use isomem_core::notifier::Blocking;
use isomem_core::world::Access;
use isomem_drivers::userptr::{Job, Object, Policy, Stopped, SubmitError, UserPtr};
use isomem_linux::Linux;

use apart::apart;
use live::{Memory, busy, load, store, word};

fn open() -> (Mm, UserPtr<Linux>) {
    let mm = Mm::current().expect("these tests need userfaultfd: run them as root");
    let device = UserPtr::new(mm.core()).unwrap();
    (mm, device)
}

fn object(device: &UserPtr<Linux>, memory: &Memory) -> Object<Linux> {
    let object = device.object(memory.start, memory.len_bytes, Access::Write, Policy::Survives);
    object.unwrap()
}

fn get(job: &mut Job<'_, Linux>, memory: Memory, offset: usize) -> Result<u64, Stopped> {
    job.with(0, offset, 8, Access::Read, |world, pin| load(world, memory, pin))
}

fn put(job: &mut Job<'_, Linux>, memory: Memory, offset: usize, value: u64) -> Result<(), Stopped> {
    job.with(0, offset, 8, Access::Write, |world, pin| {
        store(world, memory, pin, value);
    })
}

fn cancelled<R>(result: &Result<R, SubmitError>) -> bool {
    matches!(result, Err(SubmitError::Stopped(Stopped::Cancelled(_))))
}

#[test]
fn usr_1_pages_are_got_again_after_unmap_and_remap_under_load() {
    apart("usr_1_pages_are_got_again_after_unmap_and_remap_under_load", || {
        let (mm, device) = open();
        let memory = Memory::new(4);
        let object = object(&device, &memory);
        let (stop, flown) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    let done = device.submit(&[&object], Blocking::May, move |job| {
                        for page in 0..4 {
                            put(job, memory, page * PAGE_SIZE, 7)?;
                        }
                        (0..4).try_fold(0, |sum, page| Ok(sum + get(job, memory, page * PAGE_SIZE)?))
                    });
                    match done {
                        // Never a mixture of old pages and new ones.
                        Ok(sum) => {
                            assert_eq!(sum, 28);
                            flown.fetch_add(1, SeqCst);
                        }
                        Err(SubmitError::Fault(FaultError::Hole { .. })) => {}
                        Err(_) => assert!(cancelled(&done), "{done:?}"),
                    }
                }
            });
            // A thread that starts maps pages, and would do so in the hole.
            busy(|| flown.load(SeqCst) > 0);
            memory.goes_and_comes(&mm);
            let before = flown.load(SeqCst);
            busy(|| flown.load(SeqCst) > before + 2);
            stop.store(true, SeqCst);
        });
    });
}

#[test]
fn usr_2_endless_work_ends_with_the_change_and_writes_nothing_after() {
    let (mm, device) = open();
    let memory = Memory::new(1);
    let (object, flies) = (object(&device, &memory), Arc::new(AtomicBool::new(false)));
    let begun = flies.clone();
    thread::scope(|scope| {
        let device = &device;
        let object = &object;
        let endless = scope.spawn(move || {
            device.submit(&[object], Blocking::May, move |job| {
                // It ends by an error only.
                for _ in 0..u64::MAX {
                    put(job, memory, 0, 1)?;
                    begun.store(true, SeqCst);
                }
                Ok(())
            })
        });
        busy(|| flies.load(SeqCst));
        mm.core().discard(memory.range()).unwrap();
        assert!(cancelled(&endless.join().unwrap()));
        assert_eq!(word(memory, 0).load(SeqCst), 0, "USR-2: a write after the change");
    });
}
