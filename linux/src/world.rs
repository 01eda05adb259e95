//! The calling process as a world: its areas, its pages, and the arena its devices' memory lies in.
//!
//! Two userfaultfds: one for the program's areas, with the kernel's events, and one for the arenas, without. Moving
//! a page out goes through the arena's, moving it home through the program's; so events that nobody has read yet delay the way
//! home, but never the way out.
//!
//! # Invariants
//! - LNX-1: a page is at one place. A call that stops says how many pages are done; the rest are where they were.
//! - LNX-2: the reader of the program's events never waits in here for an event to be read: what answers EAGAIN is tried again a few times,
//!   then reported as [`Stop::Again`].
//! - LNX-3: a change of ours that the kernel reports as an event is announced first ([`crate::own`]).
//!
//! # Locking
//! None held across a system call. [`World::drop_source`], [`World::discard`], [`World::unmap`] and [`World::remap`] block until the reader of events has
//! read: not to be called by that reader.
//!
//! Linux: mm/userfaultfd.c (move_pages), mm/madvise.c.

mod announce;
pub(crate) mod drive;
mod look;

use std::sync::OnceLock;

use isomem_core::addr::{BlockId, PAGE_SIZE, PageMask, PageRange, VirtAddr};
use isomem_core::world::{
    Access, Area, ArenaRange, Moved, OutOfMetadata, PopulateError, Pte, PteRun, Stop, World, WorldError,
};
use rustix::io::Errno;
use rustix::time::{ClockId, Timespec};

use crate::areas::Exclusions;
use crate::exact::ExactError;
use crate::own::{Change, OwnChanges};
use crate::service::Services;
use crate::sys::mapping::{self, ForkMark, Mapping};
use crate::sys::maps::Maps;
use crate::sys::metadata::MetadataHeap;
use crate::sys::pagemap::Pagemap;
use crate::sys::thread::{OwnThread, SpawnError, StackSize};
use crate::sys::thread_blocks::ThreadBlocks;
use crate::sys::uffd::{Features, Progress, Protection, Uffd, Waiters};
use drive::{Border, Patience, drive, persist};

/// Why the process could not be opened as a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No way to get a userfaultfd.
    #[error(
        "userfaultfd is not available: {}; run as root, make /dev/userfaultfd readable, or set vm.unprivileged_userfaultfd=1",
        std::io::Error::from_raw_os_error(*.errno)
    )]
    Userfaultfd {
        /// The raw errno.
        errno: i32,
    },
    /// A file in /proc could not be opened.
    #[error("cannot open {path}: {}", std::io::Error::from_raw_os_error(*.errno))]
    Proc {
        /// Its path.
        path: &'static str,
        /// The raw errno.
        errno: i32,
    },
    /// No address space for isomem's own mappings.
    #[error("cannot map memory of isomem's own: {}", std::io::Error::from_raw_os_error(*.errno))]
    Map {
        /// The raw errno.
        errno: i32,
    },
    /// No memory for isomem's tables.
    #[error(transparent)]
    Metadata(#[from] OutOfMetadata),
    /// A thread of isomem's own did not start.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The exact level is not to be had.
    #[error(transparent)]
    Exact(#[from] ExactError),
}

/// The calling process.
#[derive(Debug)]
pub struct Linux {
    program: Uffd,
    arena: Uffd,
    pagemap: Pagemap,
    maps: Maps,
    exclusions: Exclusions,
    thread_blocks: ThreadBlocks,
    own: OwnChanges,
    mark: ForkMark,
    /// A page of the program's descriptor: discarding it is an event, which the reader then reads.
    bell: Mapping,
    /// The same for the arena's descriptor, which has no events: touching it is a fault.
    arena_bell: Mapping,
    /// A page of the program's descriptor that children get, so that every fork is an event; only where forks are held.
    fork_bell: OnceLock<Mapping>,
    services: Services,
}

impl Linux {
    /// Opens the calling process, on a thread of the program (the loader's lock is taken).
    ///
    /// # Errors
    /// [`OpenError`]; nothing is left behind.
    pub fn open() -> Result<Self, OpenError> {
        let userfaultfd = |errno: Errno| OpenError::Userfaultfd {
            errno: errno.raw_os_error(),
        };
        let proc = |path| {
            move |errno: Errno| OpenError::Proc {
                path,
                errno: errno.raw_os_error(),
            }
        };
        let map = |errno: Errno| OpenError::Map {
            errno: errno.raw_os_error(),
        };
        // Dropped in the opposite order: unmapping the bell while its descriptor is open would wait for a reader.
        let bell = Mapping::new(PAGE_SIZE).map_err(map)?;
        let program = Uffd::open(Features::PROGRAM).map_err(userfaultfd)?;
        bell.not_in_children().map_err(map)?;
        program.set_nonblocking().map_err(userfaultfd)?;
        program.register(bell.range()).map_err(userfaultfd)?;
        let arena = Uffd::open(Features::ARENA).map_err(userfaultfd)?;
        let arena_bell = Mapping::new(PAGE_SIZE).map_err(map)?;
        arena_bell.not_in_children().map_err(map)?;
        arena.register(arena_bell.range()).map_err(userfaultfd)?;
        let pagemap = Pagemap::open().map_err(proc("/proc/self/pagemap"))?;
        let maps = Maps::open().map_err(proc("/proc/self/maps"))?;
        let exclusions = Exclusions::new()?;
        let thread_blocks = ThreadBlocks::open().map_err(proc("/proc/self/task"))?;
        let mark = ForkMark::new().map_err(map)?;
        let services = Services::start(Services::default_threads())?;
        let own = OwnChanges::new();
        Ok(Self {
            program,
            arena,
            pagemap,
            maps,
            exclusions,
            thread_blocks,
            own,
            mark,
            bell,
            arena_bell,
            fork_bell: OnceLock::new(),
            services,
        })
    }

    /// The descriptor of the program's areas.
    pub fn program(&self) -> &Uffd {
        &self.program
    }

    /// The descriptor of the arenas.
    pub fn arena(&self) -> &Uffd {
        &self.arena
    }

    /// Changes of isomem's own that the kernel will report.
    pub fn own_changes(&self) -> &OwnChanges {
        &self.own
    }

    /// What the program's descriptor was granted.
    pub fn features(&self) -> Features {
        self.program.features()
    }

    /// The first page of `range` that the program may not access as wanted.
    fn refused_at(&self, range: PageRange, wanted: Access) -> Option<VirtAddr> {
        let mut at = range.start();
        let mut refused = false;
        let seen = self.areas(range, &mut |area| {
            refused |= area.range.start() > at || area.access < Some(wanted);
            if !refused {
                at = area.range.end();
            }
        });
        (seen.is_ok() && at < range.end())
            .then(|| VirtAddr::new(at).ok())
            .flatten()
    }

    fn pte_at(&self, page: usize) -> Option<Pte> {
        let mut pte = None;
        self.pagemap
            .scan(PageRange::from_pages(page, 1)?, &mut |run| pte = Some(run.pte))
            .ok()?;
        pte
    }

    /// The program's descriptor answers EAGAIN while an event is unread, and whoever moves pages home keeps its reader from reading. The arena's has no
    /// events.
    fn patience(&self, uffd: &Uffd) -> Patience {
        if core::ptr::eq(uffd, &raw const self.program) {
            Patience::None
        } else {
            Patience::Some
        }
    }

    fn copy(&self, uffd: &Uffd, from: PageRange, to: PageRange, protection: Protection) -> (usize, Option<Errno>) {
        debug_assert_eq!(from.page_count(), to.page_count());
        drive(to, Border::NoEntry, self.patience(uffd), |part| {
            uffd.copy(part, counterpart(part, to, from), protection, Waiters::Wake)
        })
    }

    /// Moves pages, which nobody else moves meanwhile (BLK-2).
    ///
    /// Linux 6.18 has it that a move which had to begin anew inside the kernel, as when the CPU sets a page's accessed bit at that moment, relinks pages
    /// and then says EEXIST about them (`docs/decisions/0006-moves-that-are-denied.md`). Where the source is a hole and the destination has a page, it is
    /// this very page.
    fn relink(&self, uffd: &Uffd, from: PageRange, to: PageRange) -> (usize, Option<Errno>) {
        debug_assert_eq!(from.page_count(), to.page_count());
        if !uffd.features().move_() {
            return (0, Some(Errno::INVAL));
        }
        drive(to, Border::Invalid, self.patience(uffd), |part| {
            let source = counterpart(part, to, from);
            let progress = uffd.move_(part, source, Waiters::Wake);
            if progress.bytes > 0 || progress.errno != Some(Errno::EXIST) || !self.has_moved(source, part.start()) {
                return progress;
            }
            // Denied, so nobody was woken.
            let _ = persist(|| uffd.wake(part.take(1)));
            Progress {
                bytes: PAGE_SIZE,
                errno: Some(Errno::AGAIN),
            }
        })
    }

    fn has_moved(&self, source: usize, destination: usize) -> bool {
        let there = self.pte_at(destination / PAGE_SIZE);
        self.pte_at(source / PAGE_SIZE) == Some(Pte::None) && there.is_some_and(|pte| pte != Pte::None)
    }
}

/// Where in `theirs` the page lies that belongs to the first one of `part`, a part of `ours`.
fn counterpart(part: PageRange, ours: PageRange, theirs: PageRange) -> usize {
    theirs.start() + (part.start() - ours.start())
}

/// What an errno of a move or a copy means, as far as it means the same for all of them.
fn stop(errno: Errno) -> Stop {
    match errno {
        Errno::BUSY => Stop::Busy,
        Errno::INVAL => Stop::Unlike,
        Errno::EXIST => Stop::Exists,
        Errno::AGAIN => Stop::Again,
        Errno::NOENT => Stop::Gone,
        other => Stop::Failed(other.raw_os_error()),
    }
}

fn moved((pages, errno): (usize, Option<Errno>), stop: impl FnOnce(Errno) -> Stop) -> Moved {
    Moved {
        pages,
        stop: errno.map(stop),
    }
}

fn failed(call: &'static str, range: PageRange) -> impl Fn(Errno) -> WorldError {
    move |errno| WorldError {
        call,
        range,
        errno: errno.raw_os_error(),
    }
}

impl World for Linux {
    type Meta = MetadataHeap;
    type Thread = OwnThread;

    const FENCED: bool = true;

    fn memory_bytes(&self) -> usize {
        let info = rustix::system::sysinfo();
        usize::try_from(info.totalram)
            .unwrap_or(usize::MAX)
            .saturating_mul(info.mem_unit as usize)
    }

    fn is_current(&self) -> bool {
        self.mark.is_here()
    }

    fn off_stack<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> R {
        self.services.run(job)
    }

    fn spawn(
        &self,
        name: &'static str,
        stack_bytes: usize,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<OwnThread, WorldError> {
        let named = move || {
            set_thread_name(name);
            body();
        };
        OwnThread::spawn(c"isomem", StackSize::bytes(stack_bytes), named).map_err(|error| match error {
            SpawnError::OutOfMetadata => WorldError {
                call: "mmap",
                range: PageRange::ALL,
                errno: libc::ENOMEM,
            },
            SpawnError::Refused { call, errno } => WorldError {
                call,
                range: PageRange::ALL,
                errno,
            },
        })
    }

    fn takes_neighbours(&self) -> bool {
        // With user-mode faults only, the kernel kills a thread whose rseq area (in its thread-local storage) is away.
        !self.features().user_mode_only()
    }

    fn now_ns(&self) -> u64 {
        let now = rustix::time::clock_gettime(ClockId::Monotonic);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }

    fn pause(&self, ns: u64) {
        if ns == 0 {
            rustix::thread::sched_yield();
            return;
        }
        let duration = Timespec {
            tv_sec: (ns / 1_000_000_000) as i64,
            tv_nsec: (ns % 1_000_000_000) as i64,
        };
        let _ = rustix::thread::nanosleep(&duration);
    }

    fn areas(&self, range: PageRange, each: &mut dyn FnMut(Area)) -> Result<(), WorldError> {
        self.maps
            .in_range(range, &mut |vma| self.exclusions.classify(&vma, range, each))
            .map_err(failed("PROCMAP_QUERY", range))
    }

    fn needed_at_home(&self, block: BlockId) -> Result<PageMask, WorldError> {
        self.thread_blocks
            .in_block(block, || self.now_ns())
            .map_err(failed("get_robust_list", block.range()))
    }

    fn scan(&self, range: PageRange, each: &mut dyn FnMut(PteRun)) -> Result<(), WorldError> {
        self.pagemap.scan(range, each).map_err(failed("PAGEMAP_SCAN", range))
    }

    fn populate(&self, range: PageRange, access: Access) -> Result<(), PopulateError> {
        let call = match access {
            Access::Read => "madvise(MADV_POPULATE_READ)",
            Access::Write => "madvise(MADV_POPULATE_WRITE)",
        };
        let Err(errno) = persist(|| mapping::populate(range, access)) else {
            return Ok(());
        };
        match (errno, self.refused_at(range, access)) {
            (Errno::NOMEM | Errno::FAULT | Errno::INVAL, Some(addr)) => Err(PopulateError::Refused(addr)),
            _ => Err(failed(call, range)(errno).into()),
        }
    }

    fn track(&self, range: PageRange) -> Result<(), WorldError> {
        // In a fork's child the parent's descriptor still has it until the parent has read of the fork, and given the child what was away: that is as
        // long as it takes, but it ends. Somebody else's descriptor stays.
        const AT_MOST_NS: u64 = 1_000_000_000;
        let until = self.now_ns() + AT_MOST_NS;
        let mut result = self.program.register(range);
        while result == Err(Errno::BUSY) && self.now_ns() < until {
            self.pause(1_000_000);
            result = self.program.register(range);
        }
        result.map_err(failed("UFFDIO_REGISTER", range))
    }

    fn untrack(&self, range: PageRange) -> Result<(), WorldError> {
        self.program
            .unregister(range)
            .map_err(failed("UFFDIO_UNREGISTER", range))
    }

    fn wake(&self, range: PageRange) {
        let woken = persist(|| self.program.wake(range));
        debug_assert!(woken.is_ok(), "waking {range} fails only for a bad range");
    }

    fn fill_zero(&self, range: PageRange) -> Moved {
        moved(
            drive(range, Border::NoEntry, Patience::Some, |part| {
                self.program.zeropage(part, Waiters::Wake)
            }),
            stop,
        )
    }

    fn unmap(&self, range: PageRange) -> Result<(), WorldError> {
        self.as_own(Change::Unmapped(range), || mapping::unmap(range))
            .map_err(failed("munmap", range))
    }

    fn protect(&self, range: PageRange, access: Option<Access>) -> Result<(), WorldError> {
        mapping::protect(range, access).map_err(failed("mprotect", range))
    }

    fn discard(&self, range: PageRange) -> Result<(), WorldError> {
        self.discard_announced(range)
            .map_err(failed("madvise(MADV_DONTNEED)", range))
    }

    fn remap(&self, from: PageRange, to: PageRange) -> Result<(), WorldError> {
        self.join_areas(from);
        let replaced = || self.as_own(Change::Remapped(from, to), || mapping::remap(from, to));
        let left = || self.as_own(Change::Unmapped(to), replaced);
        self.as_own(Change::Unmapped(from), left)
            .map_err(failed("mremap", from))
    }

    fn reserve_arena(&self, len_bytes: usize) -> Result<ArenaRange, WorldError> {
        let no_range = failed("mmap", PageRange::ALL);
        let arena = Mapping::new_aligned(len_bytes).map_err(no_range)?;
        let range = arena.range();
        arena
            .not_in_children()
            .map_err(failed("madvise(MADV_DONTFORK)", range))?;
        self.arena.register(range).map_err(failed("UFFDIO_REGISTER", range))?;
        Ok(arena.into_range())
    }

    fn release_arena(&self, arena: ArenaRange) {
        if self.is_current() {
            drop(Mapping::from_range(arena));
        }
    }

    fn move_out(&self, from: PageRange, to: ArenaRange) -> Moved {
        let (pages, errno) = self.relink(&self.arena, from, to);
        moved((pages, errno), |errno| match errno {
            Errno::NOENT if self.pte_at(from.first_page() + pages) == Some(Pte::None) => Stop::Hole,
            other => stop(other),
        })
    }

    fn move_home(&self, from: ArenaRange, to: PageRange) -> Moved {
        let (pages, errno) = self.relink(&self.program, from, to);
        moved((pages, errno), |errno| match errno {
            Errno::NOENT if self.pte_at(from.first_page() + pages) == Some(Pte::None) => Stop::Hole,
            other => stop(other),
        })
    }

    fn unshare(&self, range: PageRange) -> Moved {
        let populate = |range| persist(|| mapping::populate(range, Access::Write));
        let Err(first) = populate(range) else {
            return Moved {
                pages: range.page_count(),
                stop: None,
            };
        };
        let why = |errno| match errno {
            Errno::FAULT | Errno::INVAL => Stop::Unlike,
            Errno::NOMEM if self.refused_at(range, Access::Write).is_some() => Stop::Gone,
            other => stop(other),
        };
        // The call does not tell how far it came; pages one by one do.
        for pages in 0..range.page_count() {
            let Some(page) = range.skip(pages).map(|rest| rest.take(1)) else {
                break;
            };
            if let Err(errno) = populate(page) {
                return Moved {
                    pages,
                    stop: Some(why(errno)),
                };
            }
        }
        // It went through the second time.
        let _ = first;
        Moved {
            pages: range.page_count(),
            stop: None,
        }
    }

    fn write_protect(&self, range: PageRange, on: bool) -> Result<(), WorldError> {
        let protection = if on { Protection::Write } else { Protection::None };
        persist(|| self.program.writeprotect(range, protection)).map_err(failed("UFFDIO_WRITEPROTECT", range))
    }

    fn copy_out(&self, from: PageRange, to: ArenaRange) -> Moved {
        moved(self.copy(&self.arena, from, to, Protection::Write), stop)
    }

    fn open_copies(&self, range: ArenaRange) {
        // Where pages cannot be protected, none was; this wakes as well.
        if persist(|| self.arena.writeprotect(range, Protection::None)).is_err() {
            self.wake_arena(range);
        }
    }

    fn drop_source(&self, range: PageRange) -> Result<(), WorldError> {
        self.discard_announced(range)
            .map_err(failed("madvise(MADV_DONTNEED)", range))
    }

    fn copy_home(&self, from: ArenaRange, to: PageRange) -> Moved {
        moved(self.copy(&self.program, from, to, Protection::None), stop)
    }

    fn duplicate_home(&self, from: ArenaRange, to: PageRange) -> Moved {
        let features = self.features();
        // With user-mode faults only, a system call that writes to a protected page fails; one that is at home alone it can write.
        if !features.wp() || features.user_mode_only() {
            return Moved {
                pages: 0,
                stop: Some(Stop::Unlike),
            };
        }
        moved(self.copy(&self.program, from, to, Protection::Write), stop)
    }

    fn move_across(&self, from: ArenaRange, to: ArenaRange) -> Moved {
        self.move_out(from, to)
    }

    fn copy_across(&self, from: ArenaRange, to: ArenaRange) -> Moved {
        self.copy_out(from, to)
    }

    fn zero_arena(&self, range: ArenaRange) -> Moved {
        moved(
            drive(range, Border::NoEntry, Patience::Some, |part| {
                self.arena.zeropage(part, Waiters::Wake)
            }),
            stop,
        )
    }

    fn scrub_arena(&self, range: ArenaRange) {
        // What stays is of no value; who wants the place finds it taken, and tries again to drop it.
        let _ = persist(|| mapping::discard(range));
        if !self.arena.features().poison() {
            // Undoes what `poison_arena` did.
            let _ = mapping::protect(range, Some(Access::Write));
        }
    }

    fn wake_arena(&self, range: ArenaRange) {
        let woken = persist(|| self.arena.wake(range));
        debug_assert!(woken.is_ok(), "waking {range} fails only for a bad range");
    }

    fn poison_arena(&self, range: ArenaRange) {
        if self.arena.features().poison() {
            let _ = drive(range, Border::NoEntry, Patience::Some, |part| self.arena.poison(part));
        } else {
            let _ = mapping::protect(range, None);
        }
        self.wake_arena(range);
    }
}

/// Shows `name` (its first 15 bytes) as the name of the calling thread.
fn set_thread_name(name: &str) {
    let mut bytes = [0_u8; 16];
    let len = name.len().min(15);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    if let Ok(name) = core::ffi::CStr::from_bytes_until_nul(&bytes) {
        let _ = rustix::thread::set_name(name);
    }
}
