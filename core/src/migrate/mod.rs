//! Pages on their way between system memory and a device's memory.
//!
//! A migration is four steps: *collect* (the pages are chosen and put in transit), *unmap* (devices are told, entries go), *move or
//! copy*, *commit* (the pages settle at one of the two places). Each page may drop out alone; the [`Report`] says which and why.
//!
//! # Invariants
//! - MGR-1 (MIG-3): between collect and commit a page in transit is reachable by nobody, or (not yet moved) as before.
//! - MGR-2 (MIG-9): a page that did not arrive is where it was. No step leaves zeroes or old data in its place.
//! - MGR-3 (FLT-2): the invalidation guard lives from before the first move until after the last commit.
//! - MGR-4 (MIG-7): memory is reserved before anything is in transit, so that evicting never waits for pages the evictor holds itself.
//!
//! # Locking
//! `areas` during collect only; a block's lock for single steps; nothing during the moves.
//!
//! ```text
//! migrating thread                         CPU thread that touches a page
//! collect: transit = 1, area tracked       .
//! start; entries zapped                    .
//! move: the page leaves                    touch: fault -> pager: in transit, waits
//! commit: resident, transit = 0, wake      touch again: fault -> pager brings it home
//! end                                      .
//! ```
//!
//! Linux: migrate_vma_setup, migrate_vma_pages, migrate_vma_finalize in mm/migrate_device.c.

mod across;
mod carry;
mod commit;
pub(crate) mod duplicate;
pub(crate) mod evict;
pub(crate) mod home;
pub(crate) mod homeward;
pub(crate) mod out;

use allocator_api2::vec::Vec;

use crate::addr::{PAGE_SIZE, PAGES_PER_BLOCK, PageRange};
use crate::mm::EntryError;
use crate::world::{Metadata, OutOfMetadata, WorldError};

/// Why a page stayed where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SkipReason {
    /// No area there.
    Hole,
    /// PROT_NONE.
    NoAccess,
    /// A file, shared memory or huge-page pool: it is mapped in place, not migrated.
    NotAnonymous,
    /// isomem's own memory, or that of a loaded program or library.
    Excluded,
    /// It holds the control block of a thread, which the kernel writes when the thread ends.
    ThreadBlock,
    /// Pinned for I/O by the kernel: moving it would lose what the I/O writes.
    Pinned,
    /// Another migration had it.
    InTransit,
    /// The device's memory or the mirror's budget is full and nothing can be evicted.
    NoDeviceMemory,
    /// Too many devices hold pages of this 2 MiB block.
    TooManyDevices,
    /// Another device has it, and it was not to be taken from there.
    OnOtherDevice,
    /// The area is read-only: there is nothing to be exclusive about.
    ReadOnly,
    /// The device failed.
    DeviceFailed,
    /// The address space exited.
    Exited,
    /// The address space changed meanwhile.
    Changed,
    /// A system call failed with this errno; the page is intact.
    Failed(i32),
}

impl core::fmt::Display for SkipReason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Hole => f.write_str("no area there"),
            Self::NoAccess => f.write_str("no access (PROT_NONE)"),
            Self::NotAnonymous => f.write_str("not private anonymous memory; it is mapped in place"),
            Self::Excluded => f.write_str("isomem's own memory or a loaded program's data"),
            Self::ThreadBlock => f.write_str("holds a thread's control block"),
            Self::Pinned => f.write_str("pinned for I/O"),
            Self::InTransit => f.write_str("in another migration"),
            Self::NoDeviceMemory => f.write_str("device memory is full and nothing can be evicted"),
            Self::TooManyDevices => f.write_str("too many devices hold pages of this block"),
            Self::OnOtherDevice => f.write_str("on another device"),
            Self::ReadOnly => f.write_str("read-only"),
            Self::DeviceFailed => f.write_str("the device failed"),
            Self::Exited => f.write_str("the address space exited"),
            Self::Changed => f.write_str("the address space changed meanwhile"),
            Self::Failed(errno) => write!(f, "{}", std::io::Error::from_raw_os_error(*errno)),
        }
    }
}

/// What a migration does with pages that another device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Elsewhere {
    /// They come over: directly between private memories, else by way of their place at home.
    #[default]
    Take,
    /// They stay there, and are reported.
    Leave,
}

/// Which pages of a device stay there when a range goes home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// None.
    #[default]
    Nothing,
    /// Those that it took exclusively.
    Exclusive,
}

/// What a migration did.
pub struct Report<M: Metadata> {
    /// Pages relinked to their new place.
    pub moved: usize,
    /// Pages copied to their new place, or that had to get a copy of their own first.
    pub copied: usize,
    /// Pages the CPU had never touched: they are zeroes at the new place.
    pub zeroed: usize,
    /// Pages that changed hands where they are: claimed for coherent memory or given back from there, or made exclusive on the
    /// device; or no longer duplicated: the device's side went.
    pub in_place: usize,
    /// Of all pages that migrated, how many came from another device.
    pub from_device: usize,
    /// Pages that were at the new place already.
    pub already: usize,
    /// Pages that stayed where they were.
    pub skipped: usize,
    skips: Vec<(PageRange, SkipReason), M>,
}

impl<M: Metadata> Report<M> {
    pub(crate) fn new() -> Self {
        Self {
            moved: 0,
            copied: 0,
            zeroed: 0,
            in_place: 0,
            from_device: 0,
            already: 0,
            skipped: 0,
            skips: Vec::new_in(M::default()),
        }
    }

    /// Pages that changed place.
    pub fn migrated(&self) -> usize {
        self.moved + self.copied + self.zeroed + self.in_place
    }

    /// Which pages stayed, and why, roughly in address order. When isomem's own memory is short, later entries are missing; the count is right.
    pub fn skips(&self) -> &[(PageRange, SkipReason)] {
        &self.skips
    }

    pub(crate) fn skip(&mut self, range: PageRange, reason: SkipReason) {
        self.skipped += range.page_count();
        if let Some((last, same)) = self.skips.last_mut()
            && *same == reason
            && last.end_page() == range.first_page()
        {
            *last = last.hull(range);
        } else if self.skips.try_reserve(1).is_ok() {
            self.skips.push((range, reason));
        }
    }
}

impl<M: Metadata> core::fmt::Debug for Report<M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Report")
            .field("moved", &self.moved)
            .field("copied", &self.copied)
            .field("zeroed", &self.zeroed)
            .field("in_place", &self.in_place)
            .field("from_device", &self.from_device)
            .field("already", &self.already)
            .field("skips", &self.skips())
            .finish()
    }
}

/// Why a migration was refused as a whole. Nothing has changed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MigrateError {
    /// See [`EntryError`].
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The mirror was released: its address space, its device or itself is gone.
    #[error("the mirror was released")]
    Released,
    /// isomem's own memory is used up.
    #[error(transparent)]
    Metadata(#[from] OutOfMetadata),
    /// A system call failed.
    #[error(transparent)]
    World(#[from] WorldError),
}

impl From<out::OutError> for MigrateError {
    fn from(error: out::OutError) -> Self {
        match error {
            out::OutError::World(error) => Self::World(error),
            out::OutError::Metadata(error) => Self::Metadata(error),
        }
    }
}

/// Huge pages that one call moves at most: as long a transit as that of a block of small pages.
pub(crate) const HUGE_GROUP: usize = 16;

/// How many of `items` from the front are whole huge pages (as `place` says, by first page of block and chunk) in neighbouring blocks and chunks.
pub(crate) fn huge_group<T>(items: &[Option<T>], place: impl Fn(&T) -> Option<(usize, usize)>) -> usize {
    let mut places = items.iter().take(HUGE_GROUP).map(|item| item.as_ref().and_then(&place));
    let Some(Some((block, chunk))) = places.next() else {
        return 0;
    };
    let follows = |(index, other): &(usize, Option<(usize, usize)>)| {
        let offset = index * PAGES_PER_BLOCK;
        *other == Some((block + offset, chunk + offset))
    };
    (1..).zip(places).take_while(follows).count() + 1
}

/// Bytes in `pages` pages.
pub(crate) const fn bytes(pages: usize) -> usize {
    pages * PAGE_SIZE
}
