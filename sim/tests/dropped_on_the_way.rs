//! A page that comes home, is dropped there by the program, and is touched again, all before its transit has settled: who touches it finds it in
//! transit and must be woken when that ends, although the move has woken everybody once already (BLK-3).
//!
//! Found on the live world as a thread that slept for ever in its first touch of a stack that another thread had left.

mod common;

use isomem_sim::journal::Journal;
use isomem_sim::rig::Rig;

use common::{Times, explore, join, spawn};

const TIMES: Times = Times {
    plain: 200,
    schedules: 5_000,
};

fn story(journal: &Journal) {
    let rig = Rig::new(journal, 1);
    rig.cpu_write(0, 0, 1);
    rig.migrate(0, 1);
    let threads = vec![
        spawn(&rig, "home", |rig| {
            rig.home(0, 1);
        }),
        spawn(&rig, "program", |rig| {
            let _ = rig.late_discard(0, 1);
            rig.cpu_write(0, 0, 2);
        }),
    ];
    join(threads);
    assert_eq!(rig.cpu_read(0, 0), 2);
    rig.shut_down();
}

#[test]
fn blk_3_who_touches_a_page_that_arrived_and_was_dropped_is_woken() {
    explore(TIMES, |journal, _| story(journal));
}
