//! The answers to the core of a device that makes every access through a pin.
//!
//! Linux has no counterpart: see the module above.

use super::{PinHolder, Pins};
use crate::addr::PageRange;
use crate::notifier::{Answer, CallbackScope, Invalidation};
use crate::world::{Metadata, World};

/// How long a migration waits for a pin before it relies on the MMU to stop the access.
const MIGRATE_PATIENCE_NS: u64 = 1_000_000;
/// How long a pass that must not wait does: about as long as a bulk copy through a pin takes.
const BRIEF_PATIENCE_NS: u64 = 20_000;
/// Who does not let go for so long is worth telling.
const STALL_NS: u64 = 1_000_000_000;

impl<M: Metadata> Pins<M> {
    /// [`Device::invalidate`](crate::device::Device::invalidate): waits until no pin of the range is left; where pages move and the MMU stops
    /// what comes too late ([`World::FENCED`]), only for a short time. `stalled` is told once of who holds on for longer than a second.
    pub fn invalidate<W: World>(
        &self,
        world: &W,
        invalidation: &Invalidation,
        scope: &CallbackScope<'_>,
        stalled: &dyn Fn(PinHolder),
    ) {
        let range = invalidation.range;
        if W::FENCED && invalidation.cause.moves_pages() {
            self.flush(range);
            if self.wait(world, range, MIGRATE_PATIENCE_NS).is_err() {
                // Who still holds a pin faults at its next access, and the page comes back to it.
                scope.leave_to_the_mmu();
            }
        } else {
            self.drain(world, range, stalled);
        }
    }

    /// [`Device::try_invalidate`](crate::device::Device::try_invalidate): refused where a pin of the range is held for longer than a moment and no MMU stops it.
    pub fn try_invalidate<W: World>(&self, world: &W, invalidation: &Invalidation) -> Answer {
        self.flush(invalidation.range);
        match self.wait(world, invalidation.range, BRIEF_PATIENCE_NS) {
            Ok(()) => Answer::Done,
            Err(_) if W::FENCED => Answer::Fenced,
            Err(_) => Answer::Refused,
        }
    }

    /// Flushes, and waits until no pin of `range` is left: also for [`Device::release`](crate::device::Device::release), once the device lets no access begin.
    /// `stalled` as in [`Pins::invalidate`].
    pub fn drain<W: World>(&self, world: &W, range: PageRange, stalled: &dyn Fn(PinHolder)) {
        self.flush(range);
        let mut told = false;
        while let Err(holder) = self.wait(world, range, STALL_NS) {
            if !told {
                told = true;
                stalled(holder);
            }
        }
    }

    fn wait<W: World>(&self, world: &W, range: PageRange, patience_ns: u64) -> Result<(), PinHolder> {
        self.wait_clear(range, patience_ns, &|| world.now_ns(), &|ns| world.pause(ns))
    }
}
