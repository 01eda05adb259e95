//! Operations on a [`Universe`] by the CPU, by devices, through isomem and behind its back.

use std::ops::Range;

use isomem::{Access, Mirror, Mm, PAGE_SIZE, Part, SkipReason};
use proptest::prelude::*;

use super::universe::{PAGES, Universe};
use super::{Area, Fork, PAGES_PER_BLOCK, advise_raw, area_at, in_child, remap_raw, unmap_raw};

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    CpuRead,
    CpuWrite,
    DeviceRead,
    DeviceWrite,
    DeviceSlice,
    ToDevice,
    Home,
    Protect,
    Unmap,
    Map,
    Remap,
    Discard,
    LateDiscard,
    LateUnmap,
    LateMap,
    LateRemap,
    Fork,
    LateFork,
    Huge,
    CheckAll,
}

/// An operation on some pages.
#[derive(Debug, Clone)]
pub(crate) struct Op {
    pub(crate) kind: Kind,
    pub(crate) pages: Range<usize>,
    /// Whatever else is to be chosen.
    pub(crate) seed: u64,
}

/// Sequences of operations of these kinds, by their weights.
pub(crate) fn ops(kinds: &'static [(u32, Kind)], most: usize) -> impl Strategy<Value = Vec<Op>> {
    let kind =
        proptest::strategy::Union::new_weighted(kinds.iter().map(|&(weight, kind)| (weight, Just(kind))).collect());
    let op = (kind, pages(), any::<u64>()).prop_map(|(kind, pages, seed)| Op { kind, pages, seed });
    proptest::collection::vec(op, 1..most)
}

/// Ranges of pages: a few, many, or whole blocks; mostly where there is something at first.
fn pages() -> impl Strategy<Value = Range<usize>> {
    let clip = |start: usize, len: usize| start..(start + len).min(PAGES);
    let near_border = (1..5usize, 0..8usize).prop_map(|(block, before)| block * PAGES_PER_BLOCK - before);
    prop_oneof![
        3 => (480..2080usize, 1..5usize).prop_map(move |(start, len)| clip(start, len)),
        2 => (near_border, 1..16usize).prop_map(move |(start, len)| clip(start, len)),
        3 => (0..PAGES - 1, 1..1200usize).prop_map(move |(start, len)| clip(start, len)),
        2 => (0..6usize, 1..4usize).prop_map(move |(block, blocks)| clip(block * PAGES_PER_BLOCK, blocks * PAGES_PER_BLOCK)),
    ]
}

/// The memory, and whom it is done with.
pub(crate) struct Player<'a> {
    pub(crate) universe: Universe,
    pub(crate) mm: &'a Mm,
    /// Each with whether its device takes pages when it touches them.
    pub(crate) mirrors: &'a [(Mirror, OnTouch)],
    /// Devices have room for everything.
    pub(crate) roomy: bool,
    pub(crate) had_huge: bool,
    pub(crate) had_fork: bool,
}

/// Whether pages go to the device that touches them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnTouch {
    Move,
    Stay,
}

impl Player<'_> {
    /// Does all of it, looking at everything now and then and at the end.
    pub(crate) fn play(&mut self, ops: &[Op]) {
        for (index, op) in ops.iter().enumerate() {
            if std::env::var_os("MODEL_TRACE").is_some() {
                eprintln!("{index}: {op:?}");
            }
            self.step(op);
            if index % 4 == 3 {
                self.universe.check_snapshot(&self.mirrors[0].0);
            }
        }
        self.check_all();
    }

    fn check_all(&mut self) {
        self.universe.check_snapshot(&self.mirrors[0].0);
        self.universe.cpu_read(0..PAGES);
        for (mirror, on_touch) in self.mirrors {
            if *on_touch == OnTouch::Move {
                self.universe.may_leave(0..PAGES);
            }
            self.universe.device_read(mirror, 0..PAGES);
        }
        self.universe.check_snapshot(&self.mirrors[0].0);
        self.universe.cpu_read(0..PAGES);
    }

    fn step(&mut self, op: &Op) {
        let (pages, seed) = (op.pages.clone(), op.seed);
        match op.kind {
            Kind::CpuRead => self.universe.cpu_read(pages),
            Kind::CpuWrite => self.universe.cpu_write(pages, seed),
            Kind::DeviceRead | Kind::DeviceWrite | Kind::DeviceSlice => self.on_device(op),
            Kind::ToDevice => self.send(pages, seed),
            Kind::Home => self.home(pages, seed),
            Kind::Protect | Kind::Unmap | Kind::Map | Kind::Remap | Kind::Discard => self.announced(op),
            Kind::LateDiscard | Kind::LateUnmap | Kind::LateMap | Kind::LateRemap => self.late(op),
            Kind::Fork => self.fork(Fork::Announced),
            Kind::LateFork => self.fork(Fork::Late),
            Kind::Huge => self.huge(pages, seed),
            Kind::CheckAll => self.check_all(),
        }
    }

    fn mirror_index(&self, seed: u64) -> usize {
        (seed >> 32) as usize % self.mirrors.len()
    }

    fn mirror(&self, seed: u64) -> &Mirror {
        &self.mirrors[self.mirror_index(seed)].0
    }

    fn on_device(&mut self, op: &Op) {
        let (mirror, on_touch) = &self.mirrors[self.mirror_index(op.seed)];
        if *on_touch == OnTouch::Move {
            self.universe.may_leave(op.pages.clone());
        }
        match op.kind {
            Kind::DeviceRead => self.universe.device_read(mirror, op.pages.clone()),
            Kind::DeviceWrite => self.universe.device_write(mirror, op.pages.clone(), op.seed),
            _ => self
                .universe
                .runs(op.pages.clone(), |area| area == Area::ReadWrite)
                .into_iter()
                .for_each(|run| {
                    add_on_device(mirror, &mut self.universe, run, op.seed);
                }),
        }
    }

    fn send(&mut self, pages: Range<usize>, seed: u64) {
        self.universe.may_leave(pages.clone());
        let report = self
            .mirror(seed)
            .migrate_to_device(Universe::range(pages.clone()))
            .unwrap();
        assert_eq!(
            report.migrated() + report.already + report.skipped,
            pages.len(),
            "{report:?}"
        );
        for (range, reason) in report.skips() {
            let first = (range.start() - Universe::addr(0)) / PAGE_SIZE;
            let area = match reason {
                SkipReason::Hole => Area::Hole,
                SkipReason::NoAccess => Area::Forbidden,
                SkipReason::NoDeviceMemory if !self.roomy => continue,
                // UFFDIO_MOVE asks whether the first page of a huge page is shared, not the page itself; where the first one is elsewhere by
                // now, nothing unshares it.
                SkipReason::Pinned if self.had_huge && self.had_fork => continue,
                other => panic!("{range} did not go: {other}"),
            };
            assert!(
                self.universe.areas[first..first + range.page_count()]
                    .iter()
                    .all(|&is| is == area),
                "{range} is no {area:?}"
            );
        }
    }

    fn home(&mut self, pages: Range<usize>, seed: u64) {
        let report = self.mirror(seed).migrate_home(Universe::range(pages.clone())).unwrap();
        assert_eq!(report.skipped, 0, "{report:?}");
        if self.mirrors.len() == 1 {
            self.universe.away[pages].fill(false);
        }
    }

    fn announced(&mut self, op: &Op) {
        let pages = op.pages.clone();
        match op.kind {
            Kind::Protect => {
                let (area, access) = [
                    (Area::Forbidden, None),
                    (Area::ReadOnly, Some(Access::Read)),
                    (Area::ReadWrite, Some(Access::Write)),
                ][op.seed as usize % 3];
                for run in self.universe.runs(pages, Area::is_mapped) {
                    // SAFETY: nobody uses the memory now.
                    unsafe { self.mm.protect(Universe::range(run.clone()), access) }.unwrap();
                    self.universe.away[run.clone()].fill(false);
                    self.universe.areas[run].fill(area);
                }
            }
            Kind::Unmap => {
                // SAFETY: nobody uses the memory now.
                unsafe { self.mm.unmap(Universe::range(pages.clone())) }.unwrap();
                self.universe.forget(pages);
            }
            Kind::Map => {
                for hole in self.universe.runs(pages, |area| area == Area::Hole) {
                    self.universe.map(hole);
                }
            }
            Kind::Discard => {
                // SAFETY: nobody relies on the contents.
                unsafe { self.mm.discard_pages(Universe::range(pages.clone())) }.unwrap();
                self.universe.zero(pages);
            }
            _ => {
                if let Some((from, to)) = self.journey(pages, op.seed) {
                    let into = to..to + from.len();
                    // SAFETY: nobody uses the memory now.
                    unsafe { self.mm.remap(Universe::range(from.clone()), Universe::range(into)) }.unwrap();
                    self.universe.relocate(from, to);
                }
            }
        }
    }

    fn late(&mut self, op: &Op) {
        let pages = op.pages.clone();
        match op.kind {
            Kind::LateDiscard => {
                for run in self.universe.runs(pages, Area::is_mapped) {
                    advise_raw(Universe::range(run.clone()), libc::MADV_DONTNEED).unwrap();
                    self.universe.zero(run);
                }
            }
            Kind::LateUnmap => {
                unmap_raw(Universe::range(pages.clone()));
                self.universe.forget(pages);
            }
            Kind::LateMap => self.universe.map(pages),
            _ => {
                if let Some((from, to)) = self.journey(pages, op.seed) {
                    remap_raw(Universe::range(from.clone()), Universe::range(to..to + from.len()));
                    self.universe.relocate(from, to);
                }
            }
        }
        self.universe.barrier.wait(&self.mirrors[0].0);
    }

    /// What of `pages` lies in one area of the kernel's, and where it can go.
    fn journey(&self, pages: Range<usize>, seed: u64) -> Option<(Range<usize>, usize)> {
        let run = self.universe.runs(pages, Area::is_mapped).into_iter().next()?;
        let area = area_at(Universe::addr(run.start)).expect("it is mapped");
        let end = run.end.min((area.end() - Universe::addr(0)) / PAGE_SIZE);
        let from = run.start..end;
        let to = match seed % 3 {
            // At the same offset in a block, so that a huge page stays whole.
            0 => (from.start + (seed as usize >> 8) % 6 * PAGES_PER_BLOCK) % PAGES,
            1 => 2100 + (seed as usize >> 8) % 400,
            _ => (seed as usize >> 8) % PAGES,
        };
        let apart = to + from.len() <= from.start || from.end <= to;
        (apart && to + from.len() <= PAGES).then_some((from, to))
    }

    fn fork(&mut self, how: Fork) {
        self.had_fork = true;
        let universe = &self.universe;
        let status = in_child(how, || u8::from(universe.differs_for_cpu(0..PAGES).is_some()));
        assert_eq!(status, 0, "the child of a fork ({how:?}) reads something else");
        if how == Fork::Announced {
            self.universe.away.fill(false);
        }
        if how == Fork::Late {
            self.universe.barrier.wait(&self.mirrors[0].0);
        }
    }

    fn huge(&mut self, pages: Range<usize>, seed: u64) {
        self.had_huge = true;
        let first = pages.start / PAGES_PER_BLOCK * PAGES_PER_BLOCK;
        let blocks = first..(first + pages.len().next_multiple_of(PAGES_PER_BLOCK)).min(PAGES);
        let (advice, late) = [
            (libc::MADV_HUGEPAGE, true),
            (libc::MADV_NOHUGEPAGE, false),
            (libc::MADV_COLLAPSE, false),
        ][seed as usize % 3];
        for run in self.universe.runs(blocks, Area::is_mapped) {
            // A refusal is right too: not every block can be huge.
            let _ = advise_raw(Universe::range(run.clone()), advice);
            if late {
                // SAFETY: nobody relies on the contents.
                unsafe { self.mm.discard_pages(Universe::range(run.clone())) }.unwrap();
                self.universe.zero(run.clone());
                self.universe.cpu_write(run, seed | 1);
            }
        }
        // The kernel collapses what it finds; a page that was away and is not now came home by a fault.
        self.universe.check_snapshot(&self.mirrors[0].0);
    }
}

/// Adds to each word by way of a borrowed slice.
fn add_on_device(mirror: &Mirror, universe: &mut Universe, run: Range<usize>, seed: u64) {
    let words = Universe::words(run.clone());
    let added = mirror.launch(words, |worker, mut part: Part<'_, u64>| {
        part.for_chunks_mut(worker, 0..part.len(), |_, piece| {
            piece.iter_mut().for_each(|word| *word = word.wrapping_add(seed));
        })
    });
    added.unwrap();
    for page in run {
        for word in universe.pages[page].chunks_exact_mut(8) {
            let sum = u64::from_ne_bytes(word.try_into().unwrap()).wrapping_add(seed);
            word.copy_from_slice(&sum.to_ne_bytes());
        }
    }
}
