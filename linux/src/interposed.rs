//! The interposed level: the C library's functions that change mappings, replaced by a preloaded object, come here first (WLD-2).
//!
//! The object is loaded before the program and knows no isomem; the program's isomem finds it by a name that it exports, and gives it the function that
//! it is to ask. What the C library does by itself does not come by.
//!
//! # Invariants
//! - IPO-1: while a call is served for an address space, that one is not closed.
//!
//! # Locking
//! As in [`crate::exact`].

use isomem_core::mm::Mm;

use crate::bracket::{Outcome, make_here, perform};
use crate::calls::effect;
use crate::exact::ExactError;
use crate::exact::current::Current;
use crate::sys::call::Call;
use crate::sys::interpose::{self, Reply};
use crate::sys::thread::is_own_thread;
use crate::world::Linux;

static CURRENT: Current = Current::new();

/// The interposed level for an address space; dropping it ends that, and waits for calls that are being served.
#[derive(Debug)]
pub struct Interposed(());

impl Interposed {
    /// Has the preloaded object ask here.
    ///
    /// # Errors
    /// [`ExactError::NoPreload`].
    pub fn start(mm: &Mm<Linux>) -> Result<Self, ExactError> {
        if !interpose::register(serve) {
            return Err(ExactError::NoPreload);
        }
        CURRENT.set(Some(mm.clone()));
        Ok(Self(()))
    }
}

impl Drop for Interposed {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

/// Whether there is a preloaded object; for `isomem doctor`.
pub fn is_there() -> bool {
    interpose::is_there()
}

extern "C" fn serve(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> Reply {
    let call = Call {
        number,
        args: [a, b, c, d, e, f],
    };
    // isomem's own threads, and a child that has the object but not the threads, go on.
    let serving = if is_own_thread() { None } else { CURRENT.enter() };
    let Some(serving) = serving.filter(|serving| serving.is_here()) else {
        return Reply::NOT_MADE;
    };
    match perform(serving.mm(), call, effect(&call), make_here) {
        Outcome::Untouched => Reply::NOT_MADE,
        Outcome::Made(result) => Reply::made(result),
        Outcome::Refused(errno) => Reply::made(-(errno.raw_os_error() as isize)),
    }
}
