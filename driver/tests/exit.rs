//! The address space exits while drivers work on it. Alone in its process, because the others would be refused from then on.
#![cfg(not(feature = "shuttle"))]

mod memory;

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;

use isomem::{Mm, PAGE_SIZE};
use isomem_core::mirror::pin::Pin;
use isomem_core::mirror::range::FaultError;
use isomem_core::notifier::Blocking;
use isomem_core::world::Access;
use isomem_drivers::shadow::{GuestError, MemSlot, Shadow};
use isomem_drivers::userptr::{Policy, Stopped, SubmitError, UserPtr};
use isomem_linux::Linux;

use memory::{Memory, busy, store, word};

#[test]
fn life_3_nothing_works_on_after_exit_under_load() {
    let mm = Mm::current().expect("this test needs userfaultfd: run it as root");
    let device = UserPtr::new(mm.core()).unwrap();
    let memory = Memory::new(1);
    let object = device.object(memory.start, memory.len_bytes, Access::Write, Policy::Survives);
    let object = object.unwrap();
    let guests = Memory::new(1);
    let slot = MemSlot {
        first_gfn: 0,
        host: guests.range(),
    };
    let machine = Shadow::new(mm.core(), &[slot]).unwrap();
    let (flown, ran) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                let done = device.submit(&[&object], Blocking::May, move |job| {
                    job.with(0, 0, 8, Access::Write, |world, pin| store(world, memory, pin, 1))
                });
                match done {
                    Ok(()) => flown.fetch_add(1, SeqCst),
                    Err(SubmitError::Fault(FaultError::Released)) => return,
                    Err(SubmitError::Stopped(Stopped::Cancelled(_))) => 0,
                    Err(error) => panic!("{error}"),
                };
            }
        });
        scope.spawn(|| {
            loop {
                let last = PAGE_SIZE - 8;
                let write = move |world: &Linux, pin: Pin<'_>| store(world, guests, pin, 1);
                let done = machine.run(move |guest| guest.with(last, 8, Access::Write, write));
                match done {
                    Ok(()) => ran.fetch_add(1, SeqCst),
                    Err(GuestError::Fault(FaultError::Released)) => return,
                    Err(error) => panic!("{error}"),
                };
            }
        });
        busy(|| flown.load(SeqCst) > 10 && ran.load(SeqCst) > 10);
        mm.core().exit();
        word(memory, 0).store(2, SeqCst);
        word(guests, PAGE_SIZE - 8).store(2, SeqCst);
    });
    assert_eq!(word(memory, 0).load(SeqCst), 2);
    assert_eq!(word(guests, PAGE_SIZE - 8).load(SeqCst), 2);
    assert_eq!(machine.entries(), 0);
}
