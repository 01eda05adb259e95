//! The mirrors' lock is let go around each release, and the walk goes on at the next place.
//!
//! Now release may wait for whatever it likes, and who claims a mirror releases it, so none is released twice. But while exit is inside
//! one release, that mirror may be unregistered and leave the list: the others move up, and the next place is one too far.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use isomem_sim::sync::{Condvar, Mutex, RwLock, thread};

use super::{Driver, Mirrors};

struct Mirror {
    driver: Arc<Driver>,
    /// Somebody releases it, or did. Set with the list locked for writing, so no invalidation is under way then.
    claimed: AtomicBool,
    released: Mutex<bool>,
    done: Condvar,
}

impl Mirror {
    fn new(driver: &Arc<Driver>) -> Arc<Self> {
        Arc::new(Self {
            driver: driver.clone(),
            claimed: AtomicBool::new(false),
            released: Mutex::new("mirror released", false),
            done: Condvar::new("mirror is released"),
        })
    }

    /// Releases it when it is the caller's, or waits for who does.
    fn finish(&self, claim: Claim) {
        if let Claim::Mine = claim {
            self.driver.release();
            *self.released.lock() = true;
            self.done.notify_all();
        }
        let mut released = self.released.lock();
        while !*released {
            released = self.done.wait(released);
        }
    }

    fn claim(&self) -> Claim {
        match self.claimed.swap(true, Ordering::AcqRel) {
            false => Claim::Mine,
            true => Claim::Another,
        }
    }
}

/// Who releases a mirror.
enum Claim {
    Mine,
    Another,
}

/// The list of mirrors.
pub(super) struct Hmm {
    mirrors: RwLock<Vec<Arc<Mirror>>>,
}

impl Hmm {
    fn claim_at(&self, place: usize) -> Option<(Arc<Mirror>, Claim)> {
        let mirrors = self.mirrors.write();
        let mirror = mirrors.get(place)?;
        Some((mirror.clone(), mirror.claim()))
    }
}

impl Mirrors for Hmm {
    fn new(drivers: [&Arc<Driver>; 2]) -> Self {
        Self {
            mirrors: RwLock::new("mirrors_sem", drivers.map(Mirror::new).to_vec()),
        }
    }

    fn invalidate(&self, pass: u64) {
        let mirrors = self.mirrors.read();
        let is_live = |mirror: &&Arc<Mirror>| !mirror.claimed.load(Ordering::Acquire);
        let told: Vec<_> = mirrors.iter().filter(is_live).collect();
        told.iter().for_each(|mirror| mirror.driver.start(pass));
        // The mapping changes.
        thread::yield_now();
        told.iter().for_each(|mirror| mirror.driver.end(pass));
    }

    fn exit(&self) {
        let mut place = 0;
        // The lock is not held while a mirror is released.
        while let Some((mirror, claim)) = self.claim_at(place) {
            mirror.finish(claim);
            place += 1;
        }
        self.mirrors.write().clear();
    }

    fn unregister(&self, driver: &Arc<Driver>) {
        let found = {
            let mut mirrors = self.mirrors.write();
            let place = mirrors.iter().position(|mirror| Arc::ptr_eq(&mirror.driver, driver));
            place.map(|place| mirrors.remove(place))
        };
        if let Some(mirror) = found {
            let claim = mirror.claim();
            mirror.finish(claim);
        }
    }
}
