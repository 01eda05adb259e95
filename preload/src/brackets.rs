//! The C library's calls that change mappings: devices are told before the change is made (WLD-2, the interposed level).
//!
//! Each goes to the next definition: while an address space is open at that level between the start and the end of an invalidation, on a thread of
//! isomem's own where that is needed. So other preloaded objects see these calls, whether they come before this one or after.
//!
//! posix_madvise is left alone: the C library makes nothing of the one advice that would drop contents. fork is announced by pthread_atfork.
//!
//! What the C library does by itself (`free` of a large block, the end of a thread) does not come by here: that takes the exact level.

use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};

use isomem_linux::sys::call::{Call, make};
use isomem_linux::sys::interpose::{Hook, Make, VERSION};

use crate::calls::map_device;
use crate::next::{Failed, next, set_errno};

/// Whom an isomem of this process has us ask, the program's own or this object's; null while there is none.
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

/// What isomem makes of the call; `None` where it is no business of devices.
fn ask(call: &Call, make: Option<Make>) -> Option<isize> {
    let hook = HOOK.load(Ordering::Acquire);
    if hook.is_null() {
        return None;
    }
    // SAFETY: `isomem_interpose_set` stored a function of this type.
    let hook = unsafe { core::mem::transmute::<*mut c_void, Hook>(hook) };
    let [a, b, c, d, e, f] = call.args;
    let reply = hook(call.number, a, b, c, d, e, f, make);
    (reply.made != 0).then_some(reply.result)
}

/// What a function returns where the kernel returned `result`.
fn returned<T: Answer>(result: isize) -> T {
    match result {
        -4095..0 => {
            set_errno(-result as c_int);
            T::FAILED
        }
        result => T::answer(result),
    }
}

/// The other way round.
fn taken_back<T: Answer + PartialEq>(answer: T) -> isize {
    if answer == T::FAILED {
        let errno = std::io::Error::last_os_error().raw_os_error();
        return -(errno.unwrap_or(libc::EIO) as isize);
    }
    answer.result()
}

/// The call as the bare instruction makes it, where the next definition is being looked up.
fn bare<T: Answer>(call: Call) -> T {
    // SAFETY: the program asked for this very call.
    returned(unsafe { make(call) })
}

/// As the C library's: the kernel moves the end of the heap first, with devices told, and then the C library learns of it, for it keeps the end itself.
///
/// # Safety
/// As for the C library's function of this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn brk(end: *mut c_void) -> c_int {
    ask(&Call::new(libc::SYS_brk, [end.register()]), None);
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
        ask(
            &Call::new(libc::SYS_brk, [end.register().wrapping_add_signed(by)]),
            None,
        );
    }
    next!(c"sbrk" as fn(isize) -> *mut c_void, by)
}

/// An argument as the kernel gets it.
trait Register {
    fn register(self) -> usize;
    fn of(register: usize) -> Self;
}

macro_rules! numbers {
    ($($kind:ty)*) => {$(
        impl Register for $kind {
            fn register(self) -> usize {
                self as isize as usize
            }

            fn of(register: usize) -> Self {
                register as Self
            }
        }
    )*};
}

numbers! { c_int usize i64 }

impl<T> Register for *mut T {
    fn register(self) -> usize {
        self.expose_provenance()
    }

    fn of(register: usize) -> Self {
        core::ptr::with_exposed_provenance_mut(register)
    }
}

impl<T> Register for *const T {
    fn register(self) -> usize {
        self.expose_provenance()
    }

    fn of(register: usize) -> Self {
        core::ptr::with_exposed_provenance(register)
    }
}

/// The result as the function's caller gets it.
trait Answer: Failed {
    fn answer(result: isize) -> Self;
    fn result(self) -> isize;
}

impl Answer for c_int {
    fn answer(result: isize) -> Self {
        result as Self
    }

    fn result(self) -> isize {
        self as isize
    }
}

impl Answer for *mut c_void {
    fn answer(result: isize) -> Self {
        core::ptr::with_exposed_provenance_mut(result as usize)
    }

    fn result(self) -> isize {
        self.expose_provenance() as isize
    }
}

/// A function that asks isomem first, and its way to the next definition. `$first` may answer before.
macro_rules! brackets {
    ($($name:ident $symbol:literal $number:ident ($($arg:ident: $kind:ty),*) -> $out:ty $(, first $first:expr)?;)*) => {$(
        /// See the module.
        ///
        /// # Safety
        /// As for the C library's function of this name.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($($arg: $kind),*) -> $out {
            $(if let Some(answer) = $first { return answer; })?
            let call = Call::new(libc::$number, [$($arg.register()),*]);
            extern "C" fn make(a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> isize {
                let mut registers = [a, b, c, d, e, f].into_iter();
                $(let $arg = <$kind as Register>::of(registers.next().unwrap_or_default());)*
                let call = Call::new(libc::$number, [$($arg.register()),*]);
                taken_back(next!($symbol as fn($($kind),*) -> $out, $($arg),*; else bare::<$out>(call)))
            }
            match ask(&call, Some(make)) {
                Some(result) => returned(result),
                None => next!($symbol as fn($($kind),*) -> $out, $($arg),*; else bare::<$out>(call)),
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
    mmap c"mmap" SYS_mmap (at: *mut c_void, len: usize, protection: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void,
        first map_device(at, len, protection, flags, fd);
    mmap64 c"mmap64" SYS_mmap (at: *mut c_void, len: usize, protection: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void,
        first map_device(at, len, protection, flags, fd);
}
