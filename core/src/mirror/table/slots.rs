//! The entries of one directory, and what is done to them under its lock.

use core::array;

use super::entry::{Edit, Entry, Flags};
use crate::sync::{AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering};

/// Slots by which an address is cut.
pub(super) const FANOUT: usize = 512;
/// Slots that are really there: a model checker affords only the first few.
pub(super) const SLOTS: usize = if cfg!(feature = "shuttle") {
    4
} else if crate::sync::MODEL {
    2
} else {
    FANOUT
};

/// A bigger leaf was set above the directory while its update was on the way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overtaken;

/// The leaf slots above a directory. While one of them is valid the directory is hidden, and must stay empty.
#[derive(Clone, Copy)]
pub(super) struct Above<'a> {
    slot: Option<&'a AtomicU64>,
    up: Option<&'a Above<'a>>,
}

impl<'a> Above<'a> {
    /// Nothing is above.
    pub(super) const TOP: Self = Self { slot: None, up: None };

    pub(super) fn overtaken(&self) -> bool {
        // Acquire pairs with the Release in `Locked::put` of the directory above; who holds the lock of a directory that a bigger leaf
        // has already cleared sees that leaf by the lock alone.
        let valid = |slot: &AtomicU64| Entry::from_bits(slot.load(Ordering::Acquire)).is_valid();
        self.slot.is_some_and(valid) || self.up.is_some_and(Self::overtaken)
    }
}

/// The entries, and the lock for changing them.
pub(super) struct Slots {
    entries: [AtomicU64; SLOTS],
    /// Valid entries. Written under the lock; read without it to pass over an empty directory.
    valid: AtomicU32,
    lock: Mutex<()>,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self {
            entries: array::from_fn(|_| AtomicU64::new(0)),
            valid: AtomicU32::new(0),
            lock: Mutex::new("directory", ()),
        }
    }

    /// The entry in `slot`.
    #[inline]
    pub(super) fn get(&self, slot: usize) -> Entry {
        // Acquire pairs with the Release of every store in `Locked`: who sees a leaf go also sees what took its place below.
        Entry::from_bits(self.entries[slot].load(Ordering::Acquire))
    }

    /// Whether no entry is valid. An update that is not ordered before the question may be missed.
    pub(super) fn is_empty(&self) -> bool {
        // Acquire pairs with the Release in `Locked::count`.
        self.valid.load(Ordering::Acquire) == 0
    }

    /// `slot` as the leaf above its child.
    pub(super) fn above<'a>(&'a self, slot: usize, up: &'a Above<'a>) -> Above<'a> {
        Above {
            slot: Some(&self.entries[slot]),
            up: Some(up),
        }
    }

    /// Locks the directory for an update, unless a bigger leaf has hidden it.
    pub(super) fn lock(&self, above: Above<'_>) -> Result<Locked<'_>, Overtaken> {
        let locked = self.lock_hidden();
        if above.overtaken() { Err(Overtaken) } else { Ok(locked) }
    }

    /// Locks the directory for one who holds the lock of the directory above.
    fn lock_hidden(&self) -> Locked<'_> {
        Locked {
            slots: self,
            _guard: self.lock.lock(),
        }
    }

    /// Empties a directory that a bigger leaf has hidden; says whether something in it was dirty.
    pub(super) fn clear_hidden(&self) -> bool {
        let locked = self.lock_hidden();
        !self.is_empty() && (0..SLOTS).fold(false, |dirty, slot| dirty | locked.edit(slot, Edit::ERASE).is_dirty())
    }

    /// Marks `slot` dirty if it still maps the page of `expected`, writable. Needs no lock: it never makes an entry valid.
    pub(super) fn mark_dirty(&self, slot: usize, expected: Entry) -> bool {
        let cell = &self.entries[slot];
        let mut seen = cell.load(Ordering::Acquire);
        loop {
            let entry = Entry::from_bits(seen);
            if !entry.is_writable() || entry.addr() != expected.addr() {
                return false;
            }
            if entry.is_dirty() {
                return true;
            }
            // Release pairs with the Acquire of the read-modify-write that takes the entry away, and so finds it dirty.
            match cell.compare_exchange_weak(seen, seen | Flags::DIRTY.bits(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
    }
}

/// A directory under its lock.
pub(super) struct Locked<'a> {
    slots: &'a Slots,
    _guard: MutexGuard<'a, ()>,
}

impl<'a> Locked<'a> {
    /// Puts `entry` into `slot`. What was dirty there stays dirty.
    pub(super) fn put(&self, slot: usize, entry: Entry) {
        let cell = &self.slots.entries[slot];
        let mut old = cell.load(Ordering::Relaxed);
        if old == 0 {
            // Nobody makes an entry valid without the lock, so nobody writes here meanwhile. Release pairs with `get`.
            cell.store(entry.bits(), Ordering::Release);
            self.count(|valid| valid + 1);
            return;
        }
        loop {
            let new = entry.bits() | old & Flags::DIRTY.bits();
            if new == old {
                return;
            }
            // AcqRel: Release pairs with `get`; Acquire with `mark_dirty`, whose flag is kept.
            match cell.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => old = now,
            }
        }
    }

    /// Makes the change `edit` to the entry in `slot`, if it applies, and returns what was there.
    pub(super) fn edit(&self, slot: usize, edit: Edit) -> Entry {
        let cell = &self.slots.entries[slot];
        let seen = Entry::from_bits(cell.load(Ordering::Relaxed));
        if !edit.changes(seen) {
            return Entry::NONE;
        }
        // AcqRel: pairs with `mark_dirty` (no dirtiness is lost) and with `get`.
        if edit.erases() {
            self.count(|valid| valid - 1);
            return Entry::from_bits(cell.swap(0, Ordering::AcqRel));
        }
        Entry::from_bits(cell.fetch_and(edit.keep(), Ordering::AcqRel))
    }

    pub(super) fn get(&self, slot: usize) -> Entry {
        self.slots.get(slot)
    }

    /// Splits the leaf in `slot`: fills `child`, whose slots cover `stride` pages each, then clears the leaf. A lookup finds one or both.
    pub(super) fn split(&self, slot: usize, child: &Slots, stride: usize) {
        let leaf = &self.slots.entries[slot];
        let child = child.lock_hidden();
        let first = self.get(slot);
        for index in 0..SLOTS {
            child.put(index, first.forward(index * stride));
        }
        // AcqRel: the fill is seen by who sees the leaf go (`get`); dirtiness set meanwhile (`mark_dirty`) is carried over, before
        // anyone can take the child's lock and look for it.
        let old = Entry::from_bits(leaf.swap(0, Ordering::AcqRel));
        self.count(|valid| valid - 1);
        if old.is_dirty() && !first.is_dirty() {
            for cell in &child.slots.entries {
                cell.fetch_or(Flags::DIRTY.bits(), Ordering::AcqRel);
            }
        }
    }

    /// Merges `child` into one leaf in `slot`, if its entries are neighbours with equal flags (dirty aside): sets the leaf, then
    /// clears the child. A lookup that finds neither looks at the leaf again.
    pub(super) fn merge(&self, slot: usize, child: &Slots, stride: usize) -> bool {
        let child = child.lock_hidden();
        let first = Entry::from_bits(child.get(0).bits() & !Flags::DIRTY.bits());
        let mut dirty = 0;
        for index in 0..SLOTS {
            let entry = child.get(index).bits();
            if entry & !Flags::DIRTY.bits() != first.forward(index * stride).bits() {
                return false;
            }
            dirty |= entry & Flags::DIRTY.bits();
        }
        if !first.is_valid() || !first.fits_leaf(stride * FANOUT) {
            return false;
        }
        self.put(slot, Entry::from_bits(first.bits() | dirty));
        let late = (0..SLOTS).fold(false, |late, index| late | child.edit(index, Edit::ERASE).is_dirty());
        if late {
            // Set in the child after it was read above.
            self.inherit_dirty(slot);
        }
        true
    }

    /// Marks the leaf in `slot` dirty on behalf of what it replaced.
    pub(super) fn inherit_dirty(&self, slot: usize) {
        // Pairs with the edits of the leaf, which come after, under the lock.
        self.slots.entries[slot].fetch_or(Flags::DIRTY.bits(), Ordering::AcqRel);
    }

    fn count(&self, change: impl FnOnce(u32) -> u32) {
        // Written under the lock only. Release pairs with `is_empty`.
        let valid = self.slots.valid.load(Ordering::Relaxed);
        self.slots.valid.store(change(valid), Ordering::Release);
    }
}
