//! What a driver keeps beside the mirror's table, by the core's one loop: true when it began to be kept, or not kept.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use isomem_core::addr::VirtAddr;
use isomem_core::mirror::range::FaultError;
use isomem_core::notifier::{Answer, Attempt, CallbackScope, Invalidation, Subscriber};
use isomem_core::sync::Mutex;
use isomem_core::world::Access;
use isomem_sim::journal::Journal;
use isomem_sim::rig::{PER_BLOCK, Rig};

use common::{Times, explore, join, rounds, spawn};

/// A driver's note that a page may be used, under a lock that its callback takes.
struct Kept(Mutex<Option<VirtAddr>>);

impl Subscriber for Kept {
    fn start(&self, _: &Invalidation, _: &CallbackScope<'_>) {
        *self.0.lock() = None;
    }

    fn try_start(&self, _: &Invalidation, _: &CallbackScope<'_>) -> Answer {
        *self.0.lock() = None;
        Answer::Done
    }
}

fn keeps_what_is_true(journal: &Journal) {
    let rig = Rig::new(journal, 1);
    let kept = Arc::new(Kept(Mutex::new("kept", None)));
    let subscription = rig.mm().subscribe(rig.range(0, 1), kept.clone()).unwrap();
    let unmapper = spawn(&rig, "unmap", |rig| {
        for _ in 0..rounds(1, 100) {
            let _ = rig.unmap(0, 1);
            let _ = rig.map(0, 1);
        }
        let _ = rig.unmap(0, 1);
    });
    let driver = {
        let kept = kept.clone();
        spawn(&rig, "driver", move |rig| {
            let page = rig.range(0, 1);
            let addr = VirtAddr::new(page.start()).unwrap();
            for _ in 0..rounds(2, 100) {
                let state = rig.gpu(0).state();
                let _ = state.fault_then(page, &[(page, Access::Read)], &mut |read| {
                    let mut kept = kept.0.lock();
                    if read.is_stale() || state.table().get(addr).is_none() {
                        return Attempt::Retry;
                    }
                    *kept = Some(addr);
                    Attempt::Done(())
                });
            }
        })
    };
    join(vec![unmapper, driver]);
    // The last thing that happened to the page was an unmap, but for a look at it that found the hole.
    assert_eq!(*kept.0.lock(), None);
    drop(subscription);
    rig.shut_down();
}

#[test]
fn inst_1_what_is_kept_under_the_callbacks_lock_does_not_outlive_its_page() {
    let times = Times {
        plain: 4,
        schedules: 2_000,
    };
    explore(times, |journal, _| keeps_what_is_true(journal));
}

#[test]
fn inst_2_a_hole_is_told_and_the_device_is_refused_after_the_end() {
    let times = Times { plain: 1, schedules: 1 };
    explore(times, |journal, _| {
        let rig = Rig::new(journal, 1);
        let asked = AtomicU64::new(0);
        let page = rig.range(0, 1);
        let state = rig.gpu(0).state().clone();
        let keep = |count: u64| {
            let asked = &asked;
            state.fault_then(page, &[(page, Access::Write)], &mut |_| {
                // As if an entry were gone again, but for the last time.
                if asked.fetch_add(1, Ordering::Relaxed) + 1 < count {
                    Attempt::Retry
                } else {
                    Attempt::Done(count)
                }
            })
        };
        assert_eq!(keep(3), Ok(3));
        rig.unmap(0, 1).unwrap();
        assert!(matches!(keep(9), Err(FaultError::Hole { .. })));
        assert_eq!(asked.load(Ordering::Relaxed), 3);
        rig.gpu(0).close();
        assert_eq!(keep(9), Err(FaultError::Released));
        rig.shut_down();
    });
}

#[test]
fn sub_4_an_interval_hears_of_its_part_until_it_is_dropped() {
    let times = Times { plain: 1, schedules: 1 };
    explore(times, |journal, _| {
        let rig = Rig::new(journal, 2);
        let kept = Arc::new(Kept(Mutex::new("kept", None)));
        let interval = rig.mm().subscribe(rig.range(0, 1), kept.clone()).unwrap();
        let keeps = |page| {
            let addr = VirtAddr::new(rig.range(0, 1).start()).ok();
            *kept.0.lock() = addr;
            rig.discard(page, 1).unwrap();
            kept.0.lock().is_some()
        };
        assert!(keeps(1) && !keeps(0));
        drop(interval);
        assert!(keeps(0));
        rig.shut_down();
    });
}

/// A driver wants pages of two blocks, while another thread takes one or the other away all the time.
fn gets_its_turn(journal: &Journal) {
    let rig = Rig::new(journal, PER_BLOCK + 1);
    let asked = Arc::new(AtomicU64::new(0));
    let taker = spawn(&rig, "taker", |rig| {
        for round in 0..rounds(40, 2_000) {
            rig.discard(round % 2 * PER_BLOCK, 1).unwrap();
        }
    });
    let count = asked.clone();
    let driver = spawn(&rig, "driver", move |rig| {
        let state = rig.gpu(0).state();
        let wanted = [0, PER_BLOCK].map(|page| (rig.range(page, 1), Access::Write));
        let there = |(range, access)| state.table().has_all(range, access);
        let within = wanted[0].0.hull(wanted[1].0);
        let done = state.fault_then(within, &wanted, &mut |look| {
            count.fetch_add(1, Ordering::Relaxed);
            if look.is_stale() || !wanted.into_iter().all(there) {
                return Attempt::Retry;
            }
            Attempt::Done(())
        });
        assert_eq!(done, Ok(()));
    });
    join(vec![taker, driver]);
    // Under the model checker the second look has a ticket, and the first is the only one that may be in vain.
    let asked = asked.load(Ordering::Relaxed);
    assert!(!cfg!(feature = "shuttle") || asked <= 2, "FLT-3: {asked} looks");
    rig.shut_down();
}

#[test]
fn flt_3_who_wants_pages_of_two_blocks_gets_its_turn() {
    let times = Times {
        plain: 4,
        schedules: 1_000,
    };
    explore(times, |journal, _| gets_its_turn(journal));
}
