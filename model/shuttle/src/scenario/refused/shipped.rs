//! isomem's notifier.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use allocator_api2::alloc::Global;
use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::notifier::{
    Answer, Blocking, CallbackScope, Cause, Invalidation, Notifier, Outcome, Subscriber, Subscription,
};
use isomem_sim::journal::Name;
use isomem_sim::sync::thread;

use super::{Driver, Pass};

/// The driver as a subscriber. The range of a pass tells its number.
struct Adapter(Arc<dyn Driver>);

fn range_of(pass: Pass) -> PageRange {
    PageRange::new(pass.number() as usize * PAGE_SIZE, PAGE_SIZE).expect("one page, aligned")
}

fn pass_of(invalidation: &Invalidation) -> Pass {
    let number = invalidation.range.first_page() as u64;
    match invalidation.blocking {
        Blocking::May => Pass::MayWait(number),
        Blocking::Never => Pass::MustNot(number),
    }
}

impl Subscriber for Adapter {
    fn start(&self, invalidation: &Invalidation, _: &CallbackScope<'_>) {
        self.0.start(pass_of(invalidation));
    }

    fn try_start(&self, invalidation: &Invalidation, _: &CallbackScope<'_>) -> Answer {
        match self.0.start(pass_of(invalidation)) {
            super::Answer::Accepted => Answer::Done,
            super::Answer::Refused => Answer::Refused,
        }
    }

    fn end(&self, invalidation: &Invalidation, _: Outcome, _: &CallbackScope<'_>) {
        self.0.end(pass_of(invalidation));
    }

    fn release(&self) {
        self.0.release();
    }
}

/// The notifier and who subscribed.
pub(super) struct Passes {
    notifier: Notifier<Global>,
    subscriptions: Mutex<Vec<(Name, Subscription<Global>)>>,
}

impl Passes {
    fn subscriptions(&self) -> MutexGuard<'_, Vec<(Name, Subscription<Global>)>> {
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl super::Passes for Passes {
    fn new(drivers: [(Name, Arc<dyn Driver>); 3]) -> Self {
        let passes = Self {
            notifier: Notifier::new().expect("memory"),
            subscriptions: Mutex::default(),
        };
        for (name, driver) in drivers {
            passes.subscribe(name, driver);
        }
        passes
    }

    fn run(&self, pass: Pass, change: &dyn Fn()) {
        let range = range_of(pass);
        let guard = match pass {
            Pass::MayWait(_) => self.notifier.invalidate(range, Cause::Unmap, None).ok(),
            Pass::MustNot(_) => self.notifier.try_invalidate(range, Cause::Clear, None).ok(),
        };
        if let Some(guard) = guard {
            change();
            thread::yield_now();
            guard.commit();
        }
    }

    fn unsubscribe(&self, name: Name) {
        let mut subscriptions = self.subscriptions();
        let place = subscriptions.iter().position(|(of, _)| *of == name);
        let (_, subscription) = subscriptions.swap_remove(place.expect("it was subscribed"));
        drop(subscriptions);
        subscription.unsubscribe().expect("not inside a callback");
    }

    fn subscribe(&self, name: Name, driver: Arc<dyn Driver>) {
        let subscriber: Arc<dyn Subscriber> = Arc::new(Adapter(driver));
        let subscription = self.notifier.subscribe(PageRange::ALL, subscriber);
        let subscription = subscription.expect("memory");
        self.subscriptions().push((name, subscription));
    }
}
