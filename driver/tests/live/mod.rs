//! What the drivers' tests on live memory share.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "what a child does between fork and exit shares one reason"
)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use isomem::{Access, Mm, PageRange};
use isomem_core::addr::BLOCK_SIZE;
use isomem_core::bus::{Bus, Span};
use isomem_core::mirror::pin::Pin;
use isomem_linux::{Linux, Window};

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
pub(crate) fn word_at(addr: usize) -> &'static AtomicU64 {
    // SAFETY: an aligned word of a mapping that outlives the test's threads; devices access it by atomic operations, too.
    unsafe { AtomicU64::from_ptr(core::ptr::with_exposed_provenance_mut(addr)) }
}

pub(crate) fn load_at(addr: usize) -> u64 {
    word_at(addr).load(Ordering::SeqCst)
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

/// Pages of a block of their own, so that tests do not meet. They stay for ever; only their owner's threads use them, word by word and atomically.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) start: usize,
    pub(crate) len_bytes: usize,
}

impl Memory {
    pub(crate) fn new(pages: usize) -> Self {
        let len_bytes = pages * PAGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let room = len_bytes + 2 * BLOCK_SIZE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe { libc::mmap(core::ptr::null_mut(), room, protection, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        let start = start.expose_provenance().next_multiple_of(BLOCK_SIZE);
        Self { start, len_bytes }
    }

    pub(crate) fn range(&self) -> PageRange {
        PageRange::new(self.start, self.len_bytes).unwrap()
    }

    /// New pages where there are none.
    pub(crate) fn map_again(&self) {
        map_again(self.range());
    }

    /// The program drops it again and again: it is unmapped and mapped, or emptied.
    pub(crate) fn goes_and_comes(&self, mm: &Mm) {
        for round in 0..300 {
            if round % 2 == 0 {
                mm.core().unmap(self.range()).unwrap();
                self.map_again();
            } else {
                mm.core().discard(self.range()).unwrap();
            }
            if round % 16 == 0 {
                std::thread::yield_now();
            }
        }
    }

    fn window(self, access: Access) -> Window {
        // SAFETY: the memory is the test's, its provenance was exposed, and both sides access it by single atomic or volatile words.
        unsafe { Window::new(self.start, self.len_bytes, access) }
    }
}

/// The word at `offset`, as the program sees it. It must be mapped.
pub(crate) fn word(memory: Memory, offset: usize) -> &'static AtomicU64 {
    assert!(offset.is_multiple_of(8) && offset < memory.len_bytes);
    let word = core::ptr::with_exposed_provenance_mut(memory.start + offset);
    // SAFETY: the mapping is there for ever, or the test has just mapped it again; the word is aligned, and accessed atomically only.
    unsafe { AtomicU64::from_ptr(word) }
}

/// The device reads the word that is pinned.
pub(crate) fn load(world: &Linux, memory: Memory, pin: Pin<'_>) -> u64 {
    let span = Span::new(pin, &memory.window(Access::Read), Access::Read).unwrap();
    let mut out = [0; 8];
    world.load(&span, 0, &mut out).unwrap();
    u64::from_ne_bytes(out)
}

/// The device writes the word that is pinned.
pub(crate) fn store(world: &Linux, memory: Memory, pin: Pin<'_>, value: u64) {
    let span = Span::new(pin, &memory.window(Access::Write), Access::Write).unwrap();
    world.store(&span, 0, &value.to_ne_bytes()).unwrap();
}

/// Waits until something is so.
pub(crate) fn busy(is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "it does not come about");
        std::thread::yield_now();
    }
}

/// What `check` says in a fork's child.
pub(crate) fn in_child(check: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child checks, which takes no lock that another thread could hold, and exits at once.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let code = i32::from(!check());
        // SAFETY: it ends the child without running anything of the parent's.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: a child of this process, and a place for its status.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child);
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}
