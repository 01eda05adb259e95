//! A device is unplugged while it holds pages of the program (LIFE-7, MIG-9).
//!
//! ```text
//! cpu                       unplug                               device
//! looks at the page         brings home what is on the device    asks for the page
//! .                         one copy fails                       .
//! looks again               .                                    .
//! ```
//!
//! The copy engine of a device that is on its way out may answer with errors. Then there is no good answer for the page, but a worst one: to say that it
//! is home, with zeroes in it.

use std::sync::Arc;

use isomem_sim::checker::Verdict;
use isomem_sim::journal::{Actor, Frame};
use isomem_sim::sync::Mutex;

use super::machine::{Access, DEVICE, Entry, Fault, Machine};
use super::{Design, Run, Scenario};

mod shipped;

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "unplug",
    about: "A device goes while it holds pages, and its copy engine fails while they are brought home. What the program wrote must not turn into \
            zeroes.",
    source: "S4, LIFE-7, MIG-9",
    designs: &[
        Design {
            name: "zero-fill-on-failed-copy",
            about: "Unplugging must end with all pages home: where a copy fails, the program gets the new page as it is.",
            expected: Verdict::LostData,
            story: |run| tell(run, ZeroFill::new(run)),
        },
        Design {
            name: "shipped",
            about: "A page that cannot come home stays where it is, whole, and the caller is told how many those are.",
            expected: Verdict::Holds,
            story: shipped::tell_story,
        },
    ],
};

/// What the CPU wrote before the page went to the device.
const WRITTEN: u64 = 5;
/// The word that it wrote.
const WORD: usize = 0;
/// Another, for the device.
const DEVICE_WORD: usize = 1;

/// A page on a device that is unplugged, in some design.
pub trait Unpluggable: Send + Sync + 'static {
    /// The CPU writes.
    fn cpu_write(&self, word: usize, value: u64);
    /// What the CPU finds there.
    fn cpu_look(&self, word: usize) -> u64;
    /// The device writes, after the page was brought to it.
    fn device_write(&self, word: usize, value: u64);
    /// The next copies home fail.
    fn fail_copies(&self);
    /// The device asks for the page once more, if the design lets a device do so that is being unplugged.
    fn device_asks(&self) {}
    /// Unplugs the device. Says how many pages could not come home.
    fn unplug(&self) -> usize;
    /// How many pages are not at home, when nobody uses them.
    fn on_device(&self) -> usize;
    /// The failure is over.
    fn repair(&self);
    /// The story is over.
    fn shut_down(&self) {}
}

fn tell(run: &Run, page: impl Unpluggable) {
    let page = Arc::new(page);
    page.cpu_write(WORD, WRITTEN);
    page.device_write(DEVICE_WORD, 6);
    page.fail_copies();
    let (reader, unplugged) = (page.clone(), page.clone());
    let journal = run.journal.clone();
    let cpu = run.spawn("cpu", move || judge(&journal, reader.cpu_look(WORD)));
    let unplug = run.spawn("unplug", move || {
        let stuck = unplugged.unplug();
        unplugged.repair();
        stuck
    });
    let asking = page.clone();
    let device = run.spawn("device", move || asking.device_asks());
    drop((cpu.join(), device.join()));
    let stuck = unplug.join().expect("no thread of the story panics");
    let left = page.on_device();
    if left > stuck {
        let sentence = format!(
            "the device is unplugged with pages on it: {left}, of which it told {stuck}. The others go with the device"
        );
        run.journal.found(Verdict::LostData, sentence);
    }
    judge(&run.journal, page.cpu_look(WORD));
    page.shut_down();
}

/// The history would call it a lost write. Here every write to the page is lost at once, and somebody said that it was home.
fn judge(journal: &isomem_sim::journal::Journal, seen: u64) {
    journal.note(format_args!("looks at the page, and finds {seen}"));
    if seen != WRITTEN {
        let sentence = format!(
            "the CPU had written {WRITTEN} to the page, and found {seen} after the device was unplugged: the contents of the page are gone"
        );
        journal.found(Verdict::LostData, sentence);
    }
}

const PAGE: u64 = 0;

enum Place {
    Home,
    Device(Frame),
}

/// Fills the page with zeroes where its copy fails.
///
/// ```text
/// unplug                                   cpu
/// a new frame for the page: zeroes         .
/// the copy fails                           .
/// maps it all the same, frees the source   .
/// .                                        finds zeroes
/// ```
struct ZeroFill {
    machine: Machine,
    place: Mutex<Place>,
}

impl ZeroFill {
    fn new(run: &Run) -> Self {
        Self {
            machine: Machine::new(&run.journal),
            place: Mutex::new("page", Place::Home),
        }
    }

    /// A CPU that needs the page can wait, so there a failed copy changes nothing.
    fn cpu_fault(&self) {
        let mut place = self.place.lock();
        let Place::Device(source) = *place else { return };
        self.machine.unmap_device(PAGE);
        let target = self.machine.alloc();
        if self.machine.copy(source, target).is_ok() {
            self.settle(&mut place, source, target);
        }
    }

    fn settle(&self, place: &mut Place, source: Frame, target: Frame) {
        self.machine.map_cpu(PAGE, Some(Entry::to(target)));
        self.machine.free(source);
        *place = Place::Home;
    }
}

impl Unpluggable for ZeroFill {
    fn cpu_write(&self, word: usize, value: u64) {
        while self
            .machine
            .access(Actor::Cpu, PAGE, word, Access::Write(value))
            .is_none()
        {
            self.cpu_fault();
        }
    }

    fn cpu_look(&self, word: usize) -> u64 {
        loop {
            match self.machine.peek(PAGE, word) {
                Some(value) => return value,
                None => self.cpu_fault(),
            }
        }
    }

    fn device_write(&self, word: usize, value: u64) {
        while self.machine.access(DEVICE, PAGE, word, Access::Write(value)).is_none() {
            *self.place.lock() = Place::Device(self.machine.move_out(PAGE));
        }
    }

    fn fail_copies(&self) {
        self.machine.inject(Fault::Copies);
    }

    fn unplug(&self) -> usize {
        let mut place = self.place.lock();
        let Place::Device(source) = *place else { return 0 };
        self.machine.unmap_device(PAGE);
        let target = self.machine.alloc();
        if self.machine.copy(source, target).is_err() {
            // The device's memory goes away in any case, and the program must find something there.
            self.machine.journal().note("gives the program the new page as it is");
        }
        self.settle(&mut place, source, target);
        0
    }

    fn on_device(&self) -> usize {
        usize::from(matches!(*self.place.lock(), Place::Device(_)))
    }

    fn repair(&self) {
        self.machine.repair();
    }
}
