//! A read-write semaphore keeps changes out while pages are brought in.
//!
//! Each side is right as long as it is looked at alone. But the kernel decides what happens between start and end and while it gets pages: it
//! invalidates the very pages it gets, to break copy-on-write, and the writer then waits for itself as a reader. And in fork it waits for memory,
//! that is for whoever frees some, that is for whoever unmaps pages, that is for the semaphore.

use isomem_core::addr::PageRange;
use isomem_core::notifier::Blocking;
use isomem_sim::sync::RwLock;

use super::{Device, Driver, Kernel, Lost};

/// The driver.
pub(super) struct Rwsem {
    device: Device,
    /// Held for reading from getting pages to entering them, for writing from start to end.
    pages: RwLock<()>,
}

impl Driver for Rwsem {
    fn new(device: Device) -> Self {
        Self {
            device,
            pages: RwLock::new("userptr_sem", ()),
        }
    }

    fn device(&self) -> &Device {
        &self.device
    }

    // A pass that must not wait came into being only because of drivers such as this one.
    fn around(&self, pages: PageRange, _: Blocking, change: &mut dyn FnMut()) -> bool {
        let _start_to_end = self.pages.write();
        self.device.zap(pages);
        change();
        true
    }

    fn bring_in(kernel: &Kernel<Self>) -> Result<(), Lost> {
        let _no_change = kernel.driver().pages.read();
        let frames = kernel.get_pages();
        let device = kernel.device();
        device.enter(&mut device.lock(), frames);
        Ok(())
    }
}
