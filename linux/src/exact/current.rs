//! The address space that calls are served for.
//!
//! # Invariants
//! - CUR-1: `set` returns when no call is served for the address space before. Whoever serves counts himself before he looks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use isomem_core::mm::Mm;
use isomem_core::world::World;

use crate::world::Linux;

/// The address space that is open, if one is.
#[derive(Debug)]
pub(crate) struct Current {
    mm: Mutex<Option<Mm<Linux>>>,
    serving: AtomicUsize,
}

/// A call that is being served.
#[derive(Debug)]
pub(crate) struct Serving<'a> {
    of: &'a AtomicUsize,
    mm: Mm<Linux>,
}

impl Current {
    pub(crate) const fn new() -> Self {
        Self {
            mm: Mutex::new(None),
            serving: AtomicUsize::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Mm<Linux>>> {
        self.mm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on calls are served for `mm`, or for none (CUR-1).
    pub(crate) fn set(&self, mm: Option<Mm<Linux>>) {
        let before = core::mem::replace(&mut *self.lock(), mm);
        while before.is_some() && self.serving.load(Ordering::SeqCst) != 0 {
            rustix::thread::sched_yield();
        }
    }

    /// Begins to serve a call; `None` while no address space is open.
    pub(crate) fn enter(&self) -> Option<Serving<'_>> {
        self.serving.fetch_add(1, Ordering::SeqCst);
        match self.lock().clone() {
            Some(mm) => Some(Serving { of: &self.serving, mm }),
            None => {
                self.serving.fetch_sub(1, Ordering::SeqCst);
                None
            }
        }
    }
}

impl Serving<'_> {
    /// For whom.
    pub(crate) fn mm(&self) -> &Mm<Linux> {
        &self.mm
    }

    /// Whether the caller is in that address space's process, and not in a child.
    pub(crate) fn is_here(&self) -> bool {
        self.mm.world().is_current()
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.of.fetch_sub(1, Ordering::SeqCst);
    }
}
