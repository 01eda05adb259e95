//! Pages of a block on their way home: which they are, and what became of them.
//!
//! # Invariants
//! - BLK-2 as stated in [`block`](crate::mm::block): what is in a [`Homeward`] is in transit, and its owner's to settle.
//!
//! # Locking
//! Collected with the block locked; nothing here is held beyond that.

use crate::addr::{PageMask, PageRange};
use crate::devmem::DeviceId;
use crate::mm::block::{Block, BlockState, Residency};
use crate::world::{Metadata, Stop, World};

/// Which of a device's pages come home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// All; claims end, and so do duplicates.
    All,
    /// Those that the CPU cannot reach where they are, or cannot write. Claims stay.
    Away,
    /// Those that the CPU cannot reach where they are. Claims and duplicates stay.
    Alone,
    /// Those that the device took exclusively.
    Exclusive,
    /// All but those.
    NotExclusive,
    /// None: duplicates end.
    Duplicates,
    /// Those that the CPU gets copies of, while the device keeps them.
    Copies,
}

/// Pages of one device, by what coming home means for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kinds {
    /// They are in the arena only.
    pages: PageMask,
    /// They are in the arena, and at home as well.
    duplicates: PageMask,
    /// They are at home, and claimed.
    claims: PageMask,
}

impl Kinds {
    fn all(self) -> PageMask {
        self.pages.or(self.duplicates).or(self.claims)
    }
}

impl Which {
    /// The pages of `residency` in `want`.
    fn of<M: Metadata>(self, residency: &Residency<M>, want: PageMask) -> Kinds {
        let none = PageMask::NONE;
        let all = Kinds {
            pages: residency.pages.and(want).without(residency.duplicates),
            duplicates: residency.duplicates.and(want),
            claims: residency.claimed.and(want),
        };
        let (duplicates, claims) = (none, none);
        match self {
            Self::All => all,
            Self::Away => Kinds { claims, ..all },
            Self::Alone => Kinds {
                duplicates,
                claims,
                ..all
            },
            Self::Exclusive => Kinds {
                pages: all.pages.and(residency.exclusive),
                duplicates,
                claims,
            },
            Self::NotExclusive => Kinds {
                pages: all.pages.without(residency.exclusive),
                ..all
            },
            Self::Duplicates => Kinds {
                pages: none,
                claims,
                ..all
            },
            Self::Copies => Kinds {
                pages: all.pages.without(residency.exclusive),
                duplicates,
                claims,
            },
        }
    }

    /// Whether something of `residency` in `want` would come home so.
    pub(crate) fn concerns<M: Metadata>(self, residency: &Residency<M>, want: PageMask) -> bool {
        !self.of(residency, want).all().is_empty()
    }

    /// The first run from page `index` on that comes home so.
    pub(crate) fn run_from<M: Metadata>(
        self,
        residency: &Residency<M>,
        index: usize,
    ) -> Option<core::ops::Range<usize>> {
        self.of(residency, PageMask::FULL).all().next_run(index)
    }
}

/// Pages of one block on their way home.
pub(crate) struct Homeward<'a, W: World> {
    pub(crate) block: &'a Block<W::Meta>,
    pub(crate) device: DeviceId,
    pub(super) base_page: usize,
    /// Pages in the arena.
    pub(crate) pages: PageMask,
    /// Duplicates: the CPU has them, too, and the device's go.
    pub(super) duplicates: PageMask,
    /// Claimed pages: they are at home, and only the claim ends.
    pub(super) claims: PageMask,
    pub(super) huge: bool,
    /// The CPU gets copies, and the pages stay, as far as that works.
    pub(super) is_copied: bool,
    /// A device may still reach the chunk through a stale pin.
    pub(super) fenced: bool,
}

impl<'a, W: World> Homeward<'a, W> {
    /// Puts those of `want` that are resident in `residency` and settled in transit. The caller holds the block's lock.
    pub(crate) fn collect(
        block: &'a Block<W::Meta>,
        state: &mut BlockState<W::Meta>,
        device: DeviceId,
        want: PageMask,
        which: Which,
    ) -> Option<Self> {
        let residency = state.on(device)?;
        let is_copied = which == Which::Copies;
        // A huge page goes whole: taking a part of it home would make the kernel split it. Copying a part does not.
        let whole = residency.huge && !is_copied && !which.of(residency, want).pages.is_empty();
        let want = if whole { PageMask::FULL } else { want };
        let kinds = which.of(residency, want.without(state.transit));
        if kinds.all().is_empty() {
            return None;
        }
        let homeward = Self {
            block,
            device,
            base_page: residency.base_page,
            pages: kinds.pages,
            duplicates: kinds.duplicates,
            claims: kinds.claims,
            huge: residency.huge && !is_copied,
            is_copied,
            // Whether somebody still reaches the chunk is what the invalidation to come finds out: what did long ago says nothing.
            fenced: false,
        };
        state.transit = state.transit.or(kinds.all());
        Some(homeward)
    }

    /// All that is in transit.
    pub(crate) fn all(&self) -> PageMask {
        self.pages.or(self.duplicates).or(self.claims)
    }

    /// The smallest range that covers the pages.
    pub(crate) fn range(&self) -> PageRange {
        let mut runs = self.all().runs();
        let first = runs.next().expect("a transit is not empty");
        let end = runs.last().map_or(first.end, |run| run.end);
        self.block.id.pages(first.start..end)
    }
}

/// How pages came home.
#[derive(Default)]
pub(crate) struct Arrived {
    pub(crate) pages: PageMask,
    pub(crate) copied: usize,
    /// Pages that the CPU got copies of, and that stay on the device.
    pub(crate) duplicated: PageMask,
    /// Duplicates that ended: the device has them no more.
    pub(crate) collapsed: PageMask,
    /// Of those, the ones that the CPU may write again. The others it may as soon as it tries.
    pub(crate) opened: PageMask,
    /// Pages whose contents were discarded while they waited: dropped, not brought home.
    pub(super) discarded: PageMask,
    /// Claims that ended.
    pub(crate) given_back: PageMask,
    pub(crate) stop: Option<Stop>,
}

impl Arrived {
    /// Whether a thread that touched page `index` can go on.
    pub(crate) fn serves(&self, index: usize) -> bool {
        self.pages.or(self.duplicated).or(self.opened).has(index)
    }

    /// Whether the device holds less than before.
    pub(crate) fn made_room(&self) -> bool {
        !self.pages.or(self.given_back).or(self.collapsed).is_empty()
    }
}
