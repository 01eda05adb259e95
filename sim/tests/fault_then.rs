//! What a driver keeps beside the mirror's table, by the core's one loop: true when it began to be kept, or not kept.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use isomem_core::addr::VirtAddr;
use isomem_core::mirror::range::FaultError;
use isomem_core::notifier::{Answer, Attempt, CallbackScope, Invalidation, Subscriber};
use isomem_core::world::Access;
use isomem_sim::journal::Journal;
use isomem_sim::rig::Rig;

use common::{Times, explore, join, rounds, spawn};

/// A driver's note that a page may be used, under a lock that its callback takes.
#[derive(Default)]
struct Kept(Mutex<Option<VirtAddr>>);

impl Subscriber for Kept {
    fn start(&self, _: &Invalidation, _: &CallbackScope<'_>) {
        *self.0.lock().unwrap() = None;
    }

    fn try_start(&self, _: &Invalidation, _: &CallbackScope<'_>) -> Answer {
        *self.0.lock().unwrap() = None;
        Answer::Done
    }
}

fn keeps_what_is_true(journal: &Journal) {
    let rig = Rig::new(journal, 1);
    let kept = Arc::new(Kept::default());
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
                    let mut kept = kept.0.lock().unwrap();
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
    assert_eq!(*kept.0.lock().unwrap(), None);
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
