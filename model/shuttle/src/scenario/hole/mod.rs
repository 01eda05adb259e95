//! A fault that is served late, at a hole that is another hole by then (BLK-1).
//!
//! ```text
//! cpu                       pager                     migrator
//! faults: the page is away  .                         .
//! .                         .                         brings the page home
//! .                         the fault: at home, so    .
//! .                         it is a first touch       .
//! .                         .                         sends it to the device again
//! .                         fills the hole            .
//! reads zeroes
//! ```
//!
//! A fault is a message: it is read some time after the thread ran into it. This is the story of a bug in isomem's own core, found by counting
//! with CPU and device at once, and told again here.

use std::sync::Arc;

use isomem_sim::checker::Verdict;
use isomem_sim::journal::{Actor, Frame};
use isomem_sim::sync::{Condvar, Mutex};

use super::machine::{Access, Machine};
use super::{Design, Run, Scenario};

mod shipped;

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "late-fault",
    about: "A message about a fault is read when the page has come home and is about to leave again. Who takes its place for one that was never \
            touched puts the page in two places.",
    source: "BLK-1, MIG-3",
    designs: &[
        Design {
            name: "fill-without-holding-departures",
            about: "A page that is at home and faults was never touched: it gets zeroes, which the kernel puts only where nothing is.",
            expected: Verdict::LostWrite,
            story: |run| tell(run, FillWithoutHolding::new(run)),
        },
        Design {
            name: "shipped",
            about: "From the look at the table until the hole is filled no page begins to leave.",
            expected: Verdict::Holds,
            story: shipped::tell_story,
        },
    ],
};

const PAGE: u64 = 0;
const WORD: usize = 0;

/// A page whose faults a pager serves, in some design.
pub trait Paged: Send + Sync + 'static {
    /// The CPU writes.
    fn cpu_write(&self, value: u64);
    /// The CPU reads.
    fn cpu_read(&self);
    /// Brings the page home, as somebody asked.
    fn fetch(&self);
    /// Sends it to the device.
    fn send(&self);
    /// Serves faults until [`Paged::close`], where the design has its pager on a thread of the story.
    fn serve(&self) {}
    /// There will be no more faults.
    fn close(&self) {}
    /// The story is over.
    fn shut_down(&self) {}
}

fn tell(run: &Run, page: impl Paged) {
    let page = Arc::new(page);
    page.cpu_write(5);
    page.send();
    let (pager, cpu, migrator) = (page.clone(), page.clone(), page.clone());
    let pager = run.spawn("pager", move || pager.serve());
    let threads = [
        run.spawn("cpu", move || cpu.cpu_read()),
        run.spawn("migrator", move || {
            migrator.fetch();
            migrator.send();
        }),
    ];
    threads.into_iter().for_each(|thread| drop(thread.join()));
    // Also who was fast enough then meets the zeroes in the end.
    page.cpu_read();
    page.close();
    drop(pager.join());
    page.shut_down();
}

#[derive(Clone, Copy)]
enum Place {
    Home,
    Device(Frame),
    InTransit,
}

/// Faults on their way to the pager.
#[derive(Default)]
struct Messages {
    unread: usize,
    served: usize,
    closed: bool,
}

/// Looks where the page is, and then does what that asks for.
struct FillWithoutHolding {
    machine: Machine,
    place: Mutex<Place>,
    settled: Condvar,
    messages: Mutex<Messages>,
    changed: Condvar,
}

impl FillWithoutHolding {
    fn new(run: &Run) -> Self {
        Self {
            machine: Machine::new(&run.journal),
            place: Mutex::new("block", Place::Home),
            settled: Condvar::new("settled"),
            messages: Mutex::new("faults", Messages::default()),
            changed: Condvar::new("faults"),
        }
    }

    fn settle(&self, to: Place) {
        *self.place.lock() = to;
        self.settled.notify_all();
    }

    /// Puts the page in transit and says where it was, once it is somewhere.
    fn take(&self) -> Place {
        let mut place = self.place.lock();
        while matches!(*place, Place::InTransit) {
            place = self.settled.wait(place);
        }
        std::mem::replace(&mut *place, Place::InTransit)
    }

    fn serve_one(&self) {
        let place = *self.place.lock();
        match place {
            // The kernel fills only where there is no page, so nothing can be lost by it.
            Place::Home => {
                self.machine
                    .journal()
                    .note("finds the page at home: nobody has touched it yet");
                self.machine.fill_zero(PAGE);
            }
            Place::Device(_) | Place::InTransit => self.fetch(),
        }
    }

    /// The CPU's thread sleeps until its fault is served.
    fn fault(&self) {
        let mut messages = self.messages.lock();
        messages.unread += 1;
        self.changed.notify_all();
        let served = messages.served;
        while messages.served == served {
            messages = self.changed.wait(messages);
        }
    }
}

impl Paged for FillWithoutHolding {
    fn cpu_write(&self, value: u64) {
        self.machine.access(Actor::Cpu, PAGE, WORD, Access::Write(value));
    }

    fn cpu_read(&self) {
        while self.machine.access(Actor::Cpu, PAGE, WORD, Access::Read).is_none() {
            self.fault();
        }
    }

    fn fetch(&self) {
        let place = self.take();
        if let Place::Device(frame) = place {
            self.machine.move_home(PAGE, frame);
        }
        self.settle(Place::Home);
    }

    fn send(&self) {
        let place = self.take();
        let frame = match place {
            Place::Device(frame) => frame,
            _ => self.machine.move_out(PAGE),
        };
        self.settle(Place::Device(frame));
    }

    fn serve(&self) {
        let mut messages = self.messages.lock();
        loop {
            if messages.unread > 0 {
                messages.unread -= 1;
                drop(messages);
                self.serve_one();
                messages = self.messages.lock();
                messages.served += 1;
                self.changed.notify_all();
            } else if messages.closed {
                return;
            } else {
                messages = self.changed.wait(messages);
            }
        }
    }

    fn close(&self) {
        self.messages.lock().closed = true;
        self.changed.notify_all();
    }
}
