//! The block table: what the core knows about each 2 MiB of the address space.
//!
//! A page of the program is in one of three states: at home (the CPU's page table rules), on a device (its bit is in a
//! residency), or in transit (one actor owns it until it settles). Nothing here repeats what the CPU's page table says.
//!
//! A page at home may be *claimed* as well: it counts as a page of a device's coherent memory, which the CPU maps too. To the CPU's side a
//! claim is nothing; to placement and to the device's budget the page is on that device.
//!
//! # Invariants
//! - BLK-1: a page is in at most one residency.
//! - BLK-2: a page in transit belongs to exactly one actor, who set the bit and will clear it; nobody else moves it.
//! - BLK-3: a residency's page `i` lies at page `i` of its chunk, so that a run of pages is a run of the arena and a huge page stays whole.
//! - BLK-5 (MIG-10): a page has at most one claim, and none while it is away. A page in transit may have one: whoever settles it says.
//! - BLK-6 (MIG-11): an exclusive page is one in its device's arena, so the CPU cannot have it; it stops being exclusive by leaving there.
//! - BLK-7 (MIG-12): a duplicate is a page in its device's arena that is at home as well, with the same bytes, write-protected. To everything but a CPU's
//!   read, and another device's, it is away; no device may write it. It is not exclusive, and its block is no huge page.
//! - BLK-4: a CPU thread whose fault met a page in transit has its bit in `waiters`, and is woken when the page settles.
//!
//! # Locking
//! `state` is held for a few loads and stores, never across a system call, an invalidation or a wait. Entries of the table
//! are made on demand and stay until the table goes, so look-up takes no lock.

use crate::addr::{BlockId, PAGES_PER_BLOCK, PageMask, PageRange, PageSpan};
use crate::devmem::{Budget, ChunkId, DeviceId};
use crate::mm::pace::Pace;
use crate::sync::{Condvar, MODEL, Mutex, MutexGuard, Once};
use crate::world::{ArenaRange, Metadata, OutOfMetadata};

/// Devices that can hold pages of one block at the same time.
pub(crate) const RESIDENCIES: usize = 4;

/// The pages of a block that are on one device.
pub(crate) struct Residency<M: Metadata> {
    pub(crate) device: DeviceId,
    pub(crate) chunk: ChunkId,
    /// Arena page number of the chunk.
    pub(crate) base_page: usize,
    pub(crate) pages: PageMask,
    /// Pages that are at home and claimed for the device's coherent memory (BLK-5).
    pub(crate) claimed: PageMask,
    /// Those of `pages` that the device took exclusively (BLK-6).
    pub(crate) exclusive: PageMask,
    /// Those of `pages` that the CPU may read at home, too (BLK-7).
    pub(crate) duplicates: PageMask,
    /// The whole block is one huge page there.
    pub(crate) huge: bool,
    /// A stale access may still be on its way to the chunk (see [`World::FENCED`](crate::world::World::FENCED)).
    pub(crate) fenced: bool,
    /// Transits on their way into the chunk: it must not be freed meanwhile.
    pub(crate) incoming: u32,
    /// Who is charged for the pages.
    pub(crate) charge: M::Shared<Budget>,
}

impl<M: Metadata> Residency<M> {
    /// Pages that the device is charged for: in its arena or claimed.
    pub(crate) fn held(&self) -> PageMask {
        self.pages.or(self.claimed)
    }

    /// Pages in the arena go.
    pub(crate) fn leave(&mut self, pages: PageMask) {
        self.pages = self.pages.without(pages);
        self.exclusive = self.exclusive.without(pages);
        self.duplicates = self.duplicates.without(pages);
        if !self.pages.is_full() {
            self.huge = false;
        }
    }

    /// The CPU has copies of these pages, which stay.
    pub(crate) fn keep_copies(&mut self, pages: PageMask) {
        debug_assert!(
            pages.without(self.pages).is_empty() && !pages.overlaps(&self.exclusive),
            "BLK-7: a duplicate is on the device, and not exclusive"
        );
        self.duplicates = self.duplicates.or(pages);
        self.huge &= self.duplicates.is_empty();
    }

    /// The claims on these pages end. Says how many there were.
    pub(crate) fn give_back(&mut self, pages: PageMask) -> usize {
        let ended = self.claimed.and(pages);
        self.claimed = self.claimed.without(ended);
        ended.count()
    }
}

/// The pages `pages` of the chunk that starts at arena page `base_page`.
pub(crate) fn arena_pages(base_page: usize, pages: core::ops::Range<usize>) -> ArenaRange {
    PageRange::from_pages(base_page + pages.start, pages.len()).expect("a run of a chunk is not empty (BLK-3)")
}

/// What the lock of a block guards.
pub(crate) struct BlockState<M: Metadata> {
    pub(crate) residencies: [Option<Residency<M>>; RESIDENCIES],
    pub(crate) transit: PageMask,
    /// Pages a CPU thread waits for (BLK-4).
    pub(crate) waiters: PageMask,
    /// A device thread waits for a page of the arena.
    pub(crate) arena_waiters: bool,
    /// Pages that were discarded or unmapped while in transit: whoever settles them drops them.
    pub(crate) dropped: PageMask,
    /// How its pages go to and fro.
    pub(crate) pace: Pace,
    /// Threads asleep on `settled`.
    sleepers: u32,
}

impl<M: Metadata> BlockState<M> {
    /// The residency on `device`.
    pub(crate) fn on(&self, device: DeviceId) -> Option<&Residency<M>> {
        self.residencies
            .iter()
            .flatten()
            .find(|residency| residency.device == device)
    }

    /// The residency on `device`, to change.
    pub(crate) fn on_mut(&mut self, device: DeviceId) -> Option<&mut Residency<M>> {
        self.residencies
            .iter_mut()
            .flatten()
            .find(|residency| residency.device == device)
    }

    /// The residency that holds page `index`.
    pub(crate) fn holding(&self, index: usize) -> Option<&Residency<M>> {
        self.residencies
            .iter()
            .flatten()
            .find(|residency| residency.pages.has(index))
    }

    /// Pages on any device.
    pub(crate) fn away(&self) -> PageMask {
        self.residencies
            .iter()
            .flatten()
            .fold(PageMask::NONE, |mask, residency| mask.or(residency.pages))
    }

    /// Pages that the CPU may read at home while a device that `of` accepts has them.
    pub(crate) fn duplicates(&self, of: impl Fn(DeviceId) -> bool) -> PageMask {
        self.residencies
            .iter()
            .flatten()
            .filter(|residency| of(residency.device))
            .fold(PageMask::NONE, |mask, residency| mask.or(residency.duplicates))
    }

    /// Pages that some device other than `device` claims.
    pub(crate) fn claimed_by_others(&self, device: DeviceId) -> PageMask {
        self.residencies
            .iter()
            .flatten()
            .filter(|residency| residency.device != device)
            .fold(PageMask::NONE, |mask, residency| mask.or(residency.claimed))
    }

    /// Whether a page of the block is claimed.
    pub(crate) fn has_claims(&self) -> bool {
        self.residencies.iter().flatten().any(|r| !r.claimed.is_empty())
    }

    /// Pages that are neither away nor in transit; they may be claimed.
    pub(crate) fn at_home(&self) -> PageMask {
        PageMask::FULL.without(self.away()).without(self.transit)
    }

    /// Takes out the residency on `device` if nothing is in it or on its way to it.
    pub(crate) fn take_empty(&mut self, device: DeviceId) -> Option<Residency<M>> {
        let slot = self
            .residencies
            .iter_mut()
            .find(|slot| slot.as_ref().is_some_and(|r| r.device == device))?;
        slot.take_if(|residency| residency.held().is_empty() && residency.incoming == 0)
    }
}

/// Who is to be woken when pages have settled.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Pages that CPU threads wait for.
    pub(crate) pages: PageMask,
    /// Chunks, by their first arena page, in which device threads wait. The one who waits may have asked in another chunk of the block than
    /// the one that the pages travelled to or from.
    pub(crate) arenas: [Option<usize>; RESIDENCIES],
}

/// Two MiB of the address space.
pub(crate) struct Block<M: Metadata> {
    pub(crate) id: BlockId,
    state: Mutex<BlockState<M>>,
    settled: Condvar,
}

impl<M: Metadata> Block<M> {
    fn new(id: BlockId) -> Self {
        Self {
            id,
            state: Mutex::new(
                "block",
                BlockState {
                    residencies: [const { None }; RESIDENCIES],
                    transit: PageMask::NONE,
                    waiters: PageMask::NONE,
                    arena_waiters: false,
                    dropped: PageMask::NONE,
                    pace: Pace::default(),
                    sleepers: 0,
                },
            ),
            settled: Condvar::new("settled"),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, BlockState<M>> {
        self.state.lock()
    }

    /// Waits until none of `pages` is in transit. The caller must own no page in transit itself.
    pub(crate) fn wait_settled(&self, pages: PageMask) -> MutexGuard<'_, BlockState<M>> {
        let mut state = self.lock();
        while state.transit.overlaps(&pages) {
            state.sleepers += 1;
            state = self.settled.wait(state);
            state.sleepers -= 1;
        }
        state
    }

    /// Ends the transit of `pages` and says who waits for them; the caller wakes those after unlocking.
    pub(crate) fn settle(&self, state: &mut BlockState<M>, pages: PageMask) -> Waiting {
        debug_assert_eq!(
            state.transit.and(pages),
            pages,
            "BLK-2: settling what was not in transit"
        );
        state.transit = state.transit.without(pages);
        let waiting = state.waiters.and(pages);
        state.waiters = state.waiters.without(pages);
        if state.sleepers > 0 {
            self.settled.notify_all();
        }
        let mut arenas = [None; RESIDENCIES];
        if core::mem::take(&mut state.arena_waiters) {
            arenas = state
                .residencies
                .each_ref()
                .map(|slot| slot.as_ref().map(|r| r.base_page));
        }
        Waiting { pages: waiting, arenas }
    }
}

/// Entries of a directory. A model checker affords a few, and so knows the blocks from number 0 on only.
const FANOUT: usize = if MODEL { 4 } else { 512 };
/// Entries of the root: block numbers have 26 bits.
const ROOT: usize = if MODEL { 1 } else { BlockId::COUNT / FANOUT / FANOUT };
/// Blocks that the table has places for.
const BLOCKS: usize = ROOT * FANOUT * FANOUT;

type Leaf<M> = [Once<Shared<M, Block<M>>>; FANOUT];
type Middle<M> = [Once<Shared<M, Leaf<M>>>; FANOUT];
type Shared<M, T> = <M as Metadata>::Shared<T>;

/// All blocks of an address space that anything is known about.
pub(crate) struct BlockTable<M: Metadata> {
    root: [Once<Shared<M, Middle<M>>>; ROOT],
}

impl<M: Metadata> BlockTable<M> {
    pub(crate) fn new() -> Self {
        Self {
            root: core::array::from_fn(|_| Once::new()),
        }
    }

    /// The block, if anything is known about it.
    pub(crate) fn get(&self, id: BlockId) -> Option<&Block<M>> {
        let (root, middle, leaf) = split(id);
        Some(&**self.root.get(root)?.get()?[middle].get()?[leaf].get()?)
    }

    /// The block, made now if need be. Allocates: not for the fault path.
    pub(crate) fn get_or_insert(&self, id: BlockId) -> Result<&Block<M>, OutOfMetadata> {
        let (root, middle, leaf) = split(id);
        let dir = self.root[root].get_or_try_init(|| M::share(core::array::from_fn(|_| Once::new())))?;
        let dir = dir[middle].get_or_try_init(|| M::share(core::array::from_fn(|_| Once::new())))?;
        Ok(&**dir[leaf].get_or_try_init(|| M::share(Block::new(id)))?)
    }

    /// The known blocks of `range`, in address order, each with the part of the range in it.
    pub(crate) fn known(&self, range: PageRange) -> impl Iterator<Item = (&Block<M>, PageSpan)> {
        let end = ((range.end_page() - 1) / PAGES_PER_BLOCK + 1).min(BLOCKS);
        let mut next = range.first_page() / PAGES_PER_BLOCK;
        core::iter::from_fn(move || {
            while next < end {
                let id = BlockId::new(next)?;
                let (root, middle, leaf) = split(id);
                let Some(middles) = self.root[root].get() else {
                    next = (next / (FANOUT * FANOUT) + 1) * FANOUT * FANOUT;
                    continue;
                };
                let Some(leaves) = middles[middle].get() else {
                    next = (next / FANOUT + 1) * FANOUT;
                    continue;
                };
                next += 1;
                if let Some(block) = leaves[leaf].get() {
                    let span = id.range().intersect(range)?.spans().next()?;
                    return Some((&**block, span));
                }
            }
            None
        })
    }
}

fn split(id: BlockId) -> (usize, usize, usize) {
    (
        id.get() / (FANOUT * FANOUT),
        id.get() / FANOUT % FANOUT,
        id.get() % FANOUT,
    )
}

#[cfg(test)]
mod tests;
