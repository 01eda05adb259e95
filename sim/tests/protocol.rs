//! The protocol's shipped code in the simulated kernel: a program's thread, a device's, and one that migrates, on few pages, before every checker.
//!
//! On plain threads by default; `--features shuttle --release` tells the same stories under many schedules.

mod common;

use isomem_core::addr::VirtAddr;
use isomem_sim::journal::Journal;
use isomem_sim::rig::{Config, Rig, STRICT_GPU, TAKING_GPU, TWO_GPUS};
use isomem_sim::sync::thread::JoinHandle;

use common::{Times, explore, join, rounds, spawn, value};

/// Rounds of each thread.
const ROUNDS: usize = rounds(2, 500);
/// How often a story is told.
const TIMES: Times = Times {
    plain: 4,
    schedules: 2_000,
};

/// The program writes and reads its words of two pages.
fn cpu(rig: &Rig) {
    for round in 0..ROUNDS {
        let page = round % 2;
        rig.cpu_write(page, 0, value(1, round));
        rig.cpu_read(page, 0);
        rig.cpu_read(page, 1);
        if rig.journal().is_decided() {
            return;
        }
    }
}

/// The device writes and reads its own.
fn gpu(rig: &Rig) {
    for round in 0..ROUNDS {
        let page = round % 2;
        rig.gpu_write(page, 1, value(2, round));
        rig.gpu_read(page, 0);
        if rig.journal().is_decided() {
            return;
        }
    }
}

fn migrate(rig: &Rig) {
    for _ in 0..ROUNDS {
        rig.migrate(0, 2);
        rig.home(0, 1);
        if rig.journal().is_decided() {
            return;
        }
    }
}

fn finish(rig: &Rig, threads: Vec<JoinHandle<()>>) {
    join(threads);
    // What was written is still there.
    for page in 0..2 {
        rig.cpu_read(page, 0);
        rig.cpu_read(page, 1);
    }
    rig.shut_down();
}

fn mixed(journal: &Journal) {
    let rig = Rig::new(journal, 2);
    let threads = vec![
        spawn(&rig, "cpu", cpu),
        spawn(&rig, "gpu", gpu),
        spawn(&rig, "migrate", migrate),
    ];
    finish(&rig, threads);
}

fn strict(journal: &Journal) {
    let rig = Rig::with(
        journal,
        Config {
            pages: 2,
            gpus: STRICT_GPU,
        },
    );
    let threads = vec![
        spawn(&rig, "cpu", cpu),
        spawn(&rig, "gpu", gpu),
        spawn(&rig, "migrate", migrate),
    ];
    finish(&rig, threads);
}

fn taking(journal: &Journal) {
    let rig = Rig::with(
        journal,
        Config {
            pages: 2,
            gpus: TAKING_GPU,
        },
    );
    let threads = vec![spawn(&rig, "cpu", cpu), spawn(&rig, "gpu", gpu)];
    finish(&rig, threads);
}

fn two_devices(journal: &Journal) {
    let rig = Rig::with(
        journal,
        Config {
            pages: 2,
            gpus: TWO_GPUS,
        },
    );
    let threads = vec![
        spawn(&rig, "cpu", cpu),
        spawn(&rig, "migrate 0", |rig| {
            for _ in 0..ROUNDS {
                let _ = rig.gpu(0).migrate(rig.range(0, 2));
            }
        }),
        spawn(&rig, "migrate 1", |rig| {
            for _ in 0..ROUNDS {
                let _ = rig.gpu(1).migrate(rig.range(0, 1));
            }
        }),
    ];
    finish(&rig, threads);
}

fn changes(journal: &Journal) {
    let rig = Rig::new(journal, 2);
    let threads = vec![
        spawn(&rig, "cpu", cpu),
        spawn(&rig, "change", |rig| {
            for _ in 0..ROUNDS {
                let _ = rig.discard(0, 1);
                rig.fork().exit();
            }
        }),
        spawn(&rig, "migrate", migrate),
    ];
    finish(&rig, threads);
}

fn late_changes(journal: &Journal) {
    let rig = Rig::new(journal, 2);
    let threads = vec![
        spawn(&rig, "cpu", cpu),
        spawn(&rig, "change", |rig| {
            for _ in 0..ROUNDS {
                // Pages that set out during a discard take their contents along: `docs/testing.md` says so. Here they do so before and after.
                rig.migrate(0, 2);
                let _ = rig.late_discard(0, 1);
                rig.home(1, 1);
                let _ = rig.late_discard(1, 1);
                if rig.journal().is_decided() {
                    return;
                }
            }
        }),
    ];
    finish(&rig, threads);
}

fn run(story: fn(&Journal)) {
    explore(TIMES, move |journal, _| story(journal));
}

#[test]
fn mig_3_no_write_is_lost_between_program_device_and_migrations() {
    run(mixed);
}

#[test]
fn flt_2_no_stale_frame_is_touched_by_a_device_with_a_table_of_frames() {
    run(strict);
}

#[test]
fn mig_2_pages_taken_at_first_touch_come_back_when_the_program_touches_them() {
    run(taking);
}

#[test]
fn mig_10_two_devices_may_want_the_same_pages() {
    run(two_devices);
}

#[test]
fn mig_4_and_5_announced_changes_keep_what_they_should() {
    run(changes);
}

#[test]
fn mig_5_changes_past_isomem_lose_nothing_but_what_they_drop() {
    run(late_changes);
}

/// One page at home, one on the device, one that was never touched.
fn maps_what_is_there(journal: &Journal) {
    let rig = Rig::new(journal, 4);
    (0..2).for_each(|page| rig.cpu_write(page, 0, 7));
    assert_eq!(rig.migrate(1, 1), 1);
    rig.protect(3, 1, None).unwrap();
    let mirror = rig.gpu(0).mirror().unwrap();
    let mapped = mirror.map_resident(rig.range(0, 4)).unwrap();
    assert_eq!((mapped.pages, mapped.on_device), (2, 1));
    assert_eq!(rig.process().frame_at(rig.page(2)), None, "nothing is brought in");
    for page in 0..4 {
        let at = VirtAddr::new(rig.range(page, 1).start()).unwrap();
        assert_eq!(mirror.state().table().get(at).is_some(), page < 2, "page {page}");
    }
    drop(mirror);
    rig.shut_down();
}

#[test]
fn mig_13_what_is_resident_is_mapped_and_nothing_is_brought_in() {
    explore(TIMES, |journal, _| maps_what_is_there(journal));
}
