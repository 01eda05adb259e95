//! Coherent memory, devices that pass pages on, and exclusive pages, in the simulated kernel and before every checker.
//!
//! On plain threads by default; `--features shuttle --release` tells the same stories under many schedules.

mod common;

use common::{Times, explore, join, rounds, spawn, value};
use isomem_core::world::Access;
use isomem_sim::journal::Journal;
use isomem_sim::kernel::{Errno, Site};
use isomem_sim::rig::{Config, GPUS_OF_EACH_KIND, Rig, STRICT_GPUS, TWO_GPUS};

const TIMES: Times = Times {
    plain: 3,
    schedules: 1_000,
};
/// The adders' rounds.
const ADDS: usize = rounds(2, 300);
/// Rounds of who moves pages meanwhile.
const MOVES: usize = rounds(1, 100);
/// The device with coherent memory.
const COHERENT: usize = 2;

fn rig(journal: &Journal, gpus: &'static [isomem_sim::device::GpuConfig]) -> Rig {
    Rig::with(journal, Config { pages: 2, gpus })
}

fn add_by_cpu(rig: &Rig) {
    for round in 0..ADDS {
        rig.cpu_add(round % 2, 0, 1);
    }
}

fn add_by(gpu: usize) -> impl FnOnce(&Rig) + Send {
    move |rig| {
        for round in 0..ADDS {
            let page = rig.page(round % 2);
            while rig.gpu(gpu).add(page, 0, 1).is_err() && !rig.journal().is_decided() {}
        }
    }
}

/// The program and every device add while `moves` runs; then no add may be missing.
fn adding(journal: &Journal, gpus: &'static [isomem_sim::device::GpuConfig], moves: fn(&Rig)) {
    let rig = rig(journal, gpus);
    let mut threads = vec![spawn(&rig, "cpu", add_by_cpu), spawn(&rig, "mover", moves)];
    threads.extend((0..gpus.len()).map(|gpu| spawn(&rig, gpus[gpu].name, add_by(gpu))));
    join(threads);
    if !journal.is_decided() {
        let sum = rig.cpu_read(0, 0) + rig.cpu_read(1, 0);
        assert_eq!(sum, ((1 + gpus.len()) * ADDS) as u64, "adds are missing");
    }
    rig.shut_down();
}

#[test]
fn mig_10_no_add_is_lost_while_pages_hop_between_private_memories() {
    explore(TIMES, |journal, _| {
        adding(journal, TWO_GPUS, |rig| {
            for _ in 0..MOVES {
                let _ = rig.gpu(0).migrate(rig.range(0, 2));
                let _ = rig.gpu(1).migrate(rig.range(0, 2));
                let _ = rig.gpu(1).home(rig.range(1, 1));
            }
        });
    });
}

#[test]
fn mig_10_no_stale_frame_is_touched_when_pages_hop() {
    explore(TIMES, |journal, _| {
        let rig = rig(journal, STRICT_GPUS);
        // No page of zeroes: the program's first write would change the frame.
        (0..2).for_each(|page| rig.cpu_write(page, 0, 0));
        let mut threads = vec![spawn(&rig, "mover", |rig| {
            for _ in 0..MOVES {
                let _ = rig.gpu(0).migrate(rig.range(0, 2));
                let _ = rig.gpu(1).migrate(rig.range(0, 1));
            }
        })];
        threads.push(spawn(&rig, "gpu 0", add_by(0)));
        threads.push(spawn(&rig, "gpu 1", add_by(1)));
        join(threads);
        if !journal.is_decided() {
            assert_eq!(
                rig.cpu_read(0, 0) + rig.cpu_read(1, 0),
                2 * ADDS as u64,
                "adds are missing"
            );
        }
        rig.shut_down();
    });
}

#[test]
fn mig_10_no_add_is_lost_while_pages_are_claimed_and_given_back() {
    explore(TIMES, |journal, _| {
        adding(journal, GPUS_OF_EACH_KIND, |rig| {
            for _ in 0..MOVES {
                let _ = rig.gpu(COHERENT).migrate(rig.range(0, 2));
                let _ = rig.gpu(0).migrate(rig.range(0, 1));
                let _ = rig.gpu(COHERENT).migrate(rig.range(0, 1));
                let _ = rig.gpu(COHERENT).home(rig.range(0, 2));
            }
        });
    });
}

#[test]
fn mig_11_no_add_is_lost_while_pages_are_taken_exclusively() {
    explore(TIMES, |journal, _| {
        adding(journal, GPUS_OF_EACH_KIND, |rig| {
            for _ in 0..MOVES {
                let _ = rig.gpu(0).exclusive(rig.range(0, 2));
                let _ = rig.gpu(COHERENT).exclusive(rig.range(0, 1));
                let _ = rig.gpu(0).end_exclusive(rig.range(0, 2));
            }
        });
    });
}

#[test]
fn mig_11_what_the_cpu_touched_is_exclusive_no_longer() {
    explore(TIMES, |journal, _| {
        let rig = rig(journal, GPUS_OF_EACH_KIND);
        for gpu in [0, COHERENT] {
            assert_eq!(rig.gpu(gpu).exclusive(rig.range(0, 2)), Ok(2));
            assert_eq!(rig.gpu(gpu).exclusive_pages(rig.range(0, 2)), 2);
            rig.cpu_write(0, 0, value(1, gpu));
            assert_eq!(rig.gpu(gpu).exclusive_pages(rig.range(0, 2)), 1);
            assert_eq!(rig.gpu(gpu).read(rig.page(0), 0), Ok(value(1, gpu)));
            rig.protect(0, 2, Some(Access::Write)).unwrap();
            assert_eq!(rig.gpu(gpu).exclusive_pages(rig.range(0, 2)), 0);
            assert_eq!(rig.gpu(gpu).exclusive(rig.range(0, 2)), Ok(2));
            rig.fork().exit();
            assert_eq!(rig.gpu(gpu).exclusive_pages(rig.range(0, 2)), 0);
            assert_eq!(rig.gpu(gpu).used_pages(), Some(0));
        }
        rig.shut_down();
    });
}

#[test]
fn mig_5_changes_past_isomem_end_claims_and_exclusivity() {
    explore(TIMES, |journal, _| {
        let rig = rig(journal, GPUS_OF_EACH_KIND);
        let threads = vec![
            spawn(&rig, "cpu", |rig| {
                for round in 0..ADDS {
                    rig.cpu_write(round % 2, 0, value(1, round));
                }
            }),
            spawn(&rig, "change", |rig| {
                for _ in 0..MOVES {
                    let _ = rig.late_discard(0, 1);
                    rig.late_map(1, 1);
                }
            }),
            spawn(&rig, "mover", |rig| {
                for _ in 0..MOVES {
                    let _ = rig.gpu(COHERENT).migrate(rig.range(0, 2));
                    let _ = rig.gpu(0).exclusive(rig.range(0, 2));
                    let _ = rig.gpu(1).migrate(rig.range(0, 2));
                }
            }),
        ];
        join(threads);
        rig.unmap(0, 2).unwrap();
        if !journal.is_decided() {
            assert_eq!((0..3).filter_map(|gpu| rig.gpu(gpu).used_pages()).sum::<usize>(), 0);
        }
        rig.shut_down();
    });
}

#[test]
fn mig_9_a_hop_that_the_kernel_refuses_to_relink_is_copied_or_stays() {
    explore(TIMES, |journal, number| {
        // What is busy is opened and tried once more.
        let failures = [(Errno::INVAL, 1, 2), (Errno::BUSY, 2, 1), (Errno::NOENT, 1, 1)];
        let (errno, times, hops) = failures[number as usize % failures.len()];
        let rig = rig(journal, TWO_GPUS);
        (0..2).for_each(|page| rig.cpu_write(page, 0, value(1, page)));
        assert_eq!(rig.gpu(0).migrate(rig.range(0, 2)), Ok(2));
        (1..=times).for_each(|nth| rig.kernel().fail_nth(Site::Move, nth, errno));
        assert_eq!(rig.gpu(1).migrate(rig.range(0, 2)), Ok(hops), "{errno:?}");
        assert_eq!(
            (rig.gpu(0).used_pages(), rig.gpu(1).used_pages()),
            (Some(2 - hops), Some(hops))
        );
        for page in 0..2 {
            assert_eq!(rig.cpu_read(page, 0), value(1, page));
        }
        rig.shut_down();
    });
}
