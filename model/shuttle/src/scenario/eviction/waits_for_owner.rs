//! Makes room page by page, and waits for a victim that is on its way.
//!
//! ```text
//! first                                    second
//! has pages 0 and 1 in transit             has pages 2 and 3 in transit
//! page 0 is there                          page 2 is there
//! page 1: full. The oldest of others is    .
//! page 2: waits until it has settled       .
//! .                                        page 3: full. The oldest of others is
//! .                                        page 0: waits until it has settled
//! ```

use isomem_sim::journal::{Actor, Frame};
use isomem_sim::sync::Mutex;

use super::{ROOM, SmallDevice};
use crate::scenario::Run;
use crate::scenario::machine::{Access, DEVICE, Machine, PAGES};

pub(super) struct WaitsForOwner {
    machine: Machine,
    /// Each is held as long as its page is in transit.
    pages: [Mutex<()>; PAGES],
    /// The pages that have a place on the device and, once they are there, their frames; the oldest first. Nobody waits with it.
    places: Mutex<Vec<(u64, Option<Frame>)>>,
}

impl WaitsForOwner {
    pub(super) fn new(run: &Run) -> Self {
        Self {
            machine: Machine::new(&run.journal),
            pages: ["page 0", "page 1", "page 2", "page 3"].map(|name| Mutex::new(name, ())),
            places: Mutex::new("places", Vec::new()),
        }
    }

    /// A place for one of `ours`. Where there is none, the oldest page of others goes home.
    fn claim(&self, page: u64, ours: [u64; 2]) {
        loop {
            let mut places = self.places.lock();
            if places.len() < ROOM {
                return places.push((page, None));
            }
            let oldest = places.iter().map(|&(page, _)| page).find(|page| !ours.contains(page));
            drop(places);
            let victim = oldest.expect("a request fits, so another's page is there");
            self.machine
                .journal()
                .note(format_args!("has no room for page {page}: page {victim} is to go"));
            // If it is on its way, its owner will soon be done with it.
            let _transit = self.pages[victim as usize].lock();
            self.take_home(victim);
        }
    }

    /// Takes a page home, if it is there. The caller has it in transit.
    fn take_home(&self, page: u64) {
        let mut places = self.places.lock();
        let Some(place) = places.iter_mut().find(|place| place.0 == page) else {
            return;
        };
        let frame = place.1.take();
        drop(places);
        if let Some(frame) = frame {
            self.machine.move_home(page, frame);
        }
        self.places.lock().retain(|place| place.0 != page);
    }

    fn cpu_fault(&self, page: u64) {
        let _transit = self.pages[page as usize].lock();
        self.take_home(page);
    }
}

impl SmallDevice for WaitsForOwner {
    fn send(&self, pages: [u64; 2]) {
        // In the order of their addresses, so that two requests never wait for each other.
        let _transit = pages.map(|page| self.pages[page as usize].lock());
        for page in pages {
            self.claim(page, pages);
            let frame = self.machine.move_out(page);
            let mut places = self.places.lock();
            places
                .iter_mut()
                .filter(|place| place.0 == page)
                .for_each(|place| place.1 = Some(frame));
        }
    }

    fn device_use(&self, page: u64) {
        self.machine.access(DEVICE, page, 0, Access::Read);
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
