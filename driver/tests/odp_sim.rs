//! The network card in the simulated kernel, before every checker: its queues work while the program changes everything about the memory.
//!
//! On plain threads by default; `--features shuttle --release` tells the same stories under many schedules.

#[path = "../../sim/tests/common/mod.rs"]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use isomem_core::addr::PAGE_SIZE;
use isomem_core::device::Device;
use isomem_core::mirror::copy::ReachError;
use isomem_core::mm::{EntryError, MemoryConfig, MemoryKind};
use isomem_core::notifier::{Answer, CallbackScope, Invalidation};
use isomem_core::world::Access;
use isomem_drivers::odp::{Advice, Completion, Key, Nic, OdpError, Queue, Segment, Work};
use isomem_sim::journal::Journal;
use isomem_sim::rig::Rig;
use isomem_sim::world::{SimWindow, SimWorld};

use common::{Times, explore, join, rounds, spawn, value};

const TIMES: Times = Times {
    plain: 5,
    schedules: 500,
};
/// Requests of each queue.
const REQUESTS: usize = rounds(3, 200);
/// Rounds of who changes things meanwhile.
const CHANGES: usize = rounds(2, 60);

const ANYWHERE: SimWindow = SimWindow::new(0, usize::MAX, Access::Write);

/// A machine with a card, which is gone before the machine is.
fn with_nic(journal: &Journal, pages: usize, story: impl FnOnce(&Rig, &Nic<SimWorld>)) {
    let rig = Rig::new(journal, pages);
    let nic = Nic::open(rig.mm()).unwrap();
    story(&rig, &nic);
    nic.close().unwrap();
    rig.shut_down();
}

fn implicit(nic: &Nic<SimWorld>) -> Key {
    nic.register(ANYWHERE, None, Access::Write).unwrap()
}

/// `words` words of a page, from the first on.
fn words(rig: &Rig, key: Key, page: usize, words: usize) -> Segment {
    Segment {
        key,
        addr: rig.addr(page, 0) as usize,
        len_bytes: words * 8,
    }
}

fn copy(rig: &Rig, key: Key, from: usize, to: usize) -> Work {
    Work::Copy {
        from: words(rig, key, from, 4),
        to: words(rig, key, to, 4),
    }
}

/// Posts one request and waits for it.
fn one(queue: &Queue<SimWorld>, id: usize, work: Work) -> Result<u64, OdpError> {
    queue.post(id as u64, work)?;
    let Completion { id: done, result } = queue.wait()?.expect("it was posted");
    assert_eq!(done, id as u64);
    result
}

fn faulted(result: Result<u64, OdpError>) -> bool {
    matches!(
        result,
        Err(OdpError::Reach(ReachError::Fault(_) | ReachError::TakenAway { .. }))
    )
}

#[test]
fn odp_3_requests_on_memory_that_is_unmapped_and_mapped_again_fail_in_order_or_succeed() {
    explore(TIMES, |journal, _| {
        with_nic(journal, 3, |rig, nic| {
            let key = implicit(nic);
            rig.cpu_write(0, 0, 7);
            let queue = nic.queue().unwrap();
            let poster = spawn(rig, "poster", move |rig| {
                for round in 0..REQUESTS {
                    (0..2).for_each(|id| queue.post(id, copy(rig, key, 0, 1)).unwrap());
                    let first = queue.wait().unwrap().unwrap();
                    let second = queue.wait().unwrap().unwrap();
                    assert_eq!((first.id, second.id), (0, 1), "round {round}");
                    match first.result {
                        Ok(bytes) => assert_eq!(bytes, 32),
                        failed => {
                            assert!(faulted(failed), "{failed:?}");
                            assert_eq!(second.result, Err(OdpError::Flushed));
                        }
                    }
                    queue.reset().unwrap();
                }
            });
            let changer = spawn(rig, "changer", |rig| {
                for _ in 0..CHANGES {
                    rig.unmap(1, 1).unwrap();
                    rig.map(1, 1).unwrap();
                    let _ = rig.discard(2, 1);
                }
            });
            join(vec![poster, changer]);
        });
    });
}

#[test]
fn odp_2_nothing_is_written_through_a_region_after_it_was_deregistered() {
    explore(TIMES, |journal, _| {
        with_nic(journal, 2, |rig, nic| {
            rig.cpu_write(0, 0, 7);
            let region = nic.register(ANYWHERE, Some(rig.range(0, 2)), Access::Write).unwrap();
            let queue = nic.queue().unwrap();
            for id in 0..4 {
                queue.post(id, copy(rig, region, 0, 1)).unwrap();
            }
            nic.deregister(region).unwrap();
            // The page is the program's alone from here on.
            rig.cpu_write(1, 0, 8);
            while let Some(completion) = queue.wait().unwrap() {
                match completion.result {
                    Ok(_) | Err(OdpError::NoRegion(_) | OdpError::Flushed) => {}
                    other => panic!("{other:?}"),
                }
            }
            if !rig.journal().is_decided() {
                assert_eq!(rig.cpu_read(1, 0), 8, "written to after it was deregistered");
            }
            let again = nic.register(ANYWHERE, Some(rig.range(0, 2)), Access::Write).unwrap();
            assert_ne!(again, region, "ODP-4");
            assert_eq!(nic.deregister(region), Err(OdpError::NoRegion(region)));
        });
    });
}

#[test]
fn life_6_a_childs_requests_are_refused_and_its_parents_go_on() {
    explore(TIMES, |journal, _| {
        with_nic(journal, 2, |rig, nic| {
            let key = implicit(nic);
            let queue = nic.queue().unwrap();
            let wrong = Err(OdpError::Entry(EntryError::WrongAddressSpace));
            for round in 0..CHANGES {
                rig.cpu_write(0, 0, value(1, round));
                queue.post(0, copy(rig, key, 0, 1)).unwrap();
                let child = rig.fork();
                child.enter();
                assert_eq!(queue.post(1, copy(rig, key, 0, 1)), wrong);
                assert_eq!(nic.register(ANYWHERE, None, Access::Read).map(drop), wrong);
                assert_eq!(nic.deregister(key), wrong);
                assert_eq!(queue.wait().map(drop), wrong);
                rig.process().enter();
                child.exit();
                assert_eq!(queue.wait().unwrap().unwrap().result, Ok(32));
                assert_eq!(rig.cpu_read(1, 0), value(1, round));
            }
        });
    });
}

#[test]
fn mig_13_advice_brings_in_or_maps_what_is_there_and_asks_for_no_more_than_the_region_permits() {
    explore(TIMES, |journal, _| {
        with_nic(journal, 3, |rig, nic| {
            rig.cpu_write(0, 0, 7);
            let key = nic.register(ANYWHERE, None, Access::Read).unwrap();
            let all = Segment {
                key,
                addr: rig.addr(0, 0) as usize,
                len_bytes: 3 << 12,
            };
            assert_eq!(nic.advise(Advice::Resident, &[all]), Ok(1));
            assert_eq!(nic.advise(Advice::Prefetch, &[all]), Ok(3));
            let refused = nic.advise(Advice::PrefetchWrite, &[all]);
            assert!(matches!(refused, Err(OdpError::NotInRegion { .. })), "{refused:?}");
            let (segment, advice) = (all, Advice::Resident);
            let queue = nic.queue().unwrap();
            assert_eq!(one(&queue, 1, Work::Advise { advice, segment }), Ok(3));
        });
    });
}

/// A device in whose callback an invalidation stays until it is let go.
struct Gate {
    rig: Rig,
    closed: Arc<AtomicBool>,
    reached: Arc<AtomicBool>,
}

impl Device for Gate {
    fn invalidate(&self, _invalidation: &Invalidation, _scope: &CallbackScope<'_>) {
        self.reached.store(true, SeqCst);
        until(&self.rig, || !self.closed.load(SeqCst));
    }

    fn try_invalidate(&self, _invalidation: &Invalidation, _scope: &CallbackScope<'_>) -> Answer {
        Answer::Done
    }

    fn release(&self) {}
}

fn until(rig: &Rig, there: impl Fn() -> bool) {
    while !there() && !rig.journal().is_decided() {
        rig.kernel().pause(1);
    }
}

/// The second request's page cannot be had before somebody acts who waits for the first request: who is told late is never told.
#[test]
fn odp_5_a_completion_is_told_before_a_miss_that_takes_long() {
    explore(TIMES, |journal, _| {
        with_nic(journal, 2, |rig, nic| {
            let key = implicit(nic);
            let queue = nic.queue().unwrap();
            assert_eq!(one(&queue, 0, copy(rig, key, 0, 0)), Ok(32));
            let [closed, reached] = [true, false].map(|is| Arc::new(AtomicBool::new(is)));
            let memory = MemoryConfig {
                name: "gate",
                capacity_bytes: PAGE_SIZE,
                mirror_budget_bytes: Some(0),
                kind: MemoryKind::Private,
            };
            let handle = rig.mm().register(memory).unwrap();
            let gate = Gate {
                rig: rig.clone(),
                closed: closed.clone(),
                reached: reached.clone(),
            };
            let mirror = handle.mirror(Arc::new(gate)).unwrap();
            let discard = spawn(rig, "discard", |rig| rig.discard(1, 1).unwrap());
            until(rig, || reached.load(SeqCst));
            queue.post(1, copy(rig, key, 0, 0)).unwrap();
            queue.post(2, copy(rig, key, 1, 1)).unwrap();
            assert_eq!(queue.wait().unwrap().map(|done| done.id), Some(1));
            closed.store(false, SeqCst);
            assert_eq!(queue.wait().unwrap().map(|done| done.id), Some(2));
            discard.join().unwrap();
            mirror.unregister().unwrap();
            handle.unregister().unwrap();
        });
    });
}
