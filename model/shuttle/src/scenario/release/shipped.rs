//! isomem's notifier.

use std::sync::{Arc, Mutex, PoisonError};

use allocator_api2::alloc::Global;
use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::notifier::{Answer, CallbackScope, Cause, Invalidation, Notifier, Outcome, Subscriber, Subscription};
use isomem_sim::sync::thread;

use super::{Driver, Mirrors};

/// The driver as a subscriber. The range of a pass tells its number.
struct Mirror(Arc<Driver>);

fn range_of(pass: u64) -> PageRange {
    PageRange::new(pass as usize * PAGE_SIZE, PAGE_SIZE).expect("one page, aligned")
}

fn pass_of(invalidation: &Invalidation) -> u64 {
    invalidation.range.first_page() as u64
}

impl Subscriber for Mirror {
    fn start(&self, invalidation: &Invalidation, _: &CallbackScope<'_>) {
        self.0.start(pass_of(invalidation));
    }

    fn try_start(&self, invalidation: &Invalidation, _: &CallbackScope<'_>) -> Answer {
        self.0.start(pass_of(invalidation));
        Answer::Done
    }

    fn end(&self, invalidation: &Invalidation, _: Outcome, _: &CallbackScope<'_>) {
        self.0.end(pass_of(invalidation));
    }

    fn release(&self) {
        self.0.release();
    }
}

/// The notifier and who subscribed.
pub(super) struct Hmm {
    notifier: Notifier<Global>,
    subscriptions: Mutex<Vec<(Arc<Driver>, Subscription<Global>)>>,
}

impl Mirrors for Hmm {
    fn new(drivers: [&Arc<Driver>; 2]) -> Self {
        let notifier = Notifier::new().expect("memory");
        let subscribe = |driver: &Arc<Driver>| {
            let mirror: Arc<dyn Subscriber> = Arc::new(Mirror(driver.clone()));
            let subscription = notifier.subscribe(PageRange::ALL, mirror);
            (driver.clone(), subscription.expect("memory"))
        };
        let subscriptions = Mutex::new(drivers.map(subscribe).into());
        Self {
            notifier,
            subscriptions,
        }
    }

    fn invalidate(&self, pass: u64) {
        let guard = self.notifier.invalidate(range_of(pass), Cause::Clear, None);
        let guard = guard.expect("not inside a callback");
        // The mapping changes.
        thread::yield_now();
        guard.commit();
    }

    fn exit(&self) {
        self.notifier.exit().expect("not inside a callback");
    }

    fn unregister(&self, driver: &Arc<Driver>) {
        let mut subscriptions = self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
        let place = subscriptions.iter().position(|(whose, _)| Arc::ptr_eq(whose, driver));
        let (_, subscription) = subscriptions.swap_remove(place.expect("unregistered once"));
        drop(subscriptions);
        subscription.unsubscribe().expect("not inside a callback");
    }
}
