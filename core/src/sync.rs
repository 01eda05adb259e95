//! The one place that says whose locks and atomics the protocol runs on: std's, or a model checker's.
//!
//! std's `Mutex` and `Condvar` are futexes in place on Linux: they allocate nothing and park in no table, which the
//! fault path needs. Poisoning is ignored: no code of ours panics while it holds a lock, and a broken invariant
//! aborts.
//!
//! Under the feature `loom` the same names are loom's, so that the model checker runs exactly the code that ships.

#[cfg(feature = "loom")]
mod imp {
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    pub(crate) use loom::thread_local;
}

#[cfg(not(feature = "loom"))]
mod imp {
    pub(crate) use core::hint::spin_loop;
    pub(crate) use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    pub(crate) use std::thread_local;
}

pub(crate) use imp::*;

#[cfg(feature = "loom")]
use loom::sync as locks;
#[cfg(not(feature = "loom"))]
use std::sync as locks;

pub(crate) use locks::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};
use std::sync::PoisonError;
use std::time::Duration;

/// A lock without poisoning.
#[derive(Debug)]
pub(crate) struct Mutex<T>(locks::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(locks::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }
}

/// A lock that many may hold to read, without poisoning.
#[derive(Debug)]
pub(crate) struct RwLock<T>(locks::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(locks::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A condition to wait for under a [`Mutex`].
#[derive(Debug)]
pub(crate) struct Condvar(locks::Condvar);

impl Condvar {
    pub(crate) fn new() -> Self {
        Self(locks::Condvar::new())
    }

    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits at most `timeout`; spurious wake-ups are possible, so callers test their condition again.
    pub(crate) fn wait_timeout<'a, T>(&self, guard: MutexGuard<'a, T>, timeout: Duration) -> MutexGuard<'a, T> {
        self.0
            .wait_timeout(guard, timeout)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// A value that is set once and then read without a lock.
#[derive(Debug)]
pub(crate) struct Once<T> {
    value: std::sync::OnceLock<T>,
    /// Under loom the publication is modelled by this flag, since loom cannot see into std's cell.
    #[cfg(feature = "loom")]
    ready: AtomicBool,
    #[cfg(feature = "loom")]
    init: Mutex<()>,
}

impl<T> Once<T> {
    pub(crate) fn new() -> Self {
        Self {
            value: std::sync::OnceLock::new(),
            #[cfg(feature = "loom")]
            ready: AtomicBool::new(false),
            #[cfg(feature = "loom")]
            init: Mutex::new(()),
        }
    }

    /// The value, if it was set.
    #[inline]
    pub(crate) fn get(&self) -> Option<&T> {
        #[cfg(feature = "loom")]
        if !self.ready.load(Ordering::Acquire) {
            return None;
        }
        self.value.get()
    }

    /// The value, made by `make` if nobody was first. When two race, one value is dropped.
    pub(crate) fn get_or_try_init<E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        if let Some(value) = self.get() {
            return Ok(value);
        }
        let value = make()?;
        #[cfg(feature = "loom")]
        let _init = self.init.lock();
        let value = self.value.get_or_init(|| value);
        #[cfg(feature = "loom")]
        self.ready.store(true, Ordering::Release);
        Ok(value)
    }
}
