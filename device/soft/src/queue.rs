//! The fault queue: misses of the device's workers, at most one service at a time for each block of a mirror.
//!
//! A miss is replayable: the worker that missed services it itself and tries its access again. When another worker misses on the same block
//! meanwhile it waits for that service and tries again, which usually finds the entry there.
//!
//! # Invariants
//! - FQ-1: two entries of the queue never name the same block of the same mirror.
//! - FQ-2: an entry goes when its service ends, also by a panic, and whoever waits for it is woken.
//!
//! # Locking
//! `entries` only, a leaf; a service runs without it.

use isomem_core::addr::BlockId;

use crate::device::MAX_WORKERS;
use crate::sync::{Condvar, Mutex};

/// What is being serviced: a block, by the mirror's number.
type Key = (u64, BlockId);

/// See the [module's documentation](self).
pub(crate) struct FaultQueue {
    /// One for each worker.
    entries: Mutex<[Option<Key>; MAX_WORKERS]>,
    serviced: Condvar,
}

/// What a worker that missed is to do.
pub(crate) enum Turn<'q> {
    /// Service the miss; the entry lives as long as this does.
    Service(Entry<'q>),
    /// Another's service of the block has just ended: try the access again.
    Merged,
}

impl FaultQueue {
    pub(crate) const fn new() -> Self {
        Self {
            entries: Mutex::new([None; MAX_WORKERS]),
            serviced: Condvar::new(),
        }
    }

    /// Queues the miss of `worker` on `block` of mirror `mirror`. May wait for another worker's service of that block.
    pub(crate) fn enter(&self, worker: usize, mirror: u64, block: BlockId) -> Turn<'_> {
        let key = (mirror, block);
        let mut entries = self.entries.lock();
        let mut waited = false;
        while entries.contains(&Some(key)) {
            waited = true;
            entries = self.serviced.wait(entries);
        }
        if waited {
            return Turn::Merged;
        }
        entries[worker] = Some(key);
        Turn::Service(Entry { queue: self, worker })
    }
}

/// A miss in service.
pub(crate) struct Entry<'q> {
    queue: &'q FaultQueue,
    worker: usize,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.queue.entries.lock()[self.worker] = None;
        self.queue.serviced.notify_all();
    }
}

#[cfg(test)]
mod tests;
