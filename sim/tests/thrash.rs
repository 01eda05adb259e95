//! Pages that two sides pull to and fro (MIG-13), before every checker: with damping each side goes on, and the page goes to and fro a bounded number of
//! times, whoever runs when. Time is the simulated kernel's, so waits are counted and cost nothing.

mod common;

use common::{Times, explore, join, rounds, spawn, value};
use isomem_core::mirror::range::Placement;
use isomem_core::mm::ThrashPolicy;
use isomem_core::stats::Stats;
use isomem_sim::device::GpuConfig;
use isomem_sim::journal::Journal;
use isomem_sim::rig::{Config, PER_BLOCK, Rig};

/// What waits, waits for longer than anything else does; what stays, stays for good.
const BOUNDS: ThrashPolicy = ThrashPolicy {
    residency_ns: 1 << 40,
    throttle_after: 3,
    in_place_after: 6,
    in_place_ns: 1 << 60,
};

const fn taking(name: &'static str, memory_pages: usize, thrash: ThrashPolicy) -> GpuConfig {
    GpuConfig {
        memory_pages,
        placement: Placement::OnTouch,
        thrash,
        ..GpuConfig::named(name)
    }
}

const DAMPED: &[GpuConfig] = &[taking("gpu 0", 8, BOUNDS), taking("gpu 1", 8, BOUNDS)];
const FREE: &[GpuConfig] = &[
    taking("gpu 0", 8, ThrashPolicy::OFF),
    taking("gpu 1", 8, ThrashPolicy::OFF),
];
const SMALL_DAMPED: &[GpuConfig] = &[taking("gpu", 2, BOUNDS)];
const SMALL_FREE: &[GpuConfig] = &[taking("gpu", 2, ThrashPolicy::OFF)];

fn rig(journal: &Journal, pages: usize, gpus: &'static [GpuConfig]) -> Rig {
    Rig::with(journal, Config { pages, gpus })
}

/// How often a page may go: the first time, by turns, and whenever it had its time at home (PACE-1).
fn most(rig: &Rig) -> u64 {
    u64::from(BOUNDS.in_place_after) + rig.kernel().now_ns() / BOUNDS.residency_ns
}

/// CPU and device write a page in turn.
fn take_turns(journal: &Journal, gpus: &'static [GpuConfig]) -> Stats {
    let rig = rig(journal, 1, gpus);
    for round in 0..20 {
        rig.gpu_write(0, 0, value(1, round));
        rig.cpu_write(0, 0, value(2, round));
    }
    assert_eq!(rig.gpu_read(0, 0), value(2, 19));
    let stats = rig.mm().stats();
    rig.shut_down();
    stats
}

#[test]
fn mig_13_turns_are_free_then_wait_then_the_page_stays() {
    let times = Times {
        plain: 20,
        schedules: 50,
    };
    explore(times, |journal, _| {
        let free = take_turns(journal, FREE);
        assert!(free.pages_to_device >= 20, "{free:?}");
    });
    explore(times, |journal, _| {
        let damped = take_turns(journal, DAMPED);
        assert_eq!(
            damped.pages_to_device, 6,
            "the first way is no turn, and the sixth turn stays: {damped:?}"
        );
        assert_eq!((damped.thrash_detected, damped.thrash_throttled), (1, 3));
        assert_eq!(damped.thrash_mapped_in_place, 1, "once, and then it is mapped");
    });
}

#[test]
fn pace_1_pace_2_both_sides_at_once_go_on_and_the_page_rests() {
    let times = Times {
        plain: 300,
        schedules: 2_000,
    };
    explore(times, |journal, _| {
        let rig = rig(journal, 2, DAMPED);
        let count = rounds(6, 30);
        let threads = vec![
            spawn(&rig, "cpu", move |rig| {
                for _ in 0..count {
                    rig.cpu_add(0, 0, 1);
                }
            }),
            spawn(&rig, "gpu 0", move |rig| {
                for round in 0..count {
                    rig.gpu_add(0, 0, 1);
                    rig.gpu_write(1, 0, value(1, round));
                }
            }),
            spawn(&rig, "gpu 0 too", move |rig| {
                for _ in 0..count {
                    rig.gpu_add(0, 0, 1);
                }
            }),
        ];
        join(threads);
        // Whoever was held up got there.
        assert_eq!(rig.cpu_read(0, 0), 3 * count as u64);
        let stats = rig.mm().stats();
        // Two pages, which go together or alone.
        assert!(stats.pages_to_device <= 2 * most(&rig), "{stats:?}");
        rig.shut_down();
    });
}

#[test]
fn mig_13_two_devices_that_take_a_page_from_each_other_come_to_rest() {
    let story = |journal: &Journal, gpus| {
        let rig = rig(journal, 1, gpus);
        for round in 0..20 {
            for gpu in 0..2 {
                let page = rig.page(0);
                rig.gpu(gpu).write(page, 0, value(gpu as u64, round)).unwrap();
            }
        }
        assert_eq!(rig.cpu_read(0, 0), value(1, 19));
        let stats = rig.mm().stats();
        rig.shut_down();
        stats
    };
    let times = Times {
        plain: 20,
        schedules: 50,
    };
    explore(times, move |journal, _| {
        let free = story(journal, FREE);
        assert!(free.pages_between_devices >= 39, "{free:?}");
    });
    explore(times, move |journal, _| {
        let damped = story(journal, DAMPED);
        assert!(damped.pages_between_devices <= 7, "{damped:?}");
        assert!(damped.thrash_mapped_in_place > 0);
    });
}

#[test]
fn mig_7_mig_13_blocks_that_push_each_other_out_come_to_rest() {
    let story = |journal: &Journal, gpus| {
        let rig = rig(journal, 2 * PER_BLOCK, gpus);
        let count = rounds(8, 30);
        let user = |first: usize| {
            move |rig: &Rig| {
                for round in 0..count {
                    rig.gpu_write(first, 0, value(first as u64, round));
                    rig.gpu_write(first + 1, 0, value(first as u64, round));
                }
            }
        };
        let threads = vec![spawn(&rig, "a", user(0)), spawn(&rig, "b", user(PER_BLOCK))];
        join(threads);
        for page in [0, PER_BLOCK] {
            assert_eq!(rig.cpu_read(page, 0), value(page as u64, count - 1));
        }
        let (stats, most) = (rig.mm().stats(), most(&rig));
        rig.shut_down();
        (stats, most)
    };
    let times = Times {
        plain: 100,
        schedules: 500,
    };
    explore(times, move |journal, _| {
        let (stats, _) = story(journal, SMALL_FREE);
        assert_eq!(stats.thrash_detected, 0);
    });
    explore(times, move |journal, _| {
        let (stats, most) = story(journal, SMALL_DAMPED);
        assert!(stats.pages_to_device <= 4 * most, "{stats:?}");
    });
}
