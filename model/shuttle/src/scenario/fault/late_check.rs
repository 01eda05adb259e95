//! The count is looked at, and then the pages are entered.
//!
//! It sleeps while it makes the pages reachable for the device, so it cannot hold the table's lock yet. Between the look and the lock there is
//! room for a whole invalidation: that finds nothing to erase, and the driver does not look again.

use isomem_core::addr::PageRange;
use isomem_core::notifier::Blocking;
use isomem_sim::sync::{AtomicU64, Ordering};

use super::{Device, Driver, Kernel, Lost};

/// The driver.
pub(super) struct LateCheck {
    device: Device,
    /// Starts and ends so far; odd while one of them is under way, as changes of an object come one at a time.
    count: AtomicU64,
}

impl Driver for LateCheck {
    fn new(device: Device) -> Self {
        Self {
            device,
            count: AtomicU64::new(0),
        }
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn around(&self, pages: PageRange, _: Blocking, change: &mut dyn FnMut()) -> bool {
        self.count.fetch_add(1, Ordering::SeqCst);
        self.device.zap(pages);
        change();
        self.count.fetch_add(1, Ordering::SeqCst);
        true
    }

    fn bring_in(kernel: &Kernel<Self>) -> Result<(), Lost> {
        let Self { device, count } = kernel.driver();
        loop {
            let before = count.load(Ordering::SeqCst) & !1;
            let frames = kernel.get_pages();
            if count.load(Ordering::SeqCst) == before {
                kernel.journal().note("No invalidation came: the pages can be entered.");
                device.map_for_dma(frames);
                device.enter(&mut device.lock(), frames);
                return Ok(());
            }
        }
    }
}
