//! A worker's cached translations, and the generations that make them void.

use core::array;

use crate::addr::{BlockId, PAGE_SIZE, PAGES_PER_BLOCK, PageRange, VirtAddr};
use crate::mirror::table::Entry;
use crate::sync::{AtomicU32, Ordering};
use crate::world::Access;

/// Counters; blocks share them by number, so that a flush of one may void lines of another.
const GENERATIONS: usize = if crate::sync::MODEL { 2 } else { 64 };
/// Translations that a worker keeps: a MiB of small pages, in 6 KiB.
const LINES: usize = if crate::sync::MODEL { 4 } else { 256 };

pub(super) struct Generations([AtomicU32; GENERATIONS]);

impl Generations {
    pub(super) fn new() -> Self {
        Self(array::from_fn(|_| AtomicU32::new(0)))
    }

    /// The generation of translations looked up from now on.
    #[inline]
    pub(super) fn current(&self, block: BlockId) -> u32 {
        // Acquire pairs with the Release in `advance`: who reads the new generation looks up the erased entry.
        self.0[block.get() % GENERATIONS].load(Ordering::Acquire)
    }

    pub(super) fn advance(&self, range: PageRange) {
        let first = range.first_page() / PAGES_PER_BLOCK;
        let count = range.round_to_blocks().page_count() / PAGES_PER_BLOCK;
        for block in first..first + count.min(GENERATIONS) {
            // Release pairs with `current`. The fence that follows in `wait_clear` makes the new value seen by who is not found there.
            self.0[block % GENERATIONS].fetch_add(1, Ordering::Release);
        }
    }
}

#[derive(Clone, Copy)]
struct Line {
    page: usize,
    generation: u32,
    entry: Entry,
}

/// Direct-mapped by page number. One worker's own, so a plain array.
pub(super) struct Tlb([Line; LINES]);

impl Tlb {
    pub(super) fn new() -> Self {
        Self(
            [Line {
                page: usize::MAX,
                generation: 0,
                entry: Entry::NONE,
            }; LINES],
        )
    }

    /// The entry of the page of `addr`, if it is there, current, and permits `access`. For writing it must be known dirty.
    #[inline]
    pub(super) fn get(&self, addr: VirtAddr, generation: u32, access: Access) -> Option<Entry> {
        let page = addr.get() / PAGE_SIZE;
        let line = &self.0[page % LINES];
        let permitted = match access {
            Access::Read => true,
            Access::Write => line.entry.is_writable() && line.entry.is_dirty(),
        };
        (line.page == page && line.generation == generation && permitted).then_some(line.entry)
    }

    #[inline]
    pub(super) fn put(&mut self, addr: VirtAddr, generation: u32, entry: Entry) {
        let page = addr.get() / PAGE_SIZE;
        self.0[page % LINES] = Line {
            page,
            generation,
            entry,
        };
    }
}
