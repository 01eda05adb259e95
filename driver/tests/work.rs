//! The work list by every driver on live memory, beside a software device that takes pages away.
//!
//! `ISOMEM_STRESS_SECONDS` sets how long the mixed run goes on.
#![cfg(not(feature = "shuttle"))]

#[path = "../../isomem/tests/apart/mod.rs"]
mod apart;
#[macro_use]
mod drivers;
mod live;
mod planted;
mod program;

use std::time::Duration;

use isomem_conformance::Failure;
use isomem_conformance::work::{self, Open};

use apart::apart;
use program::Live;

const TIME: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(40);
/// What is planted shows at some moments only, and fewer of them on a busy machine.
const LONG_TIME: Duration = Duration::from_secs(2);
/// For what will never come about.
const BRIEF_PATIENCE: Duration = Duration::from_millis(500);

fn run(driver: &str, test: &str, open: Open<Live>) {
    apart(&format!("{driver}::{test}"), || {
        let item = drivers::item::<Live>(test);
        assert_eq!((item.run)(&Live::new(TIME, PATIENCE), open), Ok(()));
    });
}

work_list! { svm odp userptr shadow engines }

/// All at once.
#[test]
fn drv_1_all_drivers_mirror_the_same_address_space() {
    apart("drv_1_all_drivers_mirror_the_same_address_space", || {
        let seconds = std::env::var("ISOMEM_STRESS_SECONDS")
            .ok()
            .and_then(|seconds| seconds.parse().ok());
        let time = Duration::from_secs_f64(seconds.unwrap_or(3.0));
        let program = Live::new(time, PATIENCE);
        assert_eq!(work::mixed(&program, &drivers::all()), Ok(()));
    });
}

/// A mistake in a driver is found by the items that are about it.
#[test]
fn drv_1_each_item_finds_the_driver_with_a_mistake() {
    const NAME: &str = "drv_1_each_item_finds_the_driver_with_a_mistake";
    let count = planted::all::<Live>().len();
    // In a process of its own, each: the address space may be at its end.
    let number: Option<usize> = apart::role().and_then(|role| role.parse().ok());
    let Some(number) = number else {
        for number in 0..count {
            let status = apart::run_again(NAME, &number.to_string());
            assert!(status.success(), "number {number}: {status}");
        }
        return;
    };
    let (item, open): (_, Open<Live>) = planted::all()[number];
    let ended = (drivers::item(item).run)(&Live::new(LONG_TIME, BRIEF_PATIENCE), open);
    println!("{item}: {ended:?}");
    assert!(
        matches!(ended, Err(Failure::Wrong(_))),
        "{item} does not find what is planted"
    );
}
