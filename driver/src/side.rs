//! The device's side of a mirror, for devices that make short accesses: what it does when it is told that pages go.
//!
//! # Invariants
//! - SIDE-1 (INV-7): a callback flushes cached translations and waits for accesses in flight; it does nothing else, and keeps nothing.
//! - SIDE-2 (INV-9): in a pass that must not wait it waits for as long as one copy takes, then leaves the pages to the MMU, or refuses.
//!
//! # Locking
//! None.

use isomem_core::addr::PageRange;
use isomem_core::device::Device;
use isomem_core::mirror::pin::Pins;
use isomem_core::mm::Mm;
use isomem_core::notifier::{Answer, CallbackScope, Invalidation};
use isomem_core::world::{OutOfMetadata, World};

/// See the module.
pub(crate) struct Side<W: World> {
    mm: Mm<W>,
    pub(crate) pins: Pins<W::Meta>,
}

impl<W: World> core::fmt::Debug for Side<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Side").field("pins", &self.pins).finish_non_exhaustive()
    }
}

impl<W: World> Side<W> {
    /// For a device with so many units that make accesses.
    pub(crate) fn new(mm: &Mm<W>, units: usize) -> Result<Self, OutOfMetadata> {
        Ok(Self {
            mm: mm.clone(),
            pins: Pins::new(units)?,
        })
    }

    /// Waits until no access to `range` is in flight that began before.
    pub(crate) fn wait_clear(&self, range: PageRange) {
        self.pins.drain(self.mm.world(), range, &|_| {});
    }
}

impl<W: World> Device for Side<W> {
    fn invalidate(&self, invalidation: &Invalidation, scope: &CallbackScope<'_>) {
        self.pins.invalidate(self.mm.world(), invalidation, scope, &|_| {});
    }

    fn try_invalidate(&self, invalidation: &Invalidation, _scope: &CallbackScope<'_>) -> Answer {
        self.pins.try_invalidate(self.mm.world(), invalidation)
    }

    fn release(&self) {
        self.wait_clear(PageRange::ALL);
    }
}
