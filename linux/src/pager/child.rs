//! Gives a child that was forked without notice what its parent had on devices: its own places for those pages are holes.
//!
//! # Invariants
//! - CHD-1: nothing here waits. The arena's pages are read through the kernel, which says where there is none instead of making a fault that only
//!   this thread, or one that waits for it, could serve.
//! - CHD-2: what the child drops meanwhile does not come back.
//!
//! ```text
//! fork, by a bare system call             leader
//! copies the address space                .
//! .                                       reads the event; nothing moves home until it is processed
//! the child touches a hole: waits         copies what the arenas have
//! the child goes on                       closes the descriptor of the child's areas
//! ```
//!
//! Linux: dup_userfaultfd, userfaultfd_release.

use std::os::fd::OwnedFd;

use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::mm::Mm;
use isomem_core::world::ArenaRange;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::sys::uffd::{Msg, Protection, Uffd, Waiters};
use crate::world::Linux;

/// Pages that are copied at a time.
const PAGES: usize = 4;
/// Attempts at a page while the child changes its areas; each reads what it did.
const ATTEMPTS: usize = 100;
/// Ranges that the child dropped, as far as they are told apart.
const DROPPED: usize = 16;

#[repr(align(4096))]
struct Buffer([u8; PAGES * PAGE_SIZE]);

struct Copier<'a> {
    child: &'a Uffd,
    /// This process's own memory, by the kernel.
    memory: OwnedFd,
    buffer: Buffer,
    /// What the child dropped or moved since it was forked (CHD-2).
    dropped: [Option<PageRange>; DROPPED],
    /// The child is gone, or did more than can be remembered.
    is_over: bool,
}

/// Copies to the child what is in the arenas. For the reader of events, with departures and arrivals held.
pub(super) fn copy_to(child: &Uffd, mm: &Mm<Linux>) {
    let memory = rustix::fs::open("/proc/self/mem", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let (Ok(memory), Ok(())) = (memory, child.set_nonblocking()) else {
        return;
    };
    let mut copier = Copier {
        child,
        memory,
        buffer: Buffer([0; PAGES * PAGE_SIZE]),
        dropped: [None; DROPPED],
        is_over: false,
    };
    mm.arena_runs(&mut |home, arena| copier.copy_run(home, arena));
}

impl Copier<'_> {
    fn copy_run(&mut self, home: PageRange, arena: ArenaRange) {
        let mut done = 0;
        while let (false, Some(home), Some(arena)) = (self.is_over, home.skip(done), arena.skip(done)) {
            let part = arena.take(PAGES.min(arena.page_count()));
            let buffer = &mut self.buffer.0[..part.len_bytes()];
            let read = rustix::io::pread(&self.memory, buffer, part.start() as u64).unwrap_or(0);
            let pages = read / PAGE_SIZE;
            for page in 0..pages {
                self.copy_page(home.skip(page).map(|rest| rest.take(1)), page);
            }
            // Where it stopped there is no page: the child has it from the fork.
            done += if pages == part.page_count() { pages } else { pages + 1 };
        }
    }

    /// Page `index` of the buffer goes to `to`, unless the child has something there, or wants nothing there any more.
    fn copy_page(&mut self, to: Option<PageRange>, index: usize) {
        let Some(to) = to else { return };
        let from = self.buffer.0[index * PAGE_SIZE..].as_ptr().expose_provenance();
        for _ in 0..ATTEMPTS {
            if self.is_over || self.dropped.iter().flatten().any(|range| range.covers(to)) {
                return;
            }
            match self.child.copy(to, from, Protection::None, Waiters::Leave).errno {
                // It changes its areas, and waits until that is read.
                Some(Errno::AGAIN) => self.listen(),
                None | Some(Errno::EXIST | Errno::NOENT) => return,
                Some(_) => self.is_over = true,
            }
        }
    }

    fn listen(&mut self) {
        let mut messages = [const { Msg::Other(0) }; 8];
        let read = self.child.try_read(&mut messages).unwrap_or(0);
        for message in &messages[..read] {
            let (Msg::Remove(range) | Msg::Unmap(range) | Msg::Remap { from: range, .. }) = message else {
                continue;
            };
            match self.dropped.iter_mut().find(|place| place.is_none()) {
                Some(place) => *place = Some(*range),
                None => self.is_over = true,
            }
        }
    }
}
