use super::{Plan, Site, decide};
use std::sync::atomic::{AtomicI32, AtomicU32};

// The static table is shared by all tests of the process, so these look at a plan of their own.
fn plan(skip: u32, times: u32) -> Plan {
    Plan {
        errno: AtomicI32::new(12),
        skip: AtomicU32::new(skip),
        times: AtomicU32::new(times),
        hits: AtomicU32::new(0),
    }
}

#[test]
fn inj_2_skips_then_fails_the_stated_number_of_times() {
    let plan = plan(2, 2);
    let outcomes: Vec<_> = (0..6)
        .map(|_| decide(&plan).err().map(|errno| errno.raw_os_error()))
        .collect();
    assert_eq!(outcomes, [None, None, Some(12), Some(12), None, None]);
}

#[test]
fn inj_1_an_unarmed_site_lets_every_call_through() {
    let plan = plan(5, 0);
    assert!((0..10).all(|_| decide(&plan).is_ok()));
}

#[test]
fn the_table_has_a_place_for_each_site() {
    for (index, site) in Site::ALL.into_iter().enumerate() {
        assert_eq!(site as usize, index);
    }
}
