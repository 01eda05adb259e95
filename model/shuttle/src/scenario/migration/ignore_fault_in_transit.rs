//! Lets a reader at a page that is still being put together.
//!
//! ```text
//! cpu                                      reader
//! a fault: the page comes home to frame 9  .
//! copies words 0, 1, 2                     .
//! .                                        a fault: maps frame 9 to read
//! .                                        sees word 2, and no word 3
//! copies word 3, maps frame 9              .
//! ```

use isomem_sim::journal::Frame;
use isomem_sim::sync::{Mutex, thread};

use super::{Access, Mover, PAGE};
use crate::scenario::machine::{Entry, Machine};

#[derive(Clone, Copy)]
enum Place {
    Home(Frame),
    Device(Frame),
    ToDevice,
    /// It will be in this frame.
    ComingHome(Frame),
}

/// The lock is held to look and to change, not while the page travels: nobody waits for a copy but who needs it.
pub(super) struct IgnoreFaultInTransit(Mutex<Place>);

impl Default for IgnoreFaultInTransit {
    fn default() -> Self {
        Self(Mutex::new("page", Place::Home(PAGE)))
    }
}

impl Mover for IgnoreFaultInTransit {
    fn device_fault(&self, machine: &Machine) {
        let mut place = self.0.lock();
        let Place::Home(source) = *place else {
            drop(place);
            return thread::yield_now();
        };
        *place = Place::ToDevice;
        drop(place);
        machine.map_cpu(PAGE, None);
        let target = machine.alloc();
        let there = machine
            .copy(source, target)
            .and_then(|()| machine.map_device(PAGE, Entry::to(target)));
        let settled = if there.is_ok() {
            machine.free(source);
            Place::Device(target)
        } else {
            machine.map_cpu(PAGE, Some(Entry::to(source)));
            Place::Home(source)
        };
        *self.0.lock() = settled;
    }

    fn cpu_fault(&self, machine: &Machine, access: Access) {
        let mut place = self.0.lock();
        match (*place, access) {
            // It is on its way already, and a reader changes nothing: here is where it will be.
            (Place::ComingHome(target), Access::Read) => machine.map_cpu(PAGE, Some(Entry::read_only(target))),
            (Place::Device(source), _) => {
                let target = machine.alloc();
                *place = Place::ComingHome(target);
                drop(place);
                machine.unmap_device(PAGE);
                if machine.copy(source, target).is_err() {
                    machine.map_cpu(PAGE, None);
                    *self.0.lock() = Place::Device(source);
                    return;
                }
                machine.map_cpu(PAGE, Some(Entry::to(target)));
                machine.free(source);
                *self.0.lock() = Place::Home(target);
            }
            _ => {
                drop(place);
                thread::yield_now();
            }
        }
    }
}
