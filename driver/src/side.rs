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

/// How long a migration waits for an access before it relies on the MMU to stop it.
const MIGRATE_PATIENCE_NS: u64 = 1_000_000;
/// How long a pass that must not wait does.
const BRIEF_PATIENCE_NS: u64 = 20_000;
/// The pieces in which others wait.
const PATIENCE_NS: u64 = 1_000_000_000;

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

    fn is_clear(&self, range: PageRange, patience_ns: u64) -> bool {
        let world = self.mm.world();
        let pause = |ns| world.pause(ns);
        self.pins
            .wait_clear(range, patience_ns, &|| world.now_ns(), &pause)
            .is_ok()
    }

    /// Waits until no access to `range` is in flight that began before.
    pub(crate) fn wait_clear(&self, range: PageRange) {
        while !self.is_clear(range, PATIENCE_NS) {}
    }
}

impl<W: World> Device for Side<W> {
    fn invalidate(&self, invalidation: &Invalidation, scope: &CallbackScope<'_>) {
        let range = invalidation.range;
        self.pins.flush(range);
        if !(W::FENCED && invalidation.cause.moves_pages()) {
            self.wait_clear(range);
        } else if !self.is_clear(range, MIGRATE_PATIENCE_NS) {
            scope.leave_to_the_mmu();
        }
    }

    fn try_invalidate(&self, invalidation: &Invalidation, _scope: &CallbackScope<'_>) -> Answer {
        self.pins.flush(invalidation.range);
        match self.is_clear(invalidation.range, BRIEF_PATIENCE_NS) {
            true => Answer::Done,
            false if W::FENCED => Answer::Fenced,
            false => Answer::Refused,
        }
    }

    fn release(&self) {
        self.pins.flush(PageRange::ALL);
        self.wait_clear(PageRange::ALL);
    }
}
