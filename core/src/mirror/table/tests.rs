//! What the table promises, on one thread; `model/loom/tests/table.rs` has the races. TBL-1 to TBL-3 are DPT-1 to DPT-3.

use std::collections::BTreeMap;

use allocator_api2::alloc::Global;
use proptest::prelude::*;

use super::*;
use crate::addr::BLOCK_SIZE;
use crate::device::DeviceAddr;

const GIB: usize = 1 << 30;

type TestTable = Table<Global>;

fn pages(first: usize, count: usize) -> PageRange {
    PageRange::from_pages(first, count).unwrap()
}

fn at(page: usize) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE).unwrap()
}

fn entry(page: usize, flags: Flags) -> Entry {
    Entry::new(DeviceAddr((page * PAGE_SIZE) as u64), flags)
}

fn zapped(table: &TestTable, range: PageRange) -> Vec<(PageRange, Entry)> {
    let mut runs = Vec::new();
    table.zap(range, &mut |run, entry| runs.push((run, entry)));
    runs
}

fn dirty(table: &TestTable, range: PageRange) -> Vec<PageRange> {
    let mut runs = Vec::new();
    table.dirty(range, &mut |run| runs.push(run));
    runs
}

#[test]
fn tbl_1_a_range_is_there_when_each_of_its_pages_is() {
    let table = TestTable::new().unwrap();
    // Over the end of a block, and writable but for one page.
    let range = pages(508, 8);
    table.set(range, entry(508, Flags::WRITE)).unwrap();
    assert!(table.has_all(range, Access::Write));
    table.zap(pages(513, 1), &mut |_, _| {});
    assert!(!table.has_all(range, Access::Read) && table.has_all(pages(508, 5), Access::Write));
    table.set(pages(513, 1), entry(513, Flags::NONE)).unwrap();
    assert!(table.has_all(range, Access::Read) && !table.has_all(range, Access::Write));
    assert!(!table.has_all(pages(507, 2), Access::Read));
}

#[test]
fn tbl_1_lookup_finds_leaves_of_three_sizes_with_the_address_of_the_page() {
    let table = TestTable::new().unwrap();
    for (start, len, size) in [
        (7 * PAGE_SIZE, PAGE_SIZE, LeafSize::Page),
        (4 * BLOCK_SIZE, BLOCK_SIZE, LeafSize::Block),
        (3 * GIB, GIB, LeafSize::Gigabyte),
        (USER_END - GIB, GIB, LeafSize::Gigabyte),
    ] {
        let range = PageRange::new(start, len).unwrap();
        table
            .set(range, Entry::new(DeviceAddr(start as u64), Flags::WRITE))
            .unwrap();
        for page in [
            range.first_page(),
            range.first_page() + range.page_count() / 2,
            range.end_page() - 1,
        ] {
            assert_eq!(
                table.get(at(page)),
                Some(Leaf {
                    entry: entry(page, Flags::WRITE),
                    size
                })
            );
        }
    }
    assert_eq!(table.get(at(6)), None);
}

#[test]
fn tbl_1_a_leaf_is_big_only_where_both_sides_are_aligned() {
    let table = TestTable::new().unwrap();
    table.set(pages(512, 512), entry(513, Flags::NONE)).unwrap();
    assert_eq!(table.get(at(512)).unwrap().size, LeafSize::Page);
    table.set(pages(1000, 1048), entry(1000, Flags::NONE)).unwrap();
    assert_eq!(table.get(at(1023)).unwrap().size, LeafSize::Page);
    assert_eq!(table.get(at(1024)).unwrap().size, LeafSize::Block);
}

#[test]
fn tbl_1_the_lowest_directory_is_a_page_and_a_cache_line_at_most() {
    assert!(size_of::<Pages>() <= 4096 + 64);
}

#[test]
fn tbl_2_split_keeps_every_page_and_merge_makes_the_leaf_again() {
    let table = TestTable::new().unwrap();
    let block = BlockId::new(5).unwrap();
    table.set(block.range(), entry(1024, Flags::WRITE)).unwrap();
    table.split(at(block.first_page() + 3)).unwrap();
    assert_eq!(
        table.get(at(block.first_page() + 9)).unwrap(),
        Leaf {
            entry: entry(1033, Flags::WRITE),
            size: LeafSize::Page
        }
    );
    assert!(table.set_dirty(at(block.first_page() + 9)));
    assert!(table.merge(block));
    let leaf = table.get(at(block.first_page())).unwrap();
    assert_eq!(
        leaf,
        Leaf {
            entry: entry(1024, Flags::WRITE | Flags::DIRTY),
            size: LeafSize::Block
        }
    );
}

#[test]
fn tbl_2_merge_refuses_gaps_odd_neighbours_and_bad_alignment() {
    let table = TestTable::new().unwrap();
    let block = BlockId::new(1).unwrap();
    assert!(!table.merge(block));
    table.set(pages(512, 511), entry(512, Flags::NONE)).unwrap();
    assert!(!table.merge(block), "a gap");
    table.set(pages(1023, 1), entry(1023, Flags::WRITE)).unwrap();
    assert!(!table.merge(block), "other flags");
    table.set(pages(512, 512), entry(3, Flags::NONE)).unwrap();
    assert!(!table.merge(block), "alignment");
}

#[test]
fn tbl_2_a_gigabyte_splits_down_to_the_page() {
    let table = TestTable::new().unwrap();
    let range = PageRange::new(GIB, GIB).unwrap();
    table.set(range, entry(range.first_page(), Flags::NONE)).unwrap();
    table.split(at(range.first_page() + 1000)).unwrap();
    assert_eq!(table.get(at(range.first_page() + 1000)).unwrap().size, LeafSize::Page);
    assert_eq!(table.get(at(range.first_page() + 2000)).unwrap().size, LeafSize::Block);
    assert_eq!(
        table.iter(PageRange::ALL).collect::<Vec<_>>(),
        [(range, entry(range.first_page(), Flags::NONE))]
    );
}

#[test]
fn tbl_2_discard_forgets_and_dirty_collects_once() {
    let table = TestTable::new().unwrap();
    table.set(pages(0, 10), entry(100, Flags::WRITE)).unwrap();
    for page in [1, 2, 5] {
        assert!(table.set_dirty(at(page)));
    }
    assert_eq!(dirty(&table, pages(0, 10)), [pages(1, 2), pages(5, 1)]);
    assert_eq!(dirty(&table, pages(0, 10)), []);
    table.discard(pages(0, 4));
    assert_eq!(table.iter(PageRange::ALL).next().unwrap().0, pages(4, 6));
}

#[test]
fn tbl_3_dirty_is_reported_by_the_zap_and_survives_split_and_set() {
    let table = TestTable::new().unwrap();
    table.set(pages(512, 512), entry(1024, Flags::WRITE)).unwrap();
    assert!(table.set_dirty(at(600)));
    table.set(pages(700, 1), entry(1024 + 188, Flags::NONE)).unwrap();
    assert!(table.get(at(700)).unwrap().entry.is_dirty());
    assert!(!table.set_dirty(at(700)), "no longer writable");
    assert!(zapped(&table, pages(0, 2000)).iter().all(|(_, entry)| entry.is_dirty()));
    assert!(!table.set_dirty(at(600)), "gone");
}

#[test]
fn tbl_3_mark_dirty_fails_where_another_page_is_mapped_by_now() {
    let table = TestTable::new().unwrap();
    table.set(pages(0, 4), entry(100, Flags::WRITE)).unwrap();
    table.set(pages(2, 1), entry(900, Flags::WRITE)).unwrap();
    assert_eq!(table.mark_dirty(pages(0, 4), entry(100, Flags::WRITE)), 2);
    assert_eq!(dirty(&table, pages(0, 4)), [pages(0, 2)]);
}

#[test]
fn zap_reports_runs_cut_where_flags_or_addresses_break() {
    let table = TestTable::new().unwrap();
    table.set(pages(510, 4), entry(10, Flags::WRITE)).unwrap();
    table.set(pages(514, 2), entry(14, Flags::DEVICE)).unwrap();
    table.set(pages(516, 1), entry(77, Flags::DEVICE)).unwrap();
    let expected = [
        (pages(511, 3), entry(11, Flags::WRITE)),
        (pages(514, 2), entry(14, Flags::DEVICE)),
        (pages(516, 1), entry(77, Flags::DEVICE)),
    ];
    assert_eq!(zapped(&table, pages(511, 5000)), expected);
    assert_eq!(
        table.iter(PageRange::ALL).collect::<Vec<_>>(),
        [(pages(510, 1), entry(10, Flags::WRITE))]
    );
}

#[test]
fn zap_of_a_part_of_a_big_leaf_keeps_the_rest() {
    let table = TestTable::new().unwrap();
    table.set(pages(512, 512), entry(512, Flags::NONE)).unwrap();
    assert_eq!(
        zapped(&table, pages(600, 2)),
        [(pages(600, 2), entry(600, Flags::NONE))]
    );
    let rest: Vec<_> = table.iter(PageRange::ALL).map(|(run, _)| run).collect();
    assert_eq!(rest, [pages(512, 88), pages(602, 422)]);
}

#[test]
fn dpt_4_zap_in_a_gigabyte_leaf_goes_two_megabytes_wide_at_most() {
    let table = TestTable::new().unwrap();
    let base = 1 << 18;
    table.set(pages(base, 1 << 18), entry(base, Flags::NONE)).unwrap();
    assert_eq!(
        zapped(&table, pages(base + 1000, 1)),
        [(pages(base + 512, 512), entry(base + 512, Flags::NONE))]
    );
    assert!(table.get(at(base + 511)).is_some());
    assert!(table.get(at(base + 1024)).is_some());
}

#[test]
fn protect_takes_write_and_leaves_the_rest() {
    let table = TestTable::new().unwrap();
    table.set(pages(512, 512), entry(512, Flags::WRITE)).unwrap();
    table.protect(pages(520, 8));
    assert_eq!(table.valid_mask(BlockId::new(1).unwrap(), Access::Read), PageMask::FULL);
    assert_eq!(
        table.valid_mask(BlockId::new(1).unwrap(), Access::Write),
        PageMask::FULL.without(PageMask::of(8, 16))
    );
    assert_eq!(
        table.run_at(at(512), 512, Access::Write),
        Some((pages(512, 8), entry(512, Flags::WRITE)))
    );
}

#[test]
fn run_at_ends_at_the_block_the_limit_and_the_break() {
    let table = TestTable::new().unwrap();
    table.set(pages(0, 1536), entry(0, Flags::NONE)).unwrap();
    table.set(pages(40, 1), entry(3, Flags::NONE)).unwrap();
    let run = |page, max| {
        table
            .run_at(at(page), max, Access::Read)
            .map(|(run, entry)| (run.page_count(), entry.addr().0 / 4096))
    };
    assert_eq!(run(10, 5), Some((5, 10)));
    assert_eq!(run(10, 500), Some((30, 10)));
    assert_eq!(run(600, 5000), Some((424, 600)));
    assert_eq!(run(1536, 1), None);
    assert_eq!(table.run_at(at(0), 1, Access::Write), None);
}

#[test]
fn accesses_are_counted_by_block() {
    let table = TestTable::new().unwrap();
    let block = BlockId::new(3).unwrap();
    assert_eq!(table.count_access(block), 0);
    table.set(block.range(), entry(512, Flags::NONE)).unwrap();
    assert_eq!(
        (
            table.count_access(block),
            table.count_access(block),
            table.accesses(block)
        ),
        (1, 2, 2)
    );
    table.reset_accesses(block);
    assert_eq!(table.accesses(block), 0);
}

#[derive(Debug, Clone)]
enum Op {
    Set {
        first: usize,
        count: usize,
        to: usize,
        flags: Flags,
    },
    Zap {
        first: usize,
        count: usize,
    },
    Protect {
        first: usize,
        count: usize,
    },
    Touch {
        page: usize,
    },
    Dirty {
        first: usize,
        count: usize,
    },
    Split {
        page: usize,
    },
    Merge {
        block: usize,
    },
}

/// Three blocks, one page off a 1 GiB border, so that every level is crossed.
const BASE: usize = (1 << 18) - 1024;
const SPAN: usize = 1536;

fn op() -> impl Strategy<Value = Op> {
    let aligned = prop_oneof![Just(0usize), Just(512), Just(1024)];
    let first = prop_oneof![0..SPAN, aligned];
    let count = prop_oneof![1..40usize, Just(512), Just(1024), 1..SPAN];
    let flags = prop_oneof![
        Just(Flags::NONE),
        Just(Flags::WRITE),
        Just(Flags::WRITE | Flags::DEVICE)
    ];
    let range = (first.clone(), count);
    prop_oneof![
        4 => (range.clone(), prop_oneof![Just(0), Just(4096), Just(7)], flags)
            .prop_map(|((first, count), to, flags)| Op::Set { first, count, to: first + to, flags }),
        2 => range.clone().prop_map(|(first, count)| Op::Zap { first, count }),
        1 => range.clone().prop_map(|(first, count)| Op::Protect { first, count }),
        3 => first.clone().prop_map(|page| Op::Touch { page }),
        1 => range.prop_map(|(first, count)| Op::Dirty { first, count }),
        1 => first.prop_map(|page| Op::Split { page }),
        1 => (0..3usize).prop_map(|block| Op::Merge { block }),
    ]
}

/// Every page apart. Dirtiness may be overstated by the table, so each page has what it must be and what it may be.
#[derive(Default)]
struct Flat(BTreeMap<usize, (Entry, bool)>);

impl Flat {
    fn apply(&mut self, table: &TestTable, op: &Op) {
        let cut = |first: usize, count: usize| pages(BASE + first, count.min(SPAN - first).max(1));
        match *op {
            Op::Set {
                first,
                count,
                to,
                flags,
            } => {
                let range = cut(first, count);
                table.set(range, entry(to, flags)).unwrap();
                for (index, page) in (range.first_page()..range.end_page()).enumerate() {
                    let dirty = self.0.get(&page).is_some_and(|old| old.1);
                    self.0.insert(page, (entry(to + index, flags), dirty));
                }
            }
            Op::Zap { first, count } => self.zap(table, cut(first, count)),
            Op::Protect { first, count } => {
                let range = cut(first, count);
                table.protect(range);
                for (_, old) in self.0.range_mut(range.first_page()..range.end_page()) {
                    old.0 = Entry::new(old.0.addr(), old.0.flags().without(Flags::WRITE));
                }
            }
            Op::Touch { page } => {
                let old = self.0.get_mut(&(BASE + page)).filter(|old| old.0.is_writable());
                assert_eq!(table.set_dirty(at(BASE + page)), old.is_some());
                old.into_iter().for_each(|old| old.1 = true);
            }
            Op::Dirty { first, count } => {
                let range = cut(first, count);
                let told = dirty(table, range);
                for (&page, old) in self.0.range_mut(range.first_page()..range.end_page()) {
                    assert!(
                        !old.1 || told.iter().any(|run| run.contains(page * PAGE_SIZE)),
                        "TBL-3: {page}"
                    );
                    old.1 = false;
                }
            }
            Op::Split { page } => table.split(at(BASE + page)).unwrap(),
            Op::Merge { block } => {
                table.merge(BlockId::new(BASE / 512 + block).unwrap());
            }
        }
    }

    fn zap(&mut self, table: &TestTable, range: PageRange) {
        let mut told = BTreeMap::new();
        for (run, first) in zapped(table, range) {
            assert!(range.covers(run));
            told.extend((0..run.page_count()).map(|index| (run.first_page() + index, first.forward(index))));
        }
        for page in range.first_page()..range.end_page() {
            let (told, old) = (told.remove(&page), self.0.remove(&page));
            assert_eq!(told.map(clean), old.map(|old| old.0));
            assert!(
                !old.is_some_and(|old| old.1) || told.is_some_and(Entry::is_dirty),
                "TBL-3: {page}"
            );
        }
    }

    fn check(&self, table: &TestTable) {
        for page in BASE..BASE + SPAN {
            let (found, old) = (table.get(at(page)).map(|leaf| leaf.entry), self.0.get(&page));
            assert_eq!(found.map(clean), old.map(|old| old.0));
            assert!(
                !old.is_some_and(|old| old.1) || found.is_some_and(Entry::is_dirty),
                "TBL-3: {page}"
            );
        }
        let listed: usize = table.iter(PageRange::ALL).map(|(run, _)| run.page_count()).sum();
        assert_eq!(listed, self.0.len());
        for block in 0..3 {
            let block = BlockId::new(BASE / 512 + block).unwrap();
            let mask = table.valid_mask(block, Access::Write);
            assert!((0..512).all(|index| {
                mask.has(index)
                    == self
                        .0
                        .get(&(block.first_page() + index))
                        .is_some_and(|old| old.0.is_writable())
            }));
        }
    }
}

fn clean(entry: Entry) -> Entry {
    Entry::new(entry.addr(), entry.flags().without(Flags::DIRTY))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn tbl_1_2_3_the_table_is_a_map_of_pages(ops in proptest::collection::vec(op(), 1..24)) {
        let table = TestTable::new().unwrap();
        let mut flat = Flat::default();
        for op in &ops {
            flat.apply(&table, op);
        }
        flat.check(&table);
    }
}

/// Not a promise but a figure: `cargo test --release -- --ignored --nocapture cost`.
#[test]
#[ignore = "a measurement: run it in release with --ignored --nocapture"]
fn cost_of_the_operations() {
    fn time(what: &str, mut body: impl FnMut()) {
        const TIMES: u32 = 20_000;
        let start = std::time::Instant::now();
        (0..TIMES).for_each(|_| body());
        println!("{what}: {:?}", start.elapsed() / TIMES);
    }
    let table = TestTable::new().unwrap();
    let area = PageRange::new(GIB, 64 << 20).unwrap();
    time("zap of 64 MiB, no directory", || table.zap(area, &mut |_, _| {}));
    table.set(area, entry(area.first_page() + 1, Flags::WRITE)).unwrap();
    table.zap(area, &mut |_, _| {});
    time("zap of 64 MiB, empty directories", || table.zap(area, &mut |_, _| {}));
    let block = pages(area.first_page(), 512);
    let small = entry(1, Flags::WRITE);
    time("set and zap of 512 small", || {
        table.set(block, small).unwrap();
        table.zap(block, &mut |_, _| {});
    });
    table.set(block, small).unwrap();
    time("set of 512 small over the same", || table.set(block, small).unwrap());
    let first = at(block.first_page());
    time("run_at of 512 small", || {
        assert_eq!(table.run_at(first, 512, Access::Read).unwrap().0, block);
    });
    time("get of one", || {
        assert!(std::hint::black_box(&table).get(std::hint::black_box(first)).is_some());
    });
    time("valid_mask of 512 small", || {
        std::hint::black_box(table.valid_mask(BlockId::of(first), Access::Read));
    });
    table.set(block, entry(512, Flags::WRITE)).unwrap();
    time("run_at of a 2 MiB leaf", || {
        assert_eq!(
            std::hint::black_box(&table).run_at(first, 512, Access::Read).unwrap().0,
            block
        );
    });
}
