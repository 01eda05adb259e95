//! Takes the victim home while it holds the lock of the list that it found it in.
//!
//! ```text
//! first                                    second, on the device
//! pool lock: page 2 is the oldest          .
//! .                                        update lock: page 2 is mapped
//! tells the device to drop page 2:         .
//! waits for the update lock                notes that page 2 was used: waits for the pool lock
//! ```

use isomem_sim::journal::{Actor, Frame};
use isomem_sim::sync::Mutex;

use super::{ROOM, SmallDevice};
use crate::scenario::Run;
use crate::scenario::machine::{Access, DEVICE, Machine};

pub(super) struct UnderThePoolLock {
    machine: Machine,
    /// The pages on the device and their frames there, the oldest first.
    pool: Mutex<Vec<(u64, Frame)>>,
    /// Held while the device's page table is looked at or changed.
    update: Mutex<()>,
}

impl UnderThePoolLock {
    pub(super) fn new(run: &Run) -> Self {
        Self {
            machine: Machine::new(&run.journal),
            pool: Mutex::new("pool", Vec::new()),
            update: Mutex::new("mirror update", ()),
        }
    }

    fn take_home(&self, pool: &mut Vec<(u64, Frame)>, index: usize) {
        let (page, frame) = pool.remove(index);
        self.machine
            .journal()
            .note(format_args!("sends page {page} home, and holds the pool's lock"));
        // The device is told, as of any change.
        let _update = self.update.lock();
        self.machine.move_home(page, frame);
    }

    fn cpu_fault(&self, page: u64) {
        let mut pool = self.pool.lock();
        if let Some(index) = pool.iter().position(|&(other, _)| other == page) {
            self.take_home(&mut pool, index);
        }
    }
}

impl SmallDevice for UnderThePoolLock {
    fn send(&self, pages: [u64; 2]) {
        for page in pages {
            let mut pool = self.pool.lock();
            while pool.len() == ROOM {
                // With the lock held nobody else can choose the same one.
                self.take_home(&mut pool, 0);
            }
            let frame = self.machine.move_out(page);
            pool.push((page, frame));
        }
    }

    fn device_use(&self, page: u64) {
        let _update = self.update.lock();
        if self.machine.access(DEVICE, page, 0, Access::Read).is_none() {
            return;
        }
        // Used just now: it moves to the end of the list.
        let mut pool = self.pool.lock();
        if let Some(index) = pool.iter().position(|&(other, _)| other == page) {
            let used = pool.remove(index);
            pool.push(used);
        }
    }

    fn cpu_write(&self, page: u64, value: u64) {
        while self.machine.access(Actor::Cpu, page, 0, Access::Write(value)).is_none() {
            self.cpu_fault(page);
        }
    }

    fn cpu_read(&self, page: u64) {
        while self.machine.access(Actor::Cpu, page, 0, Access::Read).is_none() {
            self.cpu_fault(page);
        }
    }
}
