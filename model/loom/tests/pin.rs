//! Under every schedule: once an invalidation has waited, no worker accesses the pages through what was erased.
//!
//! The page is a cell of the checker's: an access that is not ordered before the invalidation's own is reported as a race. The planted
//! workers and invalidations get one step wrong each, and the checker must catch them.
//!
//! Bounds: 2 threads with up to 3 preemptions, one invalidation against at most 2 accesses.

// loom runs the threads of a model on one thread of the system, and its cell is what checks the sharing.
#![allow(clippy::arc_with_non_send_sync)]

use std::sync::Arc;

use isomem_core::addr::{PAGE_SIZE, PageRange, VirtAddr};
use isomem_core::device::DeviceAddr;
use isomem_core::mirror::pin::Pins;
use isomem_core::mirror::table::{Entry, Flags, Table};
use isomem_core::world::Access;
use isomem_loom::ModelHeap;
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread;

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

fn page(number: usize) -> PageRange {
    PageRange::from_pages(number, 1).unwrap()
}

fn at(number: usize) -> VirtAddr {
    VirtAddr::new(number * PAGE_SIZE).unwrap()
}

struct Device {
    table: Table<ModelHeap>,
    pins: Pins<ModelHeap>,
    /// Page 0: the device reads it under a pin, the invalidation's owner frees it.
    memory: UnsafeCell<u64>,
}

// Every access to the cell is one that the checker looks at; no closure uses its pointer.
impl Device {
    fn new() -> Arc<Self> {
        let table = Table::new().unwrap();
        table
            .model_set(page(0), Entry::new(DeviceAddr(8 << 12), Flags::WRITE))
            .unwrap();
        Arc::new(Self {
            table,
            pins: Pins::new(1).unwrap(),
            memory: UnsafeCell::new(0),
        })
    }

    fn work(&self, times: usize, access: Access) {
        let mut slot = self.pins.claim(&self.table).unwrap();
        for _ in 0..times {
            if let Some(pin) = slot.pin(at(0), 8, access) {
                assert_eq!(pin.addr(), 8 << 12);
                self.memory.with(|_| ());
            }
        }
    }

    fn wait_clear(&self) {
        self.pins
            .wait_clear(page(0), u64::MAX, &|| 0, &|_| thread::yield_now())
            .unwrap();
    }

    fn free(&self) {
        self.memory.with_mut(|_| ());
    }
}

/// One worker against one invalidation.
fn race(work: fn(&Device), invalidate: fn(&Device)) {
    check(move || {
        let device = Device::new();
        let other = device.clone();
        let worker = thread::spawn(move || work(&other));
        invalidate(&device);
        worker.join().unwrap();
    });
}

fn invalidate(device: &Device) {
    device.table.zap(page(0), &mut |_, _| {});
    device.pins.flush(page(0));
    device.wait_clear();
    device.free();
}

#[test]
fn pin_1_after_the_wait_nobody_accesses_the_page() {
    race(|device| device.work(1, Access::Read), invalidate);
}

#[test]
fn pin_3_nor_by_a_cached_translation() {
    race(|device| device.work(2, Access::Read), invalidate);
}

#[test]
fn pin_1_who_finds_no_pin_in_a_pass_that_must_not_wait_may_go_on() {
    race(
        |device| device.work(1, Access::Read),
        |device| {
            device.table.zap(page(0), &mut |_, _| {});
            device.pins.flush(page(0));
            if device.pins.overlaps(page(0)).is_none() {
                device.free();
            }
        },
    );
}

#[test]
fn pin_2_a_write_is_dirty_for_the_zap_that_ends_it() {
    check(|| {
        let device = Device::new();
        let other = device.clone();
        let worker = thread::spawn(move || {
            let mut slot = other.pins.claim(&other.table).unwrap();
            slot.pin(at(0), 8, Access::Write).is_some()
        });
        let mut dirty = false;
        device.table.zap(page(0), &mut |_, entry| dirty |= entry.is_dirty());
        device.pins.flush(page(0));
        device.wait_clear();
        assert!(!worker.join().unwrap() || dirty, "TBL-3");
    });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn planted_invalidation_that_does_not_flush_is_caught() {
    race(
        |device| device.work(2, Access::Read),
        |device| {
            device.table.zap(page(0), &mut |_, _| {});
            device.wait_clear();
            device.free();
        },
    );
}

#[test]
#[should_panic(expected = "Causality violation")]
fn planted_invalidation_that_waits_before_it_erases_is_caught() {
    race(
        |device| device.work(1, Access::Read),
        |device| {
            device.wait_clear();
            device.table.zap(page(0), &mut |_, _| {});
            device.pins.flush(page(0));
            device.free();
        },
    );
}

/// The protocol by hand, with one pin and one entry.
struct Bare {
    pin: AtomicU64,
    entry: AtomicU64,
    memory: UnsafeCell<u64>,
}

/// What a bare worker does before it accesses; says whether it may.
type Enter = fn(&Bare) -> bool;

fn bare_race(enter: Enter, invalidation_fence: fn()) {
    check(move || {
        let bare = Arc::new(Bare {
            pin: AtomicU64::new(0),
            entry: AtomicU64::new(1),
            memory: UnsafeCell::new(0),
        });
        let other = bare.clone();
        let worker = thread::spawn(move || {
            if enter(&other) {
                other.memory.with(|_| ());
            }
            other.pin.store(0, Ordering::Release);
        });
        bare.entry.store(0, Ordering::Release);
        invalidation_fence();
        while bare.pin.load(Ordering::Acquire) != 0 {
            thread::yield_now();
        }
        bare.memory.with_mut(|_| ());
        worker.join().unwrap();
    });
}

fn publish_then_look(bare: &Bare) -> bool {
    bare.pin.store(1, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    bare.entry.load(Ordering::Acquire) != 0
}

fn full_fence() {
    fence(Ordering::SeqCst);
}

#[test]
fn pin_1_the_bare_protocol_holds() {
    bare_race(publish_then_look, full_fence);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn planted_worker_that_looks_before_it_publishes_is_caught() {
    bare_race(
        |bare| {
            let found = bare.entry.load(Ordering::Acquire) != 0;
            bare.pin.store(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            found
        },
        full_fence,
    );
}

#[test]
#[should_panic(expected = "Causality violation")]
fn planted_worker_without_fence_is_caught() {
    bare_race(
        |bare| {
            bare.pin.store(1, Ordering::Release);
            bare.entry.load(Ordering::Acquire) != 0
        },
        full_fence,
    );
}

#[test]
#[should_panic(expected = "Causality violation")]
fn planted_invalidation_without_fence_is_caught() {
    bare_race(publish_then_look, || {});
}
