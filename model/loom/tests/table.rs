//! Under every schedule: a lookup in the device page table finds what was in force, and no dirtiness is lost.
//!
//! Under the checker a directory has two slots, so the tests use pages 0 and 1 of blocks 0 and 1. The planted tables get one order
//! wrong each, and the checker must catch them.
//!
//! The changes run on the model's first thread and the lookups on the second: loom finds the races of a load with all earlier stores, but of
//! a store with only the latest load.
//!
//! Bounds: 2 threads with up to 3 preemptions, at most 3 changes against 2 lookups.

use std::sync::Arc;

use isomem_core::addr::{BlockId, PAGE_SIZE, PageRange, VirtAddr};
use isomem_core::device::DeviceAddr;
use isomem_core::mirror::table::{Entry, Flags, Table};
use isomem_loom::ModelHeap;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

const BLOCK_PAGES: usize = 512;

type ModelTable = Table<ModelHeap>;

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

fn table() -> Arc<ModelTable> {
    Arc::new(Table::new().unwrap())
}

fn pages(first: usize, count: usize) -> PageRange {
    PageRange::from_pages(first, count).unwrap()
}

fn at(page: usize) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE).unwrap()
}

fn entry(page: usize) -> Entry {
    Entry::new(DeviceAddr((page * PAGE_SIZE) as u64), Flags::WRITE)
}

fn found(table: &ModelTable, page: usize) -> Option<DeviceAddr> {
    table.get(at(page)).map(|leaf| leaf.entry.addr())
}

/// A table whose block 0 is one leaf, at device page 512.
fn big() -> Arc<ModelTable> {
    let table = table();
    table.model_set(pages(0, BLOCK_PAGES), entry(BLOCK_PAGES)).unwrap();
    table
}

fn zap(table: &ModelTable, range: PageRange) -> Vec<Entry> {
    let mut erased = Vec::new();
    table.zap(range, &mut |_, entry| erased.push(entry));
    erased
}

/// `look` on one thread while `change` runs on the other.
fn look_during(table: fn() -> Arc<ModelTable>, change: fn(&ModelTable), look: fn(&ModelTable)) {
    check(move || {
        let table = table();
        let other = table.clone();
        let reader = thread::spawn(move || look(&other));
        change(&table);
        reader.join().unwrap();
    });
}

#[test]
fn tbl_1_lookup_finds_what_was_set_or_nothing() {
    look_during(
        table,
        |table| {
            table.model_set(pages(0, 2), entry(8)).unwrap();
            zap(table, pages(0, 1));
            table.model_set(pages(0, 1), entry(30)).unwrap();
        },
        |table| {
            let seen = found(table, 0);
            assert!(seen.is_none() || seen == Some(entry(8).addr()) || seen == Some(entry(30).addr()));
            let seen = found(table, 1);
            assert!(seen.is_none() || seen == Some(entry(9).addr()));
        },
    );
}

#[test]
fn tbl_2_split_never_loses_a_page() {
    look_during(
        big,
        |table| table.split(at(0)).unwrap(),
        |table| assert_eq!(found(table, 1), Some(entry(BLOCK_PAGES + 1).addr())),
    );
}

#[test]
fn tbl_2_merge_never_loses_a_page() {
    let split = || {
        let table = big();
        table.split(at(0)).unwrap();
        table
    };
    look_during(
        split,
        |table| assert!(table.merge(BlockId::new(0).unwrap())),
        |table| assert_eq!(found(table, 1), Some(entry(BLOCK_PAGES + 1).addr())),
    );
}

#[test]
fn tbl_2_zap_of_one_page_of_a_big_leaf_keeps_its_neighbour() {
    look_during(
        big,
        |table| assert_eq!(zap(table, pages(0, 1)).len(), 1),
        |table| {
            let seen = found(table, 0);
            assert!(seen.is_none() || seen == Some(entry(BLOCK_PAGES).addr()));
            assert_eq!(found(table, 1), Some(entry(BLOCK_PAGES + 1).addr()));
        },
    );
}

#[test]
fn dpt_4_erasing_and_protecting_take_no_memory() {
    const GIB_PAGES: usize = BLOCK_PAGES * BLOCK_PAGES;
    check(|| {
        let table = big();
        table.model_set(pages(GIB_PAGES, GIB_PAGES), entry(GIB_PAGES)).unwrap();
        ModelHeap::fail_after(0);
        table.protect(pages(0, 1));
        zap(&table, pages(1, 1));
        zap(&table, pages(GIB_PAGES + 1, 1));
        ModelHeap::fail_after(usize::MAX);
        assert!(!table.get(at(0)).unwrap().entry.is_writable());
        assert_eq!((found(&table, 1), found(&table, GIB_PAGES + 1)), (None, None));
        assert_eq!(
            found(&table, GIB_PAGES + BLOCK_PAGES),
            Some(entry(GIB_PAGES + BLOCK_PAGES).addr())
        );
    });
}

#[test]
fn tbl_2_a_big_leaf_set_beside_a_small_one_hides_nothing() {
    check(|| {
        let table = table();
        table.model_set(pages(0, 1), entry(3)).unwrap();
        let other = table.clone();
        let setter = thread::spawn(move || other.model_set(pages(0, BLOCK_PAGES), entry(BLOCK_PAGES)).unwrap());
        table.model_set(pages(1, 1), entry(77)).unwrap();
        setter.join().unwrap();
        assert_eq!(found(&table, 0), Some(entry(BLOCK_PAGES).addr()));
        zap(&table, PageRange::ALL);
        assert_eq!((found(&table, 0), found(&table, 1)), (None, None));
    });
}

#[test]
fn tbl_3_who_marked_a_page_dirty_is_in_the_zaps_report() {
    check(|| {
        let table = big();
        let other = table.clone();
        let worker = thread::spawn(move || other.set_dirty(at(0)));
        // Splits first.
        let erased = zap(&table, pages(0, 1));
        let marked = worker.join().unwrap();
        assert!(!marked || erased[0].is_dirty(), "TBL-3");
    });
}

#[test]
fn tbl_3_split_and_merge_carry_dirtiness_over() {
    check(|| {
        let table = big();
        let other = table.clone();
        let worker = thread::spawn(move || other.set_dirty(at(1)));
        table.split(at(0)).unwrap();
        table.merge(BlockId::new(0).unwrap());
        let marked = worker.join().unwrap();
        assert!(
            !marked || zap(&table, pages(0, BLOCK_PAGES)).iter().any(|entry| entry.is_dirty()),
            "TBL-3"
        );
    });
}

/// A leaf, and the one entry below it that matters: what a planted table is made of.
struct Planted {
    leaf: AtomicU64,
    child: AtomicU64,
}

const VALID: u64 = 1;
const DIRTY: u64 = 2;

impl Planted {
    fn new(leaf: u64, child: u64) -> Arc<Self> {
        Arc::new(Self {
            leaf: AtomicU64::new(leaf),
            child: AtomicU64::new(child),
        })
    }

    fn get(&self) -> u64 {
        let leaf = self.leaf.load(Ordering::Acquire);
        if leaf & VALID != 0 {
            leaf
        } else {
            self.child.load(Ordering::Acquire)
        }
    }

    fn set_dirty(&self) -> bool {
        let seen = self.leaf.load(Ordering::Acquire);
        seen & VALID != 0
            && self
                .leaf
                .compare_exchange(seen, seen | DIRTY, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
    }
}

#[test]
#[should_panic(expected = "TBL-1")]
fn planted_split_that_clears_before_it_fills_is_caught() {
    check(|| {
        let table = Planted::new(VALID, 0);
        let other = table.clone();
        let splitter = thread::spawn(move || {
            other.leaf.store(0, Ordering::Release);
            other.child.store(VALID, Ordering::Release);
        });
        assert_ne!(table.get(), 0, "TBL-1");
        splitter.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "TBL-1")]
fn planted_split_without_release_is_caught() {
    check(|| {
        let table = Planted::new(VALID, 0);
        let other = table.clone();
        let splitter = thread::spawn(move || {
            other.child.store(VALID, Ordering::Relaxed);
            other.leaf.store(0, Ordering::Relaxed);
        });
        assert_ne!(table.get(), 0, "TBL-1");
        splitter.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "TBL-1")]
fn planted_lookup_that_does_not_look_again_is_caught() {
    check(|| {
        let table = Planted::new(0, VALID);
        let other = table.clone();
        let merger = thread::spawn(move || {
            other.leaf.store(VALID, Ordering::Release);
            other.child.store(0, Ordering::Release);
        });
        assert_ne!(table.get(), 0, "TBL-1");
        merger.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "TBL-3")]
fn planted_zap_that_reads_then_clears_is_caught() {
    check(|| {
        let table = Planted::new(VALID, 0);
        let other = table.clone();
        let worker = thread::spawn(move || other.set_dirty());
        let erased = table.leaf.load(Ordering::Acquire);
        table.leaf.store(0, Ordering::Release);
        let marked = worker.join().unwrap();
        assert!(!marked || erased & DIRTY != 0, "TBL-3");
    });
}
