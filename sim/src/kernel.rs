//! A kernel in small: address spaces, page frames, copy-on-write, swap, and the part of userfaultfd that isomem lives on.
//!
//! It is a model of what `docs/testing.md` assumes of Linux, no more: what the protocol can observe happens as it does there, in the same order, with
//! the same error codes.
//!
//! # Invariants
//! - SIMK-1: a frame lives as long as a page table, a pin or nobody refers to it: it is freed with the last reference, and says so.
//! - SIMK-2: what one step of the kernel does (relink a page, zap an entry) is done at once; between two steps anybody may run.
//! - SIMK-3: copying a page is a step for each word, so that half a page can be seen where a design permits it.
//! - SIMK-4: while a change of an address space is under way or its event unread, filling calls answer EAGAIN.
//!
//! # Locking
//! `mmap` (of one process) before `reclaim` before `file mapping`: named locks, which the lock-order checker sees. The state itself is under
//! one lock of std, a leaf, never held across a scheduling point. `wait queue` is a leaf, too.
//!
//! ```text
//! program thread                           pager
//! touches a missing page: queues a fault   .
//! sleeps                                   reads it; fills or moves; wakes
//! tries again                              .
//! ```
//!
//! Linux: mm/memory.c, mm/userfaultfd.c, fs/userfaultfd.c, mm/mmap.c, mm/madvise.c.

mod access;
mod change;
mod frame;
mod reclaim;
mod space;
mod uffd;

use core::fmt;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard as StdGuard, PoisonError};

use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::notifier::{Blocking, Cause};
use isomem_core::world::Access;

use crate::checker::Verdict;
use crate::journal::{Event, Frame, Journal};
use crate::sync::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering, RwLock, thread_local};
use frame::{Frames, ZERO};
use space::Space;

pub use access::{Op, Segv};
pub use change::Origin;
pub use reclaim::Reclaimed;
pub use space::{Channel, Msg};
pub use uffd::{Progress, Zeroes};

/// Words of a page that the simulator keeps: the first ones of its 512.
pub const WORDS: usize = 4;
/// The contents of a page.
pub type Words = [u64; WORDS];

/// An error number, as Linux has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// No such entry: nothing is mapped there, or it is not tracked.
    pub const NOENT: Self = Self(2);
    /// Try again.
    pub const AGAIN: Self = Self(11);
    /// No memory, or no such area.
    pub const NOMEM: Self = Self(12);
    /// Bad address.
    pub const FAULT: Self = Self(14);
    /// Shared, pinned or write-protected.
    pub const BUSY: Self = Self(16);
    /// Something is there already.
    pub const EXIST: Self = Self(17);
    /// The areas do not fit together.
    pub const INVAL: Self = Self(22);
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&std::io::Error::from_raw_os_error(self.0), f)
    }
}

/// A kind of step that can be made to fail (PRF-4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// Allocating a frame.
    Allocate,
    /// Copying a page into or out of an arena.
    Copy,
    /// Relinking a page.
    Move,
    /// Zero-filling a page on request.
    Zero,
    /// Watching an area for missing pages.
    Track,
    /// Write-protecting.
    Protect,
    /// Discarding.
    Discard,
}

/// What an MMU notifier is told: a change of a page table is about to happen, or is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The pages concerned.
    pub range: PageRange,
    /// Why.
    pub cause: Cause,
    /// Whether the pass may wait.
    pub blocking: Blocking,
}

/// A non-blocking pass was refused: the kernel leaves the pages alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

/// What a design that brings its own notifier is called back by, around every change of a page table.
pub trait MmuNotifier: Send + Sync {
    /// Before the change. Only a pass that must not block may be refused; then no end follows and nothing changes.
    fn start(&self, change: &Change) -> Result<(), Refused>;

    /// After the change.
    fn end(&self, change: &Change);

    /// Both, and the change in between; for who keeps something from the one to the other.
    fn around(&self, change: &Change, make: &mut dyn FnMut()) -> Result<(), Refused> {
        match self.start(change) {
            Err(Refused) if change.blocking == Blocking::Never => return Err(Refused),
            // A blocking pass cannot be refused: the kernel goes on.
            Err(Refused) | Ok(()) => {}
        }
        make();
        self.end(change);
        Ok(())
    }

    /// The address space dies.
    fn release(&self) {}
}

struct State {
    frames: Frames,
    spaces: Vec<Space>,
    swap: BTreeMap<u64, Words>,
    swapped: u64,
    /// What each page of a program should hold, as its history has it.
    shadow: BTreeMap<usize, Words>,
    /// Failures to come: the site, how many more times it works, and the error.
    planned: Vec<(Site, usize, Errno)>,
    /// Threads that wait, by number, and for what.
    waiters: Vec<Waiter>,
    waited: u64,
    clock: u64,
}

/// A thread that sleeps until it is woken.
struct Waiter {
    number: u64,
    what: Wait,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// For a page of an address space.
    Page(usize, usize),
    /// For event number so much of an address space to be read.
    Event(usize, u64),
    /// For messages of a channel.
    Messages(usize, Channel),
}

struct Inner {
    journal: Journal,
    state: StdMutex<State>,
    reclaim: Mutex<()>,
    file_mapping: RwLock<()>,
    queue: Mutex<()>,
    woken: Condvar,
    /// Read for the sake of the model checker only.
    point: AtomicBool,
}

/// The machine and its kernel. Clones are handles to the same.
#[derive(Clone)]
pub struct Kernel(Arc<Inner>);

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").finish_non_exhaustive()
    }
}

impl Kernel {
    /// A machine with no process, which tells `journal` what happens.
    pub fn new(journal: &Journal) -> Self {
        let state = State {
            frames: Frames::new(),
            spaces: Vec::new(),
            swap: BTreeMap::new(),
            swapped: 0,
            shadow: BTreeMap::new(),
            planned: Vec::new(),
            waiters: Vec::new(),
            waited: 0,
            clock: 0,
        };
        Self(Arc::new(Inner {
            journal: journal.clone(),
            state: StdMutex::new(state),
            reclaim: Mutex::new("reclaim", ()),
            file_mapping: RwLock::new("file mapping", ()),
            queue: Mutex::new("wait queue", ()),
            woken: Condvar::new("woken"),
            point: AtomicBool::new(false),
        }))
    }

    /// The journal.
    pub fn journal(&self) -> &Journal {
        &self.0.journal
    }

    /// A new process with an empty address space.
    pub fn process(&self) -> Process {
        self.process_with(None)
    }

    /// The same; `notifier` is told of every change of its page table.
    pub fn process_with(&self, notifier: Option<Arc<dyn MmuNotifier>>) -> Process {
        let mut state = self.lock();
        state.spaces.push(Space::new());
        let pid = state.spaces.len() - 1;
        drop(state);
        Process(Arc::new(ProcessInner {
            kernel: self.clone(),
            pid,
            mmap: RwLock::new("mmap", ()),
            notifier,
        }))
    }

    /// From now on the `nth` step (from 0) of this kind fails with `errno`, once.
    pub fn fail_nth(&self, site: Site, nth: usize, errno: Errno) {
        self.lock().planned.push((site, nth, errno));
    }

    /// No step that has not failed yet is planned to any more.
    pub fn fail_no_more(&self) {
        self.lock().planned.clear();
    }

    /// An allocation that may sleep: it may have to reclaim memory first, so it takes the reclaim lock.
    pub fn allocate_may_sleep(&self) {
        drop(self.lock_reclaim());
    }

    /// What reclaim holds while it unmaps pages.
    pub fn lock_reclaim(&self) -> MutexGuard<'_, ()> {
        self.0.reclaim.lock()
    }

    /// The lock of a file's mappings, which reclaim and truncation take to find who maps a page (Linux: i_mmap_rwsem).
    pub fn file_mapping(&self) -> &RwLock<()> {
        &self.0.file_mapping
    }

    /// A point where any other thread may run.
    pub fn point(&self) {
        // Relaxed: nothing is published by it.
        self.0.point.load(Ordering::Relaxed);
    }

    /// Nanoseconds of simulated time.
    pub fn now_ns(&self) -> u64 {
        self.lock().clock
    }

    /// Lets time pass and others run.
    pub fn pause(&self, ns: u64) {
        self.lock().clock += ns.max(1);
        crate::sync::thread::yield_now();
    }

    /// Device access to a frame by its number, as a device without the CPU's MMU makes it: nothing is checked, so it may be stale. `page` is
    /// the page of the program that the device believes to access.
    pub fn dma(&self, actor: crate::journal::Actor, page: usize, frame: Frame, word: usize, op: Op) -> u64 {
        self.point();
        let mut state = self.lock();
        if frame == ZERO && op.access() == Access::Write {
            let sentence =
                format!("{actor} writes to the page of zeroes, which it has for page {page} and everybody shares");
            self.0.journal.found(Verdict::StaleAccess, sentence);
            return 0;
        }
        self.0.journal.record(Event::Touched {
            actor,
            page: page as u64,
            frame,
        });
        state.apply(&self.0.journal, actor, page, frame, word, op)
    }

    /// Lets go of a pinned frame.
    pub fn unpin(&self, frame: Frame) {
        self.point();
        let mut state = self.lock();
        state.frames.unpin(&self.0.journal, frame);
    }

    fn lock(&self) -> StdGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until the waiter of that number was taken off the list.
    fn sleep(&self, number: u64) {
        let mut queue = self.0.queue.lock();
        while self.lock().waits(number) {
            queue = self.0.woken.wait(queue);
        }
        drop(queue);
    }

    /// Wakes who waits for something of which `over` says that the wait is over.
    fn wake(&self, mut over: impl FnMut(Wait) -> bool) {
        let mut state = self.lock();
        let before = state.waiters.len();
        state.waiters.retain(|waiter| !over(waiter.what));
        let any = state.waiters.len() < before;
        drop(state);
        if any {
            // Nobody is between the look at the list and going to sleep.
            drop(self.0.queue.lock());
            self.0.woken.notify_all();
        }
    }
}

impl State {
    fn wait(&mut self, what: Wait) -> u64 {
        self.waited += 1;
        self.waiters.push(Waiter {
            number: self.waited,
            what,
        });
        self.waited
    }

    fn waits(&self, number: u64) -> bool {
        self.waiters.iter().any(|waiter| waiter.number == number)
    }

    /// Whether this step is planned to fail.
    fn check(&mut self, site: Site) -> Result<(), Errno> {
        let mut failed = None;
        self.planned.retain_mut(|(at, left, errno)| {
            if *at != site {
                return true;
            }
            if *left == 0 {
                failed = failed.or(Some(*errno));
                return false;
            }
            *left -= 1;
            true
        });
        failed.map_or(Ok(()), Err)
    }

    fn space(&mut self, pid: usize) -> &mut Space {
        &mut self.spaces[pid]
    }

    /// Pages of `range` that have an entry, or should have contents somewhere.
    fn pages_of(&mut self, pid: usize, range: PageRange) -> Vec<usize> {
        let mut pages = self.space(pid).present(range);
        let away = self
            .shadow
            .range(told(pid, range.first_page())..told(pid, range.end_page()));
        pages.extend(away.map(|(page, _)| page - told(pid, 0)));
        pages.sort_unstable();
        pages.dedup();
        pages
    }
}

struct ProcessInner {
    kernel: Kernel,
    pid: usize,
    mmap: RwLock<()>,
    notifier: Option<Arc<dyn MmuNotifier>>,
}

/// A process: an address space and the system calls on it. Clones are handles to the same.
#[derive(Clone)]
pub struct Process(Arc<ProcessInner>);

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("pid", &self.0.pid).finish()
    }
}

/// Whether copies can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copies {
    /// As the area says.
    Open,
    /// A write is asked for, until they are no longer protected (UFFDIO_COPY_MODE_WP).
    Protected,
}

thread_local! {
    // Which process the thread belongs to, if not to the first.
    #[allow(clippy::missing_const_for_thread_local, reason = "shuttle's macro knows no const")]
    static CURRENT: core::cell::Cell<usize> = core::cell::Cell::new(0);
}

impl Process {
    /// Its number, from 0.
    pub fn pid(&self) -> usize {
        self.0.pid
    }

    /// The kernel.
    pub fn kernel(&self) -> &Kernel {
        &self.0.kernel
    }

    /// Makes the calling thread one of this process. Threads belong to process 0 unless they say so.
    pub fn enter(&self) {
        CURRENT.with(|current| current.set(self.0.pid));
    }

    /// Whether the calling thread belongs to it.
    pub fn is_current(&self) -> bool {
        CURRENT.with(core::cell::Cell::get) == self.0.pid
    }

    /// The lock of the address space (Linux: mmap_lock).
    pub fn mmap_lock(&self) -> &RwLock<()> {
        &self.0.mmap
    }

    fn lock(&self) -> StdGuard<'_, State> {
        self.0.kernel.lock()
    }

    fn told(&self, page: usize) -> usize {
        told(self.pid(), page)
    }

    fn journal(&self) -> &Journal {
        &self.0.kernel.0.journal
    }

    /// Tells the process's notifier before and after `make`. An error where it refused.
    fn notified<R>(
        &self,
        range: PageRange,
        cause: Cause,
        blocking: Blocking,
        make: impl FnOnce() -> R,
    ) -> Result<R, Refused> {
        let Some(notifier) = &self.0.notifier else {
            return Ok(make());
        };
        let change = Change { range, cause, blocking };
        let (mut make, mut made) = (Some(make), None);
        notifier.around(&change, &mut || made = make.take().map(|make| make()))?;
        made.ok_or(Refused)
    }
}

/// A page of a process as events have it: those of process 0 by their number, those of others far above.
const fn told(pid: usize, page: usize) -> usize {
    pid << 28 | page
}

/// Byte address of a word of a page, as events have it.
pub const fn address(page: usize, word: usize) -> u64 {
    (page * PAGE_SIZE + word * 8) as u64
}

fn frame_name(frame: Frame) -> String {
    format!("frame {frame}")
}

fn opened(journal: &Journal, frame: Frame) {
    journal.record(Event::Opened {
        what: frame_name(frame),
    });
}
