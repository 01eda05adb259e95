//! Lets the address space prepare for a fork, and learn that it is over.
//!
//! # Invariants
//! - FORK-1: hooks that were prepared are told the end, in the parent, exactly once; hooks that were installed in between are not.
//! - FORK-2: in the child nothing of the parent's hooks runs, and the list is empty and unlocked.
//!
//! # Locking
//! The list is locked from *prepare* to *parent* or *child*, so that no other thread holds it at the moment of the fork.
//! The lock spins: a lock that sleeps could not be released by the child.
//!
//! Linux: dup_mmap calls the userfaultfd code at the same moment; pthread_atfork(3).

use core::cell::UnsafeCell;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Address spaces that can be open at the same time.
const HOOKS_MAX: usize = 8;

/// What is to be done around a fork. Runs on the thread that forks.
pub trait ForkHooks: Send + Sync {
    /// The process is about to fork.
    fn prepare(&self);

    /// It has (or could not); this is the parent.
    fn parent(&self);
}

struct Entry {
    id: usize,
    prepared: bool,
    hooks: Box<dyn ForkHooks>,
}

struct List {
    locked: AtomicBool,
    entries: UnsafeCell<[Option<Entry>; HOOKS_MAX]>,
}

// SAFETY: the entries are Send and Sync, and are only reached with `locked` taken.
unsafe impl Sync for List {}

static LIST: List = List {
    locked: AtomicBool::new(false),
    entries: UnsafeCell::new([const { None }; HOOKS_MAX]),
};
static NEXT_ID: AtomicUsize = AtomicUsize::new(0);
static REGISTER: Once = Once::new();

impl List {
    fn lock(&self) {
        while self
            .locked
            .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            rustix::thread::sched_yield();
        }
    }

    fn unlock(&self) {
        self.locked.store(false, Ordering::Release);
    }

    /// # Safety
    /// The caller's thread has locked the list, and has no other such reference.
    #[allow(clippy::mut_from_ref)]
    unsafe fn entries(&self) -> &mut [Option<Entry>; HOOKS_MAX] {
        // SAFETY: as the caller promises.
        unsafe { &mut *self.entries.get() }
    }
}

/// Hooks in force; dropping it takes them away. Waits for a fork that is under way.
#[derive(Debug)]
pub struct Installed(usize);

/// Puts `hooks` in force for every fork of this process through the C library. `None` when there are too many.
#[doc(alias = "pthread_atfork")]
pub fn install(hooks: Box<dyn ForkHooks>) -> Option<Installed> {
    REGISTER.call_once(|| {
        // SAFETY: the three functions have the right type and stay for ever.
        unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
    });
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    LIST.lock();
    // SAFETY: locked just now.
    let place = unsafe { LIST.entries() }.iter_mut().find(|entry| entry.is_none());
    let installed = place.map(|place| {
        *place = Some(Entry {
            id,
            prepared: false,
            hooks,
        });
        Installed(id)
    });
    LIST.unlock();
    installed
}

impl Drop for Installed {
    fn drop(&mut self) {
        LIST.lock();
        // SAFETY: locked just now.
        let mut mine = unsafe { LIST.entries() }
            .iter_mut()
            .filter(|entry| entry.as_ref().is_some_and(|e| e.id == self.0));
        let entry = mine.next().and_then(Option::take);
        LIST.unlock();
        // In a child the entry is gone already.
        drop(entry);
    }
}

extern "C" fn prepare() {
    LIST.lock();
    // SAFETY: locked just now.
    for entry in unsafe { LIST.entries() }.iter_mut().flatten() {
        entry.hooks.prepare();
        entry.prepared = true;
    }
}

extern "C" fn parent() {
    // SAFETY: this thread locked it in `prepare`.
    for entry in unsafe { LIST.entries() }.iter_mut().flatten() {
        if core::mem::take(&mut entry.prepared) {
            entry.hooks.parent();
        }
    }
    LIST.unlock();
}

extern "C" fn child() {
    // SAFETY: this thread is the child's copy of the one that locked it in `prepare`.
    for entry in unsafe { LIST.entries() } {
        // Not dropped: what they hold belongs to the parent (FORK-2).
        core::mem::forget(entry.take());
    }
    LIST.unlock();
}
