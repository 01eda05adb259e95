//! Two engines in the simulated kernel, before every checker. An access to memory that is gone is a fault of the simulated CPU, and fails the story.
//!
//! On plain threads by default; `--features shuttle` tells the same stories under many schedules.

#[path = "../../sim/tests/common/mod.rs"]
mod common;
mod stories;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use isomem_core::addr::PAGE_SIZE;
use isomem_core::mirror::range::FaultError;
use isomem_core::world::Access;
use isomem_drivers::engines::{Engine, EngineError, Engines, Queue, Restores, Unit};
use isomem_sim::journal::Journal;
use isomem_sim::kernel::Op;
use isomem_sim::rig::Rig;
use isomem_sim::world::SimWorld;

use common::{Times, explore, join, spawn, value};
use stories::{ROUNDS, TIMES, forked_and_protected, taken_by_another_device, touch, used_by_the_program};

const NAME: &str = "engines";
const BOTH: [Engine; 2] = [Engine::Graphics, Engine::Compute];

type Device = Engines<SimWorld>;

fn open(rig: &Rig) -> Arc<Device> {
    Arc::new(Engines::new(rig.mm()).expect("the heap is large"))
}

fn close(rig: &Rig, device: Arc<Device>) {
    close_device(device);
    rig.shut_down();
}

fn close_device(device: Arc<Device>) {
    Arc::into_inner(device).expect("nobody uses it any more").close();
}

/// A queue on the first `count` pages of the story.
fn queue(rig: &Rig, device: &Device, engine: Engine, count: usize) -> Queue<SimWorld> {
    let made = device.queue(engine, rig.range(0, count), Access::Write);
    made.expect("there are not so many queues")
}

/// One access of a word on page `page` of the story, if `may` says nothing against it.
fn access_if(
    unit: &mut Unit<'_, SimWorld>,
    first: usize,
    (page, word): (usize, usize),
    op: Op,
    may: impl FnOnce(),
) -> Result<u64, EngineError> {
    let addr = (first + page) * PAGE_SIZE + word * 8;
    unit.with(addr, 8, op.access(), |world, pin| {
        may();
        touch(world, NAME, &pin, word, op)
    })
}

fn access(unit: &mut Unit<'_, SimWorld>, first: usize, at: (usize, usize), op: Op) -> Result<u64, EngineError> {
    access_if(unit, first, at, op, || {})
}

/// Writes word `word` of both pages, and reads both again.
fn write_both(rig: &Rig, queue: &Queue<SimWorld>, word: usize, number: u64) -> Result<[u64; 2], EngineError> {
    let first = rig.page(0);
    let work = queue.launch(move |unit| {
        for page in 0..2 {
            access(unit, first, (page, word), Op::Store(number))?;
        }
        Ok([
            access(unit, first, (0, word), Op::Load)?,
            access(unit, first, (1, word), Op::Load)?,
        ])
    })?;
    work.wait()
}

fn is_hole<R>(result: &Result<R, EngineError>) -> bool {
    matches!(result, Err(EngineError::Fault(FaultError::Hole { .. })))
}

fn is_released<R>(result: &Result<R, EngineError>) -> bool {
    matches!(result, Err(EngineError::Fault(FaultError::Released)))
}

/// Both engines on the same two pages under `load`; what the program, the engines and the load left must be there at the end.
fn under(journal: &Journal, load: impl Fn(&Rig) + Send + 'static) {
    let rig = Rig::new(journal, 2);
    let device = open(&rig);
    let mut threads = vec![spawn(&rig, "cpu", used_by_the_program), spawn(&rig, "load", load)];
    for (number, engine) in BOTH.into_iter().enumerate() {
        let device = device.clone();
        threads.push(spawn(&rig, ["graphics", "compute"][number], move |rig| {
            let queue = queue(rig, &device, engine, 2);
            for round in 0..ROUNDS {
                let number = number as u64 + 2;
                let done = write_both(rig, &queue, number as usize, value(number, round));
                if rig.journal().is_decided() {
                    return;
                }
                assert_eq!(done, Ok([value(number, round); 2]), "nobody else writes there");
            }
        }));
    }
    join(threads);
    for (number, engine) in BOTH.into_iter().enumerate() {
        let queue = queue(&rig, &device, engine, 2);
        let done = write_both(&rig, &queue, number + 1, value(9, number));
        if !rig.journal().is_decided() {
            assert_eq!(done, Ok([value(9, number); 2]));
            assert_eq!(rig.cpu_read(1, number + 1), value(9, number));
        }
    }
    close(&rig, device);
}

#[test]
fn eng_3_both_engines_go_on_while_another_device_takes_the_pages() {
    explore(TIMES, |journal, _| under(journal, taken_by_another_device));
}

#[test]
fn eng_3_both_engines_go_on_through_forks_and_changes_of_protection() {
    explore(TIMES, |journal, _| under(journal, forked_and_protected));
}

/// A compute queue on two pages, of which the second goes and comes: while it is gone no work of the queue makes an access, to the first neither.
fn stands_still_while_a_page_is_gone(journal: &Journal) {
    let rig = Rig::new(journal, 2);
    let device = open(&rig);
    let gone = Arc::new(AtomicBool::new(false));
    let unmapped = gone.clone();
    let worker = device.clone();
    let threads = vec![
        spawn(&rig, "unmap", move |rig| {
            for _ in 0..ROUNDS {
                rig.unmap(1, 1).unwrap();
                unmapped.store(true, SeqCst);
                rig.kernel().pause(1);
                unmapped.store(false, SeqCst);
                rig.map(1, 1).unwrap();
            }
        }),
        spawn(&rig, "compute", move |rig| {
            let queue = queue(rig, &worker, Engine::Compute, 2);
            for round in 0..ROUNDS {
                let (gone, first) = (gone.clone(), rig.page(0));
                let work = queue.launch(move |unit| {
                    for _ in 0..4 {
                        access_if(unit, first, (0, 1), Op::Store(value(2, round)), || {
                            assert!(!gone.load(SeqCst), "ENG-2: a queue runs without one of its pages");
                        })?;
                    }
                    Ok(())
                });
                let done = work.unwrap().wait();
                assert!(done.is_ok() || is_hole(&done), "{done:?}");
            }
        }),
    ];
    join(threads);
    let queue = queue(&rig, &device, Engine::Compute, 2);
    assert_eq!(write_both(&rig, &queue, 1, 9), Ok([9; 2]));
    drop(queue);
    close(&rig, device);
}

#[test]
fn eng_1_a_compute_queue_stands_still_while_one_of_its_pages_is_gone() {
    explore(TIMES, |journal, _| stands_still_while_a_page_is_gone(journal));
}

#[test]
fn eng_2_graphics_work_beside_what_goes_is_not_disturbed() {
    explore(TIMES, |journal, _| {
        let rig = Rig::new(journal, 2);
        let device = open(&rig);
        let worker = device.clone();
        let threads = vec![
            spawn(&rig, "unmap", |rig| {
                for _ in 0..ROUNDS {
                    rig.unmap(1, 1).unwrap();
                    rig.map(1, 1).unwrap();
                }
                rig.unmap(1, 1).unwrap();
            }),
            spawn(&rig, "graphics", move |rig| {
                let queue = queue(rig, &worker, Engine::Graphics, 2);
                for round in 0..ROUNDS {
                    let (number, first) = (value(2, round), rig.page(0));
                    let on = move |page| queue_word(first, page, number);
                    assert_eq!(queue.launch(on(0)).unwrap().wait(), Ok(number));
                    let beside = queue.launch(on(1)).unwrap().wait();
                    assert!(beside.is_ok() || is_hole(&beside), "{beside:?}");
                }
            }),
        ];
        join(threads);
        close(&rig, device);
    });
}

/// Work that writes a word of a page and reads it again.
fn queue_word(
    first: usize,
    page: usize,
    number: u64,
) -> impl FnOnce(&mut Unit<'_, SimWorld>) -> Result<u64, EngineError> + Send {
    move |unit| {
        access(unit, first, (page, 1), Op::Store(number))?;
        access(unit, first, (page, 1), Op::Load)
    }
}

#[test]
fn life_3_no_work_follows_the_exit_of_the_address_space() {
    explore(TIMES, |journal, _| {
        let rig = Rig::new(journal, 2);
        let device = open(&rig);
        let mut threads = vec![spawn(&rig, "exit", Rig::exit)];
        for engine in BOTH {
            let device = device.clone();
            threads.push(spawn(&rig, "gpu", move |rig| {
                let queue = queue(rig, &device, engine, 2);
                for round in 0..ROUNDS {
                    let done = write_both(rig, &queue, 1, value(2, round));
                    assert!(done.is_ok() || is_released(&done), "{done:?}");
                }
            }));
        }
        join(threads);
        for engine in BOTH {
            let over = write_both(&rig, &queue(&rig, &device, engine, 2), 1, 0);
            assert!(is_released(&over), "{over:?}");
        }
        close(&rig, device);
    });
}

#[test]
fn life_2_a_device_ends_while_a_queue_is_evicted_and_its_work_waits() {
    explore(TIMES, |journal, _| {
        let rig = Rig::new(journal, 2);
        let device = open(&rig);
        let queues = BOTH.map(|engine| queue(&rig, &device, engine, 2));
        let first = rig.page(0);
        let works = [0, 1, 1].map(|number| {
            let work = queues[number].launch(move |unit| {
                for round in 0..4 * ROUNDS {
                    access(unit, first, (round % 2, 1), Op::Add(1))?;
                }
                Ok(())
            });
            work.unwrap()
        });
        let load = spawn(&rig, "load", |rig| {
            for _ in 0..ROUNDS {
                rig.discard(1, 1).unwrap();
            }
        });
        // Somewhere in the middle of that.
        close_device(device);
        for work in works {
            let done = work.wait();
            assert!(done.is_ok() || is_released(&done), "{done:?}");
        }
        load.join().unwrap();
        for queue in &queues {
            let over = write_both(&rig, queue, 1, 0);
            assert!(is_released(&over), "{over:?}");
        }
        drop(queues);
        rig.shut_down();
    });
}

#[test]
fn eng_4_the_worker_wakes_when_work_waits_and_never_else() {
    explore(
        Times {
            plain: 4,
            schedules: 500,
        },
        |journal, _| {
            let rig = Rig::new(journal, 2);
            let device = open(&rig);
            let queue = queue(&rig, &device, Engine::Compute, 2);
            let events = 3;
            let sleeps = || {
                while !device.restores().unwrap().sleeps && !rig.journal().is_decided() {
                    rig.kernel().pause(1);
                }
            };
            for round in 0..events {
                sleeps();
                // Evicted, and restored when there is work.
                rig.discard(1, 1).unwrap();
                assert_eq!(write_both(&rig, &queue, 1, round), Ok([round; 2]));
            }
            sleeps();
            let restored = Restores {
                asked: events,
                woken: events,
                restored: events,
                failed: 0,
                sleeps: true,
            };
            assert_eq!(device.restores(), Ok(restored));
            // Evicted again and again, with nothing to do.
            for _ in 0..ROUNDS {
                rig.discard(0, 2).unwrap();
                rig.kernel().pause(1);
            }
            assert_eq!(device.restores(), Ok(restored), "ENG-4: the worker is not quiet");
            drop(queue);
            close(&rig, device);
        },
    );
}

#[test]
fn eng_5_a_pass_that_must_not_wait_evicts_although_an_access_is_in_flight() {
    explore(
        Times {
            plain: 4,
            schedules: 500,
        },
        |journal, _| {
            let rig = Rig::new(journal, 2);
            let device = open(&rig);
            let queue = queue(&rig, &device, Engine::Compute, 2);
            // The kernel tells of changes where pages have migrated once.
            rig.migrate(0, 2);
            rig.home(0, 2);
            let first = rig.page(0);
            let (told, refused) = (rig.clone(), rig.mm().stats().invalidations_refused);
            let work = queue.launch(move |unit| {
                access(unit, first, (0, 1), Op::Store(1))?;
                // An access to the other page, which nobody waits for.
                unit.with(first * PAGE_SIZE, 8, Access::Read, |_, _| {
                    let discard = spawn(&told, "discard", |rig| {
                        rig.late_discard(1, 1).unwrap();
                        // Until it was told.
                        rig.gpu(0).state().synchronize().unwrap();
                    });
                    discard.join().unwrap();
                })?;
                access(unit, first, (0, 1), Op::Load)
            });
            assert_eq!(work.unwrap().wait(), Ok(1));
            assert_eq!(rig.mm().stats().invalidations_refused, refused);
            assert_eq!(device.restores().unwrap().asked, 2, "the queue was not evicted");
            drop(queue);
            close(&rig, device);
        },
    );
}

#[test]
fn inv_5_an_invalidation_elsewhere_evicts_nobody() {
    explore(
        Times {
            plain: 1,
            schedules: 200,
        },
        |journal, _| {
            let rig = Rig::new(journal, 3);
            let device = open(&rig);
            let queue = queue(&rig, &device, Engine::Compute, 2);
            assert_eq!(write_both(&rig, &queue, 1, 5), Ok([5; 2]));
            rig.discard(2, 1).unwrap();
            assert_eq!(write_both(&rig, &queue, 1, 6), Ok([6; 2]));
            assert_eq!(device.restores().unwrap().asked, 1);
            let first = rig.page(0);
            let outside = queue.launch(move |unit| access(unit, first, (2, 0), Op::Load));
            let outside = outside.unwrap().wait();
            assert!(matches!(outside, Err(EngineError::Outside { .. })), "{outside:?}");
            drop(queue);
            close(&rig, device);
        },
    );
}
