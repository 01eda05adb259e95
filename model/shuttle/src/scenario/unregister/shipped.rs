//! isomem's core: a registered device, a mirror of an address space, and three threads that end them.
//!
//! ```text
//! exit                                   close                       unload
//! claims the mirror, calls its release   .                           one mirror: busy
//! .                                      waits for release           .
//! release returns                        the mirror is uncounted     .
//! .                                      .                           no mirror: the device is freed
//! ```

use std::sync::{Mutex, MutexGuard, PoisonError};

use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::device::Device;
use isomem_core::mirror::{Busy as StillMirrored, DeviceHandle, Mirror};
use isomem_core::mm::{MemoryConfig, MemoryKind, Mm};
use isomem_core::notifier::{Answer, CallbackScope, Invalidation};
use isomem_sim::journal::{Event, Journal};
use isomem_sim::kernel::Kernel;
use isomem_sim::world::SimWorld;

use super::{Busy, DEVICE, Driver, Hmm, MIRROR};

/// The driver's callbacks. Each reaches into the device's structure, which is freed when the device is unregistered.
struct Side(Driver);

impl Side {
    fn uses_device(&self) {
        self.0.journal.record(Event::Used { what: DEVICE.into() });
    }

    fn called(&self) {
        self.0.journal.record(Event::Callback { mirror: "gpu" });
        self.uses_device();
    }
}

impl Device for Side {
    fn invalidate(&self, _: &Invalidation, _: &CallbackScope<'_>) {
        self.called();
    }

    fn try_invalidate(&self, _: &Invalidation, _: &CallbackScope<'_>) -> Answer {
        self.called();
        Answer::Done
    }

    fn release(&self) {
        self.uses_device();
        self.0.release();
        self.uses_device();
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.0.journal.record(Event::Closed { what: MIRROR.into() });
    }
}

/// The address space, and what a driver keeps of its device and its mirror.
pub(super) struct Shipped {
    journal: Journal,
    mm: Mm<SimWorld>,
    device: Mutex<Option<DeviceHandle<SimWorld>>>,
    mirror: Mutex<Option<Mirror<SimWorld, Side>>>,
}

fn page() -> PageRange {
    PageRange::from_pages(1, 1).expect("one page")
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hmm for Shipped {
    fn new(driver: Driver, journal: &Journal) -> Self {
        let process = Kernel::new(journal).process();
        process.mmap_anonymous(page());
        let mm = Mm::new(SimWorld::new(&process)).expect("the heap is large");
        let memory = MemoryConfig {
            name: "gpu",
            capacity_bytes: PAGE_SIZE,
            mirror_budget_bytes: None,
            kind: MemoryKind::Private,
        };
        let device = mm.register(memory).expect("there is room for a device");
        journal.record(Event::Opened { what: DEVICE.into() });
        journal.record(Event::Opened { what: MIRROR.into() });
        let mirror = device.mirror(Side(driver).into()).expect("the device is there");
        Self {
            journal: journal.clone(),
            mm,
            device: Mutex::new(Some(device)),
            mirror: Mutex::new(Some(mirror)),
        }
    }

    fn change(&self) {
        self.mm.discard(page()).expect("nothing is in the way");
    }

    fn exit(&self) {
        self.mm.exit();
    }

    fn unregister_mirror(&self) {
        let mirror = lock(&self.mirror).take().expect("it is closed once");
        mirror.unregister().expect("not inside a callback");
    }

    fn unregister_device(&self) -> Result<(), Busy> {
        let Some(device) = lock(&self.device).take() else {
            return Ok(());
        };
        if let Err(StillMirrored { handle, .. }) = device.unregister() {
            *lock(&self.device) = Some(handle);
            return Err(Busy);
        }
        self.journal.note("The device is unregistered, and freed.");
        self.journal.record(Event::Closed { what: DEVICE.into() });
        Ok(())
    }
}
