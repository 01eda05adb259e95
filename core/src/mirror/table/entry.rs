//! What one slot of a device page table holds, and how a run of such entries is told apart.

use core::fmt;
use core::ops::BitOr;

use crate::addr::{PAGE_SIZE, PAGES_PER_BLOCK, PageRange};
use crate::device::DeviceAddr;
use crate::world::Access;

const FLAG_BITS: u64 = PAGE_SIZE as u64 - 1;

/// The flags of an [`Entry`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u64);

impl Flags {
    /// No flag: a valid, clean, read-only entry for system memory.
    pub const NONE: Self = Self(0);
    /// The entry maps something. [`Entry::new`] sets it.
    pub const VALID: Self = Self(1);
    /// The device may write.
    pub const WRITE: Self = Self(1 << 1);
    /// The device has written, or is about to.
    pub const DIRTY: Self = Self(1 << 2);
    /// The page is in device memory.
    pub const DEVICE: Self = Self(1 << 3);
    /// The CPU may not access the page for now.
    pub const EXCLUSIVE: Self = Self(1 << 4);

    /// Whether all of `flags` are set.
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// The flags without `flags`.
    #[must_use]
    pub const fn without(self, flags: Self) -> Self {
        Self(self.0 & !flags.0)
    }

    pub(super) const fn bits(self) -> u64 {
        self.0
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A device page-table entry: a page-aligned device address, and flags in the bits below.
#[doc(alias = "pte_t")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Entry(u64);

impl Entry {
    /// Maps nothing.
    pub const NONE: Self = Self(0);

    /// A valid entry for the page at `addr`, which must be page-aligned.
    pub const fn new(addr: DeviceAddr, flags: Flags) -> Self {
        debug_assert!(addr.0 & FLAG_BITS == 0);
        Self(addr.0 & !FLAG_BITS | flags.0 | Flags::VALID.0)
    }

    /// Where the page is, as the device sees it.
    pub const fn addr(self) -> DeviceAddr {
        DeviceAddr(self.0 & !FLAG_BITS)
    }

    /// All flags, [`Flags::VALID`] included.
    pub const fn flags(self) -> Flags {
        Flags(self.0 & FLAG_BITS)
    }

    /// Whether the entry maps something.
    pub const fn is_valid(self) -> bool {
        self.flags().has(Flags::VALID)
    }

    /// Whether the device may write through it.
    pub const fn is_writable(self) -> bool {
        self.can(Access::Write)
    }

    /// Whether the device has written through it.
    pub const fn is_dirty(self) -> bool {
        self.flags().has(Flags(Flags::VALID.0 | Flags::DIRTY.0))
    }

    /// Whether the page is in device memory.
    pub const fn is_device(self) -> bool {
        self.flags().has(Flags(Flags::VALID.0 | Flags::DEVICE.0))
    }

    /// Whether the entry permits `access`.
    pub const fn can(self, access: Access) -> bool {
        self.flags().has(need(access))
    }

    /// The entry of the page `page_count` pages further in the same run.
    #[must_use]
    pub const fn forward(self, page_count: usize) -> Self {
        Self(self.0.wrapping_add((page_count * PAGE_SIZE) as u64))
    }

    pub(super) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(super) const fn bits(self) -> u64 {
        self.0
    }

    /// Whether one big leaf of `page_count` pages could hold this entry as its first.
    pub(super) const fn fits_leaf(self, page_count: usize) -> bool {
        self.addr().0.is_multiple_of((page_count * PAGE_SIZE) as u64)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_valid() {
            return f.write_str("none");
        }
        write!(f, "{:#x}", self.addr().0)?;
        for (flag, letter) in [
            (Flags::WRITE, " write"),
            (Flags::DIRTY, " dirty"),
            (Flags::DEVICE, " device"),
            (Flags::EXCLUSIVE, " exclusive"),
        ] {
            if self.flags().has(flag) {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

const fn need(access: Access) -> Flags {
    match access {
        Access::Read => Flags::VALID,
        Access::Write => Flags(Flags::VALID.0 | Flags::WRITE.0),
    }
}

/// How much one leaf maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeafSize {
    /// 4 KiB.
    Page,
    /// 2 MiB.
    Block,
    /// 1 GiB.
    Gigabyte,
}

impl LeafSize {
    /// Pages in a leaf of this size.
    pub const fn page_count(self) -> usize {
        match self {
            Self::Page => 1,
            Self::Block => PAGES_PER_BLOCK,
            Self::Gigabyte => PAGES_PER_BLOCK * PAGES_PER_BLOCK,
        }
    }

    pub(super) const fn of(page_count: usize) -> Self {
        match page_count {
            1 => Self::Page,
            PAGES_PER_BLOCK => Self::Block,
            _ => Self::Gigabyte,
        }
    }
}

/// What a lookup found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// The entry of the page that was asked for: the address is offset already where the leaf is bigger than a page.
    pub entry: Entry,
    /// Size of the leaf.
    pub size: LeafSize,
}

/// Which entries a run may hold.
#[derive(Clone, Copy)]
pub(super) struct Like {
    /// Flags that each must have.
    need: u64,
    /// Bits in which each must follow from the one before.
    same: u64,
}

impl Like {
    /// Valid entries with equal flags.
    pub(super) const EQUAL: Self = Self {
        need: Flags::VALID.0,
        same: u64::MAX,
    };

    /// Entries that permit `access`.
    pub(super) const fn permitting(access: Access) -> Self {
        let need = need(access).0;
        Self {
            need,
            same: !FLAG_BITS | need,
        }
    }

    pub(super) const fn admits(self, entry: Entry) -> bool {
        entry.0 & self.need == self.need
    }

    pub(super) const fn follows(self, entry: Entry, expected: Entry) -> bool {
        (entry.0 ^ expected.0) & self.same == 0
    }
}

/// Puts neighbours together on their way to a callback: runs of consecutive pages with consecutive addresses and equal flags.
pub(super) struct Runs<'a> {
    report: &'a mut dyn FnMut(PageRange, Entry),
    run: Option<(PageRange, Entry)>,
}

impl<'a> Runs<'a> {
    pub(super) fn new(report: &'a mut dyn FnMut(PageRange, Entry)) -> Self {
        Self { report, run: None }
    }

    pub(super) fn push(&mut self, pages: PageRange, entry: Entry) {
        if let Some((run, first)) = &mut self.run
            && run.end_page() == pages.first_page()
            && first.forward(run.page_count()) == entry
        {
            *run = run.hull(pages);
            return;
        }
        self.flush();
        self.run = Some((pages, entry));
    }

    pub(super) fn flush(&mut self) {
        if let Some((run, first)) = self.run.take() {
            (self.report)(run, first);
        }
    }
}

/// A change that only takes flags or entries away, and so needs no memory.
#[derive(Clone, Copy)]
pub(super) struct Edit {
    keep: u64,
    /// A leaf is touched, and reported, if it has these flags.
    only: u64,
}

impl Edit {
    /// The entry goes.
    pub(super) const ERASE: Self = Self {
        keep: 0,
        only: Flags::VALID.0,
    };
    /// The device may no longer write.
    pub(super) const PROTECT: Self = Self {
        keep: !Flags::WRITE.0,
        only: Flags::VALID.0 | Flags::WRITE.0,
    };
    /// The entry is clean again.
    pub(super) const CLEAN: Self = Self {
        keep: !Flags::DIRTY.0,
        only: Flags::VALID.0 | Flags::DIRTY.0,
    };

    pub(super) const fn changes(self, entry: Entry) -> bool {
        entry.0 & self.only == self.only
    }

    pub(super) const fn keep(self) -> u64 {
        self.keep
    }

    pub(super) const fn erases(self) -> bool {
        self.keep == 0
    }
}
