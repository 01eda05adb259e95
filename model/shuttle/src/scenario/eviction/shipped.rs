//! isomem's core in the simulated kernel, with a device of two pages.
//!
//! ```text
//! first                                    second
//! makes room for page 1: holds nothing     makes room for page 3: holds nothing
//! page 2 goes home                         page 0 is on its way: passed over
//! now page 1 is in transit                 .
//! ```

use isomem_sim::device::{GpuConfig, Reach};
use isomem_sim::kernel::{Errno, Site};
use isomem_sim::rig::{Config, PER_BLOCK, Rig};

use super::{ROOM, SmallDevice, tell};
use crate::scenario::Run;

/// It has page frames in its own table, so that nothing but the protocol keeps it from a stale access.
const SMALL: &[GpuConfig] = &[GpuConfig {
    memory_pages: ROOM,
    reach: Reach::Frames,
    ..GpuConfig::named("device")
}];

pub(super) fn tell_story(run: &Run) {
    let pages = 2 * PER_BLOCK;
    let rig = Rig::with(&run.journal, Config { pages, gpus: SMALL });
    // The first page that moves changes its frame, so that an entry for its old one is stale.
    rig.kernel().fail_nth(Site::Move, 0, Errno::INVAL);
    tell(run, Shipped(rig));
}

struct Shipped(Rig);

/// What is evicted is a block, so the two requests are for pages of two.
fn place(page: u64) -> usize {
    let page = page as usize;
    page / 2 * PER_BLOCK + page % 2
}

impl SmallDevice for Shipped {
    fn send(&self, pages: [u64; 2]) {
        self.0.migrate(place(pages[0]), pages.len());
    }

    fn device_use(&self, page: u64) {
        self.0.gpu_read(place(page), 0);
    }

    fn cpu_write(&self, page: u64, value: u64) {
        self.0.cpu_write(place(page), 0, value);
    }

    fn cpu_read(&self, page: u64) {
        self.0.cpu_read(place(page), 0);
    }

    fn shut_down(&self) {
        self.0.shut_down();
    }
}
