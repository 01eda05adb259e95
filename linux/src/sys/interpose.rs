//! The names by which the preloaded object and isomem find each other. Both sides may be built apart: the types are C's.

use core::ffi::{CStr, c_int};

/// What isomem made of a call.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Not 0 where the call was made.
    pub made: isize,
    /// What it returned, as the kernel returns it.
    pub result: isize,
}

impl Reply {
    /// The call is to be made by whoever asks.
    pub const NOT_MADE: Self = Self { made: 0, result: 0 };

    /// It was made.
    pub const fn made(result: isize) -> Self {
        Self { made: 1, result }
    }
}

/// Makes a call with those arguments by the next definition of its function, so that other preloaded objects see it, too. Returns what the kernel
/// would return.
pub type Make = extern "C" fn(usize, usize, usize, usize, usize, usize) -> isize;

/// Whom the preloaded object asks: a call's number and arguments, and how to make it; by the bare system call where that is not said.
pub type Hook = extern "C" fn(usize, usize, usize, usize, usize, usize, usize, Option<Make>) -> Reply;

/// The function that the object exports.
pub const SET: &CStr = c"isomem_interpose_set";
/// The version of these types.
pub const VERSION: u32 = 2;

/// Its type: takes [`VERSION`] and whom to ask, and returns 0 where it knows that version.
pub type Set = extern "C" fn(u32, Option<Hook>) -> c_int;

fn set() -> Option<Set> {
    // SAFETY: the name is a C string.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, SET.as_ptr()) };
    if found.is_null() {
        return None;
    }
    // SAFETY: what exports this name has this type.
    Some(unsafe { core::mem::transmute::<*mut core::ffi::c_void, Set>(found) })
}

/// Whether there is a preloaded object.
pub fn is_there() -> bool {
    set().is_some()
}

/// Has the preloaded object ask `hook` from now on; false where there is none, or none of this version.
pub fn register(hook: Hook) -> bool {
    set().is_some_and(|set| set(VERSION, Some(hook)) == 0)
}
