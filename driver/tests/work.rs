//! The work list by every driver on live memory, beside a software device that takes pages away.
//!
//! `ISOMEM_STRESS_SECONDS` sets how long the mixed run goes on.
#![cfg(not(feature = "shuttle"))]

#[path = "../../isomem/tests/apart/mod.rs"]
mod apart;
#[macro_use]
mod drivers;
mod live;
mod program;

use std::time::Duration;

use isomem_conformance::work::{self, Open};

use apart::apart;
use program::Live;

const TIME: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(40);

fn run(driver: &str, test: &str, open: Open<Live>) {
    apart(&format!("{driver}::{test}"), || {
        let item = drivers::item::<Live>(test);
        assert_eq!((item.run)(&Live::new(TIME, PATIENCE), open), Ok(()));
    });
}

work_list! { svm odp userptr shadow }

/// All at once, and all of it.
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
