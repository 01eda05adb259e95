//! The C library's calls that change mappings: devices are told before the change is made (WLD-2, the interposed level).
//!
//! While no device is open, each goes to the next definition. Otherwise the system call is made between the start and the end of an
//! invalidation, on a thread of isomem's own where that is needed; so what another preloaded object does with these calls does not happen then.
//!
//! posix_madvise is left alone: the C library makes nothing of the one advice that would drop contents. fork is announced by pthread_atfork.
//!
//! What the C library does by itself (`free` of a large block, the end of a thread) does not come by here: that takes the exact level.

use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};

use isomem_linux::bracket::{Outcome, make_here, perform};
use isomem_linux::calls::effect;
use isomem_linux::sys::call::Call;
use isomem_linux::sys::interpose::{Hook, VERSION};
use isomem_linux::sys::thread::is_own_thread;

use crate::calls::map_device;
use crate::next::{next, set_errno};
use crate::process;

/// Whom the program's own isomem has us ask; null while there is none.
static HOOK: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());

/// The name by which an isomem that is linked into the program finds this object (`isomem_linux::sys::interpose`).
#[unsafe(no_mangle)]
pub(crate) extern "C" fn isomem_interpose_set(version: u32, hook: Option<Hook>) -> c_int {
    if version != VERSION {
        return -1;
    }
    let hook = hook.map_or(core::ptr::null_mut(), |hook| hook as *mut c_void);
    // Release: what the hook needs was made before; pairs with the acquire in `ask`.
    HOOK.store(hook, Ordering::Release);
    0
}

/// What the program's own isomem makes of the call.
fn ask(call: &Call) -> Option<isize> {
    let hook = HOOK.load(Ordering::Acquire);
    if hook.is_null() {
        return None;
    }
    // SAFETY: `isomem_interpose_set` stored a function of this type.
    let hook = unsafe { core::mem::transmute::<*mut c_void, Hook>(hook) };
    let [a, b, c, d, e, f] = call.args;
    let reply = hook(call.number, a, b, c, d, e, f);
    (reply.made != 0).then_some(reply.result)
}

/// The result of the call, made with devices told; `None` where it is no business of theirs.
fn bracketed(call: Call) -> Option<isize> {
    let made = match process::open_here().and_then(|process| process.live()) {
        _ if is_own_thread() => None,
        None => ask(&call),
        Some(live) => match perform(live.mm().core(), call, effect(&call), make_here) {
            Outcome::Untouched => None,
            Outcome::Made(result) => Some(result),
            Outcome::Refused(errno) => Some(-(errno.raw_os_error() as isize)),
        },
    };
    made.map(|result| match result {
        -4095..0 => {
            set_errno(-result as c_int);
            -1
        }
        result => result,
    })
}

/// As the C library's: the kernel moves the end of the heap first, with devices told, and then the C library learns of it, for it keeps the end itself.
///
/// # Safety
/// As for the C library's function of this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn brk(end: *mut c_void) -> c_int {
    let _ = bracketed(Call::new(libc::SYS_brk, [end.register()]));
    next!(c"brk" as fn(*mut c_void) -> c_int, end)
}

/// The same.
///
/// # Safety
/// As for the C library's function of this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn sbrk(by: isize) -> *mut c_void {
    if by < 0 {
        let end = next!(c"sbrk" as fn(isize) -> *mut c_void, 0);
        let _ = bracketed(Call::new(libc::SYS_brk, [end.register().wrapping_add_signed(by)]));
    }
    next!(c"sbrk" as fn(isize) -> *mut c_void, by)
}

/// An argument as the kernel gets it.
trait Register {
    fn register(self) -> usize;
}

impl Register for c_int {
    fn register(self) -> usize {
        self as isize as usize
    }
}

impl Register for usize {
    fn register(self) -> usize {
        self
    }
}

impl Register for i64 {
    fn register(self) -> usize {
        self as usize
    }
}

impl<T> Register for *mut T {
    fn register(self) -> usize {
        self.expose_provenance()
    }
}

impl<T> Register for *const T {
    fn register(self) -> usize {
        self.expose_provenance()
    }
}

/// The result as the function's caller gets it.
trait Answer {
    fn answer(result: isize) -> Self;
}

impl Answer for c_int {
    fn answer(result: isize) -> Self {
        result as Self
    }
}

impl Answer for *mut c_void {
    fn answer(result: isize) -> Self {
        core::ptr::with_exposed_provenance_mut(result as usize)
    }
}

macro_rules! brackets {
    ($($name:ident $symbol:literal $number:ident ($($arg:ident: $kind:ty),*) -> $out:ty;)*) => {$(
        /// See the module.
        ///
        /// # Safety
        /// As for the C library's function of this name.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($($arg: $kind),*) -> $out {
            match bracketed(Call::new(libc::$number, [$($arg.register()),*])) {
                Some(result) => <$out as Answer>::answer(result),
                None => next!($symbol as fn($($kind),*) -> $out, $($arg),*),
            }
        }
    )*};
}

brackets! {
    munmap c"munmap" SYS_munmap (at: *mut c_void, len: usize) -> c_int;
    mprotect c"mprotect" SYS_mprotect (at: *mut c_void, len: usize, protection: c_int) -> c_int;
    pkey_mprotect c"pkey_mprotect" SYS_pkey_mprotect (at: *mut c_void, len: usize, protection: c_int, key: c_int) -> c_int;
    madvise c"madvise" SYS_madvise (at: *mut c_void, len: usize, advice: c_int) -> c_int;
    mremap c"mremap" SYS_mremap (at: *mut c_void, len: usize, new_len: usize, flags: c_int, to: *mut c_void) -> *mut c_void;
    shmat c"shmat" SYS_shmat (id: c_int, at: *const c_void, flags: c_int) -> *mut c_void;
    shmdt c"shmdt" SYS_shmdt (at: *const c_void) -> c_int;
    ftruncate c"ftruncate" SYS_ftruncate (fd: c_int, len: i64) -> c_int;
    ftruncate64 c"ftruncate64" SYS_ftruncate (fd: c_int, len: i64) -> c_int;
    truncate c"truncate" SYS_truncate (path: *const c_char, len: i64) -> c_int;
    truncate64 c"truncate64" SYS_truncate (path: *const c_char, len: i64) -> c_int;
    fallocate c"fallocate" SYS_fallocate (fd: c_int, mode: c_int, offset: i64, len: i64) -> c_int;
    fallocate64 c"fallocate64" SYS_fallocate (fd: c_int, mode: c_int, offset: i64, len: i64) -> c_int;
}

macro_rules! maps {
    ($($name:ident $symbol:literal)*) => {$(
        /// See the module. A mapping of a device is made of other memory.
        ///
        /// # Safety
        /// As for the C library's function of this name.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name(
            at: *mut c_void,
            len: usize,
            protection: c_int,
            flags: c_int,
            fd: c_int,
            offset: i64,
        ) -> *mut c_void {
            if let Some(mapped) = map_device(at, len, protection, flags, fd) {
                return mapped;
            }
            let registers = [
                at.register(),
                len,
                protection.register(),
                flags.register(),
                fd.register(),
                offset.register(),
            ];
            match bracketed(Call::new(libc::SYS_mmap, registers)) {
                Some(result) => Answer::answer(result),
                None => next!(
                    $symbol as fn(*mut c_void, usize, c_int, c_int, c_int, i64) -> *mut c_void,
                    at, len, protection, flags, fd, offset
                ),
            }
        }
    )*};
}

maps! { mmap c"mmap" mmap64 c"mmap64" }
