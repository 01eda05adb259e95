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
use crate::calls::{Effect, effect};
use crate::exact::ExactError;
use crate::exact::current::Current;
use crate::sys::call::Call;
use crate::sys::interpose::{self, Make, Reply};
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
        CURRENT.open(mm.clone()).map_err(|errno| ExactError::Failed {
            call: "mmap",
            errno: errno.raw_os_error(),
        })?;
        Ok(Self(()))
    }
}

impl Drop for Interposed {
    fn drop(&mut self) {
        CURRENT.close();
    }
}

/// Whether there is a preloaded object; for `isomem doctor`.
pub fn is_there() -> bool {
    interpose::is_there()
}

#[allow(clippy::too_many_arguments, reason = "a call has six, and a number")]
extern "C" fn serve(
    number: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
    make: Option<Make>,
) -> Reply {
    let call = Call {
        number,
        args: [a, b, c, d, e, f],
    };
    let effect = effect(&call);
    // Calls that change nothing, isomem's own threads, and a child that has the object but not the threads, go on.
    if effect == Effect::Nothing || is_own_thread() {
        return Reply::NOT_MADE;
    }
    let Some(serving) = CURRENT.enter() else {
        return Reply::NOT_MADE;
    };
    let how = move |world: &Linux, call| match make {
        Some(make) => make(a, b, c, d, e, f),
        None => make_here(world, call),
    };
    match perform(serving.mm(), call, effect, how) {
        Outcome::Untouched => Reply::NOT_MADE,
        Outcome::Made(result) => Reply::made(result),
        Outcome::Refused(errno) => Reply::made(-(errno.raw_os_error() as isize)),
    }
}
