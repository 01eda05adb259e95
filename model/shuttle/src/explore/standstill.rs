//! Threads of a story that can go no further, without a word of shuttle's: it takes a panic for the end of a test, prints advice, and gives its
//! runner up; for us it is a finding like any other.
//!
//! # Invariants
//! - STL-1: who stands still never returns; the driver ends the schedule at the next step.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use isomem_sim::checker::Verdict;
use isomem_sim::journal::{Event, Journal};
use isomem_sim::sync::{LockId, LockStep, thread};

use super::quiet;

/// Runs the body of a story's thread. If it panics, that is what the checkers say, and the thread goes no further.
pub(crate) fn guarded<R>(journal: &Journal, body: impl FnOnce() -> R) -> R {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        journal.found(Verdict::Panicked, format!("A thread panics: {}", quiet::said()));
        stand_still()
    })
}

/// The scheduler is asked who runs next, and finds that the schedule is over.
fn stand_still() -> ! {
    loop {
        thread::yield_now();
    }
}

/// Tells the journal of every step with a lock, and `deadlock` when a thread asks for a lock that it has itself: there it would wait for ever.
///
/// Steps while a panic unwinds are left out: then guards go because the story was broken off, not because somebody leaves a lock.
pub(super) fn watch_locks(journal: &Journal, deadlock: impl Fn() + 'static) {
    let journal = journal.clone();
    let holders = RefCell::new(Vec::new());
    let told = move |step, id: LockId| {
        if std::thread::panicking() {
            return;
        }
        journal.record(Event::Lock(step, id));
        if waits_for_itself(&mut holders.borrow_mut(), step, id) {
            deadlock();
            stand_still();
        }
    };
    isomem_sim::sync::watch(Some(Rc::new(told)));
}

/// Keeps count of who has what, and says whether the calling thread has what it asks for.
fn waits_for_itself(holders: &mut Vec<(thread::ThreadId, usize)>, step: LockStep, id: LockId) -> bool {
    let me = (thread::current().id(), id.at);
    let place = || holders.iter().rposition(|holder| *holder == me);
    match step {
        LockStep::Wants => return place().is_some(),
        LockStep::Has => holders.push(me),
        LockStep::Left => {
            if let Some(place) = place() {
                holders.swap_remove(place);
            }
        }
        LockStep::Sleeps | LockStep::Wakes => {}
    }
    false
}
