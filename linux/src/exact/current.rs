//! The address space that calls are served for.
//!
//! # Invariants
//! - CUR-1: `set` returns when no call is served for the address space before. Whoever serves counts himself before he looks.
//! - CUR-2: a fork's child serves for nobody until it opens an address space of its own, whatever its parent was doing at that moment.
//!
//! # Locking
//! `mm` is a leaf, held for a copy only.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use isomem_core::mm::Mm;
use rustix::io::Errno;

use crate::sys::per_process::PerProcess;
use crate::world::Linux;

#[derive(Debug, Default)]
struct Here {
    mm: Mutex<Option<Mm<Linux>>>,
    serving: AtomicUsize,
}

/// The address space that is open, if one is.
#[derive(Debug)]
pub(crate) struct Current(PerProcess<Here>);

/// A call that is being served.
#[derive(Debug)]
pub(crate) struct Serving {
    of: &'static AtomicUsize,
    /// Taken when it is over.
    mm: Option<Mm<Linux>>,
}

impl Here {
    fn lock(&self) -> MutexGuard<'_, Option<Mm<Linux>>> {
        self.mm.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Current {
    pub(crate) const fn new() -> Self {
        Self(PerProcess::new(Here::default))
    }

    /// From now on calls are served for `mm`.
    pub(crate) fn open(&self, mm: Mm<Linux>) -> Result<(), Errno> {
        *self.0.get_or_make()?.lock() = Some(mm);
        Ok(())
    }

    /// From now on for nobody (CUR-1).
    pub(crate) fn close(&self) {
        let Some(here) = self.0.get() else { return };
        let before = here.lock().take();
        while before.is_some() && here.serving.load(Ordering::SeqCst) != 0 {
            rustix::thread::sched_yield();
        }
    }

    /// Begins to serve a call; `None` while no address space is open here.
    pub(crate) fn enter(&self) -> Option<Serving> {
        let here = self.0.get()?;
        here.serving.fetch_add(1, Ordering::SeqCst);
        match here.lock().clone() {
            Some(mm) => Some(Serving {
                of: &here.serving,
                mm: Some(mm),
            }),
            None => {
                here.serving.fetch_sub(1, Ordering::SeqCst);
                None
            }
        }
    }
}

impl Serving {
    /// For whom.
    pub(crate) fn mm(&self) -> &Mm<Linux> {
        self.mm.as_ref().expect("it is there until the value is dropped")
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Who waits for the count may be about to open the next, and the handle keeps this one's descriptors.
        self.mm = None;
        self.of.fetch_sub(1, Ordering::SeqCst);
    }
}
