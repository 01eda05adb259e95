//! Runs jobs of the program's threads on threads of isomem's own.
//!
//! A program's thread stands on a stack that may itself be migrated. While pages are in transit nothing may wait for them that is
//! needed to finish the transit; so such work is handed to a service thread, whose stack is never mirrored. The job's
//! closure and its result stay on the caller's frame (nothing is allocated); all that both sides wait on is a *ticket* in
//! isomem's own memory.
//!
//! # Invariants
//! - SRV-1: a caller gets the result of its own job, or its panic.
//! - SRV-2: a posted job is taken: who posts wakes a thread that sleeps, or all are busy; and each looks again before it sleeps, and
//!   wakes another when it leaves a job behind. More jobs than threads queue; more than tickets wait for a ticket.
//! - SRV-3: a thread that stops anywhere (suspended, or waiting for a fault on its own stack) holds up its own job only.
//!   A signal handler of the program may therefore post a job even if it interrupted its thread in the middle of posting one.
//!
//! Jobs never wait for another *queued* job: with all threads taken that one would not start. Waiting for a running one is fine, and so
//! is posting from within a job, which runs in place.
//!
//! # Locking
//! The lock of a ticket's job is never contended: only who claimed or took the ticket locks it. The order of the bits:
//!
//! ```text
//! caller                                service thread
//! free -> claimed                       .
//! job put in; ready                     .
//! wakes this processor's thread         ready -> taken
//! yields, then sleeps on the state      moves the closure to its stack, runs it, writes the result
//! .                                     state = done; wake
//! ticket free again                     looks for the next job, then sleeps
//! ```
//!
//! Linux: workqueues (kernel/workqueue.c), with the caller waiting as in `flush_work`.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use allocator_api2::vec::Vec;
use isomem_core::world::Metadata;
use rustix::thread::{CpuSet, futex, sched_getaffinity, sched_getcpu, sched_setaffinity, sched_yield};

use crate::sys::job::{Job, lend};
use crate::sys::metadata::{MetaArc, MetadataHeap};
use crate::sys::thread::{OwnThread, SpawnError, StackSize, is_own_thread};

#[cfg(test)]
mod tests;

/// How often a caller offers its processor to others before it sleeps. The service thread of the same processor takes the first offer.
const OFFERS: u32 = 64;
/// Service threads at most.
const THREADS_MAX: usize = 8;
/// Jobs posted at a time: one for each bit of a word.
const TICKETS: usize = 64;

/// The states of a ticket's job.
const PENDING: u32 = 0;
const SLEEPING: u32 = 1;
const DONE: u32 = 2;

/// The service threads; dropping it stops and joins them.
#[derive(Debug)]
pub struct Services {
    board: MetaArc<Board>,
    threads: Vec<OwnThread, MetadataHeap>,
}

impl Services {
    /// How many threads serve by default: one a processor, at least two, so that a long job does not hold up short ones.
    pub fn default_threads() -> usize {
        std::thread::available_parallelism().map_or(2, |cpus| cpus.get().clamp(2, THREADS_MAX))
    }

    /// Starts `thread_count` threads, at least one. Where there are as many processors, each is bound to one.
    ///
    /// # Errors
    /// [`SpawnError`]; nothing is left behind.
    pub fn start(thread_count: usize) -> Result<Self, SpawnError> {
        let count = thread_count.clamp(1, THREADS_MAX);
        let board = MetadataHeap::share(Board::new(count)).map_err(|_| SpawnError::OutOfMetadata)?;
        let mut threads = Vec::new_in(MetadataHeap);
        threads
            .try_reserve_exact(count)
            .map_err(|_| SpawnError::OutOfMetadata)?;
        // From here on an early return stops the threads that did start.
        let mut services = Self { board, threads };
        for seat in 0..count {
            let board = services.board.clone();
            let serve = move || {
                bind_to_processor(seat, count);
                board.serve(seat);
            };
            services
                .threads
                .push(OwnThread::spawn(c"isomem-service", StackSize::SYSTEM, serve)?);
        }
        Ok(services)
    }

    /// Runs `job` on a service thread and returns its result. Blocks until then; the caller may hold none of the locks that `job` takes.
    ///
    /// Runs it in place when the caller is a thread of isomem's own, and in a fork's child, where no service thread exists.
    ///
    /// # Panics
    /// With the panic of `job`.
    pub fn run<R: Send, F: FnOnce() -> R + Send>(&self, job: F) -> R {
        if is_own_thread() || !self.threads.iter().all(OwnThread::is_here) {
            return job();
        }
        lend(job, |job| self.board.post_and_wait(job))
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.board.stop.store(true, Ordering::SeqCst);
        for seat in &self.board.seats {
            seat.notify(1);
        }
    }
}

/// Binds the calling thread to processor `seat` if the process may use just the processors below `count`.
fn bind_to_processor(seat: usize, count: usize) {
    let Ok(allowed) = sched_getaffinity(None) else { return };
    if allowed.count() as usize == count && allowed.is_set(seat) {
        let mut only = CpuSet::new();
        only.set(seat);
        // A thread that is not bound serves as well, only slower.
        let _ = sched_setaffinity(None, &only);
    }
}

/// A place for one job in flight. Aligned so that two callers do not share a cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Ticket {
    state: AtomicU32,
    job: Mutex<Option<Job>>,
}

impl Ticket {
    fn exchange(&self, job: Option<Job>) -> Option<Job> {
        core::mem::replace(&mut *self.job.lock().unwrap_or_else(PoisonError::into_inner), job)
    }

    fn run(&self) {
        if let Some(job) = self.exchange(None) {
            job.run();
        }
    }

    /// Tells the caller that its job is done.
    fn tell(&self) {
        // Release: pairs with the acquire in `wait`.
        if self.state.swap(DONE, Ordering::Release) == SLEEPING {
            let _ = futex::wake(&self.state, futex::Flags::PRIVATE, 1);
        }
    }

    fn wait(&self) {
        // Offering the processor instead of spinning keeps the other processors out of it: no thread has to be woken across processors, and
        // moving pages has no other processor's translations to flush.
        for _ in 0..OFFERS {
            if self.state.load(Ordering::Acquire) == DONE {
                return;
            }
            sched_yield();
        }
        let _ = self
            .state
            .compare_exchange(PENDING, SLEEPING, Ordering::Acquire, Ordering::Acquire);
        while self.state.load(Ordering::Acquire) != DONE {
            // Whatever it answers, the state decides.
            let _ = futex::wait(&self.state, futex::Flags::PRIVATE, SLEEPING, None);
        }
    }
}

/// Something to sleep for. Who makes it happen changes a word of its own first and then calls `notify`.
///
/// All accesses are sequentially consistent: either the sleeper sees the change, or the notifier sees the sleeper.
#[derive(Debug, Default)]
struct Event {
    count: AtomicU32,
    sleepers: AtomicU32,
}

impl Event {
    /// Sleeps once, unless `happened`. May return for no reason.
    fn sleep_unless(&self, happened: impl Fn() -> bool) {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let count = self.count.load(Ordering::SeqCst);
        if !happened() {
            let _ = futex::wait(&self.count, futex::Flags::PRIVATE, count, None);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Wakes up to `most` sleepers; false where there is none.
    fn notify(&self, most: u32) -> bool {
        let sleeping = self.sleepers.load(Ordering::SeqCst) != 0;
        if sleeping {
            self.count.fetch_add(1, Ordering::SeqCst);
            let _ = futex::wake(&self.count, futex::Flags::PRIVATE, most);
        }
        sleeping
    }
}

/// What callers and service threads share.
#[derive(Debug)]
struct Board {
    /// Tickets that nobody has.
    free: AtomicU64,
    /// Tickets whose job waits for a thread.
    ready: AtomicU64,
    /// The ticket that is looked at first, so that none is passed over for ever.
    first: AtomicU32,
    stop: AtomicBool,
    freed: Event,
    /// What each service thread sleeps on.
    seats: [Event; THREADS_MAX],
    seat_count: usize,
    tickets: [Ticket; TICKETS],
}

impl Board {
    fn new(seat_count: usize) -> Self {
        Self {
            free: AtomicU64::new(u64::MAX),
            ready: AtomicU64::new(0),
            first: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            freed: Event::default(),
            seats: core::array::from_fn(|_| Event::default()),
            seat_count,
            tickets: core::array::from_fn(|_| Ticket {
                state: AtomicU32::new(PENDING),
                job: Mutex::new(None),
            }),
        }
    }

    fn post_and_wait(&self, job: Job) {
        let index = self.claim();
        let ticket = &self.tickets[index];
        ticket.state.store(PENDING, Ordering::Relaxed);
        ticket.exchange(Some(job));
        // The bit publishes the ticket; pairs with the exchange in `take`.
        self.ready.fetch_or(1 << index, Ordering::SeqCst);
        self.wake_one();
        ticket.wait();
        self.free.fetch_or(1 << index, Ordering::SeqCst);
        self.freed.notify(1);
    }

    /// Wakes a service thread if one sleeps, rather that of this processor.
    fn wake_one(&self) {
        let here = sched_getcpu();
        for next in 0..self.seat_count {
            if self.seats[(here + next) % self.seat_count].notify(1) {
                return;
            }
        }
    }

    /// Waits for a free ticket, and takes it.
    fn claim(&self) -> usize {
        loop {
            let free = self.free.load(Ordering::SeqCst);
            if free == 0 {
                self.freed.sleep_unless(|| self.free.load(Ordering::SeqCst) != 0);
            } else if self
                .free
                .compare_exchange(free, free & (free - 1), Ordering::SeqCst, Ordering::Relaxed)
                .is_ok()
            {
                return free.trailing_zeros() as usize;
            }
        }
    }

    /// Takes a job that waits, in turn.
    fn take(&self) -> Option<&Ticket> {
        let mut ready = self.ready.load(Ordering::SeqCst);
        while ready != 0 {
            let first = self.first.load(Ordering::Relaxed);
            let index = (ready.rotate_right(first).trailing_zeros() + first) % TICKETS as u32;
            match self
                .ready
                .compare_exchange(ready, ready & !(1 << index), Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => {
                    self.first.store((index + 1) % TICKETS as u32, Ordering::Relaxed);
                    return Some(&self.tickets[index as usize]);
                }
                Err(seen) => ready = seen,
            }
        }
        None
    }

    /// The life of a service thread.
    fn serve(&self, seat: usize) {
        loop {
            match self.take() {
                Some(ticket) => {
                    if self.ready.load(Ordering::SeqCst) != 0 {
                        // Posted while this thread was woken for another job: it cannot serve both.
                        self.wake_one();
                    }
                    ticket.run();
                    ticket.tell();
                }
                None if self.stop.load(Ordering::SeqCst) => return,
                None => self.seats[seat]
                    .sleep_unless(|| self.ready.load(Ordering::SeqCst) != 0 || self.stop.load(Ordering::SeqCst)),
            }
        }
    }
}
