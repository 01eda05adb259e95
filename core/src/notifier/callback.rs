//! Knows which thread is inside a callback, so that what a callback must not do is refused and not a deadlock.
//!
//! # Invariants
//! - CB-1 (INV-7): a [`CallbackScope`] exists exactly while a callback runs on its thread.
//!
//! # Locking
//! None: the state is the thread's own.

use core::cell::Cell;
use core::marker::PhantomData;

use crate::sync::thread_local;

thread_local! {
    // Without a destructor and set at its birth, so reaching it neither allocates nor registers anything.
    #[cfg_attr(not(feature = "loom"), allow(clippy::missing_const_for_thread_local, reason = "loom's macro has no const form"))]
    static DEPTH: Cell<usize> = Cell::new(0);
}

/// Whether the calling thread is inside a callback of any notifier. There, invalidating and reading are refused (INV-7).
pub fn in_callback() -> bool {
    DEPTH.with(|depth| depth.get() > 0)
}

/// Proof that a callback runs. It has no method to fault, invalidate or migrate (INV-7).
#[derive(Debug)]
pub struct CallbackScope<'a> {
    /// See [`CallbackScope::leave_to_the_mmu`].
    fenced: Cell<bool>,
    /// Bound to the callback's frame and to its thread.
    frame: PhantomData<(&'a (), *const ())>,
}

impl CallbackScope<'_> {
    pub(super) fn enter() -> Self {
        DEPTH.with(|depth| depth.set(depth.get() + 1));
        Self {
            fenced: Cell::new(false),
            frame: PhantomData,
        }
    }

    /// Says in a blocking pass that an access in flight was not waited for to its end, because the MMU stops it
    /// ([`World::FENCED`](crate::world::World::FENCED)). It shows as [`Guard::fenced`](super::Guard::fenced).
    pub fn leave_to_the_mmu(&self) {
        self.fenced.set(true);
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.fenced.get()
    }
}

impl Drop for CallbackScope<'_> {
    fn drop(&mut self) {
        DEPTH.with(|depth| depth.set(depth.get() - 1));
    }
}

/// A thread, told from the others while it lives: by where its own state lies, since asking std for an id may allocate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Here(usize);

impl Here {
    pub(crate) fn now() -> Self {
        DEPTH.with(|depth| Self(core::ptr::from_ref(depth).addr()))
    }
}
