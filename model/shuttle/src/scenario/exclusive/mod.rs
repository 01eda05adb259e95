//! A device makes itself the only one that may touch a page, for its atomics (MIG-11).
//!
//! ```text
//! device                    cpu                       protect
//! adds 1: makes itself      adds 1: takes the page    sets what the program may do,
//! exclusive, loads, stores  back                      to what it may already
//! ```
//!
//! The device's bus knows no atomic operations, so what the device adds is a load and a store. That is as good as one step while the CPU has no entry for
//! the page, and no longer.

use std::sync::Arc;

use isomem_sim::checker::Verdict;

use super::{Design, Run, Scenario};

mod mprotect_forgets;
mod shipped;
mod without_owner;

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "exclusive",
    about: "A device takes a page for itself to add to a counter in it, while the program adds to it, too. No addition may be lost, and the device \
            must get its turn.",
    source: "K, MIG-11, INV-6",
    designs: &[
        Design {
            name: "exclusive-without-owner",
            about: "Taking the page from the CPU is a change of the CPU's mapping as any other, and every mirror is told of it.",
            expected: Verdict::NoProgress,
            story: |run| tell(run, without_owner::WithoutOwner::new(run)),
        },
        Design {
            name: "mprotect-forgets-exclusive",
            about: "A change of protection goes over all entries of the CPU that are not holes, and writes them anew.",
            expected: Verdict::LostWrite,
            story: |run| tell(run, mprotect_forgets::MprotectForgets::new(run)),
        },
        Design {
            name: "shipped",
            about: "The core has no exclusive access yet. This is its notifier on the small machine: taking the page is a change that is over before the \
                    device begins to look, so only changes of others throw it back, and after a few of them they let it go first.",
            expected: Verdict::Holds,
            story: shipped::tell_story,
        },
    ],
};

const PAGE: u64 = 0;
const WORD: usize = 0;
/// What the device tries, for the checker of progress.
const WANTED: &str = "exclusive access";

/// A counter that both sides add to, in some design.
pub trait Counter: Send + Sync + 'static {
    /// The device adds one.
    fn device_add(&self);
    /// The CPU adds one, by an atomic instruction.
    fn cpu_add(&self);
    /// The program sets what it may do with the page to what it may do already.
    fn protect(&self);
    /// What the CPU reads.
    fn total(&self) -> u64;
}

fn tell(run: &Run, counter: impl Counter) {
    let counter = Arc::new(counter);
    let (device, cpu, protect) = (counter.clone(), counter.clone(), counter.clone());
    let threads = [
        run.spawn("device", move || device.device_add()),
        run.spawn("cpu", move || cpu.cpu_add()),
        run.spawn("protect", move || protect.protect()),
    ];
    threads.into_iter().for_each(|thread| drop(thread.join()));
    let total = counter.total();
    if total != 2 {
        run.journal.found(
            Verdict::LostWrite,
            format!("the device and the CPU each added 1 to the counter, and it says {total}: one addition is gone"),
        );
    }
}
