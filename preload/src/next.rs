//! The next definition of a name, after this object's own: the C library's, or that of another preloaded object.

use core::ffi::{CStr, c_void};
use core::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

/// A name that is looked up at its first use. Works before anything is initialised; looking up twice does no harm.
///
/// The look-up may allocate, and an allocator of the program's own may map memory for that, by the very function that is looked up: then there is no
/// answer for it.
pub(crate) struct Next {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
    /// The thread that looks it up; 0 for none.
    looking: AtomicI32,
}

impl Next {
    pub(crate) const fn new(name: &'static CStr) -> Self {
        Self {
            name,
            found: AtomicPtr::new(core::ptr::null_mut()),
            looking: AtomicI32::new(0),
        }
    }

    /// Its address; `None` where there is no such function, or it is being looked up by this very thread.
    pub(crate) fn get(&self) -> Option<*mut c_void> {
        // Relaxed: code does not change, and whoever misses the news looks again.
        let found = self.found.load(Ordering::Relaxed);
        if !found.is_null() {
            return Some(found);
        }
        let here = rustix::thread::gettid().as_raw_nonzero().get();
        // Relaxed: a thread sees its own number, or another's. Of several that look, one may be forgotten, which only matters where it allocates.
        if self.looking.load(Ordering::Relaxed) == here {
            return None;
        }
        self.looking.store(here, Ordering::Relaxed);
        // SAFETY: the name is a C string that lives for ever.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        self.looking.store(0, Ordering::Relaxed);
        self.found.store(found, Ordering::Relaxed);
        (!found.is_null()).then_some(found)
    }
}

/// Calls the next definition of a function; where there is none does what is said after `else`, or fails with ENOSYS.
macro_rules! next {
    ($name:literal as fn($($kind:ty),*) -> $out:ty, $($arg:expr),*) => {
        $crate::next::next!($name as fn($($kind),*) -> $out, $($arg),*; else {
            $crate::next::set_errno(libc::ENOSYS);
            $crate::next::Failed::FAILED
        })
    };
    ($name:literal as fn($($kind:ty),*) -> $out:ty, $($arg:expr),*; else $none:expr) => {{
        static NEXT: $crate::next::Next = $crate::next::Next::new($name);
        match NEXT.get() {
            Some(found) => {
                // SAFETY: a function of this name in the C library has this type, and so has what another object puts in its place.
                let function = unsafe { core::mem::transmute::<*mut core::ffi::c_void, unsafe extern "C" fn($($kind),*) -> $out>(found) };
                // SAFETY: the arguments are those that the caller passed to the function of this name.
                unsafe { function($($arg),*) }
            }
            None => $none,
        }
    }};
}
pub(crate) use next;

pub(crate) fn set_errno(errno: i32) {
    // SAFETY: the C library's own place for the calling thread.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: valid for this thread, and nobody else uses it.
    unsafe { place.write(errno) };
}

pub(crate) fn errno() -> i32 {
    // SAFETY: the C library's own place for the calling thread.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: valid for this thread, and nobody else uses it.
    unsafe { place.read() }
}

/// What a function returns when it fails.
pub(crate) trait Failed {
    const FAILED: Self;
}

impl Failed for i32 {
    const FAILED: Self = -1;
}

impl Failed for isize {
    const FAILED: Self = -1;
}

impl Failed for *mut c_void {
    const FAILED: Self = libc::MAP_FAILED;
}
