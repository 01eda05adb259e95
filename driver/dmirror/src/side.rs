//! The device's side of a mirror: it touches memory in short copies, each under a pin, and an invalidation waits for them.

use core::sync::atomic::{AtomicBool, Ordering};

use isomem_core::addr::PageRange;
use isomem_core::device::Device;
use isomem_core::mirror::pin::Pins;
use isomem_core::mm::Mm;
use isomem_core::notifier::{Answer, CallbackScope, Invalidation};
use isomem_core::world::{OutOfMetadata, World};

/// Copies that can be under way through one open at the same time.
const SLOTS: usize = 16;

/// See the module.
pub(crate) struct Side<W: World> {
    mm: Mm<W>,
    pub(crate) pins: Pins<W::Meta>,
    released: AtomicBool,
}

impl<W: World> Side<W> {
    pub(crate) fn new(mm: Mm<W>) -> Result<Self, OutOfMetadata> {
        Ok(Self {
            mm,
            pins: Pins::new(SLOTS)?,
            released: AtomicBool::new(false),
        })
    }

    /// Looked at after a pin was published.
    pub(crate) fn is_released(&self) -> bool {
        // SeqCst pairs with `release`: it sees the pin, or the flag is seen here.
        self.released.load(Ordering::SeqCst)
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
        // SeqCst: see `is_released`.
        self.released.store(true, Ordering::SeqCst);
        self.pins.drain(self.mm.world(), PageRange::ALL, &|_| {});
    }
}
