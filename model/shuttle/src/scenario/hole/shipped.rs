//! isomem's core in the simulated kernel, whose pager reads faults late whenever the scheduler likes.

use isomem_sim::rig::{Config, Rig, STRICT_GPU};

use super::{Paged, WORD, tell};
use crate::scenario::Run;

pub(super) fn tell_story(run: &Run) {
    let config = Config {
        pages: 1,
        gpus: STRICT_GPU,
    };
    tell(run, Shipped(Rig::with(&run.journal, config)));
}

const PAGE: usize = 0;

struct Shipped(Rig);

impl Paged for Shipped {
    fn cpu_write(&self, value: u64) {
        self.0.cpu_write(PAGE, WORD, value);
    }

    fn cpu_read(&self) {
        self.0.cpu_read(PAGE, WORD);
    }

    fn fetch(&self) {
        self.0.home(PAGE, 1);
    }

    fn send(&self) {
        self.0.migrate(PAGE, 1);
    }

    fn shut_down(&self) {
        self.0.shut_down();
    }
}
