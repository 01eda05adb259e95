//! The work list by every driver in the simulated kernel, before every checker.
//!
//! On plain threads by default; `--features shuttle --release` tells the same stories under many schedules.

#[path = "../../sim/tests/common/mod.rs"]
mod common;
#[macro_use]
mod drivers;
mod simulated;

use isomem_conformance::Outcome;
use isomem_conformance::work::{self, Open};
use isomem_sim::journal::Journal;
use isomem_sim::rig::Rig;

use common::{Times, explore};
use simulated::{LOAD, Load, Simulated};

const TIMES: Times = Times {
    plain: 3,
    schedules: 300,
};

/// Tells a story of a program, which has to end well unless a checker has said why not.
fn tell(journal: &Journal, load: Load, story: impl FnOnce(&Simulated) -> Outcome) {
    let rig = Rig::new(journal, 0);
    let ended = story(&Simulated::new(&rig, load));
    if !journal.is_decided() {
        assert_eq!(ended, Ok(()));
        rig.shut_down();
    }
}

fn run(_driver: &str, test: &'static str, open: Open<Simulated>) {
    explore(TIMES, move |journal, _| {
        let item = drivers::item::<Simulated>(test);
        tell(journal, LOAD, |program| (item.run)(program, open));
    });
}

work_list! { svm odp userptr shadow }

/// All at once, and all of it: few rounds of much.
#[test]
fn drv_1_all_drivers_mirror_the_same_address_space() {
    explore(TIMES, |journal, _| {
        tell(journal, LOAD, |program| work::mixed(program, &drivers::all()));
    });
}
