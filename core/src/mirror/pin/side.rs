//! The device's side of a mirror for a device that makes every access through a short pin, and keeps nothing of what it saw.
//!
//! # Invariants
//! - SIDE-1 (INV-7): a callback flushes cached translations and waits for accesses in flight; it does nothing else, and keeps nothing.
//! - SIDE-2 (INV-9): in a pass that must not wait it waits for as long as one copy takes, then leaves the pages to the MMU, or refuses.
//!
//! # Locking
//! None.

use super::Pins;
use crate::addr::PageRange;
use crate::device::Device;
use crate::mm::Mm;
use crate::notifier::{Answer, CallbackScope, Invalidation};
use crate::world::{OutOfMetadata, World};

/// Pins, and the answers that they are enough for.
///
/// Whether the mirror is released its workers ask after they have pinned ([`MirrorState::is_released`](crate::mirror::MirrorState::is_released)): either they see
/// that it is, or the release sees the pin. [`MirrorState::reach`](crate::mirror::MirrorState::reach) does so.
pub struct PinnedSide<W: World> {
    mm: Mm<W>,
    /// For the device's workers to claim slots of.
    pub pins: Pins<W::Meta>,
}

impl<W: World> core::fmt::Debug for PinnedSide<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PinnedSide")
            .field("pins", &self.pins)
            .finish_non_exhaustive()
    }
}

impl<W: World> PinnedSide<W> {
    /// For a device with so many workers.
    ///
    /// # Errors
    /// No memory for their pins.
    pub fn new(mm: &Mm<W>, workers: usize) -> Result<Self, OutOfMetadata> {
        Ok(Self {
            mm: mm.clone(),
            pins: Pins::new(workers)?,
        })
    }

    /// Waits until no access to `range` is in flight that began before.
    pub fn drain(&self, range: PageRange) {
        self.pins.drain(self.mm.world(), range, &|_| {});
    }
}

impl<W: World> Device for PinnedSide<W> {
    fn invalidate(&self, invalidation: &Invalidation, scope: &CallbackScope<'_>) {
        self.pins.invalidate(self.mm.world(), invalidation, scope, &|_| {});
    }

    fn try_invalidate(&self, invalidation: &Invalidation, _scope: &CallbackScope<'_>) -> Answer {
        self.pins.try_invalidate(self.mm.world(), invalidation)
    }

    fn release(&self) {
        self.drain(PageRange::ALL);
    }
}
