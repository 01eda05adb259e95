//! What pins promise, on one thread; `model/loom/tests/pin.rs` has the races.

use std::cell::Cell;

use allocator_api2::alloc::Global;

use super::*;
use crate::device::DeviceAddr;

fn pages(first: usize, count: usize) -> PageRange {
    PageRange::from_pages(first, count).unwrap()
}

fn at(addr: usize) -> VirtAddr {
    VirtAddr::new(addr).unwrap()
}

/// Pages `0..16` writable at `100..116`; page 16 read-only at 116; page 17 at 50.
fn table() -> Table<Global> {
    let table = Table::new().unwrap();
    let entry = |page: u64, flags| Entry::new(DeviceAddr(page * PAGE_SIZE as u64), flags);
    table.set(pages(0, 16), entry(100, Flags::WRITE)).unwrap();
    table.set(pages(16, 1), entry(116, Flags::NONE)).unwrap();
    table.set(pages(17, 1), entry(50, Flags::WRITE)).unwrap();
    table
}

fn pins(slots: usize) -> Pins<Global> {
    Pins::new(slots).unwrap()
}

#[test]
fn a_pin_says_where_the_bytes_are_and_ends_where_the_run_ends() {
    let (table, pins) = (table(), pins(1));
    let mut slot = pins.claim(&table).unwrap();
    let pin = slot.pin(at(2 * PAGE_SIZE + 8), 100, Access::Read).unwrap();
    assert_eq!(
        (pin.addr(), pin.len_bytes(), pin.start().get()),
        (102 * PAGE_SIZE + 8, 100, 2 * PAGE_SIZE + 8)
    );
    drop(pin);
    let long = slot.pin(at(2 * PAGE_SIZE + 8), usize::MAX, Access::Read).unwrap();
    assert_eq!(long.len_bytes(), 15 * PAGE_SIZE - 8);
    drop(long);
    assert_eq!(
        slot.pin(at(0), 1 << 20, Access::Write).unwrap().len_bytes(),
        16 * PAGE_SIZE
    );
    assert!(slot.pin(at(16 * PAGE_SIZE), 1, Access::Write).is_none());
    assert!(slot.pin(at(18 * PAGE_SIZE), 1, Access::Read).is_none());
}

#[test]
fn pin_1_a_pin_is_found_while_it_lives_and_only_in_its_range() {
    let (table, pins) = (table(), pins(2));
    let _idle = pins.claim(&table).unwrap();
    let mut slot = pins.claim(&table).unwrap();
    let pin = slot.pin(at(3 * PAGE_SIZE), 2 * PAGE_SIZE, Access::Read).unwrap();
    assert_eq!(
        pins.overlaps(pages(4, 100)),
        Some(PinHolder {
            slot: 1,
            range: pages(3, 2)
        })
    );
    assert_eq!(pins.overlaps(pages(5, 100)), None);
    assert_eq!(pins.overlaps(pages(0, 3)), None);
    drop(pin);
    assert_eq!(pins.overlaps(PageRange::ALL), None);
    assert!(slot.pin(at(18 * PAGE_SIZE), 1, Access::Read).is_none());
    assert_eq!(pins.overlaps(PageRange::ALL), None, "a miss leaves nothing behind");
}

#[test]
fn pin_1_after_zap_and_flush_neither_table_nor_cache_gives_the_page() {
    let (table, pins) = (table(), pins(1));
    let mut slot = pins.claim(&table).unwrap();
    assert!(slot.pin(at(0), 8, Access::Write).is_some());
    assert!(slot.pin(at(0), 8, Access::Write).is_some());
    table.zap(pages(0, 1), &mut |_, _| {});
    pins.flush(pages(0, 1));
    assert!(slot.pin(at(0), 8, Access::Read).is_none());
    assert!(slot.pin(at(PAGE_SIZE), 8, Access::Read).is_some());
}

#[test]
fn pin_2_a_pin_for_writing_marks_what_it_covers_dirty() {
    let (table, pins) = (table(), pins(1));
    let mut slot = pins.claim(&table).unwrap();
    drop(slot.pin(at(3 * PAGE_SIZE - 4), 8, Access::Write).unwrap());
    drop(slot.pin(at(9 * PAGE_SIZE), 8, Access::Read).unwrap());
    drop(slot.pin(at(9 * PAGE_SIZE), 8, Access::Read).unwrap());
    let mut dirty = Vec::new_in(Global);
    table.dirty(PageRange::ALL, &mut |run| dirty.push(run));
    assert_eq!(*dirty, [pages(2, 2)]);
}

#[test]
fn pin_2_a_cached_page_that_was_cleaned_is_marked_again() {
    let (table, pins) = (table(), pins(1));
    let mut slot = pins.claim(&table).unwrap();
    for _ in 0..2 {
        // Cached clean first: writing must not pass by the table.
        drop(slot.pin(at(0), 8, Access::Read).unwrap());
        drop(slot.pin(at(0), 8, Access::Write).unwrap());
        let mut dirty = 0;
        table.dirty(pages(0, 1), &mut |run| dirty += run.page_count());
        pins.flush(pages(0, 1));
        assert_eq!(dirty, 1);
    }
}

#[test]
fn pin_3_protecting_ends_cached_writes() {
    let (table, pins) = (table(), pins(1));
    let mut slot = pins.claim(&table).unwrap();
    drop(slot.pin(at(0), 8, Access::Write).unwrap());
    table.protect(pages(0, 1));
    pins.flush(pages(0, 1));
    assert!(slot.pin(at(0), 8, Access::Write).is_none());
    assert!(slot.pin(at(0), 8, Access::Read).is_some());
}

#[test]
fn several_spans_are_pinned_all_or_none() {
    let (table, pins) = (table(), pins(1));
    let mut slot = pins.claim(&table).unwrap();
    let page = |number: usize| at(number * PAGE_SIZE);
    let [from, to] = slot
        .pin_many([(page(17), 8, Access::Read), (page(1), 8, Access::Write)])
        .unwrap();
    assert_eq!((from.addr(), to.addr()), (50 * PAGE_SIZE, 101 * PAGE_SIZE));
    assert!(to.flags().has(Flags::WRITE | Flags::DIRTY));
    drop(from);
    assert_eq!(pins.overlaps(PageRange::ALL).unwrap().range, pages(1, 1));
    drop(to);
    assert!(
        slot.pin_many([(page(1), 8, Access::Read), (page(30), 8, Access::Read)])
            .is_none()
    );
    assert_eq!(pins.overlaps(PageRange::ALL), None);
}

#[test]
fn a_slot_is_one_workers_until_it_is_dropped() {
    let (table, pins) = (table(), pins(2));
    let first = pins.claim(&table).unwrap();
    let second = pins.claim(&table).unwrap();
    assert_eq!((first.number(), second.number()), (0, 1));
    assert!(pins.claim(&table).is_none());
    drop(first);
    assert_eq!(pins.claim(&table).unwrap().number(), 0);
}

#[test]
fn a_leaked_pin_ends_with_its_slot() {
    let (table, pins) = (table(), pins(1));
    let mut slot = pins.claim(&table).unwrap();
    core::mem::forget(slot.pin(at(0), 8, Access::Read));
    assert!(pins.overlaps(PageRange::ALL).is_some());
    drop(slot);
    assert!(pins.overlaps(PageRange::ALL).is_none());
}

#[test]
fn wait_clear_names_who_holds_on_for_longer_than_patience() {
    let (table, pins) = (table(), pins(1));
    let mut slot = pins.claim(&table).unwrap();
    let clock = Cell::new(0);
    let now = || clock.get();
    let pause = |ns| clock.set(clock.get() + ns);
    assert_eq!(pins.wait_clear(PageRange::ALL, 0, &now, &pause), Ok(()));
    let held = slot.pin(at(0), 8, Access::Read).unwrap();
    let holder = PinHolder {
        slot: 0,
        range: pages(0, 1),
    };
    assert_eq!(pins.wait_clear(pages(0, 4), 1_000_000, &now, &pause), Err(holder));
    assert_eq!(clock.get(), 1_000_000);
    assert_eq!(pins.wait_clear(pages(1, 4), 1_000_000, &now, &pause), Ok(()));
    // Dropped in a pause.
    let held = Cell::new(Some(held));
    let release = |ns| {
        pause(ns);
        held.take();
    };
    assert_eq!(pins.wait_clear(pages(0, 4), 1_000_000, &now, &release), Ok(()));
}

/// Not a promise but a figure: `cargo test --release -- --ignored --nocapture cost`.
#[test]
#[ignore = "a measurement: run it in release with --ignored --nocapture"]
fn cost_of_a_pin() {
    let table = Table::<Global>::new().unwrap();
    let area = pages(1 << 18, 16 << 10);
    let pins = pins(1);
    let first = |page| Entry::new(DeviceAddr(page * PAGE_SIZE as u64), Flags::WRITE);
    for (leaves, page) in [("4 KiB leaves", 1), ("2 MiB leaves", 512)] {
        table.set(area, first(page)).unwrap();
        let mut slot = pins.claim(&table).unwrap();
        for (what, page_count) in [("random", 16 << 10), ("48 pages", 48), ("1 page", 1)] {
            for access in [Access::Read, Access::Write] {
                let mut random = 1u64;
                let start = std::time::Instant::now();
                const TIMES: u32 = 5_000_000;
                for _ in 0..TIMES {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let offset = (random >> 33) as usize % (page_count * PAGE_SIZE) / 64 * 64;
                    let pin = slot.pin(at(area.start() + offset), 64, access).unwrap();
                    std::hint::black_box(pin.addr());
                }
                println!(
                    "{leaves}, {what}, {access:?}: {:.1} ns",
                    start.elapsed().as_nanos() as f64 / f64::from(TIMES)
                );
            }
        }
    }
}
