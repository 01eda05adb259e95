//! The work list by every driver in the simulated kernel, before every checker.
//!
//! On plain threads by default; `--features shuttle --release` tells the same stories under many schedules.

#[path = "../../sim/tests/common/mod.rs"]
mod common;
#[macro_use]
mod drivers;
#[cfg(feature = "shuttle")]
#[path = "planted/deaf.rs"]
mod deaf;
#[cfg(feature = "shuttle")]
mod planted;
mod simulated;

use isomem_conformance::Outcome;
use isomem_conformance::work::{self, Open};
use isomem_sim::journal::Journal;
use isomem_sim::rig::Rig;

use common::{Times, explore};
use simulated::{LOAD, Load, Simulated};

const TIMES: Times = Times {
    plain: 3,
    schedules: 120,
};

/// Many threads, so each telling takes long.
const MIXED: Times = Times { schedules: 60, ..TIMES };

/// Tells a story of a program, which has to end well unless a checker has said why not.
fn tell((journal, number): (&Journal, u64), load: Load, story: impl FnOnce(&Simulated) -> Outcome) {
    let rig = Rig::new(journal, 0);
    let ended = story(&Simulated::new(&rig, load, number));
    if !journal.is_decided() {
        assert_eq!(ended, Ok(()));
        rig.shut_down();
    }
}

fn run(_driver: &str, test: &'static str, open: Open<Simulated>) {
    explore(TIMES, move |journal, number| {
        let item = drivers::item::<Simulated>(test);
        tell((journal, number), LOAD, |program| (item.run)(program, open));
    });
}

work_list! { svm odp userptr shadow engines }

/// All at once.
#[test]
fn drv_1_all_drivers_mirror_the_same_address_space() {
    explore(MIXED, |journal, number| {
        let mut drivers = drivers::all();
        // The last has no words in the memory that comes and goes: each in its turn.
        let first = number as usize % drivers.len();
        drivers.rotate_left(first);
        tell((journal, number), LOAD, |program| work::mixed(program, &drivers));
    });
}

/// A mistake in a driver is found by the items that are about it, and a driver without its callback by who unmaps.
#[cfg(feature = "shuttle")]
#[test]
fn drv_1_each_item_finds_the_driver_with_a_mistake() {
    let mut all = planted::all::<Simulated>();
    all.push(("unmap_and_remap", deaf::open));
    for (item, open) in all {
        let found = common::first_finding(1_000, move |journal, number| {
            tell((journal, number), LOAD, |program| {
                (drivers::item(item).run)(program, open)
            });
        });
        assert!(found.is_some(), "{item} does not find what is planted");
    }
}
