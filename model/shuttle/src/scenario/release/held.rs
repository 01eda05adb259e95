//! The mirrors' lock is held for writing while they are released.
//!
//! It looks right: nobody can register or unregister meanwhile, and each mirror is released exactly once. But release waits for an
//! invalidation, which waits for the lock.

use std::sync::Arc;

use isomem_sim::sync::{RwLock, thread};

use super::{Driver, Mirrors};

/// The list of mirrors.
pub(super) struct Hmm {
    mirrors: RwLock<Vec<Arc<Driver>>>,
}

impl Mirrors for Hmm {
    fn new(drivers: [&Arc<Driver>; 2]) -> Self {
        Self {
            mirrors: RwLock::new("mirrors_sem", drivers.map(Arc::clone).to_vec()),
        }
    }

    fn invalidate(&self, pass: u64) {
        // Invalidations run side by side, so they only read the list; and from start to end, so that the same mirrors get both.
        let mirrors = self.mirrors.read();
        mirrors.iter().for_each(|mirror| mirror.start(pass));
        // The mapping changes.
        thread::yield_now();
        mirrors.iter().for_each(|mirror| mirror.end(pass));
    }

    fn exit(&self) {
        let mut mirrors = self.mirrors.write();
        for mirror in mirrors.drain(..) {
            mirror.release();
        }
    }

    fn unregister(&self, driver: &Arc<Driver>) {
        let mut mirrors = self.mirrors.write();
        let place = mirrors.iter().position(|mirror| Arc::ptr_eq(mirror, driver));
        if let Some(place) = place {
            mirrors.remove(place).release();
        }
    }
}
