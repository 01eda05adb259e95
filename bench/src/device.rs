//! The device's side: scans at native speed, misses, snapshots, and what the tables cost.

use std::fs::File;
use std::os::unix::fs::FileExt;

use isomem_core::addr::PAGE_SIZE;
use isomem_core::mirror::range::Placement;

use crate::rig::Rig;
use crate::row::{Row, time};
use crate::sys::{Memory, Pages};
use crate::{BenchError, REPEATS, SIZE};

/// Repeats of the scans: a worker and the main thread run on different processors, whose speed varies from moment to moment.
const SCANS: usize = 41;

pub(crate) fn scans() -> Result<Vec<Row>, BenchError> {
    Ok(vec![
        scan("scan_device", Placement::OnTouch)?,
        scan("scan_in_place", Placement::InPlace)?,
    ])
}

fn scan(name: &'static str, placement: Placement) -> Result<Row, BenchError> {
    let rig = Rig::with(2 * SIZE, placement)?;
    let mut memory = Memory::new(SIZE, Pages::Small)?;
    let mut native = Memory::new(SIZE, Pages::Small)?;
    memory.fill();
    native.fill();
    if placement == Placement::OnTouch {
        rig.send(memory.range())?;
    }
    let expected: u64 = native.words().iter().sum();
    let (mut value, mut baseline) = (vec![], vec![]);
    for repeat in 0..=SCANS {
        // Timed on the worker: what a launch costs is not a scan's matter.
        let (ns, sum) = rig.sum(memory.words())?;
        assert_eq!(sum, expected, "the device saw other data than the CPU");
        let (native_ns, native_sum) = time(|| std::hint::black_box(native.words()).iter().sum::<u64>());
        assert_eq!(std::hint::black_box(native_sum), expected);
        if repeat > 0 {
            value.push(ns / 1e6);
            baseline.push(native_ns / 1e6);
        }
    }
    Ok(Row::new(name, "ms/64MiB", 1.11, value, "native loop", baseline))
}

pub(crate) fn faults() -> Result<Vec<Row>, BenchError> {
    let (mut value, mut baseline) = (vec![], vec![]);
    let mut fresh = Memory::new(SIZE, Pages::Small)?;
    let pages = (SIZE / PAGE_SIZE) as f64;
    let rig = Rig::with(2 * SIZE, Placement::InPlace)?;
    let mut memory = Memory::new(SIZE, Pages::Small)?;
    memory.fill();
    for _ in 0..REPEATS {
        // An announced protection change that changes nothing empties the device's table.
        rig.forget(memory.range())?;
        value.push(rig.touch_pages(memory.words())? / pages);
        fresh.discard()?;
        baseline.push(time(|| (0..SIZE / PAGE_SIZE).for_each(|page| fresh.store(page, 1))).0 / pages);
    }
    Ok(vec![Row::new(
        "device_fault",
        "ns/page",
        0.5,
        value,
        "kernel zero-fill fault",
        baseline,
    )])
}

pub(crate) fn snapshot() -> Result<Vec<Row>, BenchError> {
    let rig = Rig::new(2 * SIZE)?;
    let mut memory = Memory::new(SIZE, Pages::Small)?;
    memory.fill();
    let pages = SIZE / PAGE_SIZE;
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut entries = vec![0_u8; 8 * pages];
    let at = (memory.range().first_page() * 8) as u64;
    let (mut value, mut baseline) = (vec![], vec![]);
    for _ in 0..REPEATS {
        value.push(rig.snapshot(memory.range())? / pages as f64);
        let (ns, read) = time(|| pagemap.read_exact_at(&mut entries, at));
        read?;
        baseline.push(ns / pages as f64);
    }
    Ok(vec![Row::new(
        "snapshot",
        "ns/page",
        1.0,
        value,
        "read /proc/self/pagemap",
        baseline,
    )])
}

/// Bytes of isomem's tables for 1 GiB that is on the device, all of it entered in the device's page table in small pages.
pub(crate) fn metadata() -> Result<Vec<Row>, BenchError> {
    const MIRRORED: usize = 1 << 30;
    let rig = Rig::new(MIRRORED)?;
    let mut memory = Memory::new(MIRRORED, Pages::Small)?;
    for page in 0..MIRRORED / PAGE_SIZE {
        memory.store(page, 1);
    }
    rig.send(memory.range())?;
    rig.touch_pages(memory.words())?;
    let bytes = rig.metadata_bytes() as f64;
    Ok(vec![Row::new(
        "metadata",
        "bytes",
        0.005,
        vec![bytes],
        "bytes mirrored",
        vec![MIRRORED as f64],
    )])
}
