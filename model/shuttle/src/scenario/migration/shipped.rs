//! isomem's core in the simulated kernel.
//!
//! ```text
//! device                                   cpu
//! in transit: nobody may take it           .
//! moves it (or, where the kernel refuses,  a fault: in transit, so it waits
//! protects, copies, drops it)              .
//! settles; wakes who waits                 a fault: on the device, so it comes home
//! ```

use isomem_core::mirror::range::Placement;
use isomem_sim::device::{GpuConfig, Reach};
use isomem_sim::journal::{Actor, Event};
use isomem_sim::kernel::{Errno, Site};
use isomem_sim::rig::{Config, Rig};

use super::{PAIR, SharedPage, tell};
use crate::scenario::Run;

/// It takes pages at the first touch, and has their frames in a table of its own: nothing but the protocol keeps it from a stale access.
const TAKING: &[GpuConfig] = &[GpuConfig {
    placement: Placement::OnTouch,
    reach: Reach::Frames,
    ..GpuConfig::named("gpu")
}];

pub(super) fn tell_story(run: &Run) {
    let rig = Rig::with(&run.journal, Config { pages: 1, gpus: TAKING });
    // The first journey is a copy: the kernel will not exchange the two places.
    rig.kernel().fail_nth(Site::Move, 0, Errno::INVAL);
    tell(run, Shipped(rig));
}

const PAGE: usize = 0;

struct Shipped(Rig);

impl SharedPage for Shipped {
    fn cpu_write(&self, word: usize, value: u64) {
        self.0.cpu_write(PAGE, word, value);
    }

    fn cpu_read(&self, word: usize) {
        self.0.cpu_read(PAGE, word);
    }

    fn cpu_sees_pair(&self) {
        let words = PAIR.map(|word| self.0.cpu_read(PAGE, word)).to_vec();
        self.0.journal().record(Event::SawPage {
            actor: Actor::Cpu,
            page: PAGE as u64,
            words,
        });
    }

    /// Asks for the page, and where that failed once more by a miss.
    fn device_write(&self, word: usize, value: u64) {
        self.0.migrate(PAGE, 1);
        self.0.gpu_write(PAGE, word, value);
    }

    /// The page is on the device now, so the next move is the CPU's. Of those that follow one fails, and one each way must be a copy.
    fn fail_next(&self) {
        let kernel = self.0.kernel();
        kernel.fail_nth(Site::Move, 1, Errno::NOMEM);
        kernel.fail_nth(Site::Move, 2, Errno::INVAL);
        kernel.fail_nth(Site::Move, 3, Errno::INVAL);
    }

    fn shut_down(&self) {
        self.0.shut_down();
    }
}
