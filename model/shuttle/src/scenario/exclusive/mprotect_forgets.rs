//! A change of protection writes every entry anew, and makes a usual one of one that was taken from the CPU.
//!
//! ```text
//! device                    protect                   cpu
//! takes the page, loads 0   .                         .
//! .                         entry: writable           .
//! .                         .                         adds 1: no fault
//! stores 1                  .                         .
//! ```

use isomem_sim::journal::{Actor, Frame};
use isomem_sim::sync::Mutex;

use super::{Counter, PAGE, WORD};
use crate::scenario::Run;
use crate::scenario::machine::{Access, DEVICE, Entry, Machine};

/// What the kernel knows of the page.
struct Mapping {
    frame: Frame,
    /// The device has it for itself.
    exclusive: bool,
}

pub(super) struct MprotectForgets {
    machine: Machine,
    /// Held while the CPU's entry changes, and by the device while it uses what it has for itself.
    mapping: Mutex<Mapping>,
    /// The page table's own lock.
    table: Mutex<()>,
}

impl MprotectForgets {
    pub(super) fn new(run: &Run) -> Self {
        let mapping = Mapping {
            frame: PAGE,
            exclusive: false,
        };
        Self {
            machine: Machine::new(&run.journal),
            mapping: Mutex::new("mapping", mapping),
            table: Mutex::new("page table", ()),
        }
    }

    fn set_cpu(&self, entry: Option<Entry>) {
        let _table = self.table.lock();
        self.machine.map_cpu(PAGE, entry);
    }
}

impl Counter for MprotectForgets {
    fn device_add(&self) {
        let mut mapping = self.mapping.lock();
        mapping.exclusive = true;
        self.set_cpu(None);
        let _ = self.machine.map_device(PAGE, Entry::to(mapping.frame));
        // Nobody else can reach it, so this is as good as one step.
        let before = self.machine.access(DEVICE, PAGE, WORD, Access::Read).unwrap_or(0);
        self.machine.access(DEVICE, PAGE, WORD, Access::Write(before + 1));
    }

    fn cpu_add(&self) {
        while self.machine.access(Actor::Cpu, PAGE, WORD, Access::Add(1)).is_none() {
            let mut mapping = self.mapping.lock();
            mapping.exclusive = false;
            self.machine.unmap_device(PAGE);
            self.set_cpu(Some(Entry::to(mapping.frame)));
        }
    }

    fn protect(&self) {
        // No page comes or goes, so only the page table is locked.
        let _table = self.table.lock();
        self.machine.map_cpu(PAGE, Some(Entry::to(self.machine.frame(PAGE))));
    }

    fn total(&self) -> u64 {
        self.machine.word(PAGE, WORD)
    }
}
