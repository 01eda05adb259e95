//! Tells an invalidation which pages the device's workers are accessing at this moment.
//!
//! A worker publishes the pages of a short access before it looks them up, and takes them back after. An invalidation erases the entries,
//! then looks for what is published. So either the worker finds the entry gone, or the invalidation finds the pin.
//!
//! # Invariants
//! - PIN-1: a [`Pin`] was looked up after it was published. Once [`Pins::flush`] and then [`Pins::wait_clear`] have returned for erased entries, nobody
//!   holds a pin of them and nobody gets one.
//! - PIN-2: a pin for writing exists only while its entries are marked dirty (TBL-3).
//! - PIN-3: a cached translation is used only while its generation is current: no flush began since it was looked up.
//!
//! # Locking
//! None. A worker with a pin may neither wait nor miss: an invalidation may be waiting for it.
//!
//! ```text
//! device worker                            invalidating thread
//! publish the range                        erase the entries; flush: next generation
//! fence                                    fence
//! look up: generation, then the entry      look for published ranges: wait until each is gone
//! access; take the range back
//! ```
//!
//! Linux has no counterpart: hardware acknowledges a TLB shootdown by interrupt.

mod answer;
mod side;
#[cfg(test)]
mod tests;
mod tlb;

use core::array;
use core::fmt;

use allocator_api2::vec::Vec;

pub use self::side::PinnedSide;
use self::tlb::{Generations, Tlb};
use crate::addr::{BlockId, PAGE_SIZE, PAGES_PER_BLOCK, PageRange, VirtAddr};
use crate::mirror::table::{Entry, Flags, Table};
use crate::sync::{AtomicBool, AtomicU64, Ordering, fence, spin_loop};
use crate::world::{Access, Metadata, OutOfMetadata};

/// Ranges that one slot can have pinned at a time.
pub const PINS_PER_SLOT: usize = 4;

/// Looks at a pin before pausing: most last for less than a microsecond.
const SPINS: u32 = if crate::sync::MODEL { 1 } else { 200 };

/// The pins of one device: a slot for each worker. See the module.
pub struct Pins<M: Metadata> {
    slots: Vec<Slot, M>,
    generations: Generations,
}

/// Alone on its cache line, so that workers do not slow each other down.
#[repr(align(64))]
struct Slot {
    /// Published ranges, packed; 0 is none.
    ranges: [AtomicU64; PINS_PER_SLOT],
    claimed: AtomicBool,
}

/// Whose pin is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinHolder {
    /// The slot, in the order of claiming.
    pub slot: usize,
    /// What it has pinned.
    pub range: PageRange,
}

impl fmt::Display for PinHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker slot {} has {} pinned", self.slot, self.range)
    }
}

impl<M: Metadata> fmt::Debug for Pins<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.published()).finish()
    }
}

impl<M: Metadata> Pins<M> {
    /// Room for `slot_count` workers.
    ///
    /// # Errors
    /// No memory for them.
    pub fn new(slot_count: usize) -> Result<Self, OutOfMetadata> {
        let mut slots = Vec::new_in(M::default());
        slots.try_reserve_exact(slot_count).map_err(|_| OutOfMetadata)?;
        slots.extend((0..slot_count).map(|_| Slot {
            ranges: array::from_fn(|_| AtomicU64::new(0)),
            claimed: AtomicBool::new(false),
        }));
        Ok(Self {
            slots,
            generations: Generations::new(),
        })
    }

    /// A slot for the calling worker to pin pages of `table`; `None` when all are taken. All invalidations of `table` must come here.
    pub fn claim<'p>(&'p self, table: &'p Table<M>) -> Option<PinSlot<'p, M>> {
        // Acquire pairs with the Release in the drop of the slot's last owner.
        let number = self
            .slots
            .iter()
            .position(|slot| !slot.claimed.swap(true, Ordering::Acquire))?;
        Some(PinSlot {
            pins: self,
            table,
            slot: &self.slots[number],
            number,
            sequence: 0,
            tlb: Tlb::new(),
        })
    }

    /// Makes cached translations of `range` void. To be called after entries were erased, protected or cleaned, before looking for pins.
    pub fn flush(&self, range: PageRange) {
        self.generations.advance(range);
    }

    /// Somebody who has a page of `range` pinned, if there is one: for a pass that must not wait.
    pub fn overlaps(&self, range: PageRange) -> Option<PinHolder> {
        // Pairs with the fence in `PinSlot::pin_many`: what was erased before is gone for whoever is not found here.
        fence(Ordering::SeqCst);
        self.published().find(|holder| holder.range.overlaps(range))
    }

    /// Waits until the pins of `range` that are there now are gone; those that come later see the erased entries. Spins, then
    /// waits by `pause` (in nanoseconds) until `patience_ns` have gone by on the clock `now`.
    ///
    /// # Errors
    /// Who held on for longer than that.
    pub fn wait_clear(
        &self,
        range: PageRange,
        patience_ns: u64,
        now: &dyn Fn() -> u64,
        pause: &dyn Fn(u64),
    ) -> Result<(), PinHolder> {
        // Pairs with the fence in `PinSlot::pin_many`.
        fence(Ordering::SeqCst);
        for (number, slot) in self.slots.iter().enumerate() {
            for cell in &slot.ranges {
                // Acquire pairs with the Release in the drop of the pin: its accesses are over.
                let seen = cell.load(Ordering::Acquire);
                if let Some(pinned) = unpack(seen).filter(|pinned| pinned.overlaps(range)) {
                    let gone = || cell.load(Ordering::Acquire) != seen;
                    if !wait_until(&gone, patience_ns, now, pause) {
                        return Err(PinHolder {
                            slot: number,
                            range: pinned,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    fn published(&self) -> impl Iterator<Item = PinHolder> {
        self.slots.iter().enumerate().flat_map(|(slot, pins)| {
            // Acquire pairs with the Release in the drop of a pin.
            let ranges = pins
                .ranges
                .iter()
                .filter_map(|cell| unpack(cell.load(Ordering::Acquire)));
            ranges.map(move |range| PinHolder { slot, range })
        })
    }
}

fn wait_until(gone: &dyn Fn() -> bool, patience_ns: u64, now: &dyn Fn() -> u64, pause: &dyn Fn(u64)) -> bool {
    const LONGEST_PAUSE_NS: u64 = 100_000;
    for _ in 0..SPINS {
        if gone() {
            return true;
        }
        spin_loop();
    }
    let start = now();
    let mut pause_ns = 1_000;
    while !gone() {
        let waited = now().saturating_sub(start);
        if waited >= patience_ns {
            return false;
        }
        pause(pause_ns.min(patience_ns - waited));
        pause_ns = (pause_ns * 2).min(LONGEST_PAUSE_NS);
    }
    true
}

/// One worker's right to pin. Given back when dropped.
pub struct PinSlot<'p, M: Metadata> {
    pins: &'p Pins<M>,
    table: &'p Table<M>,
    slot: &'p Slot,
    number: usize,
    sequence: u64,
    tlb: Tlb,
}

impl<M: Metadata> fmt::Debug for PinSlot<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinSlot")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl<M: Metadata> Drop for PinSlot<'_, M> {
    fn drop(&mut self) {
        // A pin that was leaked ends here at the latest: its lifetime is over.
        self.unpublish(PINS_PER_SLOT);
        // Release pairs with the Acquire in `claim`.
        self.slot.claimed.store(false, Ordering::Release);
    }
}

/// An access: its first byte, its length in bytes, and its kind.
pub type Wanted = (VirtAddr, usize, Access);

impl<M: Metadata> PinSlot<'_, M> {
    /// The slot's number, as in [`PinHolder::slot`].
    pub fn number(&self) -> usize {
        self.number
    }

    /// Pins the bytes from `addr` on for `access`: at most `len_bytes`, less where the entries do not go on in a straight line or the
    /// block ends. `None` is a miss: the first page is not mapped for that.
    ///
    /// Blocks nobody and never waits. The pin must be short, and the worker must not wait while it holds it.
    #[inline(always)]
    pub fn pin(&mut self, addr: VirtAddr, len_bytes: usize, access: Access) -> Option<Pin<'_>> {
        let [pin] = self.pin_many([(addr, len_bytes, access)])?;
        Some(pin)
    }

    /// Pins up to [`PINS_PER_SLOT`] spans at once, all or none; each as [`PinSlot::pin`] would, so each may be shorter than wanted.
    #[inline(always)]
    pub fn pin_many<const N: usize>(&mut self, wanted: [Wanted; N]) -> Option<[Pin<'_>; N]> {
        const { assert!(N <= PINS_PER_SLOT) };
        for (cell, &(addr, len_bytes, _)) in self.slot.ranges.iter().zip(&wanted) {
            self.sequence += 1;
            // Release, as in the drop of a pin: who finds this one in the place of an earlier one knows that the accesses through that are over.
            // The fence below orders it before the lookup.
            cell.store(
                pack(addr, pages_to_pin(addr, len_bytes), self.sequence),
                Ordering::Release,
            );
        }
        // PIN-1. Pairs with the fences in `wait_clear` and `overlaps`: they find the range, or the lookup finds the entries erased.
        fence(Ordering::SeqCst);
        let mut found = [Found::default(); N];
        for (found, want) in found.iter_mut().zip(wanted) {
            match self.translate(want) {
                Some(translated) => *found = translated,
                None => {
                    self.unpublish(N);
                    return None;
                }
            }
        }
        let ranges = &self.slot.ranges;
        Some(array::from_fn(|index| Pin {
            cell: &ranges[index],
            start: wanted[index].0,
            len_bytes: found[index].len_bytes,
            entry: found[index].entry,
        }))
    }

    fn unpublish(&self, count: usize) {
        // Release as in the drop of a pin.
        self.slot
            .ranges
            .iter()
            .take(count)
            .for_each(|cell| cell.store(0, Ordering::Release));
    }

    /// Looks up what is published.
    #[inline(always)]
    fn translate(&mut self, wanted: Wanted) -> Option<Found> {
        let (addr, len_bytes, access) = wanted;
        let page_count = pages_to_pin(addr, len_bytes);
        // Before the lookup: a flush in between makes the line void (PIN-3).
        let generation = self.pins.generations.current(BlockId::of(addr));
        if page_count == 1
            && let Some(entry) = self.tlb.get(addr, generation, access)
        {
            return Some(Found::new(addr, len_bytes, 1, entry));
        }
        self.walk(wanted, page_count, generation)
    }

    /// Looks it up in the table. Kept apart, so that what a cached translation takes stays short.
    #[inline(never)]
    fn walk(&mut self, (addr, len_bytes, access): Wanted, page_count: usize, generation: u32) -> Option<Found> {
        let (run, entry) = self.table.run_at(addr, page_count, access)?;
        let (mapped, entry) = match access {
            Access::Read => (run.page_count(), entry),
            // PIN-2: dirty before the first write.
            Access::Write => (
                self.table.mark_dirty(run, entry),
                Entry::new(entry.addr(), entry.flags() | Flags::DIRTY),
            ),
        };
        if mapped == 0 {
            return None;
        }
        self.tlb.put(addr, generation, entry);
        Some(Found::new(addr, len_bytes, mapped, entry))
    }
}

#[derive(Clone, Copy, Default)]
struct Found {
    len_bytes: usize,
    entry: Entry,
}

impl Found {
    fn new(addr: VirtAddr, len_bytes: usize, page_count: usize, entry: Entry) -> Self {
        Self {
            len_bytes: len_bytes.min(page_count * PAGE_SIZE - addr.get() % PAGE_SIZE),
            entry,
        }
    }
}

/// A short right to access pages of the program where the device sees them. Dropping it ends the right.
#[derive(Debug)]
#[must_use = "the pages are pinned only while this lives"]
pub struct Pin<'s> {
    cell: &'s AtomicU64,
    start: VirtAddr,
    len_bytes: usize,
    entry: Entry,
}

impl Pin<'_> {
    /// Program address of the first pinned byte.
    pub fn start(&self) -> VirtAddr {
        self.start
    }

    /// Pinned bytes: at least 1 if any were asked for, maybe less than asked for.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Device address of the first pinned byte; the others follow it.
    pub fn addr(&self) -> usize {
        self.entry.addr().0 as usize + self.start.get() % PAGE_SIZE
    }

    /// Flags of the first page's entry, as it was looked up.
    pub fn flags(&self) -> Flags {
        self.entry.flags()
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        // Release pairs with the Acquire in `wait_clear` and `published`: the accesses are over before an invalidation goes on.
        self.cell.store(0, Ordering::Release);
    }
}

/// Pages that an access touches, up to the end of its block.
#[inline]
fn pages_to_pin(addr: VirtAddr, len_bytes: usize) -> usize {
    let page = addr.get() / PAGE_SIZE;
    let wanted = (addr.get() % PAGE_SIZE)
        .saturating_add(len_bytes)
        .div_ceil(PAGE_SIZE)
        .max(1);
    wanted.min(PAGES_PER_BLOCK - page % PAGES_PER_BLOCK)
}

// First page, page count, and a number that tells one pin from the next of the same pages.
const COUNT_SHIFT: u32 = 19;
const PAGE_SHIFT: u32 = 29;

#[inline]
fn pack(addr: VirtAddr, page_count: usize, sequence: u64) -> u64 {
    let page = (addr.get() / PAGE_SIZE) as u64;
    page << PAGE_SHIFT | (page_count as u64) << COUNT_SHIFT | sequence & ((1 << COUNT_SHIFT) - 1)
}

fn unpack(packed: u64) -> Option<PageRange> {
    let count = packed >> COUNT_SHIFT & ((1 << (PAGE_SHIFT - COUNT_SHIFT)) - 1);
    PageRange::from_pages((packed >> PAGE_SHIFT) as usize, count as usize)
}
