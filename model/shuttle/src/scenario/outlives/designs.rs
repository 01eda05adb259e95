//! Drivers that took the file for the address space.

use std::sync::Arc;

use isomem_sim::journal::Name;

use super::{File, Gpu, Job};

/// The mirror belongs to the file, and to who has it open.
///
/// For everything else a file offers this is how it is: what is open is usable, also by those who inherited it. But the mirror is of the address space of
/// the process that opened it, and the child's addresses mean something else there.
pub(super) struct MirrorOfFile {
    gpu: Arc<Gpu>,
    mm: Name,
}

impl File for MirrorOfFile {
    fn open(gpu: Arc<Gpu>, mm: Name) -> Self {
        Self { gpu, mm }
    }

    fn submit(&self, meant: Name) -> bool {
        self.gpu.queue(Job { on: self.mm, meant });
        true
    }

    fn mm_goes(&self) {
        self.gpu.stop();
        self.gpu.wait_idle();
    }

    fn close(&self) {}
}

/// The device stops when the file is closed.
///
/// A process that exits closes its files, so this is called in the end, one way or another. But the address space goes first; and where a child has the
/// file open, the end may be long after.
pub(super) struct ReleaseOnClose {
    gpu: Arc<Gpu>,
    mm: Name,
}

impl File for ReleaseOnClose {
    fn open(gpu: Arc<Gpu>, mm: Name) -> Self {
        Self { gpu, mm }
    }

    fn submit(&self, meant: Name) -> bool {
        let on = self.mm;
        let own = on == meant;
        if own {
            self.gpu.queue(Job { on, meant });
        }
        own
    }

    fn mm_goes(&self) {}

    fn close(&self) {
        self.gpu.stop();
        self.gpu.wait_idle();
    }
}

/// The device begins nothing any more when the address space goes.
///
/// Jobs are short, so the last of them seems as good as done. The memory under it is gone all the same.
pub(super) struct ReleaseDoesNotWait {
    gpu: Arc<Gpu>,
    mm: Name,
}

impl File for ReleaseDoesNotWait {
    fn open(gpu: Arc<Gpu>, mm: Name) -> Self {
        Self { gpu, mm }
    }

    fn submit(&self, meant: Name) -> bool {
        let on = self.mm;
        let own = on == meant;
        if own {
            self.gpu.queue(Job { on, meant });
        }
        own
    }

    fn mm_goes(&self) {
        self.gpu.stop();
    }

    fn close(&self) {
        self.gpu.wait_idle();
    }
}
