//! Copies first, and takes the page from the program only for the switch.
//!
//! ```text
//! device                                   cpu
//! copies word 0 (old)                      .
//! .                                        writes word 0 (new)
//! copies the rest, unmaps, frees           .
//! the new word 0 is gone                   .
//! ```

use isomem_sim::journal::Frame;
use isomem_sim::sync::Mutex;

use super::{Access, Mover, PAGE};
use crate::scenario::machine::{Entry, Machine};

/// Where the page is.
#[derive(Clone, Copy)]
pub(super) enum Place {
    Home(Frame),
    Device(Frame),
}

pub(super) struct CopyBeforeUnmap {
    /// Held by whoever moves the page, from beginning to end.
    place: Mutex<Place>,
}

impl Default for CopyBeforeUnmap {
    fn default() -> Self {
        Self {
            place: Mutex::new("page", Place::Home(PAGE)),
        }
    }
}

impl Mover for CopyBeforeUnmap {
    fn device_fault(&self, machine: &Machine) {
        let mut place = self.place.lock();
        let Place::Home(source) = *place else { return };
        let target = machine.alloc();
        // The long part, while the program runs on.
        if machine.copy(source, target).is_err() {
            return;
        }
        // The short part: the page changes hands.
        machine.map_cpu(PAGE, None);
        if machine.map_device(PAGE, Entry::to(target)).is_err() {
            machine.map_cpu(PAGE, Some(Entry::to(source)));
            return;
        }
        machine.free(source);
        *place = Place::Device(target);
    }

    fn cpu_fault(&self, machine: &Machine, _access: Access) {
        bring_home(machine, &mut self.place.lock());
    }
}

/// The way home that nobody argued about: taken from the device, copied, given to the CPU, freed.
pub(super) fn bring_home(machine: &Machine, place: &mut Place) {
    let Place::Device(source) = *place else { return };
    machine.unmap_device(PAGE);
    let target = machine.alloc();
    if machine.copy(source, target).is_err() {
        // It stays where it is.
        let _ = machine.map_device(PAGE, Entry::to(source));
        return;
    }
    machine.map_cpu(PAGE, Some(Entry::to(target)));
    machine.free(source);
    *place = Place::Home(target);
}
