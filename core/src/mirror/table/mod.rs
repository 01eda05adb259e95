//! The device page table: one mirror's entries, looked up by the device without a lock.
//!
//! A radix tree over 47-bit addresses with leaves of 4 KiB, 2 MiB and 1 GiB. A big leaf is used wherever address and device
//! address are both aligned to it. Directories are never freed before the table, so a lookup needs no lock and no grace period.
//!
//! # Invariants
//! - DPT-1 (TBL-1): a lookup returns an entry that was in force for exactly that page at some moment of the lookup, or nothing. It never mixes two.
//! - DPT-2 (TBL-2): while a leaf is valid, what is below it is empty or about to become so. Split fills the child, then clears the leaf; merge
//!   sets the leaf, then clears the child.
//! - DPT-3 (TBL-3): dirtiness is reported by whoever takes the entry or the flag away, exactly once or more, never less.
//! - DPT-4 (INV-9): erasing and protecting allocate nothing. What a split needs was reserved when the leaf was set; for a
//!   1 GiB leaf down to 2 MiB, so that there erasing a page may erase the 2 MiB around it (the device faults them in again).
//!
//! # Locking
//! One lock per directory, parent before child. An update goes down without locks, takes the lock of the directory it changes, and
//! then looks whether a bigger leaf came in above meanwhile; then it starts again there. Updates that must be in order for the same
//! page (set against erase) get it from the mirror's update lock; the table alone keeps only itself consistent.
//!
//! ```text
//! device worker                          invalidating thread
//! publishes its pin, fence               erases: entries become 0; fence
//! looks up, marks dirty: fails, or       takes the dirty flag with the entry; looks for pins
//! ```
//!
//! Linux: include/linux/hmm.h as of the 2015 series (struct hmm_pt); mm/memory.c's page-table walk and split locks.

mod directory;
mod entry;
mod slots;
#[cfg(test)]
mod tests;

use core::array;
use core::fmt;
use core::ops::Range;

use crate::addr::{BlockId, PAGE_SIZE, PAGES_PER_BLOCK, PageMask, PageRange, PageSpan, USER_END, VirtAddr};
use crate::sync::{Once, Ordering};
use crate::world::{Access, Metadata, OutOfMetadata};

pub use entry::{Entry, Flags, Leaf, LeafSize};

use directory::{Directory, Halt, Pages, Upper};
use entry::{Edit, Like, Runs};
use slots::{Above, SLOTS};

/// 512 GiB: 1 GiB leaves, above 2 MiB leaves, above pages.
type Top<M> = Upper<M, Upper<M, Pages>>;

type Tops<M> = [Once<<M as Metadata>::Shared<Top<M>>>; TOP_SLOTS];

const USER_SLOTS: usize = USER_END / PAGE_SIZE / (1 << 27);
const TOP_SLOTS: usize = if SLOTS < USER_SLOTS { SLOTS } else { USER_SLOTS };

/// A device page table. See the module.
#[doc(alias = "hmm_pt")]
pub struct Table<M: Metadata> {
    tops: M::Shared<Tops<M>>,
}

impl<M: Metadata> fmt::Debug for Table<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter(PageRange::ALL)).finish()
    }
}

impl<M: Metadata> Table<M> {
    /// An empty table. Directories come as entries are set, and stay until the table goes.
    ///
    /// # Errors
    /// No memory for the uppermost level.
    pub fn new() -> Result<Self, OutOfMetadata> {
        Ok(Self {
            tops: M::share(array::from_fn(|_| Once::new()))?,
        })
    }

    /// Looks up the entry of the page that holds `addr`. Takes no lock.
    #[inline]
    pub fn get(&self, addr: VirtAddr) -> Option<Leaf> {
        let page = addr.get() / PAGE_SIZE;
        self.top(page)?.get(page)
    }

    /// The longest run from the page of `addr` on, within its block and at most `max_pages` (which is not 0), of entries that permit
    /// `access` and have consecutive addresses; with its first entry. Takes no lock.
    #[inline]
    pub fn run_at(&self, addr: VirtAddr, max_pages: usize, access: Access) -> Option<(PageRange, Entry)> {
        let page = addr.get() / PAGE_SIZE;
        let block_end = (page / PAGES_PER_BLOCK + 1) * PAGES_PER_BLOCK;
        let end = page.saturating_add(max_pages.max(1)).min(block_end);
        let (page_count, first) = self.top(page)?.run(page, end, Like::permitting(access))?;
        Some((PageRange::from_pages(page, page_count)?, first))
    }

    /// The pages of `block` whose entries permit `access`. Takes no lock.
    pub fn valid_mask(&self, block: BlockId, access: Access) -> PageMask {
        let page = block.first_page();
        self.top(page).map_or(PageMask::NONE, |top| top.mask(page, access))
    }

    /// Whether every page of `range` is mapped for `access`. Takes no lock.
    pub fn has_all(&self, range: PageRange, access: Access) -> bool {
        let missing = |span: PageSpan| span.mask().without(self.valid_mask(span.block, access));
        range.spans().all(|span| missing(span).is_empty())
    }

    /// The valid entries in `range`, in order: longest runs with consecutive addresses and equal flags. Takes no lock.
    pub fn iter(&self, range: PageRange) -> Iter<'_, M> {
        Iter {
            table: self,
            pages: range.first_page()..range.end_page(),
        }
    }

    /// Maps `range` to consecutive device addresses from `first`, with its flags, in the largest leaves that fit. Entries
    /// that are there are replaced, and stay dirty if they were; what maps another page must have been zapped before.
    ///
    /// # Errors
    /// No memory for a directory: pages before it keep what they got.
    pub(crate) fn set(&self, range: PageRange, first: Entry) -> Result<(), OutOfMetadata> {
        debug_assert!(first.is_valid());
        parts(range).try_for_each(|(index, pages)| {
            let top = self.tops[index].get_or_try_init(|| M::share(Top::<M>::new()))?;
            let first = first.forward(pages.start - range.first_page());
            finish(top.set(pages, first, Above::TOP))
        })
    }

    /// [`Table::set`] for the model checker. In a normal build only the core sets entries: a forged one would be an address that nobody vouched
    /// for.
    ///
    /// # Errors
    /// See [`Table::set`].
    #[cfg(feature = "loom")]
    pub fn model_set(&self, range: PageRange, first: Entry) -> Result<(), OutOfMetadata> {
        self.set(range, first)
    }

    /// Erases the entries of `range`, and reports them in runs of equal flags. Allocates nothing.
    ///
    /// What is reported may reach beyond `range` where a 1 GiB leaf had to go in part: by less than 2 MiB at each end.
    /// `erased` is called with directories locked: it must not call the table.
    #[doc(alias = "hmm_pt_clear")]
    pub fn zap(&self, range: PageRange, erased: &mut dyn FnMut(PageRange, Entry)) {
        self.edit(range, Edit::ERASE, erased);
    }

    /// Erases the entries of `range` and forgets them, dirty ones too. Directories stay.
    pub fn discard(&self, range: PageRange) {
        self.edit(range, Edit::ERASE, &mut |_, _| {});
    }

    /// Takes the right to write away. Reaches beyond `range` where [`Table::zap`] would.
    pub fn protect(&self, range: PageRange) {
        self.edit(range, Edit::PROTECT, &mut |_, _| {});
    }

    /// Makes dirty entries clean, and reports them. A pin or a cached translation may still write: flush and wait before reading
    /// the pages. `dirty` is called with directories locked.
    pub fn dirty(&self, range: PageRange, dirty: &mut dyn FnMut(PageRange)) {
        self.edit(range, Edit::CLEAN, &mut |pages, _| dirty(pages));
    }

    /// Marks the page of `addr` dirty. False where it is no longer mapped writable: then nothing may be written.
    pub fn set_dirty(&self, addr: VirtAddr) -> bool {
        self.get(addr)
            .is_some_and(|leaf| self.mark_dirty(addr.page(), leaf.entry) == 1)
    }

    /// Marks the pages of `range`, which lies in one block, dirty, as far as they still map what follows `first`, writable. Returns for how
    /// many, from the front. A big leaf is dirty as a whole. Takes no lock.
    pub fn mark_dirty(&self, range: PageRange, first: Entry) -> usize {
        debug_assert!(range.round_to_blocks().page_count() == PAGES_PER_BLOCK);
        let page = range.first_page();
        self.top(page)
            .map_or(0, |top| top.mark_dirty(page..range.end_page(), first))
    }

    /// Makes the leaf that holds `addr` one of a single page, with its neighbours.
    ///
    /// # Errors
    /// No memory for a directory: the leaf stays as it is, or as 2 MiB leaves.
    pub fn split(&self, addr: VirtAddr) -> Result<(), OutOfMetadata> {
        let page = addr.get() / PAGE_SIZE;
        self.top(page).map_or(Ok(()), |top| finish(top.split(page, Above::TOP)))
    }

    /// Makes one leaf of `block`, if its entries are all valid, have consecutive aligned addresses and equal flags (the leaf is
    /// dirty if one of them was). Says whether the block is mapped by a big leaf now.
    pub fn merge(&self, block: BlockId) -> bool {
        let page = block.first_page();
        self.top(page)
            .is_some_and(|top| top.merge(page, Above::TOP).unwrap_or(true))
    }

    /// Counts one more device access to `block`, and returns how many that makes. 0 where nothing of it was ever mapped in
    /// leaves of 2 MiB or less.
    pub fn count_access(&self, block: BlockId) -> u32 {
        let counter = self
            .top(block.first_page())
            .and_then(|top| top.accesses(block.first_page()));
        // Relaxed: a statistic, ordered with nothing.
        counter.map_or(0, |counter| counter.fetch_add(1, Ordering::Relaxed).wrapping_add(1))
    }

    /// The count so far.
    pub fn accesses(&self, block: BlockId) -> u32 {
        let counter = self
            .top(block.first_page())
            .and_then(|top| top.accesses(block.first_page()));
        counter.map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// Counts from 0 again.
    pub fn reset_accesses(&self, block: BlockId) {
        if let Some(counter) = self
            .top(block.first_page())
            .and_then(|top| top.accesses(block.first_page()))
        {
            counter.store(0, Ordering::Relaxed);
        }
    }

    #[inline]
    fn top(&self, page: usize) -> Option<&Top<M>> {
        self.tops[page / Top::<M>::SPAN].get().map(|top| &**top)
    }

    fn edit(&self, range: PageRange, edit: Edit, report: &mut dyn FnMut(PageRange, Entry)) {
        let mut runs = Runs::new(report);
        for (index, pages) in parts(range) {
            if let Some(top) = self.tops[index].get() {
                let done = top.edit(pages, edit, Above::TOP, &mut runs);
                debug_assert!(done.is_ok(), "DPT-2: no leaf is above the top");
            }
        }
        runs.flush();
    }
}

/// `range` by the directories at the top. Their layout does not depend on where the memory comes from.
fn parts(range: PageRange) -> impl Iterator<Item = (usize, Range<usize>)> {
    const SPAN: usize = 1 << 27;
    let (start, end) = (range.first_page(), range.end_page());
    let numbers = start / SPAN..=(end - 1) / SPAN;
    numbers
        .take_while(|&n| n < TOP_SLOTS)
        .map(move |n| (n, start.max(n * SPAN)..end.min((n + 1) * SPAN)))
}

/// At the top nothing can overtake.
fn finish(result: Result<(), Halt>) -> Result<(), OutOfMetadata> {
    match result {
        Err(Halt::OutOfMetadata) => Err(OutOfMetadata),
        done => {
            debug_assert!(done.is_ok(), "DPT-2: no leaf is above the top");
            Ok(())
        }
    }
}

/// Runs of valid entries: see [`Table::iter`].
pub struct Iter<'a, M: Metadata> {
    table: &'a Table<M>,
    pages: Range<usize>,
}

impl<M: Metadata> Iter<'_, M> {
    /// The run that starts at `page`, as far as one leaf or one directory tells.
    fn run(&self, page: usize) -> Option<(usize, Entry)> {
        self.table.top(page)?.run(page, self.pages.end, Like::EQUAL)
    }
}

impl<M: Metadata> Iterator for Iter<'_, M> {
    type Item = (PageRange, Entry);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.pages.is_empty() {
            let range = PageRange::from_pages(self.pages.start, self.pages.len())?;
            let start = parts(range).find_map(|(index, pages)| self.table.tops[index].get()?.find(pages))?;
            self.pages.start = start + 1;
            // None: gone since it was found; look on behind it.
            let Some((mut page_count, first)) = self.run(start) else {
                continue;
            };
            while start + page_count < self.pages.end {
                let Some((more, _)) = self
                    .run(start + page_count)
                    .filter(|next| next.1 == first.forward(page_count))
                else {
                    break;
                };
                page_count += more;
            }
            self.pages.start = start + page_count;
            return Some((PageRange::from_pages(start, page_count)?, first));
        }
        None
    }
}
