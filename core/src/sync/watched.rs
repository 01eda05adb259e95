//! shuttle's locks, and a watch on who wants, has and leaves them.

use core::cell::RefCell;
use core::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::PoisonError;
use std::time::Duration;

use shuttle::sync as locks;

/// What a thread does with a lock or a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockStep {
    /// It asks for it, and may have to wait.
    Wants,
    /// It has it.
    Has,
    /// It had it.
    Left,
    /// It sleeps until the condition is signalled.
    Sleeps,
    /// It sleeps no more.
    Wakes,
}

/// A lock or a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LockId {
    /// The class: what it is called.
    pub name: &'static str,
    /// Tells locks of one class apart.
    pub at: usize,
    /// Whether others may hold it at the same time in this way.
    pub shared: bool,
}

/// Who is told.
pub type Watch = Rc<dyn Fn(LockStep, LockId)>;

std::thread_local! {
    // All threads of an execution run on one thread of the system.
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

/// From now on `watch` is told of every step with a lock in executions on this thread of the system; `None` for nobody.
pub fn watch(watch: Option<Watch>) {
    WATCH.with(|cell| *cell.borrow_mut() = watch);
}

fn tell(step: LockStep, id: LockId) {
    let watch = WATCH.with(|cell| cell.borrow().clone());
    if let Some(watch) = watch {
        watch(step, id);
    }
}

/// A guard that says when it goes.
#[derive(Debug)]
pub struct Guard<G> {
    inner: Option<G>,
    id: LockId,
}

impl<G> Guard<G> {
    fn new(id: LockId, inner: G) -> Self {
        tell(LockStep::Has, id);
        Self { inner: Some(inner), id }
    }
}

impl<G: Deref> Deref for Guard<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        self.inner.as_ref().expect("a guard holds its lock while it lives")
    }
}

impl<G: DerefMut> DerefMut for Guard<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        self.inner.as_mut().expect("a guard holds its lock while it lives")
    }
}

impl<G> Drop for Guard<G> {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            tell(LockStep::Left, self.id);
            drop(inner);
        }
    }
}

/// A [`Mutex`] that is held.
pub type MutexGuard<'a, T> = Guard<locks::MutexGuard<'a, T>>;
/// An [`RwLock`] that is held to read.
pub type RwLockReadGuard<'a, T> = Guard<locks::RwLockReadGuard<'a, T>>;
/// An [`RwLock`] that is held to write.
pub type RwLockWriteGuard<'a, T> = Guard<locks::RwLockWriteGuard<'a, T>>;

/// A lock without poisoning.
#[derive(Debug)]
pub struct Mutex<T> {
    name: &'static str,
    inner: locks::Mutex<T>,
}

impl<T> Mutex<T> {
    /// A lock of the class `name`.
    pub fn new(name: &'static str, value: T) -> Self {
        Self {
            name,
            inner: locks::Mutex::new(value),
        }
    }

    fn id(&self) -> LockId {
        LockId {
            name: self.name,
            at: core::ptr::from_ref(self).addr(),
            shared: false,
        }
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        tell(LockStep::Wants, self.id());
        Guard::new(self.id(), self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the lock if nobody has it. As it never waits, it is no step of a chain of locks until it is held.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.inner.try_lock() {
            Ok(guard) => Some(Guard::new(self.id(), guard)),
            Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(Guard::new(self.id(), poisoned.into_inner())),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }
}

/// A lock that many may hold to read, without poisoning.
#[derive(Debug)]
pub struct RwLock<T> {
    name: &'static str,
    inner: locks::RwLock<T>,
}

impl<T> RwLock<T> {
    /// A lock of the class `name`.
    pub fn new(name: &'static str, value: T) -> Self {
        Self {
            name,
            inner: locks::RwLock::new(value),
        }
    }

    fn id(&self, shared: bool) -> LockId {
        LockId {
            name: self.name,
            at: core::ptr::from_ref(self).addr(),
            shared,
        }
    }

    /// Waits until nobody writes.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        tell(LockStep::Wants, self.id(true));
        Guard::new(self.id(true), self.inner.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until nobody reads or writes.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        tell(LockStep::Wants, self.id(false));
        Guard::new(
            self.id(false),
            self.inner.write().unwrap_or_else(PoisonError::into_inner),
        )
    }
}

/// A condition to wait for under a [`Mutex`].
#[derive(Debug)]
pub struct Condvar {
    name: &'static str,
    inner: locks::Condvar,
}

impl Condvar {
    /// Waits for it are told under `name`.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            inner: locks::Condvar::new(),
        }
    }

    fn id(&self) -> LockId {
        LockId {
            name: self.name,
            at: core::ptr::from_ref(self).addr(),
            shared: true,
        }
    }

    /// Leaves the lock, waits, and takes it again.
    pub fn wait<'a, T>(&self, mut guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        let lock = guard.id;
        let inner = guard.inner.take().expect("a guard holds its lock while it lives");
        tell(LockStep::Left, lock);
        tell(LockStep::Sleeps, self.id());
        let inner = self.inner.wait(inner).unwrap_or_else(PoisonError::into_inner);
        tell(LockStep::Wakes, self.id());
        Guard::new(lock, inner)
    }

    /// The same: no time passes under the checker.
    pub fn wait_timeout<'a, T>(&self, guard: MutexGuard<'a, T>, _timeout: Duration) -> MutexGuard<'a, T> {
        self.wait(guard)
    }

    /// Wakes everybody who waits.
    pub fn notify_all(&self) {
        self.inner.notify_all();
    }
}
