//! A lock-free stack of free blocks, by their ids.
//!
//! # Invariants
//! - An id is in at most one list, and only once: who pushes it owns the block.
//! - The upper half of the head counts the changes, so that a pop which saw an old head fails. It would take 2^32 changes
//!   between one load and the next compare-and-swap of a thread to fool it.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The head: a count of changes above the id on top. Id 0 means empty.
pub(super) struct FreeList(AtomicU64);

impl FreeList {
    pub(super) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Puts `id` on top; `link` is its link word.
    pub(super) fn push(&self, id: u32, link: &AtomicU32) {
        let mut head = self.0.load(Ordering::Relaxed);
        loop {
            // Published by the compare-and-swap below.
            link.store(head as u32, Ordering::Relaxed);
            // Release: what the owner did with the block comes before the next owner's use; pairs with `pop`.
            match self
                .0
                .compare_exchange_weak(head, Self::next(head, id), Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(seen) => head = seen,
            }
        }
    }

    /// Takes the id on top; `link_of` finds its link word.
    pub(super) fn pop<'a>(&self, link_of: impl Fn(u32) -> &'a AtomicU32) -> Option<u32> {
        // Acquire: pairs with the release in `push`, for the link word and the block.
        let mut head = self.0.load(Ordering::Acquire);
        loop {
            let id = head as u32;
            if id == 0 {
                return None;
            }
            // If somebody else took `id` meanwhile this is an old word, and the exchange fails by the count.
            let below = link_of(id).load(Ordering::Relaxed);
            match self
                .0
                .compare_exchange_weak(head, Self::next(head, below), Ordering::Acquire, Ordering::Acquire)
            {
                Ok(_) => return Some(id),
                Err(seen) => head = seen,
            }
        }
    }

    fn next(head: u64, id: u32) -> u64 {
        ((head >> 32).wrapping_add(1) << 32) | u64::from(id)
    }
}
