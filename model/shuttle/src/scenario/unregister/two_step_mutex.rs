//! A mutex that shows what unlocking is: more than one step.
//!
//! Unlocking stores that the mutex is free, and then looks for somebody who sleeps. Between the two, somebody else can take the mutex, leave it,
//! and free the memory in which it lies; the second step then reads freed memory. That is no mistake of the mutex: its user promises that
//! it lives until every unlock has returned. A spin lock's unlock is its last access, and would be safe.

use isomem_sim::journal::{Event, Journal};
use isomem_sim::sync::{AtomicBool, AtomicU32, Ordering, thread};

/// A mutex inside a structure called `inside`.
pub(super) struct TwoStepMutex {
    inside: &'static str,
    journal: Journal,
    locked: AtomicBool,
    sleepers: AtomicU32,
}

impl TwoStepMutex {
    pub(super) fn new(inside: &'static str, journal: &Journal) -> Self {
        Self {
            inside,
            journal: journal.clone(),
            locked: AtomicBool::new(false),
            sleepers: AtomicU32::new(0),
        }
    }

    /// Runs `body` with the mutex held.
    pub(super) fn with<R>(&self, body: impl FnOnce() -> R) -> R {
        self.lock();
        let answer = body();
        self.unlock();
        answer
    }

    fn lock(&self) {
        self.used();
        self.sleepers.fetch_add(1, Ordering::AcqRel);
        while self.locked.swap(true, Ordering::AcqRel) {
            // Sleeps.
            thread::yield_now();
        }
        self.used();
        self.sleepers.fetch_sub(1, Ordering::AcqRel);
    }

    fn unlock(&self) {
        self.journal.note(format_args!(
            "unlocks the mutex in {}: first it stores that it is free.",
            self.inside
        ));
        self.locked.store(false, Ordering::Release);
        // The store and this load are two steps.
        thread::yield_now();
        self.journal.note(format_args!(
            "then it looks in {} for somebody who sleeps.",
            self.inside
        ));
        self.used();
        self.sleepers.load(Ordering::Acquire);
    }

    fn used(&self) {
        self.journal.record(Event::Used {
            what: String::from(self.inside),
        });
    }
}
