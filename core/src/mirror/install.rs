//! Brings pages in, and lets a driver put them to use before an invalidation can come between unnoticed.
//!
//! A driver that keeps something beside the mirror's table (a shadow of it, work that holds all its pages) must know that what it keeps was
//! true when it began to keep it. It gets a [`Look`] to ask that of, the retries, and their bound: it has no count and no loop of its own.
//!
//! # Invariants
//! - INST-1 (FLT-2, INV-4): a look that is not stale under the driver's lock overlaps no active invalidation whose callback took that lock before.
//! - INST-3 (LIFE-3): nor has the device's `release` taken it before: a release is no invalidation, but what is kept after it stays for ever.
//! - INST-2 (FLT-3): after the core's patience an attempt has its turn, in which what went again is brought in: invalidations wait for that, not longer than a
//!   turn. The attempts end with the reader's time, and then with the name of who kept invalidating.
//!
//! # Locking
//! None across `install`, which takes the driver's own. Pages on their way are waited for outside of the read (RNG-3).
//!
//! ```text
//! driver's thread                              invalidating thread
//! bring in; read = begin; what is missing yet  .
//! install {                                    start: the read is stale; entries go
//!   driver's lock { stale? again; else keep }  callback: driver's lock { forget what was kept }
//! }                                            the change; end
//! ```
//!
//! Linux: the loop around hmm_range_fault that every driver writes (amdgpu_hmm_range_get_pages, nouveau_range_fault), and KVM's
//! mmu_invalidate_retry_gfn under mmu_lock.

use crate::addr::{PageRange, PageSpan};
use crate::device::Device;
use crate::mirror::MirrorState;
use crate::mirror::range::{Around, FaultError};
use crate::notifier::{Attempt, Read};
use crate::stats::add;
use crate::sync::{AtomicBool, Ordering};
use crate::world::{Access, Metadata, World};

/// What `install` may rely on while it lasts.
pub struct Look<'l, M: Metadata> {
    read: &'l Read<'l, M>,
    released: &'l AtomicBool,
}

impl<M: Metadata> core::fmt::Debug for Look<'_, M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Look")
            .field("is_stale", &self.is_stale())
            .finish_non_exhaustive()
    }
}

impl<M: Metadata> Look<'_, M> {
    /// Whether what was seen must not be kept: an invalidation touched the range, or the device was released. Ask under the lock that the device's
    /// callbacks take. Takes no lock.
    #[doc(alias = "mmu_interval_read_retry")]
    pub fn is_stale(&self) -> bool {
        // Acquire pairs with the Release in `release_once`, which is before the device's `release`.
        self.read.is_stale() || self.released.load(Ordering::Acquire)
    }
}

impl<W: World, D: Device> MirrorState<W, D> {
    /// Brings each range of `wanted` in, for its access, then calls `install` inside a read of `within`, and does both again until `install` is done.
    ///
    /// `install` finds all of `wanted` in [`MirrorState::table`], and says [`Attempt::Retry`] where an entry is gone again, or where the look is stale under the lock
    /// that its device's callbacks take. `within` should hold all of `wanted`: what lies outside is not looked after. It may be larger; an
    /// invalidation of what lies between then makes the look stale although it need not (a false retry, never a missed one).
    ///
    /// Runs on the calling thread, which must be one of isomem's own and hold neither a pin nor a lock that a callback takes. `install` may pin, but
    /// must not bring in, migrate or begin another read.
    pub fn fault_then<T>(
        &self,
        within: PageRange,
        wanted: &[(PageRange, Access)],
        install: &mut dyn FnMut(&Look<'_, W::Meta>) -> Attempt<T>,
    ) -> Result<T, FaultError> {
        self.mm.check_entry()?;
        let mut reader = self.mm.notifier.read(within);
        loop {
            for &(range, access) in wanted {
                self.fault_blocks(range, access, Around::All)?;
            }
            let read = reader.begin()?;
            if self.is_released() {
                return Err(FaultError::Released);
            }
            let look = Look {
                read: &read,
                released: &self.released,
            };
            if self.complete(&read, wanted)?
                && let Attempt::Done(done) = install(&look)
            {
                return Ok(done);
            }
            drop(read);
            add(&self.mm.counters.retries, 1);
        }
    }

    /// Enters what of `wanted` has gone again since it was brought in. Who wants much would find something gone each time, but what is entered here stays while the read
    /// has its turn (INST-2). False where the read went stale, or a page is on its way somewhere.
    fn complete(&self, read: &Read<'_, W::Meta>, wanted: &[(PageRange, Access)]) -> Result<bool, FaultError> {
        for &(range, access) in wanted {
            for span in range.spans().map(PageSpan::range) {
                let there = self.table.has_all(span, access);
                if !there && self.enter_within(read, span, access, Around::All)?.is_none() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}
