//! The device's side of a mirror: it touches memory in short copies, each under a pin, and an invalidation waits for them.

use core::sync::atomic::{AtomicBool, Ordering};

use isomem_core::addr::PageRange;
use isomem_core::device::Device;
use isomem_core::mirror::pin::{PinHolder, Pins};
use isomem_core::mm::Mm;
use isomem_core::notifier::{Answer, CallbackScope, Cause, Invalidation};
use isomem_core::world::{OutOfMetadata, World};

/// Copies that can be under way through one open at the same time.
const SLOTS: usize = 16;
/// How long a migration waits for a copy before it relies on the MMU to stop it.
const MIGRATE_PATIENCE_NS: u64 = 1_000_000;
/// How long a pass that must not wait does.
const BRIEF_PATIENCE_NS: u64 = 20_000;
/// The piece in which a pass that may wait does.
const PATIENCE_NS: u64 = 1_000_000_000;

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

    fn wait_clear(&self, range: PageRange, patience_ns: u64) -> Result<(), PinHolder> {
        let world = self.mm.world();
        self.pins
            .wait_clear(range, patience_ns, &|| world.now_ns(), &|ns| world.pause(ns))
    }

    fn wait_unpinned(&self, range: PageRange) {
        while self.wait_clear(range, PATIENCE_NS).is_err() {}
    }
}

/// Pages change place, and an access by the old address waits for that: no need to wait for ever here.
fn is_fenced<W: World>(cause: Cause) -> bool {
    W::FENCED && cause.moves_pages()
}

impl<W: World> Device for Side<W> {
    fn invalidate(&self, invalidation: &Invalidation, scope: &CallbackScope<'_>) {
        let range = invalidation.range;
        self.pins.flush(range);
        if is_fenced::<W>(invalidation.cause) {
            if self.wait_clear(range, MIGRATE_PATIENCE_NS).is_err() {
                scope.leave_to_the_mmu();
            }
        } else {
            self.wait_unpinned(range);
        }
    }

    fn try_invalidate(&self, invalidation: &Invalidation, _scope: &CallbackScope<'_>) -> Answer {
        self.pins.flush(invalidation.range);
        match self.wait_clear(invalidation.range, BRIEF_PATIENCE_NS) {
            Ok(()) => Answer::Done,
            Err(_) if W::FENCED => Answer::Fenced,
            Err(_) => Answer::Refused,
        }
    }

    fn release(&self) {
        // SeqCst: see `is_released`.
        self.released.store(true, Ordering::SeqCst);
        self.pins.flush(PageRange::ALL);
        self.wait_unpinned(PageRange::ALL);
    }
}
