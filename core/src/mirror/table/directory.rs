//! The directories: the lowest, of pages, and those above it, whose slots hold a big leaf or lead to a child.

use core::array;
use core::ops::Range;

use super::entry::{Edit, Entry, Leaf, LeafSize, Like, Runs};
use super::slots::{Above, FANOUT, Overtaken, SLOTS, Slots};
use crate::addr::{PageMask, PageRange};
use crate::sync::{AtomicU32, Once};
use crate::world::{Access, Metadata, OutOfMetadata};

/// Why an update stopped on its way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Halt {
    /// Start again above.
    Overtaken,
    OutOfMetadata,
}

impl From<Overtaken> for Halt {
    fn from(_: Overtaken) -> Self {
        Self::Overtaken
    }
}

impl From<OutOfMetadata> for Halt {
    fn from(_: OutOfMetadata) -> Self {
        Self::OutOfMetadata
    }
}

/// One level of the table and all below it. Page numbers are those of the address space; ranges lie within the directory.
pub(super) trait Directory: Send + Sync + Sized + 'static {
    /// Pages under one slot.
    const STRIDE: usize;
    /// Pages under the directory.
    const SPAN: usize = Self::STRIDE * FANOUT;

    fn new() -> Self;

    /// The directory's own entries.
    fn slots(&self) -> &Slots;

    fn get(&self, page: usize) -> Option<Leaf>;

    /// The entry of `page` and the number of pages, up to `end`, that follow it alike within one leaf or the lowest directory.
    fn run(&self, page: usize, end: usize, like: Like) -> Option<(usize, Entry)>;

    /// The first page of `pages` with a valid entry.
    fn find(&self, pages: Range<usize>) -> Option<usize>;

    /// The pages of the block that starts at `page` whose entries permit `access`.
    fn mask(&self, page: usize, access: Access) -> PageMask;

    /// Maps `pages` to consecutive addresses.
    fn set(&self, pages: Range<usize>, first: Entry, above: Above<'_>) -> Result<(), Halt>;

    /// Makes the change `edit` to every leaf in `pages`, and tells `runs` what was there. Needs no memory.
    fn edit(&self, pages: Range<usize>, edit: Edit, above: Above<'_>, runs: &mut Runs<'_>) -> Result<(), Overtaken>;

    /// Marks the pages from `pages.start` on dirty that still map what follows `first`; returns how many, up to the first that does not.
    fn mark_dirty(&self, pages: Range<usize>, first: Entry) -> usize;

    /// Makes leaves of single pages around `page`.
    fn split(&self, page: usize, above: Above<'_>) -> Result<(), Halt>;

    /// Makes one leaf of the block that starts at `page`.
    fn merge(&self, page: usize, above: Above<'_>) -> Result<bool, Overtaken>;

    /// Empties what a bigger leaf has hidden; says whether something was dirty.
    fn clear_hidden(&self) -> bool;

    /// The counter of the block that holds `page`, if its directory exists.
    fn accesses(&self, page: usize) -> Option<&AtomicU32>;
}

/// The lowest directory: 512 pages.
pub(super) struct Pages {
    slots: Slots,
    accesses: AtomicU32,
}

impl Directory for Pages {
    const STRIDE: usize = 1;

    fn new() -> Self {
        Self {
            slots: Slots::new(),
            accesses: AtomicU32::new(0),
        }
    }

    fn slots(&self) -> &Slots {
        &self.slots
    }

    #[inline]
    fn get(&self, page: usize) -> Option<Leaf> {
        let entry = self.slots.get(page % FANOUT);
        entry.is_valid().then_some(Leaf {
            entry,
            size: LeafSize::Page,
        })
    }

    #[inline]
    fn run(&self, page: usize, end: usize, like: Like) -> Option<(usize, Entry)> {
        let slots = in_slots(&(page..end));
        let first = self.slots.get(slots.start);
        if !like.admits(first) {
            return None;
        }
        let mut expected = first;
        let rest = slots.start + 1..slots.end;
        let more = rest.take_while(|&slot| {
            expected = expected.forward(1);
            like.follows(self.slots.get(slot), expected)
        });
        Some((1 + more.count(), first))
    }

    fn find(&self, pages: Range<usize>) -> Option<usize> {
        let mut slots = in_slots(&pages);
        if self.slots.is_empty() {
            return None;
        }
        let base = pages.start - slots.start;
        slots
            .find(|&slot| self.slots.get(slot).is_valid())
            .map(|slot| base + slot)
    }

    fn mask(&self, _: usize, access: Access) -> PageMask {
        let mut mask = PageMask::NONE;
        if !self.slots.is_empty() {
            (0..SLOTS)
                .filter(|&slot| self.slots.get(slot).can(access))
                .for_each(|slot| mask.insert(slot));
        }
        mask
    }

    fn set(&self, pages: Range<usize>, first: Entry, above: Above<'_>) -> Result<(), Halt> {
        let locked = self.slots.lock(above)?;
        for (index, slot) in in_slots(&pages).enumerate() {
            locked.put(slot, first.forward(index));
        }
        Ok(())
    }

    fn edit(&self, pages: Range<usize>, edit: Edit, above: Above<'_>, runs: &mut Runs<'_>) -> Result<(), Overtaken> {
        if self.slots.is_empty() {
            return Ok(());
        }
        let locked = self.slots.lock(above)?;
        for (index, slot) in in_slots(&pages).enumerate() {
            let old = locked.edit(slot, edit);
            if old.is_valid() {
                push(runs, pages.start + index, 1, old);
            }
        }
        Ok(())
    }

    fn mark_dirty(&self, pages: Range<usize>, first: Entry) -> usize {
        let mut slots = in_slots(&pages).enumerate();
        let failed = slots.position(|(index, slot)| !self.slots.mark_dirty(slot, first.forward(index)));
        failed.unwrap_or_else(|| in_slots(&pages).len())
    }

    fn split(&self, _: usize, _: Above<'_>) -> Result<(), Halt> {
        Ok(())
    }

    fn merge(&self, _: usize, _: Above<'_>) -> Result<bool, Overtaken> {
        Ok(false)
    }

    fn clear_hidden(&self) -> bool {
        self.slots.clear_hidden()
    }

    fn accesses(&self, _: usize) -> Option<&AtomicU32> {
        Some(&self.accesses)
    }
}

/// A directory above another: each slot is a big leaf, or leads to a child, which stays once it is there.
pub(super) struct Upper<M: Metadata, C: Directory> {
    leaves: Slots,
    children: [Once<M::Shared<C>>; SLOTS],
}

impl<M: Metadata, C: Directory> Upper<M, C> {
    #[inline]
    fn slot(page: usize) -> usize {
        page / C::SPAN % FANOUT
    }

    /// The entry of `page` in a big leaf here.
    #[inline]
    fn leaf(&self, page: usize) -> Option<Entry> {
        let entry = self.leaves.get(Self::slot(page));
        entry.is_valid().then(|| entry.forward(page % C::SPAN))
    }

    #[inline]
    fn child(&self, slot: usize) -> Option<&C> {
        self.children[slot].get().map(|child| &**child)
    }

    fn ensure_child(&self, slot: usize) -> Result<&C, OutOfMetadata> {
        Ok(&**self.children[slot].get_or_try_init(|| M::share(C::new()))?)
    }

    /// Looks at a leaf here, then below, then here again: a merge may have gone by between the first two looks.
    #[inline]
    fn look<T>(&self, page: usize, leaf: impl Fn(Entry) -> T, below: impl FnOnce(&C) -> Option<T>) -> Option<T> {
        if let Some(entry) = self.leaf(page) {
            return Some(leaf(entry));
        }
        let child = self.child(Self::slot(page))?;
        below(child).or_else(|| self.leaf(page).map(leaf))
    }

    fn set_slot(&self, slot: usize, pages: Range<usize>, first: Entry, above: Above<'_>) -> Result<(), Halt> {
        // Also for a big leaf: splitting it later, to erase a part, must not need memory.
        let child = self.ensure_child(slot)?;
        if pages.len() == C::SPAN && first.fits_leaf(C::SPAN) {
            let locked = self.leaves.lock(above)?;
            locked.put(slot, first);
            if child.clear_hidden() {
                locked.inherit_dirty(slot);
            }
            return Ok(());
        }
        loop {
            self.split_slot(slot, child, above)?;
            match child.set(pages.clone(), first, self.leaves.above(slot, &above)) {
                Err(Halt::Overtaken) if !above.overtaken() => {}
                result => return result,
            }
        }
    }

    fn split_slot(&self, slot: usize, child: &C, above: Above<'_>) -> Result<(), Overtaken> {
        if self.leaves.get(slot).is_valid() {
            let locked = self.leaves.lock(above)?;
            if locked.get(slot).is_valid() {
                locked.split(slot, child.slots(), C::STRIDE);
            }
        }
        Ok(())
    }

    fn edit_slot(
        &self,
        slot: usize,
        pages: &Range<usize>,
        edit: Edit,
        above: Above<'_>,
        runs: &mut Runs<'_>,
    ) -> Result<(), Overtaken> {
        loop {
            if edit.changes(self.leaves.get(slot)) && self.edit_leaf(slot, pages, edit, above, runs)? {
                return Ok(());
            }
            let Some(child) = self.child(slot) else { return Ok(()) };
            match child.edit(pages.clone(), edit, self.leaves.above(slot, &above), runs) {
                Err(Overtaken) if !above.overtaken() => {}
                result => return result,
            }
        }
    }

    /// Edits the leaf in `slot` as a whole, or splits it; says whether that was all.
    fn edit_leaf(
        &self,
        slot: usize,
        pages: &Range<usize>,
        edit: Edit,
        above: Above<'_>,
        runs: &mut Runs<'_>,
    ) -> Result<bool, Overtaken> {
        let locked = self.leaves.lock(above)?;
        if !edit.changes(locked.get(slot)) {
            return Ok(false);
        }
        if let Some(child) = self.child(slot).filter(|_| pages.len() < C::SPAN) {
            locked.split(slot, child.slots(), C::STRIDE);
            return Ok(false);
        }
        let old = locked.edit(slot, edit);
        push(runs, pages.start / C::SPAN * C::SPAN, C::SPAN, old);
        Ok(true)
    }

    /// The slots that `pages` touches, each with its part of them.
    fn parts(pages: &Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> + use<M, C> {
        let Range { start, end } = *pages;
        let numbers = start / C::SPAN..=(end - 1) / C::SPAN;
        let part = move |number: usize| {
            (
                number % FANOUT,
                start.max(number * C::SPAN)..end.min((number + 1) * C::SPAN),
            )
        };
        numbers.map(part).take_while(|(slot, _)| *slot < SLOTS)
    }
}

impl<M: Metadata, C: Directory> Directory for Upper<M, C> {
    const STRIDE: usize = C::SPAN;

    fn new() -> Self {
        Self {
            leaves: Slots::new(),
            children: array::from_fn(|_| Once::new()),
        }
    }

    fn slots(&self) -> &Slots {
        &self.leaves
    }

    #[inline]
    fn get(&self, page: usize) -> Option<Leaf> {
        self.look(
            page,
            |entry| Leaf {
                entry,
                size: LeafSize::of(C::SPAN),
            },
            |child| child.get(page),
        )
    }

    #[inline]
    fn run(&self, page: usize, end: usize, like: Like) -> Option<(usize, Entry)> {
        let slot_end = (page / C::SPAN + 1) * C::SPAN;
        let end = end.min(slot_end);
        let found = self.look(page, |entry| (end - page, entry), |child| child.run(page, end, like))?;
        like.admits(found.1).then_some(found)
    }

    fn find(&self, pages: Range<usize>) -> Option<usize> {
        Self::parts(&pages).find_map(|(slot, part)| {
            let start = part.start;
            // Leaf, child, leaf: see `look`.
            let leaf = || self.leaves.get(slot).is_valid().then_some(start);
            leaf().or_else(|| self.child(slot)?.find(part).or_else(leaf))
        })
    }

    fn mask(&self, page: usize, access: Access) -> PageMask {
        let of_leaf = |entry: Entry| {
            if entry.can(access) {
                PageMask::FULL
            } else {
                PageMask::NONE
            }
        };
        let below = |child: &C| Some(child.mask(page, access)).filter(|mask| !mask.is_empty());
        self.look(page, of_leaf, below).unwrap_or(PageMask::NONE)
    }

    fn set(&self, pages: Range<usize>, first: Entry, above: Above<'_>) -> Result<(), Halt> {
        Self::parts(&pages).try_for_each(|(slot, part)| {
            let entry = first.forward(part.start - pages.start);
            self.set_slot(slot, part, entry, above)
        })
    }

    fn edit(&self, pages: Range<usize>, edit: Edit, above: Above<'_>, runs: &mut Runs<'_>) -> Result<(), Overtaken> {
        Self::parts(&pages).try_for_each(|(slot, part)| self.edit_slot(slot, &part, edit, above, runs))
    }

    fn mark_dirty(&self, pages: Range<usize>, first: Entry) -> usize {
        debug_assert!(pages.start / C::SPAN == (pages.end - 1) / C::SPAN);
        let slot = Self::slot(pages.start);
        let of_leaf = Entry::from_bits(first.bits().wrapping_sub(first_offset(pages.start % C::SPAN)));
        if self.leaves.mark_dirty(slot, of_leaf) {
            return pages.len();
        }
        let Some(child) = self.child(slot) else { return 0 };
        let marked = child.mark_dirty(pages.clone(), first);
        // Leaf, child, leaf: see `look`.
        if marked == 0 && self.leaves.mark_dirty(slot, of_leaf) {
            pages.len()
        } else {
            marked
        }
    }

    fn split(&self, page: usize, above: Above<'_>) -> Result<(), Halt> {
        let slot = Self::slot(page);
        loop {
            if self.leaves.get(slot).is_valid() {
                self.split_slot(slot, self.ensure_child(slot)?, above)?;
            }
            let Some(child) = self.child(slot) else { return Ok(()) };
            match child.split(page, self.leaves.above(slot, &above)) {
                Err(Halt::Overtaken) if !above.overtaken() => {}
                result => return result,
            }
        }
    }

    fn merge(&self, page: usize, above: Above<'_>) -> Result<bool, Overtaken> {
        let slot = Self::slot(page);
        let Some(child) = self.child(slot) else {
            return Ok(false);
        };
        if C::STRIDE > 1 {
            return child.merge(page, self.leaves.above(slot, &above));
        }
        let locked = self.leaves.lock(above)?;
        Ok(locked.get(slot).is_valid() || locked.merge(slot, child.slots(), C::STRIDE))
    }

    fn clear_hidden(&self) -> bool {
        let dirty = self.leaves.clear_hidden();
        (0..SLOTS)
            .filter_map(|slot| self.child(slot))
            .fold(dirty, |dirty, child| dirty | child.clear_hidden())
    }

    fn accesses(&self, page: usize) -> Option<&AtomicU32> {
        self.child(Self::slot(page))?.accesses(page)
    }
}

/// Pages of the lowest directory as its slots. Not longer than what is there (a model checker has few).
#[inline]
fn in_slots(pages: &Range<usize>) -> Range<usize> {
    let start = pages.start % FANOUT;
    start..(start + pages.len()).min(SLOTS)
}

/// What `Entry::forward(page_count)` adds to an entry.
const fn first_offset(page_count: usize) -> u64 {
    Entry::NONE.forward(page_count).bits()
}

fn push(runs: &mut Runs<'_>, page: usize, page_count: usize, entry: Entry) {
    let pages = PageRange::from_pages(page, page_count);
    debug_assert!(pages.is_some(), "a leaf lies in user space");
    if let Some(pages) = pages {
        runs.push(pages, entry);
    }
}
