//! Each driver counts invalidations for itself, and leaves out those it believes to be none of its business.
//!
//! A pass that must not wait is short of time, so the driver looks whether its device has any entry in the range, and says "done" at once where it
//! has none. But a page on its way into the table is not in it yet, and that is what the count is for. With the count in the core, once for
//! all drivers, no driver can leave one out.

use isomem_core::addr::PageRange;
use isomem_core::notifier::Blocking;
use isomem_sim::sync::{AtomicU64, Ordering};

use super::{Device, Driver, Kernel, Lost};

/// The driver.
pub(super) struct OwnCount {
    device: Device,
    /// Starts and ends so far; changed under the table's lock.
    count: AtomicU64,
}

impl Driver for OwnCount {
    fn new(device: Device) -> Self {
        Self {
            device,
            count: AtomicU64::new(0),
        }
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn around(&self, pages: PageRange, blocking: Blocking, change: &mut dyn FnMut()) -> bool {
        let counted = {
            let mut table = self.device.lock();
            let nothing_there = table[pages.first_page()..pages.end_page()].iter().all(Option::is_none);
            if nothing_there && blocking == Blocking::Never {
                self.device
                    .journal
                    .note("The device has no entry of the page: nothing to do.");
                false
            } else {
                self.count.fetch_add(1, Ordering::SeqCst);
                self.device.zap_locked(&mut table, pages);
                true
            }
        };
        change();
        if counted {
            self.count.fetch_add(1, Ordering::SeqCst);
        }
        true
    }

    fn bring_in(kernel: &Kernel<Self>) -> Result<(), Lost> {
        let Self { device, count } = kernel.driver();
        loop {
            let before = count.load(Ordering::SeqCst) & !1;
            let frames = kernel.get_pages();
            let mut table = device.lock();
            if count.load(Ordering::SeqCst) == before {
                device.enter(&mut table, frames);
                return Ok(());
            }
        }
    }
}
