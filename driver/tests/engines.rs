//! Both engines on live Linux, on memory of this process: it needs userfaultfd.
#![cfg(not(feature = "shuttle"))]

#[path = "../../isomem/tests/apart/mod.rs"]
mod apart;
mod live;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use isomem::{Mm, PAGE_SIZE};
use isomem_core::mirror::range::FaultError;
use isomem_core::mm::EntryError;
use isomem_core::world::Access;
use isomem_drivers::engines::{Engine, EngineError, Engines, MAX_QUEUES, Queue, Restores, Unit};
use isomem_linux::Linux;

use apart::apart;
use live::{Memory, busy, in_child, load, store, word};

const BOTH: [Engine; 2] = [Engine::Graphics, Engine::Compute];

fn open() -> (Mm, Engines<Linux>) {
    let mm = Mm::current().expect("these tests need userfaultfd: run them as root");
    let device = Engines::new(mm.core()).unwrap();
    (mm, device)
}

fn queue(device: &Engines<Linux>, engine: Engine, memory: Memory) -> Queue<Linux> {
    device.queue(engine, memory.range(), Access::Write).unwrap()
}

fn get(unit: &mut Unit<'_, Linux>, memory: Memory, offset: usize) -> Result<u64, EngineError> {
    let reach = |world: &Linux, pin: isomem_core::mirror::pin::Pin<'_>| load(world, memory, pin);
    unit.with(memory.start + offset, 8, Access::Read, reach)
}

fn put(unit: &mut Unit<'_, Linux>, memory: Memory, offset: usize, value: u64) -> Result<(), EngineError> {
    unit.with(memory.start + offset, 8, Access::Write, |world, pin| {
        store(world, memory, pin, value);
    })
}

fn is_hole<R>(result: &Result<R, EngineError>) -> bool {
    matches!(result, Err(EngineError::Fault(FaultError::Hole { .. })))
}

#[test]
fn eng_3_both_engines_go_on_while_pages_go_and_come() {
    apart("eng_3_both_engines_go_on_while_pages_go_and_come", || {
        let (mm, device) = open();
        let memory = Memory::new(4);
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            [0, 0].map(|_| Arc::new(AtomicU64::new(0))),
        );
        thread::scope(|scope| {
            for (engine, done) in BOTH.into_iter().zip(&done) {
                let (device, stop) = (&device, &stop);
                scope.spawn(move || {
                    let queue = queue(device, engine, memory);
                    while !stop.load(SeqCst) {
                        let (told, ended) = (done.clone(), stop.clone());
                        let work = queue.launch(move |unit| {
                            while !ended.load(SeqCst) {
                                for page in 0..4 {
                                    put(unit, memory, page * PAGE_SIZE, 7)?;
                                    let seen = get(unit, memory, page * PAGE_SIZE)?;
                                    assert!(seen == 7 || seen == 0, "neither written nor dropped: {seen}");
                                }
                                told.fetch_add(1, SeqCst);
                            }
                            Ok(())
                        });
                        let ended = work.unwrap().wait();
                        assert!(ended.is_ok() || is_hole(&ended), "{ended:?}");
                    }
                });
            }
            // A thread that starts maps pages, and would do so in the hole.
            busy(|| done.iter().all(|done| done.load(SeqCst) > 0));
            memory.goes_and_comes(&mm);
            let before = done.clone().map(|done| done.load(SeqCst));
            busy(|| {
                done.iter()
                    .zip(before)
                    .all(|(done, before)| done.load(SeqCst) > before + 2)
            });
            stop.store(true, SeqCst);
        });
    });
}

#[test]
fn eng_3_a_large_queue_gets_its_turn_although_its_pages_keep_going() {
    const BLOCKS: usize = 32;
    let (mm, device) = open();
    let memory = Memory::new(BLOCKS * 512);
    // Large enough that in the time that it takes to bring all of it in some page goes.
    let queue = queue(&device, Engine::Compute, memory);
    let stop = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        for first in 0..2 {
            let (mm, stop) = (&mm, &stop);
            scope.spawn(move || {
                let mut page = first;
                while !stop.load(SeqCst) {
                    page = (page + 511) % (BLOCKS * 512);
                    mm.core().discard(memory.range().skip(page).unwrap().take(1)).unwrap();
                }
            });
        }
        let stopped = stop.clone();
        let work = queue.launch(move |unit| {
            for round in 0.. {
                put(unit, memory, round % BLOCKS * 512 * PAGE_SIZE, 1)?;
                if stopped.load(SeqCst) {
                    break;
                }
            }
            Ok(())
        });
        let over = || {
            device
                .restores()
                .is_ok_and(|restores| restores.restored >= 20 || restores.failed > 0)
        };
        busy(over);
        stop.store(true, SeqCst);
        assert_eq!(work.unwrap().wait(), Ok(()));
    });
}

#[test]
fn eng_4_the_worker_of_an_idle_process_sleeps() {
    let (mm, device) = open();
    let memory = Memory::new(2);
    let queue = queue(&device, Engine::Compute, memory);
    let events = 20;
    let sleeps = || busy(|| device.restores().unwrap().sleeps);
    for round in 0..events {
        sleeps();
        mm.core().discard(memory.range()).unwrap();
        let work = queue.launch(move |unit| put(unit, memory, 0, round));
        work.unwrap().wait().unwrap();
    }
    let restored = Restores {
        asked: events,
        woken: events,
        restored: events,
        failed: 0,
        sleeps: true,
    };
    sleeps();
    assert_eq!(device.restores(), Ok(restored));
    // Evicted again and again, with nothing to do; and then for a while not even that.
    for _ in 0..events {
        mm.core().discard(memory.range()).unwrap();
    }
    thread::sleep(Duration::from_millis(300));
    assert_eq!(device.restores(), Ok(restored), "ENG-4: the worker is not quiet");
}

#[test]
fn eng_2_endless_work_ends_with_the_device_and_writes_nothing_after() {
    let (mm, device) = open();
    let memory = Memory::new(2);
    let queues = BOTH.map(|engine| queue(&device, engine, memory));
    let begun = [0, 0].map(|_| Arc::new(AtomicBool::new(false)));
    let works: Vec<_> = (0..2)
        .map(|number| {
            let begun = begun[number].clone();
            let endless = queues[number].launch(move |unit| {
                // It ends by an error only.
                for _ in 0..u64::MAX {
                    put(unit, memory, number * PAGE_SIZE, 1)?;
                    begun.store(true, SeqCst);
                }
                Ok(())
            });
            endless.unwrap()
        })
        .collect();
    busy(|| begun.iter().all(|begun| begun.load(SeqCst)));
    // Evicted, or about to be restored.
    mm.core().discard(memory.range()).unwrap();
    device.close();
    mm.core().discard(memory.range()).unwrap();
    for work in works {
        assert_eq!(work.wait(), Err(FaultError::Released.into()));
    }
    for page in 0..2 {
        assert_eq!(word(memory, page * PAGE_SIZE).load(SeqCst), 0, "a write after the end");
    }
    let late = queues[1].launch(move |unit| get(unit, memory, 0));
    assert_eq!(late.unwrap().wait(), Err(FaultError::Released.into()));
}

#[test]
fn life_6_a_forks_child_is_refused_and_the_parent_works_on() {
    let (_mm, device) = open();
    let memory = Memory::new(2);
    let queues = BOTH.map(|engine| queue(&device, engine, memory));
    for round in 0..10 {
        for queue in &queues {
            let work = queue.launch(move |unit| put(unit, memory, 0, round));
            work.unwrap().wait().unwrap();
        }
        let [graphics, compute] = queues
            .each_ref()
            .map(|queue| queue.launch(move |unit| get(unit, memory, 0)).unwrap());
        let refused = in_child(|| {
            let entry = || EngineError::Fault(FaultError::Entry(EntryError::WrongAddressSpace));
            let refused = queues
                .iter()
                .all(|queue| queue.launch(|_| Ok(())).err() == Some(entry()));
            let waited = graphics.wait() == Err(entry());
            // What it inherited is dropped without a lock.
            drop(compute);
            refused && waited && word(memory, 0).load(SeqCst) == round
        });
        assert!(refused);
    }
    assert!(in_child(|| {
        drop(queues);
        device.close();
        true
    }));
}

#[test]
fn eng_3_there_are_so_many_queues_and_each_gets_its_turn() {
    let (mm, device) = open();
    let memory = Memory::new(MAX_QUEUES);
    let queues: Vec<_> = (0..MAX_QUEUES)
        .map(|_| queue(&device, Engine::Compute, memory))
        .collect();
    let full = device.queue(Engine::Compute, memory.range(), Access::Read);
    assert_eq!(full.err(), Some(EngineError::Full));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                mm.core().discard(memory.range()).unwrap();
            }
        });
        let works: Vec<_> = (0..MAX_QUEUES)
            .map(|number| {
                let work = queues[number].launch(move |unit| {
                    for round in 0..50 {
                        put(unit, memory, number * PAGE_SIZE, round)?;
                    }
                    Ok(())
                });
                work.unwrap()
            })
            .collect();
        for work in works {
            assert_eq!(work.wait(), Ok(()));
        }
        stop.store(true, SeqCst);
    });
    drop(queues);
    queue(&device, Engine::Compute, memory);
}
