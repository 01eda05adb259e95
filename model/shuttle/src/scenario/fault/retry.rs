//! A count of invalidations, looked at under the table's lock; whoever finds it moved starts again.
//!
//! It cannot deadlock, and the device never sees a page that is gone. But nobody owes the driver anything: a program that keeps changing the mapping
//! keeps it from ever getting there, and it burns a CPU meanwhile.

use isomem_core::addr::PageRange;
use isomem_core::notifier::Blocking;
use isomem_sim::sync::Mutex;

use super::{Device, Driver, Kernel, Lost};

/// Invalidations of the driver's pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    /// Between start and end.
    in_flight: u32,
    ended: u64,
}

/// The driver.
pub(super) struct RetryForEver {
    device: Device,
    count: Mutex<Count>,
}

impl Driver for RetryForEver {
    fn new(device: Device) -> Self {
        Self {
            device,
            count: Mutex::new("invalidate count", Count::default()),
        }
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn around(&self, pages: PageRange, _: Blocking, change: &mut dyn FnMut()) -> bool {
        {
            let mut table = self.device.lock();
            self.count.lock().in_flight += 1;
            self.device.zap_locked(&mut table, pages);
        }
        change();
        let mut count = self.count.lock();
        count.in_flight -= 1;
        count.ended += 1;
        true
    }

    fn bring_in(kernel: &Kernel<Self>) -> Result<(), Lost> {
        let Self { device, count } = kernel.driver();
        while !kernel.journal().is_decided() {
            device.attempt();
            let before = *count.lock();
            let frames = kernel.get_pages();
            let mut table = device.lock();
            if before.in_flight == 0 && *count.lock() == before {
                device.enter(&mut table, frames);
                device.arrived();
                break;
            }
        }
        Ok(())
    }
}
