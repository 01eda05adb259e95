//! How many hold a value: the count of a counted pointer, without the pointer.
//!
//! Core's handles are the world's counted pointers ([`Metadata::Shared`](crate::world::Metadata::Shared)); a world that brings its own builds it on
//! this, so that the orders of the last drop are checked where all orders are.
//!
//! # Invariants
//! - CNT-1: as many leave as hold, and exactly one of them is told that it was the last.
//! - CNT-2: what any holder did before it left happens before the last one is told.
//! - CNT-3: the count never wraps: a holder too many is refused, and the others stay counted.
//!
//! # Locking
//! None; one atomic.
//!
//! ```text
//! a holder                                 the last holder
//! uses the value                           .
//! leave: Release, 2 -> 1                   .
//! .                                        leave: 1 -> 0, then an Acquire fence
//! .                                        drops the value
//! ```
//!
//! Linux: refcount_t, kref_put.

use crate::sync::{AtomicUsize, MODEL, Ordering, fence};

/// Most holders. What is above is room for those who are being refused: more threads than there can be.
const MOST: usize = if MODEL { 3 } else { isize::MAX as usize };

/// The value has as many holders as can be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {MOST} holders of one value")]
pub struct TooManyHolders;

/// Who still holds the value when one has left.
#[must_use = "the last one frees the value"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remaining {
    /// Others hold it: hands off.
    Others,
    /// The value is the leaver's alone.
    Nobody,
}

/// The number of holders of a value, which is freed by the last.
#[derive(Debug)]
pub struct RefCount(AtomicUsize);

impl Default for RefCount {
    fn default() -> Self {
        Self::new()
    }
}

impl RefCount {
    /// A count of one: who makes the value holds it.
    pub fn new() -> Self {
        Self(AtomicUsize::new(1))
    }

    /// Counts one more holder. Only for who holds the value itself.
    ///
    /// # Errors
    /// [`TooManyHolders`]; the count is as before. Near the limit it may come early, while another is being refused.
    #[inline]
    pub fn hold(&self) -> Result<(), TooManyHolders> {
        // Relaxed: the caller's own hold keeps the value alive, and whoever gets the new one gets it from the caller.
        if self.0.fetch_add(1, Ordering::Relaxed) < MOST {
            return Ok(());
        }
        // Cannot be the last to leave: the caller's own hold is counted.
        self.0.fetch_sub(1, Ordering::Relaxed);
        Err(TooManyHolders)
    }

    /// Counts one holder less, and says who remains. The caller must not use the value any more, unless it was the last.
    #[inline]
    pub fn leave(&self) -> Remaining {
        // Release pairs with the fence of the last: this holder's uses come before the value is freed.
        let before = self.0.fetch_sub(1, Ordering::Release);
        debug_assert_ne!(before, 0, "CNT-1: more left than held");
        if before != 1 {
            return Remaining::Others;
        }
        // Acquire pairs with the Release of all who left earlier: each later change of the count continues their release sequences.
        fence(Ordering::Acquire);
        Remaining::Nobody
    }
}

#[cfg(test)]
mod tests;
