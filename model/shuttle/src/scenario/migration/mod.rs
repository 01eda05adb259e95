//! A CPU fault against a migration (S4, MIG-3, MIG-9).
//!
//! ```text
//! cpu                       reader                    device
//! word 0 = 1, 2, 3          sees words 2 and 3        word 1 = 11, 12
//! ```
//!
//! All three words lie in one page. The device's memory is its own, so the page follows whoever touches it: to the device when that misses, home
//! when the CPU faults. What the designs disagree about is when the page is taken from one side, and when it is given to the other.

use std::sync::Arc;

use isomem_sim::checker::Verdict;
use isomem_sim::journal::Actor;

use super::machine::{Access, DEVICE, Fault, Machine, WORDS};
use super::{Design, Run, Scenario};

mod copy_before_unmap;
mod free_source_before_commit;
mod ignore_fault_in_transit;
mod shipped;

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "migration",
    about: "A page moves to a device's memory and back while the program goes on using it. No write may be lost, and nobody may see half of it.",
    source: "S4, MIG-3, MIG-9",
    designs: &[
        Design {
            name: "copy-before-unmap",
            about: "The page is copied while the program still has it, so that the program stops only for the switch.",
            expected: Verdict::LostWrite,
            story: |run| tell(run, OnMachine::new(run, copy_before_unmap::CopyBeforeUnmap::default())),
        },
        Design {
            name: "free-source-before-commit",
            about: "The source is freed as soon as it is copied; then the device takes the page, or does not.",
            expected: Verdict::StaleData,
            story: |run| {
                tell(
                    run,
                    OnMachine::new(run, free_source_before_commit::FreeSourceBeforeCommit::default()),
                );
            },
        },
        Design {
            name: "ignore-fault-in-transit",
            about: "A CPU that only reads need not wait for a page on its way home: it gets the place where the page will be.",
            expected: Verdict::HalfPage,
            story: |run| {
                tell(
                    run,
                    OnMachine::new(run, ignore_fault_in_transit::IgnoreFaultInTransit::default()),
                );
            },
        },
        Design {
            name: "shipped",
            about: "A page in transit is nobody's: who touches it waits until it has settled at one of the two places.",
            expected: Verdict::Holds,
            story: shipped::tell_story,
        },
    ],
};

/// The CPU's own word.
const CPU_WORD: usize = 0;
/// The device's own word.
const DEVICE_WORD: usize = 1;
/// Two words that were written together, before the story begins.
const PAIR: [usize; 2] = [2, 3];
/// What is in them.
const PAIR_VALUE: u64 = 7;

/// A page that the program and the device share, in some design.
pub trait SharedPage: Send + Sync + 'static {
    /// The CPU writes a word; returns when it is done.
    fn cpu_write(&self, word: usize, value: u64);
    /// The CPU reads a word.
    fn cpu_read(&self, word: usize);
    /// The CPU reads both words of the pair.
    fn cpu_sees_pair(&self);
    /// The device writes a word, after the page was brought to it.
    fn device_write(&self, word: usize, value: u64);
    /// The next page that is sent to the device will not be taken there.
    fn fail_next(&self);
    /// The story is over.
    fn shut_down(&self) {}
}

fn tell(run: &Run, page: impl SharedPage) {
    let page = Arc::new(page);
    PAIR.iter().for_each(|&word| page.cpu_write(word, PAIR_VALUE));
    page.device_write(DEVICE_WORD, 11);
    page.fail_next();
    let (cpu, reader, device) = (page.clone(), page.clone(), page.clone());
    let threads = [
        run.spawn("cpu", move || (1..=3).for_each(|value| cpu.cpu_write(CPU_WORD, value))),
        run.spawn("reader", move || reader.cpu_sees_pair()),
        run.spawn("device", move || device.device_write(DEVICE_WORD, 12)),
    ];
    threads.into_iter().for_each(|thread| drop(thread.join()));
    (0..WORDS).for_each(|word| page.cpu_read(word));
    page.shut_down();
}

/// How a design moves a page of the machine.
trait Mover: Send + Sync + 'static {
    /// The device missed the page. It looks again afterwards.
    fn device_fault(&self, machine: &Machine);
    /// The CPU faulted. It looks again afterwards.
    fn cpu_fault(&self, machine: &Machine, access: Access);
}

/// The page that moves.
const PAGE: u64 = 0;

/// A design on the machine.
struct OnMachine<M> {
    machine: Machine,
    mover: M,
}

impl<M: Mover> OnMachine<M> {
    fn new(run: &Run, mover: M) -> Self {
        Self {
            machine: Machine::new(&run.journal),
            mover,
        }
    }

    fn access(&self, actor: Actor, word: usize, access: Access) {
        while self.machine.access(actor, PAGE, word, access).is_none() {
            match actor {
                Actor::Cpu => self.mover.cpu_fault(&self.machine, access),
                Actor::Device(_) => self.mover.device_fault(&self.machine),
            }
        }
    }
}

impl<M: Mover> SharedPage for OnMachine<M> {
    fn cpu_write(&self, word: usize, value: u64) {
        self.access(Actor::Cpu, word, Access::Write(value));
    }

    fn cpu_read(&self, word: usize) {
        self.access(Actor::Cpu, word, Access::Read);
    }

    fn cpu_sees_pair(&self) {
        while !self.machine.sees(PAGE, PAIR) {
            self.mover.cpu_fault(&self.machine, Access::Read);
        }
    }

    fn device_write(&self, word: usize, value: u64) {
        self.access(DEVICE, word, Access::Write(value));
    }

    fn fail_next(&self) {
        self.machine.inject(Fault::NextEntry);
    }
}
