//! Bytes through a mirror's table, for a driver without workers: it reads and writes as its device would, and brings pages in when it must.
//!
//! # Locking
//! As for a worker: no lock may be held that serving a fault needs, and an invalidation of the pages waits while a span of them is copied.
//! The buffer should be memory that is not mirrored.

use crate::addr::VirtAddr;
use crate::bus::{Bus, BusError, Span};
use crate::device::Device;
use crate::mirror::MirrorState;
use crate::mirror::pin::PinSlot;
use crate::world::Access;

impl<W: Bus, D: Device> MirrorState<W, D> {
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
fn through<M: crate::world::Metadata, V: crate::bus::Window>(
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
