//! What the drivers' tests on live memory share.
#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::atomic::{AtomicU64, Ordering};

use isomem::{Access, PageRange};
use isomem_linux::Window;

use crate::apart::Mapped;

pub(crate) const PAGE: usize = isomem::PAGE_SIZE;

/// All of user space.
pub(crate) fn anywhere() -> Window {
    // SAFETY: what the tests have a driver access nobody else accesses then, but by atomic operations.
    unsafe { Window::new(0, usize::MAX, Access::Write) }
}

pub(crate) fn rw(len_bytes: usize) -> Mapped {
    Mapped::new(len_bytes, libc::PROT_READ | libc::PROT_WRITE)
}

/// Fresh pages where `range` was unmapped. Not over what somebody else got there meanwhile.
pub(crate) fn map_again(range: PageRange) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let start = core::ptr::without_provenance_mut(range.start());
    // SAFETY: nothing is replaced.
    let at = unsafe { libc::mmap(start, range.len_bytes(), protection, flags, -1, 0) };
    assert_eq!(at.expose_provenance(), range.start());
}

/// The word at `addr`, for atomic operations of the CPU.
pub(crate) fn word(addr: usize) -> &'static AtomicU64 {
    // SAFETY: an aligned word of a mapping that outlives the test's threads; devices access it by atomic operations, too.
    unsafe { AtomicU64::from_ptr(core::ptr::with_exposed_provenance_mut(addr)) }
}

pub(crate) fn load(addr: usize) -> u64 {
    word(addr).load(Ordering::SeqCst)
}

/// Runs `check` in a fork's child, which must not allocate nor lock; says what it returned, or a signal's number negated.
pub(crate) fn in_child(check: impl FnOnce() -> u8) -> i32 {
    // SAFETY: the child only runs `check`, and ends.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
    if child == 0 {
        let status = check();
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(status.into()) };
    }
    let mut status = 0;
    // SAFETY: the child is ours.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        -libc::WTERMSIG(status)
    }
}

/// Numbers that look random (xorshift).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}
