//! What the tests that change the address space share: memory at addresses of their own, barriers, forks.
#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod ops;
pub(crate) mod universe;

use std::ffi::c_int;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

use isomem::{Access, Mirror, PAGE_SIZE, PageRange};

pub(crate) const BLOCK: usize = 2 << 20;
pub(crate) const PAGES_PER_BLOCK: usize = BLOCK / PAGE_SIZE;

/// Tests of one program share the address space: those that unmap take turns.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Maps `pages` fresh pages at `start`, which lies far below what the kernel chooses by itself, so that nobody else gets the holes.
pub(crate) fn map_at(start: usize, pages: usize) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the tests own these addresses.
    let at = unsafe { libc::mmap(start as *mut _, pages * PAGE_SIZE, protection, flags, -1, 0) };
    assert_eq!(at.addr(), start, "{}", std::io::Error::last_os_error());
}

/// Unmaps pages, without telling isomem.
pub(crate) fn unmap_raw(range: PageRange) {
    // SAFETY: the tests own these addresses.
    let done = unsafe { libc::munmap(range.start() as *mut _, range.len_bytes()) };
    assert_eq!(done, 0, "munmap({range}): {}", std::io::Error::last_os_error());
}

/// Advises the kernel, without telling isomem.
pub(crate) fn advise_raw(range: PageRange, advice: c_int) -> std::io::Result<()> {
    // SAFETY: the tests own these addresses, and expect what becomes of their contents.
    match unsafe { libc::madvise(range.start() as *mut _, range.len_bytes(), advice) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Moves a mapping, without telling isomem.
pub(crate) fn remap_raw(from: PageRange, to: PageRange) {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let len = from.len_bytes();
    // SAFETY: the tests own these addresses.
    let at = unsafe { libc::mremap(from.start() as *mut _, len, len, flags, to.start()) };
    assert_eq!(at.addr(), to.start(), "mremap: {}", std::io::Error::last_os_error());
}

/// The area that the kernel has at `addr`.
pub(crate) fn area_at(addr: usize) -> Option<PageRange> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut areas = maps.lines().filter_map(|line| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        PageRange::new(start, usize::from_str_radix(end, 16).ok()? - start).ok()
    });
    areas.find(|area| area.contains(addr))
}

/// How a child is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fork {
    /// By libc, which tells isomem.
    Announced,
    /// By the bare system call.
    Late,
}

/// Runs `check` in a child. It must not allocate nor lock. Returns what it returned, or a signal's number negated.
pub(crate) fn in_child(how: Fork, check: impl FnOnce() -> u8) -> i32 {
    let child = match how {
        // SAFETY: the child only runs `check`, and ends.
        Fork::Announced => unsafe { libc::fork() },
        // SAFETY: as above; without a stack and flags of its own it is a fork.
        Fork::Late => unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as libc::pid_t },
    };
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

/// A page whose fault is served only after every event that was reported before.
pub(crate) struct Barrier(PageRange);

impl Barrier {
    /// Takes the page at `start`.
    pub(crate) fn new(start: usize) -> Self {
        map_at(start, 1);
        Self(PageRange::new(start, PAGE_SIZE).unwrap())
    }

    /// Returns when everything is processed that happened behind isomem's back.
    pub(crate) fn wait(&self, mirror: &Mirror) {
        // SAFETY: the page is mapped, and nobody else uses it.
        unsafe { (self.0.start() as *mut u8).write_volatile(1) };
        let sent = mirror.migrate_to_device(self.0).unwrap();
        assert_eq!(sent.migrated(), 1, "{sent:?}");
        // SAFETY: as above.
        assert_eq!(unsafe { (self.0.start() as *const u8).read_volatile() }, 1);
    }
}

impl Drop for Barrier {
    fn drop(&mut self) {
        unmap_raw(self.0);
    }
}

/// What the program may do in memory that is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Area {
    Hole,
    Forbidden,
    ReadOnly,
    ReadWrite,
}

impl Area {
    pub(crate) fn is_mapped(self) -> bool {
        self != Self::Hole
    }

    pub(crate) fn allows(self, access: Access) -> bool {
        match access {
            Access::Read => matches!(self, Self::ReadOnly | Self::ReadWrite),
            Access::Write => self == Self::ReadWrite,
        }
    }
}
