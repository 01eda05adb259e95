//! Bytes through a mirror's table: as far as it goes, or with the misses served.
//!
//! # Invariants
//! - CPY-1 (LIFE-3): who reaches memory saw the mirror not released after he had pinned. `release` comes after that mark and waits for pins, so either it
//!   sees the pin, or nothing is reached.
//! - CPY-2 (FLT-3): a miss is served `TRIES` times at most. Pages that do not stay on the device are left where they are after `MIGRATING_TRIES`.
//!
//! # Locking
//! As for a worker: no lock may be held that serving a fault needs, and an invalidation of the pages waits while a span of them is copied.
//! The buffer should be memory that is not mirrored.

use crate::addr::VirtAddr;
use crate::bus::{Bus, BusError, Span, Window};
use crate::device::Device;
use crate::mirror::MirrorState;
use crate::mirror::pin::{PinSlot, Wanted};
use crate::mirror::range::{FaultError, Placement};
use crate::mm::EntryError;
use crate::world::Access;

/// Services of one access after which pages are no longer sent to the device for it.
const MIGRATING_TRIES: u32 = 8;
/// Services of one access after which it fails.
const TRIES: u32 = if crate::sync::MODEL { 200 } else { 1000 };
/// The pause before another service, once several did not last.
const PAUSE_NS: u64 = 20_000;

/// Whether pages may still be sent to the device for an access that misses again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Patience {
    /// They may.
    Left,
    /// They do not stay there long enough: they are better left where they are (CPY-2).
    Lost,
}

/// Why memory could not be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReachError {
    /// The miss could not be served.
    #[error(transparent)]
    Fault(#[from] FaultError),
    /// The window does not permit it, or the access itself failed.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The page was taken away after each service.
    #[error("{addr} was taken away {TRIES} times in a row")]
    TakenAway {
        /// Where.
        addr: VirtAddr,
    },
}

impl From<EntryError> for ReachError {
    fn from(error: EntryError) -> Self {
        Self::Fault(error.into())
    }
}

impl<W: Bus, D: Device> MirrorState<W, D> {
    /// Calls `by` with the bytes of `wanted` from the first on, as far as they lie together on the device: at least one. What the table misses is
    /// served before, by `placement`.
    ///
    /// Blocks. Runs on the calling thread, which must be one of isomem's own; an invalidation of the bytes waits while `by` runs, which may
    /// neither wait nor miss.
    ///
    /// # Errors
    /// Nothing was reached then, unless it is `by`'s own.
    pub fn reach<R>(
        &self,
        slot: &mut PinSlot<'_, W::Meta>,
        window: &W::Window,
        wanted: Wanted,
        placement: Placement,
        by: impl FnOnce(&W, Span<'_>) -> Result<R, BusError>,
    ) -> Result<R, ReachError> {
        let (addr, _, access) = wanted;
        let mut serve = |patience| {
            let placement = match patience {
                Patience::Left => placement,
                Patience::Lost => Placement::Stay,
            };
            self.service_miss(addr, access, placement).map(drop)
        };
        self.reach_served(slot, window, wanted, &mut serve, by)
    }

    /// The same for a device whose misses somebody else serves: `serve` returns when the access is to be tried again. It is called with no pin
    /// held, and may wait.
    pub fn reach_served<R>(
        &self,
        slot: &mut PinSlot<'_, W::Meta>,
        window: &W::Window,
        (addr, len_bytes, access): Wanted,
        serve: &mut dyn FnMut(Patience) -> Result<(), FaultError>,
        by: impl FnOnce(&W, Span<'_>) -> Result<R, BusError>,
    ) -> Result<R, ReachError> {
        let outside = BusError::Outside {
            addr: addr.get(),
            len_bytes,
            access,
        };
        if !window.allows(addr.get(), len_bytes, access) {
            return Err(outside.into());
        }
        for tries in 0..TRIES {
            if let Some(pin) = slot.pin(addr, len_bytes, access) {
                // CPY-1: after the pin was published. The fences of `pin` and of whoever waits for pins order the two.
                if self.is_released() {
                    return Err(FaultError::Released.into());
                }
                let span = Span::new(pin, window, access).ok_or(outside)?;
                return Ok(by(self.mm.world(), span)?);
            }
            if self.is_released() {
                return Err(FaultError::Released.into());
            }
            serve(self.patience(tries))?;
        }
        Err(ReachError::TakenAway { addr })
    }

    /// Pauses where services do not last.
    fn patience(&self, tries: u32) -> Patience {
        if tries < MIGRATING_TRIES {
            return Patience::Left;
        }
        self.mm.world().pause(PAUSE_NS);
        Patience::Lost
    }

    /// Copies bytes from program address `addr` on into `out`, from where the table says, as far as it has entries. Says how many; the
    /// page after them has none.
    pub fn load(
        &self,
        slot: &mut PinSlot<'_, W::Meta>,
        window: &W::Window,
        addr: VirtAddr,
        out: &mut [u8],
    ) -> Result<usize, BusError> {
        let world = self.mm.world();
        through(slot, window, addr, out.len(), Access::Read, &mut |span, done| {
            world.load(span, 0, &mut out[done..done + span.len_bytes()])
        })
    }

    /// Copies `from` to program address `addr` and on, to where the table says, as far as it has entries that permit writing. Says how many bytes;
    /// the page after them has none.
    pub fn store(
        &self,
        slot: &mut PinSlot<'_, W::Meta>,
        window: &W::Window,
        addr: VirtAddr,
        from: &[u8],
    ) -> Result<usize, BusError> {
        let world = self.mm.world();
        through(slot, window, addr, from.len(), Access::Write, &mut |span, done| {
            world.store(span, 0, &from[done..done + span.len_bytes()])
        })
    }
}

/// Pins what there is of `len_bytes` bytes, piece by piece, and calls `copy` with each and the number of bytes before it.
fn through<M: crate::world::Metadata, V: Window>(
    slot: &mut PinSlot<'_, M>,
    window: &V,
    addr: VirtAddr,
    len_bytes: usize,
    access: Access,
    copy: &mut dyn FnMut(&Span<'_>, usize) -> Result<(), BusError>,
) -> Result<usize, BusError> {
    let mut done = 0;
    while done < len_bytes {
        let at = addr.get().wrapping_add(done);
        let outside = BusError::Outside {
            addr: at,
            len_bytes: len_bytes - done,
            access,
        };
        let at = VirtAddr::new(at).map_err(|_| outside)?;
        let Some(pin) = slot.pin(at, len_bytes - done, access) else {
            return Ok(done);
        };
        let span = Span::new(pin, window, access).ok_or(outside)?;
        copy(&span, done)?;
        done += span.len_bytes();
    }
    Ok(done)
}
