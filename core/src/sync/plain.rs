//! Locks of std, or of loom.

use std::sync::PoisonError;
use std::time::Duration;

#[cfg(feature = "loom")]
use loom::sync as locks;
#[cfg(not(feature = "loom"))]
use std::sync as locks;

pub use locks::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

/// A lock without poisoning.
#[derive(Debug)]
pub struct Mutex<T>(locks::Mutex<T>);

impl<T> Mutex<T> {
    /// A lock of the class `name`.
    pub fn new(_name: &'static str, value: T) -> Self {
        Self(locks::Mutex::new(value))
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock if nobody has it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }
}

/// A lock that many may hold to read, without poisoning.
#[derive(Debug)]
pub struct RwLock<T>(locks::RwLock<T>);

impl<T> RwLock<T> {
    /// A lock of the class `name`.
    pub fn new(_name: &'static str, value: T) -> Self {
        Self(locks::RwLock::new(value))
    }

    /// Waits until nobody writes.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody reads or writes.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A condition to wait for under a [`Mutex`].
#[derive(Debug)]
pub struct Condvar(locks::Condvar);

impl Condvar {
    /// Waits for it are told under `name`.
    pub fn new(_name: &'static str) -> Self {
        Self(locks::Condvar::new())
    }

    /// Leaves the lock, waits, and takes it again; spurious wake-ups are possible.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits at most `timeout`; spurious wake-ups are possible, so callers test their condition again.
    pub fn wait_timeout<'a, T>(&self, guard: MutexGuard<'a, T>, timeout: Duration) -> MutexGuard<'a, T> {
        self.0
            .wait_timeout(guard, timeout)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// Wakes everybody who waits.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}
