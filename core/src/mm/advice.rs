//! What the program said about its memory: how it is used, and where it is best (MIG-13).
//!
//! Advice belongs to the memory, not to who gave it: unmapping forgets it, whoever unmaps, and so does moving a mapping, for both places; changed
//! protection and dropped contents leave it. A fork's child begins with none, because it opens an address space of its own. Nothing here
//! changes what memory contains; where advice is lost, pages are merely placed as without it. At the cooperative level a plain `munmap` of memory that
//! never migrated goes unseen, and what is mapped there next inherits the advice.
//!
//! # Invariants
//! - ADV-1: entries are sorted, do not overlap, say something, and two that touch differ.
//! - ADV-2: a change is made whole or not at all. Forgetting needs no memory and never fails: where there is no place for what is left on both sides
//!   of the forgotten part, the smaller side is forgotten, too.
//! - ADV-3: no advice names a device that is gone: numbers are used again.
//!
//! # Locking
//! `list` is a leaf, held for a search or a short change; memory is got and given back without it. Not on a stack of the program's, because
//! placing a page takes it.
//!
//! Linux: vma flags set by madvise; the attribute ranges of amdgpu's SVM (svm_range_set_attr).

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use allocator_api2::vec::Vec;

use crate::addr::{BlockId, PageMask, PageRange};
use crate::devmem::DeviceId;
use crate::mm::EntryError;
use crate::sync::Mutex;
use crate::world::{Metadata, OutOfMetadata};

/// Something to say about memory. Each takes back what it contradicts, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Advice {
    /// Read much more often than written: what a device has and the CPU reads is then on both sides, until either writes (MIG-12).
    ReadMostly,
    /// Written as well: takes [`Advice::ReadMostly`] back.
    ReadWrite,
    /// Best in system memory: a device that misses maps it there.
    PreferHome,
    /// Best on the device that the advice is given through: it goes there when that device misses, and leaves it last. Other devices map it at home.
    PreferDevice,
    /// Best anywhere: takes [`Advice::PreferHome`] and [`Advice::PreferDevice`] back.
    PreferAnywhere,
}

/// How memory is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Usage {
    /// Nothing is known.
    #[default]
    ReadWrite,
    /// Read much more often than written.
    ReadMostly,
}

/// Where memory is best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Preferred {
    /// Nothing is known.
    #[default]
    Anywhere,
    /// In system memory.
    Home,
    /// On this device.
    Device(DeviceId),
}

/// What was said of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Advised {
    /// How it is used.
    pub usage: Usage,
    /// Where it is best.
    pub preferred: Preferred,
}

impl Advised {
    /// Nothing was said.
    pub(crate) const NOTHING: Self = Self {
        usage: Usage::ReadWrite,
        preferred: Preferred::Anywhere,
    };

    /// With `advice`, given through `device`.
    fn with(self, advice: Advice, device: DeviceId) -> Self {
        match advice {
            Advice::ReadMostly => self.used(Usage::ReadMostly),
            Advice::ReadWrite => self.used(Usage::ReadWrite),
            Advice::PreferHome => self.preferring(Preferred::Home),
            Advice::PreferDevice => self.preferring(Preferred::Device(device)),
            Advice::PreferAnywhere => self.preferring(Preferred::Anywhere),
        }
    }

    const fn used(self, usage: Usage) -> Self {
        Self { usage, ..self }
    }

    const fn preferring(self, preferred: Preferred) -> Self {
        Self { preferred, ..self }
    }
}

/// Why advice was not taken. Nothing has changed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdviseError {
    /// See [`EntryError`].
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The mirror was released: its address space, its device or itself is gone.
    #[error("the mirror was released")]
    Released,
    /// isomem's own memory is used up.
    #[error(transparent)]
    Metadata(#[from] OutOfMetadata),
}

/// Pages of which the same was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    range: PageRange,
    said: Advised,
}

/// Places that are kept free at the least, for ranges that forgetting cuts in two.
const SPARE: usize = 32;

/// What was said about each page of an address space.
pub(crate) struct AdviceStore<M: Metadata> {
    /// How many entries there are. Only a hint that spares most look-ups the lock: who gave advice and then causes a fault knows that one came before the
    /// other, and whatever makes him know it makes the store visible, too. So Relaxed; and not the model checker's, for which it decides nothing.
    count: AtomicUsize,
    list: Mutex<Vec<Entry, M>>,
}

impl<M: Metadata> AdviceStore<M> {
    pub(crate) fn new() -> Self {
        Self {
            count: AtomicUsize::new(0),
            list: Mutex::new("advice", Vec::new_in(M::default())),
        }
    }

    /// What was said of the page.
    pub(crate) fn at(&self, page: usize) -> Advised {
        if self.count.load(Relaxed) == 0 {
            return Advised::NOTHING;
        }
        let list = self.list.lock();
        let next = list.partition_point(|entry| entry.range.end_page() <= page);
        list.get(next)
            .filter(|entry| entry.range.first_page() <= page)
            .map_or(Advised::NOTHING, |entry| entry.said)
    }

    /// Whether the page is said to be read mostly.
    #[allow(dead_code, reason = "for who places pages")]
    pub(crate) fn read_mostly(&self, page: usize) -> bool {
        self.at(page).usage == Usage::ReadMostly
    }

    /// The pages of a block that are said to be best on `device`.
    pub(crate) fn preferring(&self, block: BlockId, device: DeviceId) -> PageMask {
        self.pages_of(block, |said| said.preferred == Preferred::Device(device))
    }

    /// The pages of a block of which something was said that `accept` accepts. It is asked of nothing having been said, too.
    pub(crate) fn pages_of(&self, block: BlockId, accept: impl Fn(Advised) -> bool) -> PageMask {
        let rest = |accepted| if accepted { PageMask::FULL } else { PageMask::NONE };
        if self.count.load(Relaxed) == 0 {
            return rest(accept(Advised::NOTHING));
        }
        let list = self.list.lock();
        let first = list.partition_point(|entry| entry.range.end_page() <= block.first_page());
        let parts = list[first..]
            .iter()
            .map_while(|entry| Some((entry.range.intersect(block.range())?, entry.said)));
        let (mut said, mut accepted) = (PageMask::NONE, PageMask::NONE);
        for (part, what) in parts {
            let pages = part.spans().next().map_or(PageMask::NONE, |span| span.mask());
            said = said.or(pages);
            if accept(what) {
                accepted = accepted.or(pages);
            }
        }
        accepted.or(rest(accept(Advised::NOTHING)).without(said))
    }

    /// Takes advice given through `device` for `range` (ADV-2).
    pub(crate) fn advise(&self, range: PageRange, advice: Advice, device: DeviceId) -> Result<(), OutOfMetadata> {
        self.update(range, |said| said.with(advice, device))
    }

    fn update(&self, range: PageRange, change: impl Fn(Advised) -> Advised) -> Result<(), OutOfMetadata> {
        let mut made: Vec<Entry, M> = Vec::new_in(M::default());
        loop {
            // Got without the lock, so asked again with it. Each entry can be cut in two, and each gap filled.
            let needed = 2 * self.list.lock().len() + 3 + SPARE;
            made.try_reserve_exact(needed).map_err(|_| OutOfMetadata)?;
            let mut list = self.list.lock();
            if made.capacity() < 2 * list.len() + 3 + SPARE {
                continue;
            }
            rebuild(&list, range, change, &mut made);
            core::mem::swap(&mut *list, &mut made);
            self.count.store(list.len(), Relaxed);
            // What was there is given back without the lock.
            drop(list);
            return Ok(());
        }
    }

    /// Forgets what was said of `range`, because there is other memory from now on (ADV-2). Allocates nothing.
    pub(crate) fn forget(&self, range: PageRange) {
        if self.count.load(Relaxed) == 0 {
            return;
        }
        let mut list = self.list.lock();
        let first = list.partition_point(|entry| entry.range.end_page() <= range.first_page());
        let Some(entry) = list.get(first).copied() else { return };
        let (before, after) = outside(entry.range, range);
        if let (Some(before), Some(after)) = (before, after) {
            // The middle of one entry.
            let has_place = list.len() < list.capacity();
            let kept = if has_place || before.page_count() >= after.page_count() {
                before
            } else {
                after
            };
            list[first].range = kept;
            if has_place {
                list.insert(first + 1, Entry { range: after, ..entry });
            }
        } else {
            list.retain_mut(|entry| match outside(entry.range, range) {
                (Some(left), None) | (None, Some(left)) => {
                    entry.range = left;
                    true
                }
                // Both sides cannot be left, or it would have been the first entry.
                (left, _) => left.is_some(),
            });
        }
        self.count.store(list.len(), Relaxed);
    }

    /// Forgets that anything was best on `device`, which goes (ADV-3). Allocates nothing.
    pub(crate) fn forget_device(&self, device: DeviceId) {
        let mut list = self.list.lock();
        for entry in list.iter_mut() {
            if entry.said.preferred == Preferred::Device(device) {
                entry.said = entry.said.preferring(Preferred::Anywhere);
            }
        }
        list.retain(|entry| entry.said != Advised::NOTHING);
        let mut kept = 0;
        for next in 1..list.len() {
            let entry = list[next];
            if joins(&list[kept], &entry) {
                list[kept].range = list[kept].range.hull(entry.range);
            } else {
                kept += 1;
                list[kept] = entry;
            }
        }
        if !list.is_empty() {
            list.truncate(kept + 1);
        }
        self.count.store(list.len(), Relaxed);
    }
}

/// What of `range` lies before and after `hole`.
fn outside(range: PageRange, hole: PageRange) -> (Option<PageRange>, Option<PageRange>) {
    let part = |first: usize, end: usize| PageRange::from_pages(first, end.saturating_sub(first));
    (
        part(range.first_page(), range.end_page().min(hole.first_page())),
        part(range.first_page().max(hole.end_page()), range.end_page()),
    )
}

fn joins(one: &Entry, next: &Entry) -> bool {
    one.said == next.said && one.range.end_page() == next.range.first_page()
}

/// Adds to the end of the new list, which has the place.
fn push<M: Metadata>(list: &mut Vec<Entry, M>, range: Option<PageRange>, said: Advised) {
    let Some(range) = range.filter(|_| said != Advised::NOTHING) else {
        return;
    };
    let entry = Entry { range, said };
    match list.last_mut() {
        Some(last) if joins(last, &entry) => last.range = last.range.hull(range),
        _ => list.push(entry),
    }
}

/// Writes `old` to `made`, with what is said of the pages of `range` changed.
fn rebuild<M: Metadata>(
    old: &[Entry],
    range: PageRange,
    change: impl Fn(Advised) -> Advised,
    made: &mut Vec<Entry, M>,
) {
    made.clear();
    // The first page of the range that was not written yet.
    let mut next = range.first_page();
    let gap = |next: usize, end: usize| PageRange::from_pages(next, end.min(range.end_page()).saturating_sub(next));
    for entry in old {
        if entry.range.first_page() >= range.end_page() {
            push(made, gap(next, range.end_page()), change(Advised::NOTHING));
            next = range.end_page();
        }
        let (before, after) = outside(entry.range, range);
        push(made, before, entry.said);
        if let Some(inside) = entry.range.intersect(range) {
            push(made, gap(next, inside.first_page()), change(Advised::NOTHING));
            push(made, Some(inside), change(entry.said));
            next = inside.end_page();
        }
        push(made, after, entry.said);
    }
    push(made, gap(next, range.end_page()), change(Advised::NOTHING));
}

#[cfg(test)]
mod tests;
