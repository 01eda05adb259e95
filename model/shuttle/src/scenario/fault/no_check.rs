//! Nothing between getting pages and entering them.
//!
//! Invalidations erase what is in the table, as the notifier's contract says. What the driver holds in its hands is in no table yet.

use isomem_core::addr::PageRange;
use isomem_core::notifier::Blocking;

use super::{Device, Driver, Kernel, Lost};

/// The driver.
pub(super) struct NoCheck(Device);

impl Driver for NoCheck {
    fn new(device: Device) -> Self {
        Self(device)
    }

    fn device(&self) -> &Device {
        &self.0
    }

    fn around(&self, pages: PageRange, _: Blocking, change: &mut dyn FnMut()) -> bool {
        self.0.zap(pages);
        change();
        true
    }

    fn bring_in(kernel: &Kernel<Self>) -> Result<(), Lost> {
        let device = kernel.device();
        let frames = kernel.get_pages();
        device.enter(&mut device.lock(), frames);
        Ok(())
    }
}
