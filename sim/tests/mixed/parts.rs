//! What can fail in a story of everything, and how such a story ends.

use isomem_sim::checker::Verdict;
use isomem_sim::device::Gpu;
use isomem_sim::kernel::{Errno, Site};
use isomem_sim::rig::Rig;

use crate::WORDS;

/// What can fail, and how.
pub(crate) const FAILURES: &[(Site, Errno)] = &[
    (Site::Allocate, Errno::NOMEM),
    (Site::Copy, Errno::NOMEM),
    (Site::Copy, Errno::AGAIN),
    (Site::Move, Errno::NOMEM),
    (Site::Move, Errno::AGAIN),
    (Site::Move, Errno::BUSY),
    (Site::Move, Errno::INVAL),
    (Site::Zero, Errno::NOMEM),
    (Site::Zero, Errno::AGAIN),
    (Site::Track, Errno::NOMEM),
    (Site::Protect, Errno::NOMEM),
    (Site::Discard, Errno::NOMEM),
];

/// Everything comes home, is as it was written, and nothing is left.
pub(crate) fn finish(rig: &Rig, pages: usize, gpus: usize, number: u64) {
    read_all(rig, pages);
    if number.is_multiple_of(2) {
        // Nobody serves faults any more: what the device's memory has in use is what is there.
        rig.stop_pager();
        (0..gpus).for_each(|index| check_empty(rig, rig.gpu(index)));
    }
    for index in 0..gpus {
        if !rig.gpu(index).close() {
            rig.journal()
                .found(Verdict::Leak, "a device that nobody uses cannot be unregistered");
        }
    }
    read_all(rig, pages);
    rig.shut_down();
}

fn read_all(rig: &Rig, pages: usize) {
    for page in 0..pages {
        for word in 0..WORDS {
            let _ = rig.try_cpu_read(page, word);
        }
    }
}

fn check_empty(rig: &Rig, gpu: &Gpu) {
    // Reading brings pages home, but for those that are read mostly.
    gpu.evict_all();
    if let Some(used @ 1..) = gpu.used_pages() {
        let sentence = format!("everything is at home, and {used} pages of the device's memory are in use");
        rig.journal().found(Verdict::Leak, sentence);
    }
}
