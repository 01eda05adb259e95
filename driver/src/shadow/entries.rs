//! The shadow page table, and the device's side of the mirror that it belongs to.

use core::ops::Range;

use allocator_api2::vec::Vec;
use isomem_core::addr::{PAGE_SIZE, PageRange, VirtAddr};
use isomem_core::device::Device;
use isomem_core::mirror::install::Look;
use isomem_core::mirror::pin::Pins;
use isomem_core::mirror::table::{Flags, Table};
use isomem_core::mm::Mm;
use isomem_core::notifier::{Answer, CallbackScope, Invalidation};
use isomem_core::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use isomem_core::world::{Access, Metadata, OutOfMetadata, World};

use super::{GuestError, MAX_SLOTS, MAX_VCPUS, MemSlot, OpenError};

/// Entries made with one miss, where the pages are there already.
const AROUND: usize = 8;
// Flags of an entry, below the page's device address. `WRITE` is never without `DIRTY`: a page that the guest may write is in the log.
const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const ACCESSED: u64 = 4;
/// Written since the log was last taken; stays when the rest of the entry goes.
const DIRTY: u64 = 8;

/// The device's side of its mirror.
pub struct Side<W: World> {
    mm: Mm<W>,
    pub(super) pins: Pins<W::Meta>,
    released: AtomicBool,
    slots: [Option<Placed>; MAX_SLOTS],
    /// One for each page of the slots, one slot after another.
    entries: Vec<AtomicU64, W::Meta>,
    /// Who changes entries, but for `ACCESSED`.
    mmu: Mutex<()>,
}

/// A slot, and where its entries are.
#[derive(Clone, Copy)]
struct Placed {
    slot: MemSlot,
    /// The number of its first entry.
    base: usize,
}

impl Placed {
    #[inline]
    fn at(self, gfn: usize) -> Option<At> {
        let page = self.slot.index(gfn)?;
        Some(At {
            placed: self,
            index: self.base + page,
            page: self.slot.host.skip(page)?.take(1),
        })
    }
}

/// A guest page: its entry, and the program's page that it is.
#[derive(Clone, Copy)]
pub(super) struct At {
    placed: Placed,
    pub(super) index: usize,
    pub(super) page: PageRange,
}

/// Neighbouring guest pages of one slot.
#[derive(Clone, Copy)]
pub(super) struct Pages {
    first: usize,
    pub(super) range: PageRange,
}

impl Pages {
    fn indices(self) -> Range<usize> {
        self.first..self.first + self.range.page_count()
    }
}

impl<W: World> Side<W> {
    pub(super) fn new(mm: &Mm<W>, given: &[MemSlot]) -> Result<Self, OpenError> {
        let mut slots = [None; MAX_SLOTS];
        if given.len() > MAX_SLOTS || overlap(given) {
            return Err(OpenError::Slots);
        }
        let mut entries = Vec::new_in(W::Meta::default());
        for (place, slot) in slots.iter_mut().zip(given) {
            *place = Some(Placed {
                slot: *slot,
                base: entries.len(),
            });
            let count = slot.host.page_count();
            entries.try_reserve_exact(count).map_err(|_| OutOfMetadata)?;
            entries.extend((0..count).map(|_| AtomicU64::new(0)));
        }
        Ok(Self {
            mm: mm.clone(),
            pins: Pins::new(MAX_VCPUS)?,
            released: AtomicBool::new(false),
            slots,
            entries,
            mmu: Mutex::new("shadow mmu", ()),
        })
    }

    #[inline]
    pub(super) fn find(&self, gfn: usize) -> Option<At> {
        self.slots.iter().flatten().find_map(|placed| placed.at(gfn))
    }

    /// These guest pages, if one slot has them all.
    pub(super) fn pages(&self, first_gfn: usize, count: usize) -> Result<Pages, GuestError> {
        let at = self.find(first_gfn).ok_or(GuestError::NoSlot(first_gfn))?;
        let page = at.index - at.placed.base;
        let range = at
            .placed
            .slot
            .host
            .skip(page)
            .filter(|rest| (1..=rest.page_count()).contains(&count));
        let end = first_gfn.saturating_add(count.max(1) - 1);
        let range = range.ok_or(GuestError::NoSlot(end))?.take(count);
        Ok(Pages { first: at.index, range })
    }

    /// What is entered with a guest page, and so what its look covers (SHD-2).
    pub(super) fn around(&self, at: At) -> Pages {
        let first = (at.index - at.placed.base) / AROUND * AROUND;
        let range = at
            .placed
            .slot
            .host
            .skip(first)
            .map_or(at.page, |rest| rest.take(AROUND));
        Pages {
            first: at.placed.base + first,
            range,
        }
    }

    /// Enters the page of `at` for `access`, and those around it that are in the table, for reading. False where that is not so any more.
    ///
    /// SHD-1: looked up without the lock, as what takes long is; entered under it, if no invalidation has begun since the look did, and no release. One that begins
    /// now waits for the lock, and finds the entries.
    pub(super) fn enter(
        &self,
        table: &Table<W::Meta>,
        seen_in: &Look<'_, W::Meta>,
        around: Pages,
        at: At,
        access: Access,
    ) -> bool {
        let seen: [u64; AROUND] = core::array::from_fn(|number| {
            let wanted = around.first + number == at.index;
            let page = around.range.skip(number);
            page.map_or(0, |page| look(table, page, if wanted { access } else { Access::Read }))
        });
        if seen[at.index - around.first] == 0 {
            return false;
        }
        let _mmu = self.mmu.lock();
        if seen_in.is_stale() {
            return false;
        }
        for (entry, &bits) in self.entries[around.indices()].iter().zip(&seen) {
            if bits != 0 {
                // SeqCst: as in `permits`. The address that is there is the same: an entry goes before its page does.
                entry.fetch_or(bits, Ordering::SeqCst);
            }
        }
        true
    }

    /// Whether the guest may access the page by its entry now, which is then marked accessed. The caller has pinned the page.
    pub(super) fn permits(&self, index: usize, access: Access) -> bool {
        let needed = match access {
            Access::Read => PRESENT,
            Access::Write => PRESENT | WRITE,
        };
        let entry = &self.entries[index];
        // SeqCst: against who takes flags away and looks for pins then.
        let found = entry.load(Ordering::SeqCst);
        if found & needed != needed || self.released.load(Ordering::SeqCst) {
            return false;
        }
        if found & ACCESSED == 0 {
            // Relaxed: a hint. If the entry went just now, it is one without an entry, and not counted.
            entry.fetch_or(ACCESSED, Ordering::Relaxed);
        }
        true
    }

    /// Takes the log, and the right to write with it (SHD-4).
    pub(super) fn take_dirty(&self, pages: Pages, each: &mut dyn FnMut(usize)) {
        let mmu = self.mmu.lock();
        for (number, index) in pages.indices().enumerate() {
            // SeqCst: as in `permits`.
            if self.entries[index].fetch_and(!(WRITE | DIRTY), Ordering::SeqCst) & DIRTY != 0 {
                each(number);
            }
        }
        drop(mmu);
        // Who was permitted to write before writes until here.
        self.pins.drain(self.mm.world(), pages.range, &|_| {});
    }

    pub(super) fn age(&self, pages: Pages) -> usize {
        let young = |entry: &AtomicU64| {
            // Relaxed: a hint.
            let found = entry.fetch_and(!ACCESSED, Ordering::Relaxed);
            found & (PRESENT | ACCESSED) == PRESENT | ACCESSED
        };
        self.entries[pages.indices()]
            .iter()
            .filter(|entry| young(entry))
            .count()
    }

    pub(super) fn count(&self) -> usize {
        let present = |entry: &&AtomicU64| entry.load(Ordering::Relaxed) & PRESENT != 0;
        self.entries.iter().filter(present).count()
    }

    /// Erases the entries of these pages of the program but for what the log says; the caller holds `mmu`. Two slots may have the same pages.
    fn zap(&self, range: PageRange) {
        for Placed { slot, base } in self.slots.iter().flatten() {
            let Some(part) = slot.host.intersect(range) else {
                continue;
            };
            let first = base + part.first_page() - slot.host.first_page();
            for entry in &self.entries[first..first + part.page_count()] {
                // SeqCst: as in `permits`.
                entry.fetch_and(DIRTY, Ordering::SeqCst);
            }
        }
    }
}

/// The entry for the first page of `page` that the table permits, or 0. A frame number's place has where the page lies for the device.
fn look<M: Metadata>(table: &Table<M>, page: PageRange, access: Access) -> u64 {
    let Some(leaf) = VirtAddr::new(page.start()).ok().and_then(|addr| table.get(addr)) else {
        return 0;
    };
    let at = leaf.entry.addr().0 & !(PAGE_SIZE as u64 - 1);
    match access {
        Access::Read => at | PRESENT,
        Access::Write if leaf.entry.flags().has(Flags::WRITE) => at | PRESENT | WRITE | DIRTY,
        Access::Write => 0,
    }
}

fn overlap(slots: &[MemSlot]) -> bool {
    slots.iter().enumerate().any(|(number, slot)| {
        let clash = |other: &MemSlot| slot.index(other.first_gfn).is_some() || other.index(slot.first_gfn).is_some();
        slots[..number].iter().any(clash)
    })
}

impl<W: World> Device for Side<W> {
    fn invalidate(&self, invalidation: &Invalidation, scope: &CallbackScope<'_>) {
        let range = invalidation.range;
        let mmu = self.mmu.lock();
        self.zap(range);
        drop(mmu);
        self.pins.invalidate(self.mm.world(), invalidation, scope, &|_| {});
    }

    fn try_invalidate(&self, invalidation: &Invalidation, _: &CallbackScope<'_>) -> Answer {
        let range = invalidation.range;
        let Some(mmu) = self.mmu.try_lock() else {
            return Answer::Refused;
        };
        self.zap(range);
        drop(mmu);
        self.pins.try_invalidate(self.mm.world(), invalidation)
    }

    fn release(&self) {
        // SeqCst: against the look at it after a pin was published.
        self.released.store(true, Ordering::SeqCst);
        let mmu = self.mmu.lock();
        self.zap(PageRange::ALL);
        drop(mmu);
        self.pins.drain(self.mm.world(), PageRange::ALL, &|_| {});
    }
}
