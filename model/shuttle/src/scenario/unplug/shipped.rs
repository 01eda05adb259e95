//! isomem's core in the simulated kernel, which refuses to give pages back for a while.

use isomem_sim::kernel::{Errno, Site};
use isomem_sim::rig::Rig;

use super::{Unpluggable, tell};
use crate::scenario::Run;

pub(super) fn tell_story(run: &Run) {
    tell(run, Shipped(Rig::new(&run.journal, 1 + OTHER)));
}

const PAGE: usize = 0;
/// One that nobody looks at while the device goes: it comes home by unplugging, or stays.
const OTHER: usize = 1;
/// Unplugging tries each page twice.
const FAILURES: usize = 4;

struct Shipped(Rig);

impl Unpluggable for Shipped {
    fn cpu_write(&self, word: usize, value: u64) {
        self.0.cpu_write(PAGE, word, value);
    }

    fn cpu_look(&self, word: usize) -> u64 {
        self.0.cpu_read(PAGE, word)
    }

    fn device_write(&self, word: usize, value: u64) {
        self.0.cpu_write(OTHER, word, value);
        self.0.migrate(PAGE, 1 + OTHER);
        self.0.gpu_write(PAGE, word, value);
    }

    fn fail_copies(&self) {
        (0..FAILURES).for_each(|nth| self.0.kernel().fail_nth(Site::Move, nth, Errno::NOMEM));
    }

    fn device_asks(&self) {
        self.0.migrate(PAGE, 1);
    }

    fn unplug(&self) -> usize {
        self.0.gpu(0).fail()
    }

    fn on_device(&self) -> usize {
        let away = |page: &usize| self.0.process().peek(self.0.page(*page)).is_none();
        (PAGE..=OTHER).filter(away).count()
    }

    /// So many failures were planned and no more.
    fn repair(&self) {}

    fn shut_down(&self) {
        self.0.shut_down();
    }
}
