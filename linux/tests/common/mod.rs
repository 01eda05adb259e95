//! Memory of the program for tests: mapped, written and read byte by byte.

#![allow(dead_code, unreachable_pub)]

use std::cell::RefCell;

use isomem_core::addr::{BLOCK_SIZE, PAGE_SIZE, PageRange};
use isomem_linux::sys::mapping;

/// A private anonymous mapping that isomem does not know as its own.
pub struct Program {
    pub range: PageRange,
    /// Pages that are not this value's any more: anything may be mapped there by now.
    given_up: RefCell<Vec<usize>>,
}

impl Program {
    /// Pages that start at a block.
    pub fn map(page_count: usize) -> Self {
        let len = page_count * PAGE_SIZE + BLOCK_SIZE;
        // SAFETY: a new mapping touches no existing one.
        let start = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        let start = start.expose_provenance();
        let aligned = start.next_multiple_of(BLOCK_SIZE);
        for (from, to) in [(start, aligned), (aligned + page_count * PAGE_SIZE, start + len)] {
            if let Ok(rest) = PageRange::new(from, to - from) {
                mapping::unmap(rest).unwrap();
            }
        }
        Self {
            range: PageRange::new(aligned, page_count * PAGE_SIZE).unwrap(),
            given_up: RefCell::default(),
        }
    }

    /// Mapped, and each page holds its own number.
    pub fn filled(page_count: usize) -> Self {
        let program = Self::map(page_count);
        program.fill();
        program
    }

    pub fn fill(&self) {
        for page in 0..self.range.page_count() {
            write(self.range, page, page as u64 + 1);
        }
    }

    /// Whether each page holds what `fill` wrote.
    pub fn check(&self) {
        check(self.range, 0);
    }

    /// The pages are unmapped, or will be before anybody else can map something.
    pub fn give_up(&self, first: usize, count: usize) -> PageRange {
        self.given_up.borrow_mut().extend(first..first + count);
        self.part(first, count)
    }

    pub fn part(&self, first: usize, count: usize) -> PageRange {
        self.range.skip(first).unwrap().take(count)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let given_up = self.given_up.borrow();
        for page in (0..self.range.page_count()).filter(|page| !given_up.contains(page)) {
            mapping::unmap(self.part(page, 1)).unwrap();
        }
    }
}

/// Whether page `n` of `range` holds what `fill` wrote to page `n + skipped`.
pub fn check(range: PageRange, skipped: usize) {
    for page in 0..range.page_count() {
        assert_eq!(read(range, page), (page + skipped) as u64 + 1, "page {page} of {range}");
    }
}

fn word(range: PageRange, page: usize) -> *mut u64 {
    let at = range.start() + page * PAGE_SIZE;
    core::ptr::with_exposed_provenance_mut(at + 8 * (at / PAGE_SIZE % 512))
}

pub fn write(range: PageRange, page: usize, value: u64) {
    // SAFETY: the tests pass mapped, writable memory.
    unsafe { word(range, page).write_volatile(value) }
}

pub fn read(range: PageRange, page: usize) -> u64 {
    // SAFETY: the tests pass mapped, readable memory.
    unsafe { word(range, page).read_volatile() }
}

/// Runs `parent` while a forked child lives that shares all pages copy-on-write.
pub fn while_forked(parent: impl FnOnce()) {
    let mut pipe = [0; 2];
    // SAFETY: room for two descriptors.
    assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
    // SAFETY: the child calls only async-signal-safe functions.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let mut byte = 0_u8;
        // SAFETY: closes the writing end and waits until the parent closes its own.
        unsafe { libc::close(pipe[1]) };
        // SAFETY: room for a byte.
        unsafe { libc::read(pipe[0], (&raw mut byte).cast(), 1) };
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(0) };
    }
    parent();
    for fd in pipe {
        // SAFETY: ours, closed once.
        unsafe { libc::close(fd) };
    }
    // SAFETY: our child.
    unsafe { libc::waitpid(child, core::ptr::null_mut(), 0) };
}
