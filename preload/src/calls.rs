//! The C library's names. What is not about a device goes on to the next definition (PRE-1).
//!
//! Some are variadic in C; on x86-64 the optional argument comes in the same register as a fixed one would, so they are written with it.

use core::ffi::{c_char, c_int, c_uint, c_ulong, c_void};
use std::os::fd::{AsRawFd, RawFd};

use isomem_core::addr::PAGE_SIZE;
use isomem_dmirror::MINORS;
use isomem_linux::sys::peek;
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::next::{errno, next, set_errno};
use crate::{process, remote};

const PATH: &[u8] = b"/dev/hmm_dmirror";

/// Which device a path names. The path may be a bad pointer.
fn minor(path: *const c_char) -> Option<usize> {
    let mut bytes = [0xff_u8; PATH.len() + 2];
    let got = peek::read(path.addr(), &mut bytes).unwrap_or(0);
    let [digit, 0] = bytes[..got].strip_prefix(PATH)? else {
        return None;
    };
    let minor = usize::from(digit.wrapping_sub(b'0'));
    (minor < MINORS).then_some(minor)
}

fn answer(result: Result<c_int, Errno>) -> c_int {
    result.unwrap_or_else(|errno| {
        set_errno(errno.raw_os_error());
        -1
    })
}

fn open_device(minor: usize, flags: c_int) -> c_int {
    let cloexec = match flags & libc::O_CLOEXEC {
        0 => SocketFlags::empty(),
        _ => SocketFlags::CLOEXEC,
    };
    answer(process::open(minor, cloexec))
}

macro_rules! opens {
    ($($name:ident $symbol:literal [$path:ident $flags:ident] ($($arg:ident: $kind:ty),*);)*) => {$(
        /// See the module.
        ///
        /// # Safety
        /// As for the C library's function of this name.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($($arg: $kind),*) -> c_int {
            if let Some(minor) = minor($path) {
                return open_device(minor, $flags);
            }
            next!($symbol as fn($($kind),*) -> c_int, $($arg),*)
        }
    )*};
}

opens! {
    open c"open" [path flags] (path: *const c_char, flags: c_int, mode: libc::mode_t);
    open64 c"open64" [path flags] (path: *const c_char, flags: c_int, mode: libc::mode_t);
    openat c"openat" [path flags] (at: c_int, path: *const c_char, flags: c_int, mode: libc::mode_t);
    openat64 c"openat64" [path flags] (at: c_int, path: *const c_char, flags: c_int, mode: libc::mode_t);
    __open_2 c"__open_2" [path flags] (path: *const c_char, flags: c_int);
    __open64_2 c"__open64_2" [path flags] (path: *const c_char, flags: c_int);
    __openat_2 c"__openat_2" [path flags] (at: c_int, path: *const c_char, flags: c_int);
    __openat64_2 c"__openat64_2" [path flags] (at: c_int, path: *const c_char, flags: c_int);
}

/// See the module.
///
/// # Safety
/// As for the C library's function of this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
    let here = process::open_here().and_then(|process| process.ioctl(fd, request as u32, arg.addr()));
    if let Some(result) = here {
        return answer(result.map(|()| 0));
    }
    if request >> 8 & 0xff == c_ulong::from(b'H') && remote::is_device(fd) {
        process::leave_parent();
        return answer(remote::ioctl(fd, request as u32, arg.addr()).map(|()| 0));
    }
    let result = next!(c"ioctl" as fn(c_int, c_ulong, *mut c_void) -> c_int, fd, request, arg);
    if result == -1 && errno() == libc::ENOTTY && remote::is_device(fd) {
        // The socket does not know this number; the device that it stands for has another word for that.
        set_errno(libc::EINVAL);
    }
    result
}

/// See the module.
///
/// # Safety
/// As for the C library's function of this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn close(fd: c_int) -> c_int {
    let ours = process::open_here().filter(|process| process.has(fd));
    let closed = next!(c"close" as fn(c_int) -> c_int, fd);
    if let Some(process) = ours {
        process.sweep();
    }
    closed
}

/// See the module.
///
/// # Safety
/// As for the C library's function of this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn dup2(from: c_int, to: c_int) -> c_int {
    let ours = process::open_here().filter(|process| process.has(to));
    let result = next!(c"dup2" as fn(c_int, c_int) -> c_int, from, to);
    if let Some(process) = ours {
        process.sweep();
    }
    result
}

/// See the module.
///
/// # Safety
/// As for the C library's function of this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
    let ours = process::open_here().filter(|process| process.has(to));
    let result = next!(c"dup3" as fn(c_int, c_int, c_int) -> c_int, from, to, flags);
    if let Some(process) = ours {
        process.sweep();
    }
    result
}

/// See the module.
///
/// # Safety
/// As for the C library's function of this name.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    if let Some(process) = process::open_here().filter(|_| flags == 0) {
        // Devices first, while the descriptors that they live on are there: some of those may lie in the same range.
        process.close_devices(first, last);
    }
    let result = next!(c"close_range" as fn(c_uint, c_uint, c_int) -> c_int, first, last, flags);
    if let Some(process) = process::open_here() {
        process.sweep();
    }
    result
}

macro_rules! refused {
    ($($name:ident $symbol:literal ($($arg:ident: $kind:ty),*) -> $out:ty;)*) => {$(
        /// The device has no such operation.
        ///
        /// # Safety
        /// As for the C library's function of this name.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name(fd: c_int, $($arg: $kind),*) -> $out {
            if process::open_here().is_some_and(|process| process.has(fd)) {
                set_errno(libc::EINVAL);
                return -1;
            }
            next!($symbol as fn(c_int, $($kind),*) -> $out, fd, $($arg),*)
        }
    )*};
}

refused! {
    read c"read" (buffer: *mut c_void, len: usize) -> isize;
    write c"write" (buffer: *const c_void, len: usize) -> isize;
    pread64 c"pread64" (buffer: *mut c_void, len: usize, offset: i64) -> isize;
    pwrite64 c"pwrite64" (buffer: *const c_void, len: usize, offset: i64) -> isize;
    pread c"pread" (buffer: *mut c_void, len: usize, offset: i64) -> isize;
    pwrite c"pwrite" (buffer: *const c_void, len: usize, offset: i64) -> isize;
    readv c"readv" (vector: *const libc::iovec, count: c_int) -> isize;
    writev c"writev" (vector: *const libc::iovec, count: c_int) -> isize;
}

/// A mapping of a device: pages of zeroes, present from the start. `None` where `fd` is no device's.
pub(crate) fn map_device(
    at: *mut c_void,
    len: usize,
    protection: c_int,
    flags: c_int,
    fd: RawFd,
) -> Option<*mut c_void> {
    if flags & libc::MAP_ANONYMOUS != 0 || !process::open_here()?.has(fd) {
        return None;
    }
    let zeroes = rustix::fs::memfd_create(c"hmm_dmirror", rustix::fs::MemfdFlags::CLOEXEC).ok()?;
    rustix::fs::ftruncate(&zeroes, len.next_multiple_of(PAGE_SIZE) as u64).ok()?;
    let mapped = next_mmap(at, len, protection, flags, zeroes.as_raw_fd(), 0);
    if mapped != libc::MAP_FAILED {
        // SAFETY: the mapping was made just now; populating it changes no contents. Without it the pages come as they are touched.
        unsafe { libc::madvise(mapped, len, libc::MADV_POPULATE_READ) };
    }
    Some(mapped)
}

fn next_mmap(at: *mut c_void, len: usize, protection: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void {
    type Address = *mut c_void;
    static NEXT: crate::next::Next = crate::next::Next::new(c"mmap");
    let Some(found) = NEXT.get() else {
        set_errno(libc::ENOSYS);
        return libc::MAP_FAILED;
    };
    type Mmap = unsafe extern "C" fn(Address, usize, c_int, c_int, c_int, i64) -> Address;
    // SAFETY: the C library's function of this name has this type.
    let mmap = unsafe { core::mem::transmute::<Address, Mmap>(found) };
    // SAFETY: the arguments are the program's own.
    unsafe { mmap(at, len, protection, flags, fd, offset) }
}
