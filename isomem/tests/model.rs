//! Random operations by the CPU, by devices and on the address space, against a flat model of what every byte must be.
//!
//! The promises are the model's: whatever the order, each side reads what was written last, or gets the right fault. Each test draws
//! from the operations that its promises are about. `PROPTEST_CASES` sets how many sequences each tries.

mod common;

use common::ops::{Kind, Kind::*, OnTouch, Op, Player, ops};
use common::universe::Universe;
use isomem::{Mm, Placement, SoftConfig, SoftDevice, ThrashPolicy};
use proptest::test_runner::{Config, TestRunner};

/// Sequences that each test tries by default.
const CASES: u32 = 12;
/// Operations of a sequence.
const MOST_OPS: usize = 40;

const MIB: usize = 1 << 20;

/// Devices of a test, by their memory and what they do with what they touch.
type Devices = &'static [(usize, OnTouch)];

const ROOMY: Devices = &[(64 * MIB, OnTouch::Move)];
const IN_PLACE: Devices = &[(64 * MIB, OnTouch::Stay)];
const SMALL: Devices = &[(MIB, OnTouch::Move)];
const TWO: Devices = &[
    (64 * MIB, OnTouch::Move),
    (2 * MIB, OnTouch::Move),
    (64 * MIB, OnTouch::Stay),
];

const ACCESSES: &[(u32, Kind)] = &[
    (3, CpuRead),
    (3, CpuWrite),
    (3, DeviceRead),
    (3, DeviceWrite),
    (2, DeviceSlice),
    (3, ToDevice),
    (2, Home),
    (1, CheckAll),
];

const CHANGES: &[(u32, Kind)] = &[
    (2, CpuRead),
    (2, CpuWrite),
    (2, DeviceRead),
    (2, DeviceWrite),
    (1, DeviceSlice),
    (2, ToDevice),
    (1, Home),
    (3, Protect),
    (2, Unmap),
    (2, Map),
    (3, Remap),
    (2, Discard),
    (1, CheckAll),
];

const FORKS: &[(u32, Kind)] = &[
    (2, CpuRead),
    (2, CpuWrite),
    (2, DeviceRead),
    (2, DeviceWrite),
    (2, ToDevice),
    (1, Home),
    (1, Protect),
    (1, Discard),
    (2, Fork),
    (2, LateFork),
];

const HUGE: &[(u32, Kind)] = &[
    (1, CpuRead),
    (2, CpuWrite),
    (1, DeviceRead),
    (2, DeviceWrite),
    (3, ToDevice),
    (2, Home),
    (1, Protect),
    (1, Unmap),
    (1, Map),
    (1, Remap),
    (1, Discard),
    (4, Huge),
    (1, CheckAll),
];

const LATE: &[(u32, Kind)] = &[
    (1, CpuRead),
    (2, CpuWrite),
    (2, DeviceRead),
    (2, DeviceWrite),
    (3, ToDevice),
    (1, Home),
    (2, LateDiscard),
    (1, LateUnmap),
    (2, LateMap),
    (3, LateRemap),
    (1, Map),
    (1, CheckAll),
];

/// Without mappings that go behind isomem's back: of memory that devices use in place, that is not noticed.
const EVERYTHING: &[(u32, Kind)] = &[
    (3, CpuRead),
    (4, CpuWrite),
    (3, DeviceRead),
    (4, DeviceWrite),
    (2, DeviceSlice),
    (5, ToDevice),
    (2, Home),
    (2, Protect),
    (1, Unmap),
    (3, Map),
    (3, Remap),
    (2, Discard),
    (1, LateDiscard),
    (1, Fork),
    (1, LateFork),
    (2, Huge),
    (1, CheckAll),
];

const EVERYTHING_LATE: &[(u32, Kind)] = &[
    (3, CpuRead),
    (4, CpuWrite),
    (3, DeviceRead),
    (4, DeviceWrite),
    (2, DeviceSlice),
    (5, ToDevice),
    (2, Home),
    (2, Protect),
    (1, Unmap),
    (3, Map),
    (2, Remap),
    (2, Discard),
    (2, LateDiscard),
    (1, LateUnmap),
    (1, LateMap),
    (3, LateRemap),
    (1, Fork),
    (1, LateFork),
    (1, CheckAll),
];

fn config() -> Config {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    Config {
        cases: cases.unwrap_or(CASES),
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    }
}

fn check(devices: Devices, kinds: &'static [(u32, Kind)]) {
    let _alone = common::alone();
    let played = TestRunner::new(config()).run(&ops(kinds, MOST_OPS), |ops| {
        play(devices, &ops);
        Ok(())
    });
    if let Err(error) = played {
        panic!("{error}");
    }
}

fn play(devices: Devices, ops: &[Op]) {
    let mm = Mm::current().expect("these tests need userfaultfd: run them as root");
    let devices: Vec<(SoftDevice, OnTouch)> = devices
        .iter()
        .map(|&(bytes, on_touch)| (device(&mm, bytes, on_touch), on_touch))
        .collect();
    let mirrors: Vec<_> = devices
        .iter()
        .map(|(device, on_touch)| (device.mirror().unwrap(), *on_touch))
        .collect();
    let mut player = Player {
        universe: Universe::new(),
        mm: &mm,
        had_huge: false,
        had_fork: false,
        mirrors: &mirrors,
        roomy: devices
            .iter()
            .all(|(device, _)| device.memory_pages().1 > 2 * common::universe::PAGES),
    };
    player.play(ops);
    let mut universe = player.universe;
    // What is away comes home when devices go.
    mirrors.into_iter().for_each(|(mirror, _)| mirror.unregister());
    for (device, _) in devices {
        device.unregister().unwrap();
    }
    universe.cpu_read(0..common::universe::PAGES);
}

fn device(mm: &Mm, memory_bytes: usize, on_touch: OnTouch) -> SoftDevice {
    let config = SoftConfig {
        workers: 2,
        memory_bytes,
        placement: match on_touch {
            OnTouch::Move => Placement::OnTouch,
            OnTouch::Stay => Placement::InPlace,
        },
        thrash: ThrashPolicy::OFF,
        ..SoftConfig::default()
    };
    mm.soft_device(config).unwrap()
}

#[test]
fn mig_2_what_either_side_wrote_last_both_read() {
    check(ROOMY, ACCESSES);
    check(IN_PLACE, ACCESSES);
}

#[test]
fn mig_4_a_child_reads_what_its_parent_had() {
    check(ROOMY, FORKS);
}

#[test]
fn mig_5_flt_4_changes_are_right_at_page_granularity_and_refusals_name_the_page() {
    check(ROOMY, CHANGES);
    check(IN_PLACE, CHANGES);
}

#[test]
fn mig_6_huge_pages_are_the_same_bytes() {
    check(ROOMY, HUGE);
}

#[test]
fn mig_7_a_small_device_is_slow_and_never_wrong() {
    check(SMALL, ACCESSES);
    check(SMALL, CHANGES);
}

#[test]
fn wld_2_changes_behind_isomems_back_are_followed() {
    check(ROOMY, LATE);
    check(ROOMY, EVERYTHING_LATE);
}

#[test]
fn mig_5_everything_at_once_on_several_devices() {
    check(TWO, EVERYTHING);
    check(SMALL, EVERYTHING);
}
