//! isomem's way: the core tells a read that it went stale, and gives it its turn in the end.
//!
//! The driver writes two things: a callback that erases entries under the table's lock, and what it does in one attempt.

use std::sync::Arc;

use allocator_api2::alloc::Global;
use isomem_core::addr::PageRange;
use isomem_core::notifier::{
    Answer, Attempt, Blocking, CallbackScope, Cause, Invalidation, Notifier, Subscriber, Subscription,
};

use super::{Device, Driver, Kernel, Lost, object};

/// The driver.
pub(super) struct Shipped {
    device: Arc<Device>,
    notifier: Notifier<Global>,
    _subscription: Subscription<Global>,
}

impl Subscriber for Device {
    fn start(&self, invalidation: &Invalidation, _: &CallbackScope<'_>) {
        self.zap(invalidation.range);
    }

    fn try_start(&self, invalidation: &Invalidation, _: &CallbackScope<'_>) -> Answer {
        let Some(mut table) = self.table.try_lock() else {
            return Answer::Refused;
        };
        self.zap_locked(&mut table, invalidation.range);
        Answer::Done
    }
}

impl Driver for Shipped {
    fn new(device: Device) -> Self {
        let device = Arc::new(device);
        let notifier = Notifier::new().expect("the heap has room");
        let subscriber: Arc<dyn Subscriber> = device.clone();
        let subscription = notifier.subscribe(object(), subscriber).expect("the heap has room");
        Self {
            device,
            notifier,
            _subscription: subscription,
        }
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn around(&self, pages: PageRange, blocking: Blocking, change: &mut dyn FnMut()) -> bool {
        let guard = match blocking {
            Blocking::May => self.notifier.invalidate(pages, Cause::Clear, None).ok(),
            Blocking::Never => self.notifier.try_invalidate(pages, Cause::Clear, None).ok(),
        };
        let Some(guard) = guard else { return false };
        change();
        guard.commit();
        true
    }

    fn bring_in(kernel: &Kernel<Self>) -> Result<(), Lost> {
        let Self { device, notifier, .. } = kernel.driver();
        let attempts = notifier.read(object()).retry_loop(|read| {
            device.attempt();
            let frames = kernel.get_pages();
            let mut table = device.lock();
            if read.is_stale() {
                return Attempt::Retry;
            }
            device.enter(&mut table, frames);
            Attempt::Done(())
        });
        device.arrived();
        attempts.map_err(|_| Lost)
    }
}
