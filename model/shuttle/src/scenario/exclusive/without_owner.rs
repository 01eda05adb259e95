//! Every mirror is told when a page is taken from the CPU, also the one for whom it is taken.
//!
//! ```text
//! device
//! begins: count is 0
//! takes the page from the CPU: every mirror is told, so its count is 1
//! under the update lock: 1 is not 0, what it saw may be stale: starts again
//! begins: count is 1 ...
//! ```

use isomem_sim::journal::{Actor, Event};
use isomem_sim::sync::Mutex;

use super::{Counter, PAGE, WANTED, WORD};
use crate::scenario::Run;
use crate::scenario::machine::{Access, DEVICE, Entry, Machine};

pub(super) struct WithoutOwner {
    machine: Machine,
    /// How often the device was told of a change.
    update: Mutex<u64>,
    /// Held while the CPU's entry changes.
    mapping: Mutex<()>,
}

impl WithoutOwner {
    pub(super) fn new(run: &Run) -> Self {
        Self {
            machine: Machine::new(&run.journal),
            update: Mutex::new("mirror update", 0),
            mapping: Mutex::new("mapping", ()),
        }
    }

    /// Tells every mirror.
    fn invalidate(&self) {
        let mut count = self.update.lock();
        *count += 1;
        self.machine
            .journal()
            .note(format_args!("tells the device: its count is {}", *count));
        self.machine.unmap_device(PAGE);
    }
}

impl Counter for WithoutOwner {
    fn device_add(&self) {
        while !self.machine.journal().is_decided() {
            self.machine.journal().record(Event::Attempt { what: WANTED });
            let begun = *self.update.lock();
            let frame = {
                let _mapping = self.mapping.lock();
                self.invalidate();
                let frame = self.machine.frame(PAGE);
                self.machine.map_cpu(PAGE, None);
                frame
            };
            let count = self.update.lock();
            if *count != begun {
                self.machine
                    .journal()
                    .note("was told of a change since it began: starts again");
                continue;
            }
            self.machine.journal().record(Event::Arrived { what: WANTED });
            let _ = self.machine.map_device(PAGE, Entry::to(frame));
            let before = self.machine.access(DEVICE, PAGE, WORD, Access::Read).unwrap_or(0);
            self.machine.access(DEVICE, PAGE, WORD, Access::Write(before + 1));
            return;
        }
    }

    fn cpu_add(&self) {
        while self.machine.access(Actor::Cpu, PAGE, WORD, Access::Add(1)).is_none() {
            let _mapping = self.mapping.lock();
            self.invalidate();
            let frame = self.machine.frame(PAGE);
            self.machine.map_cpu(PAGE, Some(Entry::to(frame)));
        }
    }

    fn protect(&self) {
        let _mapping = self.mapping.lock();
        self.invalidate();
    }

    fn total(&self) -> u64 {
        self.machine.word(PAGE, WORD)
    }
}
