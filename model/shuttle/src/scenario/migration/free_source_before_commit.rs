//! Frees the source when it is copied, and not when the page has settled.
//!
//! ```text
//! device                                   cpu
//! takes the page from the CPU, copies it   .
//! frees the source                         .
//! the device cannot take the page: undo    .
//! maps the source again                    reads a frame that was given away
//! ```

use isomem_sim::sync::Mutex;

use super::copy_before_unmap::{Place, bring_home};
use super::{Access, Mover, PAGE};
use crate::scenario::machine::{Entry, Machine};

pub(super) struct FreeSourceBeforeCommit {
    /// Held by whoever moves the page, from beginning to end.
    place: Mutex<Place>,
}

impl Default for FreeSourceBeforeCommit {
    fn default() -> Self {
        Self {
            place: Mutex::new("page", Place::Home(PAGE)),
        }
    }
}

impl Mover for FreeSourceBeforeCommit {
    fn device_fault(&self, machine: &Machine) {
        let mut place = self.place.lock();
        let Place::Home(source) = *place else { return };
        machine.map_cpu(PAGE, None);
        let target = machine.alloc();
        if machine.copy(source, target).is_err() {
            machine.map_cpu(PAGE, Some(Entry::to(source)));
            return;
        }
        // Nobody can reach it any more, and memory is short.
        machine.free(source);
        if machine.map_device(PAGE, Entry::to(target)).is_err() {
            // As it was.
            machine.map_cpu(PAGE, Some(Entry::to(source)));
            machine.free(target);
            return;
        }
        *place = Place::Device(target);
    }

    fn cpu_fault(&self, machine: &Machine, _access: Access) {
        bring_home(machine, &mut self.place.lock());
    }
}
