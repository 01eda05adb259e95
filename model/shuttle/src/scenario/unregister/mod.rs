//! Unregister against exit: who may still be inside the device when its driver has unregistered it?
//!
//! A process exits, and its mirror of a device dies. Meanwhile the mirror's owner closes it, and the driver's module is unloaded: it unregisters
//! the device, which is refused as busy while there are mirrors, and then frees it. Nobody may be inside a callback of the device
//! then, nor touch the device's memory, and what was kept for the mirror must be gone when everybody is.
//!
//! ```text
//! exit                                   unload
//! takes the mirror off the device's list .
//! .                                      the list is empty: unregister returns, the device is freed
//! calls the mirror's release             .
//! ```

mod failing;
mod shipped;
mod two_step_mutex;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use isomem_sim::checker::Verdict;
use isomem_sim::journal::{Event, Journal};
use isomem_sim::sync::thread;

use super::{Design, Run, Scenario};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "unregister",
    about: "A process exits while its mirror is closed and while the device's driver is unloaded. When unregister has returned, nobody \
            may be inside a callback of the device or touch its memory, and nothing may be left over.",
    source: "S3, S4, LIFE-1, LIFE-2, LIFE-5",
    designs: &[
        Design {
            name: "list-looks-empty-too-early",
            about: "Exit takes the mirror off its device's list, then calls its release. The device is idle when its list is empty.",
            expected: Verdict::CallbackAfterUnregister,
            story: story::<failing::OffTheListFirst>,
        },
        Design {
            name: "free-under-unlock",
            about: "Release is called and the mirror taken off under the device's mutex, so who finds the list empty under it knows that \
                    release is over; it frees the device, and with it the mutex.",
            expected: Verdict::UseAfterFree,
            story: story::<failing::FreedUnderUnlock>,
        },
        Design {
            name: "hmm-reference-kept",
            about: "Each mirror holds a reference to the state of its address space, and drops it when it is unregistered; a mirror that \
                    exit has killed already has nothing left to unregister.",
            expected: Verdict::Leak,
            story: story::<failing::ReferenceKept>,
        },
        Design {
            name: "shipped",
            about: "A mirror counts for its device until it was released and no callback of it runs; who comes to end it while another does \
                    waits for him. The device can be unregistered when the count is zero.",
            expected: Verdict::Holds,
            story: story::<shipped::Shipped>,
        },
    ],
};

/// The state of an address space, as the leak checker knows it.
const HMM: &str = "the hmm state of the address space";
/// The device's structure.
const DEVICE: &str = "the device";
/// What there is of a mirror.
const MIRROR: &str = "the mirror";

/// The driver's side of the mirror, the same under every design.
struct Driver {
    journal: Journal,
}

impl Driver {
    /// The device must stop using the address space.
    fn release(&self) {
        self.journal.record(Event::Release { mirror: "gpu" });
        thread::yield_now();
        self.journal.note("gpu has stopped.");
    }
}

/// A device cannot be unregistered: it has mirrors.
struct Busy;

/// A device, an address space and a mirror between them, one for each design.
trait Hmm: Send + Sync + Sized + 'static {
    /// With the mirror registered.
    fn new(driver: Driver, journal: &Journal) -> Self;

    /// The program changes a mapping, of which its mirrors are told. The failing designs need no such help to fail.
    fn change(&self) {}

    /// The address space goes: its mirror is released.
    fn exit(&self);

    /// The mirror is closed: it is released unless exit did so, and no callback of it runs afterwards.
    fn unregister_mirror(&self);

    /// The device goes.
    fn unregister_device(&self) -> Result<(), Busy>;
}

fn story<H: Hmm>(run: &Run) {
    let driver = Driver {
        journal: run.journal.clone(),
    };
    let hmm = Arc::new(H::new(driver, &run.journal));
    let unloaded = Arc::new(AtomicBool::new(false));

    let exit = {
        let (run, hmm) = (run.clone(), hmm.clone());
        run.clone().spawn("exit", move || {
            run.journal.note("The address space goes.");
            hmm.exit();
        })
    };
    let close = {
        let (run, hmm) = (run.clone(), hmm.clone());
        run.clone().spawn("close", move || {
            run.journal.note("The mirror is closed.");
            hmm.unregister_mirror();
            run.journal.record(Event::Unregistered { mirror: "gpu" });
        })
    };
    let unload = {
        let (run, hmm, unloaded) = (run.clone(), hmm.clone(), unloaded.clone());
        run.clone()
            .spawn("unload", move || unload_driver(&run, &*hmm, &unloaded))
    };
    let program = {
        let hmm = hmm.clone();
        run.spawn("program", move || hmm.change())
    };
    for thread in [exit, close, unload, program] {
        thread.join().expect("a thread of the story does not panic");
    }
    // Once more, now that everybody has left.
    unload_driver(run, &*hmm, &unloaded);
}

/// Unloads the device's driver, unless it is busy or was unloaded before.
fn unload_driver<H: Hmm>(run: &Run, hmm: &H, unloaded: &AtomicBool) {
    if unloaded.load(Ordering::Relaxed) {
        return;
    }
    if hmm.unregister_device().is_ok() {
        run.journal.record(Event::Unregistered { mirror: "gpu" });
        unloaded.store(true, Ordering::Relaxed);
    }
}
