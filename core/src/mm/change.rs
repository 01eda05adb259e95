//! Changes of the address space through the API: devices are told before the CPU's mapping changes (WLD-2, cooperative level).
//!
//! ```text
//! caller                                  device
//! start: entries go, accesses end          .
//! pages of the range come home             a miss: begin() waits
//! the system call                          .
//! end                                      the miss sees what is there now
//! ```

use crate::addr::PageRange;
use crate::migrate::home::Why;
use crate::mm::{EntryError, Mm};
use crate::notifier::{Cause, InvalidateError};
use crate::world::{Access, World, WorldError};

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
        self.change(range, Cause::Unmap, move |world| world.unmap(range))
    }

    /// Sets what the program may do in `range`; devices lose their entries first, and get them back by faulting. `None` is PROT_NONE.
    #[doc(alias = "mprotect")]
    pub fn protect(&self, range: PageRange, access: Option<Access>) -> Result<(), ChangeError> {
        self.change(range, Cause::ProtectArea, move |world| world.protect(range, access))
    }

    /// Drops the contents of `range`: the next touch, by CPU or device, finds zeroes (MIG-13).
    #[doc(alias = "madvise")]
    pub fn discard(&self, range: PageRange) -> Result<(), ChangeError> {
        self.change(range, Cause::Clear, move |world| world.discard(range))
    }

    /// Moves the mapping of `from` to `to`, which must be of the same length and not overlap it.
    #[doc(alias = "mremap")]
    pub fn remap(&self, from: PageRange, to: PageRange) -> Result<(), ChangeError> {
        if from.page_count() != to.page_count() || from.overlaps(to) {
            return Err(ChangeError::BadRemap { from, to });
        }
        self.check_entry()?;
        let mm = self.clone();
        self.off_stack(move || {
            let _target = mm.notifier.invalidate(to, Cause::Unmap, None)?;
            // What is replaced comes home too, to go with its mapping: left on a device, it would pass for what moves in.
            mm.change_here(from, Cause::Unmap, |world| {
                mm.bring_home(to)?;
                Ok(world.remap(from, to)?)
            })
        })
    }

    fn change(
        &self,
        range: PageRange,
        cause: Cause,
        call: impl FnOnce(&W) -> Result<(), WorldError> + Send + 'static,
    ) -> Result<(), ChangeError> {
        self.check_entry()?;
        let mm = self.clone();
        self.off_stack(move || mm.change_here(range, cause, |world| Ok(call(world)?)))
    }

    fn change_here(
        &self,
        range: PageRange,
        cause: Cause,
        call: impl FnOnce(&W) -> Result<(), ChangeError>,
    ) -> Result<(), ChangeError> {
        // Devices first: once the guard is there no access is in flight and no entry can come back.
        let guard = self.notifier.invalidate(range, cause, None)?;
        // No page leaves home from here on; what is away comes back, because the call works on what is at home.
        self.gate.close();
        let result = self.bring_home(range).and_then(|()| call(self.world()));
        self.gate.open();
        if result.is_ok() {
            guard.commit();
        }
        result
    }

    /// All of `range`, or an error: what stays away would be lost.
    fn bring_home(&self, range: PageRange) -> Result<(), ChangeError> {
        match self.home_range(range, None, Why::Request).skipped {
            0 => Ok(()),
            pages => Err(ChangeError::Stuck { range, pages }),
        }
    }
}
