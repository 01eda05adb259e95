//! A value of the process that a fork's child does not share: it gets one of its own.
//!
//! What the parent had is left as it is in the child, locked or in the middle of a change, whichever other thread of the parent was at it. Nothing
//! of it is used, and nothing dropped. This holds for bare system calls, too, that the C library's hooks do not see.
//!
//! # Invariants
//! - PRC-1: a value is used only in the process that made it, or by who shares that one's memory (vfork).
//!
//! # Locking
//! None.

use std::sync::atomic::{AtomicPtr, Ordering};

use rustix::io::{Errno, Result};

use super::mapping::ForkMark;

struct Made<T> {
    mark: ForkMark,
    value: T,
}

/// One value a process, made when it is first asked for, and never dropped.
pub struct PerProcess<T: 'static> {
    made: AtomicPtr<Made<T>>,
    make: fn() -> T,
}

impl<T> core::fmt::Debug for PerProcess<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("PerProcess")
    }
}

impl<T: Send + Sync> PerProcess<T> {
    /// To be made by `make`.
    pub const fn new(make: fn() -> T) -> Self {
        Self {
            made: AtomicPtr::new(core::ptr::null_mut()),
            make,
        }
    }

    /// This process's, if it was made. Allocates nothing.
    pub fn get(&self) -> Option<&'static T> {
        // SAFETY: null, or a box that was leaked; published by the exchange below.
        let made = unsafe { self.made.load(Ordering::Acquire).as_ref() }?;
        made.mark.is_here().then_some(&made.value)
    }

    /// This process's.
    ///
    /// # Errors
    /// No memory for the mark of a process.
    pub fn get_or_make(&self) -> Result<&'static T> {
        if let Some(made) = self.get() {
            return Ok(made);
        }
        let before = self.made.load(Ordering::Acquire);
        let made = Box::into_raw(Box::new(Made {
            mark: ForkMark::new()?,
            value: (self.make)(),
        }));
        // Release publishes the box; pairs with the acquire in `get`.
        if self
            .made
            .compare_exchange(before, made, Ordering::AcqRel, Ordering::Acquire)
            .is_err()
        {
            // SAFETY: nobody else has seen it.
            drop(unsafe { Box::from_raw(made) });
        }
        self.get().ok_or(Errno::AGAIN)
    }
}

#[cfg(test)]
mod tests;
