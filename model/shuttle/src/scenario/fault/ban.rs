//! An object is declared dead at its first invalidation.
//!
//! Simple, and safe: what is dead is never used. It is meant against programs that unmap memory which the device uses. But mprotect to what the
//! protection is already, the joining of small pages to a huge one, migration and swap are invalidations, too, and none of them is
//! the program's fault. The pages are all there afterwards; the object is not.

use isomem_core::addr::PageRange;
use isomem_core::notifier::Blocking;
use isomem_sim::sync::{AtomicBool, Ordering};

use super::{Device, Driver, Kernel, Lost};

/// The driver.
pub(super) struct BanOnFirst {
    device: Device,
    /// Set under the table's lock.
    dead: AtomicBool,
}

impl Driver for BanOnFirst {
    fn new(device: Device) -> Self {
        Self {
            device,
            dead: AtomicBool::new(false),
        }
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn around(&self, pages: PageRange, _: Blocking, change: &mut dyn FnMut()) -> bool {
        {
            let mut table = self.device.lock();
            self.dead.store(true, Ordering::SeqCst);
            self.device.journal.note("The object is declared dead.");
            self.device.zap_locked(&mut table, pages);
        }
        change();
        true
    }

    fn bring_in(kernel: &Kernel<Self>) -> Result<(), Lost> {
        let Self { device, dead } = kernel.driver();
        let frames = kernel.get_pages();
        let mut table = device.lock();
        if dead.load(Ordering::SeqCst) {
            return Err(Lost);
        }
        device.enter(&mut table, frames);
        Ok(())
    }
}
