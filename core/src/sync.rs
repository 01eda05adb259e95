//! The one place that says whose locks and atomics the protocol runs on: std's, or a model checker's.
//!
//! std's `Mutex` and `Condvar` are futexes in place on Linux: they allocate nothing and park in no table, which the
//! fault path needs. Poisoning is ignored: no code of ours panics while it holds a lock, and a broken invariant
//! aborts.
//!
//! Under the feature `loom` the same names are loom's, under `shuttle` they are shuttle's, so that the model checkers run exactly the code that
//! ships. Locks have names, those of `docs/locking.md`; under shuttle a `watch` is told of every lock that is wanted, taken and left.

#[cfg(all(feature = "loom", feature = "shuttle"))]
compile_error!(
    "the features `loom` and `shuttle` of isomem-core exclude each other: build one package of model/ at a time"
);

#[cfg(feature = "loom")]
mod imp {
    pub use loom::hint::spin_loop;
    pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    pub use loom::thread_local;
}

#[cfg(feature = "shuttle")]
mod imp {
    pub use shuttle::hint::spin_loop;
    pub use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    pub use shuttle::{thread, thread_local};
}

#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod imp {
    pub use core::hint::spin_loop;
    pub use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    pub use std::{thread, thread_local};
}

pub use imp::*;

#[cfg(not(feature = "shuttle"))]
#[path = "sync/plain.rs"]
mod locks;
#[cfg(feature = "shuttle")]
#[path = "sync/watched.rs"]
mod locks;

pub use locks::*;

/// Whether a model checker runs the code: then tables are small and no time passes.
pub(crate) const MODEL: bool = cfg!(any(feature = "loom", feature = "shuttle"));

/// A value that is set once and then read without a lock.
#[derive(Debug)]
pub struct Once<T> {
    value: std::sync::OnceLock<T>,
    /// Under a model checker the publication is modelled by this flag, since it cannot see into std's cell.
    #[cfg(any(feature = "loom", feature = "shuttle"))]
    ready: AtomicBool,
    #[cfg(any(feature = "loom", feature = "shuttle"))]
    init: Mutex<()>,
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Once<T> {
    pub fn new() -> Self {
        Self {
            value: std::sync::OnceLock::new(),
            #[cfg(any(feature = "loom", feature = "shuttle"))]
            ready: AtomicBool::new(false),
            #[cfg(any(feature = "loom", feature = "shuttle"))]
            init: Mutex::new("once", ()),
        }
    }

    /// The value, if it was set.
    #[inline]
    pub fn get(&self) -> Option<&T> {
        #[cfg(any(feature = "loom", feature = "shuttle"))]
        if !self.ready.load(Ordering::Acquire) {
            return None;
        }
        self.value.get()
    }

    /// The value, made by `make` if nobody was first. When two race, one value is dropped.
    pub fn get_or_try_init<E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        if let Some(value) = self.get() {
            return Ok(value);
        }
        let value = make()?;
        #[cfg(any(feature = "loom", feature = "shuttle"))]
        let _init = self.init.lock();
        let value = self.value.get_or_init(|| value);
        #[cfg(any(feature = "loom", feature = "shuttle"))]
        self.ready.store(true, Ordering::Release);
        Ok(value)
    }
}
