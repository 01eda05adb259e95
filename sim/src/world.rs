//! A process of the simulated kernel as a world for isomem's protocol, as `isomem-linux` makes one of the calling process.
//!
//! # Invariants
//! - SIMW-1: a call does to the simulated kernel what the live world's does to Linux, by the same calls; it answers the same.
//!
//! # Locking
//! None of its own. What changes an address space blocks until the reader of events has read, as on Linux.

mod bus;
mod pager;

use allocator_api2::alloc::Global;
use isomem_core::addr::{BlockId, PAGE_SIZE, PageMask, PageRange, VirtAddr};
use isomem_core::world::{Access, Area, ArenaRange, Moved, PopulateError, Pte, PteRun, Stop, World, WorldError};

use crate::kernel::{Channel, Copies, Errno, Origin, Process, Progress, Zeroes};
use crate::sync::thread;

pub use bus::SimWindow;
pub use pager::{Arenas, Pager};

/// Attempts before EAGAIN is reported.
const ATTEMPTS: usize = 2;

/// A process as a world.
#[derive(Debug, Clone)]
pub struct SimWorld {
    process: Process,
    /// What is behind pages of an arena that the program never touched.
    zeroes: Zeroes,
}

/// A thread of isomem's own; dropping it waits for it, in its process.
#[derive(Debug)]
pub struct SimThread {
    thread: Option<thread::JoinHandle<()>>,
    process: Process,
}

impl Drop for SimThread {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take()
            && self.process.is_current()
        {
            let _ = thread.join();
        }
    }
}

impl SimWorld {
    /// `process` as a world, for devices that reach their memory through the CPU's page table. Faults are served from when a [`Pager`] runs.
    pub fn new(process: &Process) -> Self {
        Self::with(process, Zeroes::Shared)
    }

    /// The same, for devices to which pages of zeroes must be such.
    pub fn with(process: &Process, zeroes: Zeroes) -> Self {
        Self {
            process: process.clone(),
            zeroes,
        }
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// What a move answers: an empty source is told from an area that is not there.
    fn moved(&self, from: PageRange, (pages, errno): Progress) -> Moved {
        let hole = || {
            let at = PageRange::from_pages(from.first_page() + pages, 1);
            at.is_some_and(|page| self.process.scan(page).first().is_some_and(|run| run.pte == Pte::None))
        };
        let stop = errno.map(|errno| match errno {
            Errno::NOENT if hole() => Stop::Hole,
            other => stop(other),
        });
        Moved { pages, stop }
    }

    /// Calls again after EAGAIN, a few times.
    fn persist(&self, call: &'static str, range: PageRange, mut make: impl FnMut() -> Result<(), Errno>) -> Answer {
        let mut attempts = 0;
        loop {
            match make() {
                Err(Errno::AGAIN) if attempts < ATTEMPTS => {
                    attempts += 1;
                    self.pause(0);
                }
                other => return other.map_err(failed(call, range)),
            }
        }
    }
}

type Answer = Result<(), WorldError>;

fn failed(call: &'static str, range: PageRange) -> impl Fn(Errno) -> WorldError {
    move |errno| WorldError {
        call,
        range,
        errno: errno.0,
    }
}

/// What an errno of a move, a copy or a fill means.
fn stop(errno: Errno) -> Stop {
    match errno {
        Errno::BUSY => Stop::Busy,
        Errno::INVAL => Stop::Unlike,
        Errno::EXIST => Stop::Exists,
        Errno::AGAIN => Stop::Again,
        Errno::NOENT => Stop::Gone,
        Errno(other) => Stop::Failed(other),
    }
}

fn plain((pages, errno): Progress) -> Moved {
    Moved {
        pages,
        stop: errno.map(stop),
    }
}

impl World for SimWorld {
    type Meta = Global;
    type Thread = SimThread;

    const FENCED: bool = true;

    fn is_current(&self) -> bool {
        self.process.is_current()
    }

    fn off_stack<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> R {
        // Stacks of the simulated program never migrate.
        job()
    }

    fn memory_bytes(&self) -> usize {
        1 << 40
    }

    fn spawn(
        &self,
        _name: &'static str,
        _stack_bytes: usize,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<SimThread, WorldError> {
        Ok(SimThread {
            thread: Some(thread::spawn(body)),
            process: self.process.clone(),
        })
    }

    fn takes_neighbours(&self) -> bool {
        true
    }

    fn now_ns(&self) -> u64 {
        self.process.kernel().now_ns()
    }

    fn pause(&self, ns: u64) {
        self.process.kernel().pause(ns);
    }

    fn areas(&self, range: PageRange, each: &mut dyn FnMut(Area)) -> Answer {
        self.process.areas(range).into_iter().for_each(each);
        Ok(())
    }

    fn needed_at_home(&self, _: BlockId) -> Result<PageMask, WorldError> {
        Ok(PageMask::NONE)
    }

    fn scan(&self, range: PageRange, each: &mut dyn FnMut(PteRun)) -> Answer {
        self.process.scan(range).into_iter().for_each(each);
        Ok(())
    }

    fn populate(&self, range: PageRange, access: Access) -> Result<(), PopulateError> {
        for page in range.first_page()..range.end_page() {
            if self.process.touch(page, access).is_err() {
                let addr = VirtAddr::new(page * PAGE_SIZE).map_err(|_| failed("madvise", range)(Errno::FAULT))?;
                return Err(PopulateError::Refused(addr));
            }
        }
        Ok(())
    }

    fn track(&self, range: PageRange) -> Answer {
        self.process
            .track(range, Channel::Program)
            .map_err(failed("UFFDIO_REGISTER", range))
    }

    fn untrack(&self, range: PageRange) -> Answer {
        self.process.untrack(range).map_err(failed("UFFDIO_UNREGISTER", range))
    }

    fn wake(&self, range: PageRange) {
        self.process.wake_pages(range);
    }

    fn fill_zero(&self, range: PageRange) -> Moved {
        plain(self.process.zeropage(range, Channel::Program, Zeroes::Shared))
    }

    fn unmap(&self, range: PageRange) -> Answer {
        self.process.munmap(range, Origin::Own);
        Ok(())
    }

    fn protect(&self, range: PageRange, access: Option<Access>) -> Answer {
        self.process.protect(range, access).map_err(failed("mprotect", range))
    }

    fn discard(&self, range: PageRange) -> Answer {
        self.process
            .discard(range, Origin::Own)
            .map_err(failed("madvise(MADV_DONTNEED)", range))
    }

    fn remap(&self, from: PageRange, to: PageRange) -> Answer {
        self.process
            .mremap(from, to, Origin::Own)
            .map_err(failed("mremap", from))
    }

    fn reserve_arena(&self, len_bytes: usize) -> Result<ArenaRange, WorldError> {
        Ok(self.process.reserve_arena(len_bytes / PAGE_SIZE))
    }

    fn release_arena(&self, arena: ArenaRange) {
        self.process.release_arena(arena);
    }

    fn move_out(&self, from: PageRange, to: ArenaRange) -> Moved {
        self.moved(from, self.process.move_pages(from, to, Channel::Arena, self.zeroes))
    }

    fn move_home(&self, from: ArenaRange, to: PageRange) -> Moved {
        self.moved(
            from,
            self.process.move_pages(from, to, Channel::Program, Zeroes::Shared),
        )
    }

    fn unshare(&self, range: PageRange) -> Moved {
        for (pages, page) in (range.first_page()..range.end_page()).enumerate() {
            if self.process.touch(page, Access::Write).is_ok() {
                continue;
            }
            let area = PageRange::from_pages(page, 1).map(|page| self.process.areas(page));
            let why = match area.unwrap_or_default().first() {
                None => Stop::Gone,
                Some(area) if area.access != Some(Access::Write) => Stop::Unlike,
                Some(_) => Stop::Failed(Errno::NOMEM.0),
            };
            return Moved { pages, stop: Some(why) };
        }
        Moved {
            pages: range.page_count(),
            stop: None,
        }
    }

    fn write_protect(&self, range: PageRange, on: bool) -> Answer {
        self.persist("UFFDIO_WRITEPROTECT", range, || {
            self.process.write_protect(range, on, Channel::Program)
        })
    }

    fn copy_out(&self, from: PageRange, to: ArenaRange) -> Moved {
        plain(self.process.copy_pages(from, to, Channel::Arena, Copies::Protected))
    }

    fn open_copies(&self, range: ArenaRange) {
        if self.process.write_protect(range, false, Channel::Arena).is_err() {
            self.wake_arena(range);
        }
    }

    fn drop_source(&self, range: PageRange) -> Answer {
        self.process
            .drop_copied(range)
            .map_err(failed("madvise(MADV_DONTNEED)", range))
    }

    fn copy_home(&self, from: ArenaRange, to: PageRange) -> Moved {
        plain(self.process.copy_pages(from, to, Channel::Program, Copies::Open))
    }

    fn duplicate_home(&self, from: ArenaRange, to: PageRange) -> Moved {
        plain(self.process.copy_pages(from, to, Channel::Program, Copies::Protected))
    }

    fn move_across(&self, from: ArenaRange, to: ArenaRange) -> Moved {
        self.moved(from, self.process.move_pages(from, to, Channel::Arena, self.zeroes))
    }

    fn copy_across(&self, from: ArenaRange, to: ArenaRange) -> Moved {
        plain(self.process.copy_pages(from, to, Channel::Arena, Copies::Open))
    }

    fn zero_arena(&self, range: ArenaRange) -> Moved {
        plain(self.process.zeropage(range, Channel::Arena, self.zeroes))
    }

    fn scrub_arena(&self, range: ArenaRange) {
        self.process.scrub(range);
    }

    fn wake_arena(&self, range: ArenaRange) {
        self.process.wake_pages(range);
    }

    fn poison_arena(&self, range: ArenaRange) {
        let _ = self.process.poison(range, Channel::Arena);
        self.process.wake_pages(range);
    }
}
