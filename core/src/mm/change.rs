//! Changes of the address space that are announced: devices are told before the CPU's mapping changes (WLD-2).
//!
//! One bracket for all of them, whoever learns of the change: the API, a replaced function of the C library, or a system call that is held
//! until devices were told.
//!
//! # Invariants
//! - CHG-1: while the call is made no device has an entry in the ranges of the bracket, none can get one, and no page of them is away or leaves.
//!   So what the kernel does there meanwhile, also for somebody else, is not late.
//! - CHG-2: a call that was not made, or that failed, has lost nothing: pages may have come home, and advice may be forgotten.
//!
//! # Locking
//! The guards, then the gate (docs/locking.md). The call is made with both held, on a thread of isomem's own.
//!
//! ```text
//! caller                                  device
//! start: entries go, accesses end          .
//! pages of the range come home             a miss: begin() waits
//! the system call                          .
//! end                                      the miss sees what is there now
//! ```
//!
//! Linux: mmu_notifier_invalidate_range_start around zap_page_range, change_protection and move_page_tables.

use crate::addr::PageRange;
use crate::migrate::home::Why;
use crate::migrate::homeward::Which;
use crate::mm::{EntryError, Mm, MmState};
use crate::notifier::{Cause, Guard, InvalidateError};
use crate::stats::add;
use crate::world::{Access, World, WorldError};

/// Ranges that one system call changes, at most.
pub const CHANGES_MAX: usize = 4;

/// What is about to happen to a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub range: PageRange,
    /// What devices are told.
    pub cause: Cause,
}

/// What one call changes: up to [`CHANGES_MAX`] ranges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    list: [Option<Change>; CHANGES_MAX],
}

impl Changes {
    /// One change.
    pub fn one(range: PageRange, cause: Cause) -> Self {
        Self::default().and(range, cause)
    }

    /// And another; where there is no place left, the last one grows until it covers this one, too.
    #[must_use]
    pub fn and(mut self, range: PageRange, cause: Cause) -> Self {
        let free = self.list.iter().position(Option::is_none).unwrap_or(CHANGES_MAX - 1);
        let range = self.list[free].map_or(range, |last| last.range.hull(range));
        self.list[free] = Some(Change { range, cause });
        self
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.list[0].is_none()
    }

    /// The changes, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = Change> + '_ {
        self.list.iter().flatten().copied()
    }
}

/// Why a change was not made. The mapping is as it was; pages may have come home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// See [`EntryError`].
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// Devices could not be told.
    #[error(transparent)]
    Invalidate(#[from] InvalidateError),
    /// The system call failed.
    #[error(transparent)]
    World(#[from] WorldError),
    /// Source and destination differ in length or overlap.
    #[error("cannot move {from} to {to}: the ranges must be of the same length and must not overlap")]
    BadRemap {
        /// Where the mapping is.
        from: PageRange,
        /// Where it was to go.
        to: PageRange,
    },
    /// Pages of the range could not be brought home, so their contents would have been lost.
    #[error("{pages} pages of {range} could not be brought home")]
    Stuck {
        /// The range of the change.
        range: PageRange,
        /// How many pages are still away.
        pages: usize,
    },
}

impl<W: World> Mm<W> {
    /// Unmaps `range`; devices lose it first.
    #[doc(alias = "munmap")]
    pub fn unmap(&self, range: PageRange) -> Result<(), ChangeError> {
        self.bracket(Changes::one(range, Cause::Unmap), move |world| Ok(world.unmap(range)?))
    }

    /// Sets what the program may do in `range`; devices lose their entries first, and get them back by faulting. `None` is PROT_NONE.
    #[doc(alias = "mprotect")]
    pub fn protect(&self, range: PageRange, access: Option<Access>) -> Result<(), ChangeError> {
        let changes = Changes::one(range, Cause::ProtectArea);
        self.bracket(changes, move |world| Ok(world.protect(range, access)?))
    }

    /// Drops the contents of `range`: the next touch, by CPU or device, finds zeroes (MIG-13).
    #[doc(alias = "madvise")]
    pub fn discard(&self, range: PageRange) -> Result<(), ChangeError> {
        self.bracket(
            Changes::one(range, Cause::Clear),
            move |world| Ok(world.discard(range)?),
        )
    }

    /// Moves the mapping of `from` to `to`, which must be of the same length and not overlap it.
    #[doc(alias = "mremap")]
    pub fn remap(&self, from: PageRange, to: PageRange) -> Result<(), ChangeError> {
        if from.page_count() != to.page_count() || from.overlaps(to) {
            return Err(ChangeError::BadRemap { from, to });
        }
        // What is replaced comes home too, to go with its mapping: left on a device, it would pass for what moves in.
        let changes = Changes::one(to, Cause::Unmap).and(from, Cause::Unmap);
        self.bracket(changes, move |world| Ok(world.remap(from, to)?))
    }

    /// Makes a call that changes the address space, with devices told before and after (CHG-1). Returns what the call returned; an error says
    /// that the ranges are as they were.
    ///
    /// Blocks until devices gave up the ranges and the call returned; runs it on a thread of isomem's own, so it takes what it needs with it.
    ///
    /// # Errors
    /// [`ChangeError`], as the caller's own type; then the call was not made.
    #[doc(alias = "mmu_notifier_invalidate_range_start")]
    pub fn bracket<T, E>(
        &self,
        changes: Changes,
        call: impl FnOnce(&W) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<ChangeError> + Send + 'static,
    {
        self.check_entry().map_err(ChangeError::from)?;
        let mm = self.clone();
        self.off_stack(move || mm.bracket_here(&changes, call))
    }
}

impl<W: World> MmState<W> {
    fn bracket_here<T, E: From<ChangeError>>(
        &self,
        changes: &Changes,
        call: impl FnOnce(&W) -> Result<T, E>,
    ) -> Result<T, E> {
        // Devices first: once the guards are there no access is in flight and no entry can come back.
        let mut guards: [Option<Guard<'_, W::Meta>>; CHANGES_MAX] = [const { None }; CHANGES_MAX];
        for (guard, change) in guards.iter_mut().zip(changes.iter()) {
            let begun = self.notifier.invalidate(change.range, change.cause, None);
            *guard = Some(begun.map_err(ChangeError::from)?);
        }
        // No page leaves home from here on; what is away comes back, because the call works on what is at home.
        self.gate.close();
        let home = changes.iter().try_for_each(|change| self.bring_home(change));
        if home.is_ok() {
            // Before the call: once it is made, others may map something there and advise on that.
            self.forget_advice(changes);
        }
        let result = home.map_err(E::from).and_then(|()| call(self.world()));
        self.gate.open();
        if result.is_ok() {
            add(&self.counters.changes_announced, 1);
            guards.into_iter().flatten().for_each(Guard::commit);
        }
        result
    }

    /// What is unmapped or moved away takes its advice along.
    fn forget_advice(&self, changes: &Changes) {
        changes
            .iter()
            .filter(|change| change.cause == Cause::Unmap)
            .for_each(|change| self.advice.forget(change.range));
    }

    /// Whether a page of the ranges may ever have been away, so that the kernel may report what is done to them.
    pub fn has_blocks(&self, changes: &Changes) -> bool {
        changes
            .iter()
            .any(|change| self.blocks.known(change.range).next().is_some())
    }

    /// All of the change's range, or an error: what stays away would be lost.
    fn bring_home(&self, Change { range, cause }: Change) -> Result<(), ChangeError> {
        // What is claimed is at home; and where only protection changes, its contents stay, and so does the claim.
        let which = match cause {
            Cause::ProtectArea | Cause::ProtectPage | Cause::SoftDirty => Which::Away,
            _ => Which::All,
        };
        match self.home_those(range, |_| true, which, Why::Request).skipped {
            0 => Ok(()),
            pages => Err(ChangeError::Stuck { range, pages }),
        }
    }
}
