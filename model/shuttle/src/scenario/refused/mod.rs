//! A refused non-blocking pass: who is told its end?
//!
//! The out-of-memory reaper must not wait, so a subscriber that would have to wait may refuse its pass. The subscribers before it in the list
//! accepted, and were told a start. Three drivers are in the list, as they were in 2019:
//!
//! - *kvm* only wants to know the start, and keeps no state;
//! - *rdma* counts invalidations under way, up at start and down at end, and serves no device fault until the count is zero;
//! - *gpu* takes a mutex to change its table, and refuses a pass that must not wait while somebody has it.
//!
//! ```text
//! reaper                                 rdma's device
//! rdma.start: its count is 1             .
//! gpu refuses; the pass is given up      a fault: waits until the count is 0
//! rdma.end: must come, gpu.end must not  .
//! ```

mod failing;
mod shipped;

use std::sync::Arc;

use isomem_sim::checker::Verdict;
use isomem_sim::journal::{Event, Journal, Name};
use isomem_sim::sync::{Condvar, Mutex, thread};

use super::{Design, Run, Scenario};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "refused",
    about: "The out-of-memory reaper must not wait. One subscriber has accepted the start of its pass, the next would have to wait and \
            refuses. The first must be told that the pass is over, the second must not.",
    source: "S1, INV-2, INV-3, INV-9",
    designs: &[
        Design {
            name: "no-ends-on-refusal",
            about: "A pass that was refused did not start, so its caller sends no end.",
            expected: Verdict::MissingEnd,
            story: story::<failing::NoEnds>,
        },
        Design {
            name: "ends-for-all",
            about: "A pass that was refused is ended like any other: the end goes to every subscriber.",
            expected: Verdict::UnpairedEnd,
            story: story::<failing::EndsForAll>,
        },
        Design {
            name: "undo-by-count",
            about: "The start counts how many accepted; on refusal it walks the list again from its head and ends that many.",
            expected: Verdict::UnpairedEnd,
            story: story::<failing::UndoByCount>,
        },
        Design {
            name: "shipped",
            about: "A pass is a guard over one edition of the list and knows how far it came; dropping it ends those, and no other.",
            expected: Verdict::Holds,
            story: story::<shipped::Passes>,
        },
    ],
};

/// What a subscriber says to the start of a pass that must not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Accepted,
    Refused,
}

/// Whether a pass may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    MayWait(u64),
    MustNot(u64),
}

impl Pass {
    fn number(self) -> u64 {
        match self {
            Self::MayWait(number) | Self::MustNot(number) => number,
        }
    }
}

/// A driver's callbacks, the same under every design.
trait Driver: Send + Sync + 'static {
    fn start(&self, pass: Pass) -> Answer;

    /// The pass is over.
    fn end(&self, pass: Pass);

    /// It is subscribed no longer.
    fn release(&self) {}
}

/// Wants no end.
struct Kvm {
    name: Name,
    journal: Journal,
}

impl Driver for Kvm {
    fn start(&self, _: Pass) -> Answer {
        self.journal.record(Event::Callback { mirror: self.name });
        Answer::Accepted
    }

    fn end(&self, _: Pass) {}

    fn release(&self) {
        self.journal.record(Event::Release { mirror: self.name });
    }
}

/// Counts the invalidations under way. Its device faults only when there is none.
struct Rdma {
    journal: Journal,
    /// The count, and whether the story is over.
    count: Mutex<(i32, bool)>,
    is_zero: Condvar,
}

impl Driver for Rdma {
    fn start(&self, pass: Pass) -> Answer {
        // A spin lock, held for an addition: never a reason to refuse.
        self.count.lock().0 += 1;
        self.journal.record(Event::Start {
            subscriber: "rdma",
            pass: pass.number(),
        });
        Answer::Accepted
    }

    fn end(&self, pass: Pass) {
        self.journal.record(Event::End {
            subscriber: "rdma",
            pass: pass.number(),
        });
        self.count.lock().0 -= 1;
        self.is_zero.notify_all();
    }
}

impl Rdma {
    /// Its device needs a page.
    fn fault(&self) {
        let mut count = self.count.lock();
        while count.0 > 0 && !count.1 {
            let active = count.0;
            self.journal.note(format_args!(
                "rdma's device faults, and waits: {active} invalidation is under way."
            ));
            count = self.is_zero.wait(count);
        }
        if !count.1 {
            self.journal
                .note("rdma's device has its page: no invalidation is under way.");
        }
    }

    /// Every pass is over.
    fn all_quiet(&self) {
        let mut count = self.count.lock();
        if count.0 > 0 {
            let sentence = format!(
                "rdma accepted the start of a pass and was never told its end: its count of invalidations under way stays {}, never \
                 returns to zero, and its device never faults again.",
                count.0
            );
            self.journal.found(Verdict::MissingEnd, sentence);
        }
        count.1 = true;
        self.is_zero.notify_all();
    }
}

/// Changes its table under a mutex, which its work holds, too.
struct Gpu {
    journal: Journal,
    table: Mutex<()>,
}

impl Driver for Gpu {
    fn start(&self, pass: Pass) -> Answer {
        let table = match pass {
            Pass::MayWait(_) => Some(self.table.lock()),
            Pass::MustNot(_) => self.table.try_lock(),
        };
        let (subscriber, pass) = ("gpu", pass.number());
        if table.is_none() {
            self.journal.record(Event::Refused { subscriber, pass });
            return Answer::Refused;
        }
        self.journal.record(Event::Start { subscriber, pass });
        Answer::Accepted
    }

    fn end(&self, pass: Pass) {
        self.journal.record(Event::End {
            subscriber: "gpu",
            pass: pass.number(),
        });
    }
}

impl Gpu {
    /// Its device works on the table.
    fn work(&self) {
        let _table = self.table.lock();
        self.journal.note("gpu's work holds the mutex of its table.");
        thread::yield_now();
    }
}

/// Who sends passes to the subscribers of an address space, one for each design.
trait Passes: Send + Sync + Sized + 'static {
    /// With these subscribed, called in this order.
    fn new(drivers: [(Name, Arc<dyn Driver>); 3]) -> Self;

    /// Start, the change, end; nothing is changed when a subscriber refused.
    fn run(&self, pass: Pass, change: &dyn Fn());

    /// No callback of `name` runs when this has returned, and none will.
    fn unsubscribe(&self, name: Name);

    /// One more subscriber.
    fn subscribe(&self, name: Name, driver: Arc<dyn Driver>);
}

/// The reaper's pass, one of the program's, and rdma's fault; while gpu works, and while one virtual machine goes and the next comes.
fn story<P: Passes>(run: &Run) {
    let journal = run.journal.clone();
    let kvm = |name| {
        let journal = run.journal.clone();
        Arc::new(Kvm { name, journal })
    };
    let rdma = Arc::new(Rdma {
        journal: journal.clone(),
        count: Mutex::new("rdma count", (0, false)),
        is_zero: Condvar::new("rdma count is zero"),
    });
    let gpu = Arc::new(Gpu {
        journal,
        table: Mutex::new("gpu table", ()),
    });
    let passes = Arc::new(P::new([
        ("kvm", kvm("kvm")),
        ("rdma", rdma.clone()),
        ("gpu", gpu.clone()),
    ]));

    let work = run.spawn("gpu's work", move || gpu.work());
    let reaper = spawn(run, "oom reaper", &passes, |run, passes: &P| {
        let pass = Pass::MustNot(run.journal.next_pass());
        passes.run(pass, &|| run.journal.note("The reaper takes the pages."));
    });
    let program = spawn(run, "program", &passes, |run, passes: &P| {
        let pass = Pass::MayWait(run.journal.next_pass());
        passes.run(pass, &|| run.journal.note("The program unmaps pages."));
    });
    let next_kvm = kvm("next kvm");
    let machines = spawn(run, "virtual machines", &passes, move |run, passes: &P| {
        passes.unsubscribe("kvm");
        run.journal.record(Event::Unregistered { mirror: "kvm" });
        passes.subscribe("next kvm", next_kvm);
    });
    let device = {
        let rdma = rdma.clone();
        run.spawn("rdma's device", move || rdma.fault())
    };
    for thread in [reaper, program, machines, work] {
        thread.join().expect("a thread of the story does not panic");
    }
    rdma.all_quiet();
    device.join().expect("a thread of the story does not panic");
}

fn spawn<P: Passes>(
    run: &Run,
    name: Name,
    passes: &Arc<P>,
    body: impl FnOnce(&Run, &P) + Send + 'static,
) -> thread::JoinHandle<()> {
    let (inner, passes) = (run.clone(), passes.clone());
    run.spawn(name, move || body(&inner, &passes))
}
