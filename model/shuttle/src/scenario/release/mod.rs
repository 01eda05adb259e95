//! Release while invalidating: may a mirror's last callback wait for invalidations?
//!
//! An address space goes. Each mirror is told so once, by `release`, and when that returns its device must have stopped. So a driver's
//! release waits for what it has under way, and some of that is inside an invalidation: here a work item that drops a page. Whatever
//! lock an invalidation needs must therefore not be held while release runs; but then the list of mirrors can change meanwhile.
//!
//! ```text
//! exit                                  gpu's work queue
//! takes mirrors_sem to write            .
//! gpu.release(): waits for the queue    its item invalidates: wants mirrors_sem to read
//! ```

mod held;
mod shipped;
mod stale_cursor;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use isomem_sim::checker::Verdict;
use isomem_sim::journal::{Event, Journal, Name};
use isomem_sim::sync::{Condvar, Mutex};

use super::{Design, Run, Scenario};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "release",
    about: "An address space goes while a device's work queue invalidates a page. The driver's release callback waits for its work \
            queue, as it must; whoever calls it must not hold what an invalidation needs.",
    source: "S0, LIFE-2, LIFE-3",
    designs: &[
        Design {
            name: "mirrors-lock-for-writing",
            about: "Mirrors are in a list under a read-write semaphore: invalidations take it to read, exit takes it to write and calls \
                    each mirror's release under it.",
            expected: Verdict::Deadlock,
            story: story::<held::Hmm>,
        },
        Design {
            name: "stale-cursor",
            about: "The same, but exit lets go of the semaphore around each release, and then goes on at the next place of the list.",
            expected: Verdict::ReleaseCount,
            story: story::<stale_cursor::Hmm>,
        },
        Design {
            name: "shipped",
            about: "Exit takes the whole list away, waits for each mirror's callbacks, and calls release with no lock held.",
            expected: Verdict::Holds,
            story: story::<shipped::Hmm>,
        },
    ],
};

/// A driver's side of a mirror, the same under every design.
struct Driver {
    name: Name,
    journal: Journal,
    /// Items in its work queue.
    queued: Mutex<u32>,
    idle: Condvar,
    released: AtomicBool,
}

impl Driver {
    fn new(name: Name, run: &Run, queued: u32) -> Arc<Self> {
        Arc::new(Self {
            name,
            journal: run.journal.clone(),
            queued: Mutex::new("work queue", queued),
            idle: Condvar::new("work queue is empty"),
            released: AtomicBool::new(false),
        })
    }

    fn start(&self, pass: u64) {
        let subscriber = self.name;
        self.journal.record(Event::Start { subscriber, pass });
    }

    fn end(&self, pass: u64) {
        let subscriber = self.name;
        self.journal.record(Event::End { subscriber, pass });
    }

    /// Its device must not work on the address space when this returns, so what is queued is waited for.
    fn release(&self) {
        self.journal.record(Event::Release { mirror: self.name });
        let mut queued = self.queued.lock();
        while *queued > 0 {
            self.journal.note(format_args!(
                "{}'s release waits for {} item in its work queue.",
                self.name, *queued
            ));
            queued = self.idle.wait(queued);
        }
        self.released.store(true, Ordering::Relaxed);
    }

    /// The address space is gone.
    fn must_be_released(&self) {
        if !self.released.load(Ordering::Relaxed) {
            let name = self.name;
            let sentence =
                format!("The address space is gone, and {name} was never told: its device goes on working on it.");
            self.journal.found(Verdict::ReleaseCount, sentence);
        }
    }

    fn item_done(&self) {
        *self.queued.lock() -= 1;
        self.idle.notify_all();
        self.journal.note(format_args!("{}'s work queue is empty.", self.name));
    }
}

/// What keeps the mirrors of an address space, one for each design.
trait Mirrors: Send + Sync + Sized + 'static {
    /// With these registered.
    fn new(drivers: [&Arc<Driver>; 2]) -> Self;

    /// Starts an invalidation, changes the mapping, ends it.
    fn invalidate(&self, pass: u64);

    /// The address space goes: each mirror is released.
    fn exit(&self);

    /// The mirror goes: it is released, unless exit did so. No callback of it runs afterwards.
    fn unregister(&self, driver: &Arc<Driver>);
}

/// Two mirrors. The work queue of the first invalidates a page, while the address space goes and while the first is unregistered; the
/// second is unregistered when all that is over.
fn story<M: Mirrors>(run: &Run) {
    let (gpu, nic) = (Driver::new("gpu", run, 1), Driver::new("nic", run, 0));
    let mirrors = Arc::new(M::new([&gpu, &nic]));

    let queue = {
        let (run, mirrors, gpu) = (run.clone(), mirrors.clone(), gpu.clone());
        run.clone().spawn("gpu's work queue", move || {
            run.journal
                .note("An item of gpu's work queue drops a page: it invalidates.");
            mirrors.invalidate(run.journal.next_pass());
            gpu.item_done();
        })
    };
    let exit = {
        let (run, mirrors) = (run.clone(), mirrors.clone());
        run.clone().spawn("exit", move || {
            run.journal
                .note("The address space goes: every mirror must be released.");
            mirrors.exit();
        })
    };
    let close = {
        let (run, mirrors) = (run.clone(), mirrors.clone());
        run.clone().spawn("close", move || {
            mirrors.unregister(&gpu);
            run.journal.record(Event::Unregistered { mirror: gpu.name });
        })
    };
    for thread in [queue, exit, close] {
        thread.join().expect("a thread of the story does not panic");
    }
    nic.must_be_released();
    mirrors.unregister(&nic);
    run.journal.record(Event::Unregistered { mirror: nic.name });
}
