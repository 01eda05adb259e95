//! Where the program's threads have the word that the kernel clears when they end.
//!
//! A thread ends with a write by the kernel (CLONE_CHILD_CLEARTID), and who joins it waits for that write. It happens so late that the kernel
//! serves no fault for it: on a page that is away the write is dropped, and the joiner sleeps for ever. So such pages stay at home.
//!
//! The kernel tells nobody where the word is, but it tells the head of a thread's robust list, and glibc keeps both in one cache line of the
//! thread's control block. (musl's word is in its own data, which never migrates: AREA-1.)
//!
//! # Invariants
//! - THB-1: a page that has held the block of a running thread within the last second is reported: glibc uses stacks again, so it will soon hold
//!   another's.
//! - THB-2: looking costs at most a ninth of a migrating thread's time: the next look waits for eight times as long as the last one took.
//!
//! # Locking
//! One lock, a leaf, held across the system calls of a look; only threads of isomem's own take it.
//!
//! Linux: kernel/fork.c (`mm_release`), fs/userfaultfd.c (`handle_userfault` on a thread that exits).

use core::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use allocator_api2::vec::Vec;
use isomem_core::addr::{BlockId, PAGE_SIZE, PageMask};
use rustix::fs::{Mode, OFlags, RawDir, SeekFrom};
use rustix::io::{Errno, Result};

use super::inject::{self, Site};
use super::metadata::MetadataHeap;

/// How long a page stays after a thread was last seen there.
const KEPT_NS: u64 = 1_000_000_000;
/// A look is at least this long good.
const FRESH_NS: u64 = 100_000;
/// How far before the robust list the word may lie.
const BEFORE_BYTES: usize = 32;
/// Directory entries that one call fetches.
const ENTRIES_BYTES: usize = 4096;

/// A page with a thread's control block.
#[derive(Debug, Clone, Copy)]
struct Seen {
    page: usize,
    until_ns: u64,
}

#[derive(Debug)]
struct State {
    /// In order, without duplicates.
    seen: Vec<Seen, MetadataHeap>,
    next_look_ns: u64,
}

/// The threads of the process that opened it.
#[derive(Debug)]
pub struct ThreadBlocks {
    tasks: OwnedFd,
    state: Mutex<State>,
}

impl ThreadBlocks {
    /// Opens those of the calling process.
    pub fn open() -> Result<Self> {
        inject::check(Site::ProcOpen)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let tasks = rustix::fs::open("/proc/self/task", flags, Mode::empty())?;
        let state = State {
            seen: Vec::new_in(MetadataHeap),
            next_look_ns: 0,
        };
        Ok(Self {
            tasks,
            state: Mutex::new(state),
        })
    }

    /// The pages of `block` with such a word. `now_ns` reads a clock that never goes back.
    pub fn in_block(&self, block: BlockId, now_ns: impl Fn() -> u64) -> Result<PageMask> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = now_ns();
        if begun >= state.next_look_ns {
            self.look(&mut state, begun)?;
            let ended = now_ns();
            state.next_look_ns = ended + FRESH_NS.max(8 * (ended - begun));
        }
        let pages = block.range();
        let first = state.seen.partition_point(|seen| seen.page < pages.first_page());
        let mut mask = PageMask::NONE;
        for seen in state.seen[first..]
            .iter()
            .take_while(|seen| seen.page < pages.end_page())
        {
            mask.insert(seen.page - pages.first_page());
        }
        Ok(mask)
    }

    /// Asks the kernel for all threads.
    fn look(&self, state: &mut State, now_ns: u64) -> Result<()> {
        rustix::fs::seek(&self.tasks, SeekFrom::Start(0))?;
        let mut buffer = [const { MaybeUninit::uninit() }; ENTRIES_BYTES];
        let mut entries = RawDir::new(&self.tasks, &mut buffer);
        while let Some(entry) = entries.next() {
            let Some(thread) = number(entry?.file_name().to_bytes()) else {
                continue;
            };
            let Some(head) = robust_list(thread) else { continue };
            for page in [head.saturating_sub(BEFORE_BYTES) / PAGE_SIZE, head / PAGE_SIZE] {
                state.saw(page, now_ns + KEPT_NS)?;
            }
        }
        state.seen.retain(|seen| seen.until_ns > now_ns);
        Ok(())
    }
}

impl State {
    fn saw(&mut self, page: usize, until_ns: u64) -> Result<()> {
        match self.seen.binary_search_by_key(&page, |seen| seen.page) {
            Ok(at) => self.seen[at].until_ns = until_ns,
            Err(at) => {
                self.seen.try_reserve(1).map_err(|_| Errno::NOMEM)?;
                self.seen.insert(at, Seen { page, until_ns });
            }
        }
        Ok(())
    }
}

/// A name that is a number; `.` and `..` are none.
fn number(name: &[u8]) -> Option<i32> {
    std::str::from_utf8(name).ok()?.parse().ok()
}

/// Where thread number `thread` of this process has its robust list; `None` if it has ended, or has none yet.
fn robust_list(thread: i32) -> Option<usize> {
    let mut head: usize = 0;
    let mut len: usize = 0;
    // SAFETY: the call writes one word to each of two places, which are ours.
    let answer = unsafe { libc::syscall(libc::SYS_get_robust_list, thread, &raw mut head, &raw mut len) };
    (answer == 0 && head != 0).then_some(head)
}

#[cfg(test)]
mod tests;
