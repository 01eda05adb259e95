//! Serves faults: threads of isomem's own that wait for the kernel's messages and hand them to the protocol.
//!
//! One *leader* reads the program's descriptor. It processes all events of a batch before any fault of it, gives all
//! faults but one to *helpers*, and serves that one itself. Another thread serves the arenas.
//!
//! # Invariants
//! - PGR-1: events are processed in the order in which they were read, and before any fault that was read with or after them.
//! - PGR-2: only the leader fills holes, when every event that was read is processed. What is unread makes the kernel refuse to fill. So
//!   a page that moves with its mapping is never overtaken by zeroes.
//! - PGR-3: no fault is lost: it is served, or somebody in transit will wake it, or it is woken to be read again.
//! - PGR-4: while an event is processed that may have to wait for pages in transit, the descriptor is read on: whoever has the pages may
//!   itself wait for an event to be read.
//! - PGR-6: from before events are read until they are processed no page begins to leave home, and none arrives: whoever waited for the read goes on
//!   and may put new pages there. While a helper follows a mapping, which waits for pages in transit, they may arrive.
//! - PGR-5: nothing is allocated here, and no memory of the program is touched.
//!
//! # Locking
//! The ring's lock is a leaf.
//!
//! ```text
//! leader                                 helper
//! read: remap, fault a, fault b          .
//! remap: a helper follows it             brings pages to their new place
//!   meanwhile read on, keep what comes   .
//! ring: fault b                          fault b: cpu_fault -> hole
//! fault a: cpu_fault -> done             mark b as the leader's; wake it
//! read: fault b, marked: fill_hole       .
//! ```
//!
//! Linux: handle_userfault (fs/userfaultfd.c) is the other side.

mod child;
mod leader;
mod ring;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use allocator_api2::vec::Vec;
use isomem_core::addr::VirtAddr;
use isomem_core::mm::{CpuFault, Held, HeldArrivals, LateEvent, Mm, Served};
use isomem_core::world::World;

use crate::own::{Change, Ticket};
use crate::sys::fork::{self, ForkHooks, Installed};
use crate::sys::metadata::{MetaArc, MetadataHeap};
use crate::sys::thread::{OwnThread, SpawnError, StackSize};
use crate::sys::uffd::{BATCH, Msg, Uffd};
use crate::world::Linux;
use ring::{Ring, Work};

/// Whom the pagers serve: the protocol's side of faults and events.
pub trait Pagee: Clone + Send + Sync + 'static {
    /// The world whose descriptors are read.
    fn world(&self) -> &Linux;

    /// A CPU fault. See [`isomem_core::mm::MmState::cpu_fault`].
    fn cpu_fault(&self, addr: VirtAddr, fault: CpuFault) -> Served;

    /// A CPU fault on a page that nobody knows. See [`isomem_core::mm::MmState::fill_hole`].
    fn fill_hole(&self, addr: VirtAddr, fault: CpuFault) -> Served;

    /// A device's fault on a page of an arena.
    fn arena_fault(&self, addr: VirtAddr) -> Served;

    /// A change that did not come through the API.
    fn late(&self, event: LateEvent);

    /// A fork that was not announced.
    fn late_fork(&self);

    /// Gives a fork's child, for whose areas `child` stands, what its parent has on devices. Called with departures and arrivals held, and must not wait
    /// for anything.
    fn give_to_child(&self, child: &Uffd);

    /// Whether an announced fork left pages away. See [`isomem_core::mm::MmState::has_stragglers`].
    fn has_stragglers(&self) -> bool {
        false
    }

    /// Keeps pages from leaving home until the answer is dropped. See [`isomem_core::mm::MmState::hold_departures`].
    fn hold_departures(&self) -> Option<Held<'_>>;

    /// The same for pages that come home. See [`isomem_core::mm::MmState::hold_arrivals`].
    fn hold_arrivals(&self) -> Option<HeldArrivals<'_>>;

    /// The process is about to fork.
    fn fork_prepare(&self);

    /// The fork is over.
    fn fork_done(&self);
}

impl Pagee for Mm<Linux> {
    fn world(&self) -> &Linux {
        (**self).world()
    }

    fn cpu_fault(&self, addr: VirtAddr, fault: CpuFault) -> Served {
        (**self).cpu_fault(addr, fault)
    }

    fn fill_hole(&self, addr: VirtAddr, fault: CpuFault) -> Served {
        (**self).fill_hole(addr, fault)
    }

    fn arena_fault(&self, addr: VirtAddr) -> Served {
        (**self).arena_fault(addr)
    }

    fn late(&self, event: LateEvent) {
        (**self).late(event);
    }

    fn late_fork(&self) {
        (**self).late_fork();
    }

    /// The child's places for these pages are holes. What a device writes at just this moment may be newer in the child.
    fn give_to_child(&self, child: &Uffd) {
        child::copy_to(child, self);
    }

    fn has_stragglers(&self) -> bool {
        (**self).has_stragglers()
    }

    fn hold_departures(&self) -> Option<Held<'_>> {
        Some((**self).hold_departures())
    }

    fn hold_arrivals(&self) -> Option<HeldArrivals<'_>> {
        Some((**self).hold_arrivals())
    }

    fn fork_prepare(&self) {
        Self::fork_prepare(self);
    }

    fn fork_done(&self) {
        Self::fork_done(self);
    }
}

/// Counts of what the pagers did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PagerStats {
    /// Reads of the program's descriptor that brought something.
    pub batches: u64,
    /// Faults read from it.
    pub faults: u64,
    /// Faults given to helpers.
    pub handed: u64,
    /// Faults woken to be read again.
    pub requeued: u64,
    /// Events of isomem's own changes.
    pub own_events: u64,
    /// Events of changes that did not come through the API.
    pub late_events: u64,
    /// Forks that were announced.
    pub forks: u64,
    /// Reads that failed.
    pub read_errors: u64,
}

#[derive(Debug, Default)]
struct Counts {
    batches: AtomicU64,
    faults: AtomicU64,
    handed: AtomicU64,
    requeued: AtomicU64,
    own_events: AtomicU64,
    late_events: AtomicU64,
    forks: AtomicU64,
    read_errors: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Places for marks of pages that only the leader may serve.
const MARKS: usize = 64;

/// What the pager threads share.
struct Shared<P> {
    pagee: P,
    ring: Ring,
    stop: AtomicBool,
    /// Page numbers of holes that helpers found; the next fault there is the leader's own. A mark that another one overwrites only costs
    /// a round more.
    marks: [AtomicUsize; MARKS],
    counts: Counts,
}

/// A CPU fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fault {
    addr: VirtAddr,
    kind: CpuFault,
}

impl Fault {
    fn page_number(self) -> usize {
        self.addr.page().first_page()
    }
}

impl<P: Pagee> Shared<P> {
    fn world(&self) -> &Linux {
        self.pagee.world()
    }

    fn mark(&self, page: usize) -> &AtomicUsize {
        &self.marks[page % MARKS]
    }

    /// The thread that waits tries again, and its fault will be read again (PGR-3).
    fn requeue(&self, fault: Fault) {
        count(&self.counts.requeued);
        self.world().wake(fault.addr.page());
    }

    /// A helper's service of a fault.
    fn assist(&self, fault: Fault) {
        match self.pagee.cpu_fault(fault.addr, fault.kind) {
            Served::Done | Served::InTransit => {}
            Served::Hole => {
                // Release, with the acquire of the leader: it is marked before the thread can fault again.
                self.mark(fault.page_number())
                    .store(fault.page_number(), Ordering::Release);
                self.requeue(fault);
            }
            Served::Again => self.requeue(fault),
        }
    }

    /// The life of a helper.
    fn help(&self) {
        while let Some(work) = self.ring.next() {
            match work {
                Work::Fault(fault) => self.assist(fault),
                Work::Late(event) => {
                    self.pagee.late(event);
                    self.ring.late_done();
                }
            }
        }
    }

    /// The life of the thread that serves the arenas.
    fn serve_arenas(&self) {
        let mut messages = [const { Msg::Other(0) }; BATCH];
        let mut rung = false;
        // Who stops us waits until the bell is served, so it is not enough to see the flag.
        while !(rung && self.stop.load(Ordering::Acquire)) {
            rung = false;
            let Ok(read) = self.world().arena().read(&mut messages) else {
                count(&self.counts.read_errors);
                self.world().pause(100_000);
                continue;
            };
            for message in &messages[..read] {
                if let Msg::Fault { addr, .. } = message {
                    rung |= self.world().arena_bell().contains(addr.get());
                    self.serve_arena_fault(*addr);
                }
            }
        }
    }

    fn serve_arena_fault(&self, addr: VirtAddr) {
        let world = self.world();
        if world.arena_bell().contains(addr.get()) {
            world.zero_arena(world.arena_bell());
            return;
        }
        match self.pagee.arena_fault(addr) {
            Served::Done | Served::InTransit => {}
            Served::Hole | Served::Again => world.wake_arena(addr.page()),
        }
    }
}

/// The pager threads; dropping it stops and joins them. By then no page may be away, or who touches it waits until the world is gone.
pub struct Pagers<P: Pagee> {
    shared: MetaArc<Shared<P>>,
    fork_hooks: Option<Installed>,
    leader: Option<OwnThread>,
    helpers: Vec<OwnThread, MetadataHeap>,
    arenas: Option<OwnThread>,
}

impl<P: Pagee> core::fmt::Debug for Pagers<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Pagers")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

struct Hooks<P: Pagee> {
    shared: MetaArc<Shared<P>>,
    /// Forks are one at a time (FORK-1), so it is never contended.
    announced: Mutex<Option<Ticket>>,
    prepared: AtomicBool,
}

impl<P: Pagee> Hooks<P> {
    fn exchange(&self, ticket: Option<Ticket>) -> Option<Ticket> {
        core::mem::replace(
            &mut *self.announced.lock().unwrap_or_else(PoisonError::into_inner),
            ticket,
        )
    }
}

impl<P: Pagee> ForkHooks for Hooks<P> {
    fn prepare(&self) {
        // Where the system call itself is held, it is not announced twice.
        let announce = !self.shared.world().own_changes().holds_forks();
        self.prepared.store(announce, Ordering::Relaxed);
        if announce {
            self.shared.pagee.fork_prepare();
            self.exchange(self.shared.world().announce(Change::Forked));
        }
    }

    fn parent(&self) {
        if self.prepared.load(Ordering::Relaxed) {
            self.shared.world().settle(self.exchange(None));
            self.shared.pagee.fork_done();
        }
    }
}

impl<P: Pagee> Pagers<P> {
    /// Threads that serve CPU faults by default: two, or more (up to four) where there are more processors.
    pub fn default_count() -> usize {
        std::thread::available_parallelism().map_or(2, |cpus| cpus.get().clamp(2, 4))
    }

    /// Starts `count` threads for CPU faults (at least two: the leader and a helper) and one for the arenas.
    ///
    /// # Errors
    /// [`SpawnError`]; nothing is left behind.
    pub fn start(pagee: P, count: usize) -> Result<Self, SpawnError> {
        let shared = Shared {
            pagee,
            ring: Ring::new(),
            stop: AtomicBool::new(false),
            marks: [const { AtomicUsize::new(0) }; MARKS],
            counts: Counts::default(),
        };
        let shared = MetaArc::try_new(shared).map_err(|_| SpawnError::OutOfMetadata)?;
        let helpers = Vec::new_in(MetadataHeap);
        // From here on an early return stops the threads that did start.
        let mut pagers = Self {
            shared,
            fork_hooks: None,
            leader: None,
            helpers,
            arenas: None,
        };
        let helper_count = count.saturating_sub(1).max(1);
        pagers
            .helpers
            .try_reserve_exact(helper_count)
            .map_err(|_| SpawnError::OutOfMetadata)?;
        for _ in 0..helper_count {
            let shared = pagers.shared.clone();
            pagers
                .helpers
                .push(OwnThread::spawn(c"isomem-helper", StackSize::SYSTEM, move || {
                    shared.help();
                })?);
        }
        let shared = pagers.shared.clone();
        pagers.arenas = Some(OwnThread::spawn(c"isomem-arena", StackSize::SYSTEM, move || {
            shared.serve_arenas();
        })?);
        let shared = pagers.shared.clone();
        // Before the thread runs: it says itself when it leaves.
        shared.world().own_changes().reader_started();
        pagers.leader = Some(OwnThread::spawn(c"isomem-pager", StackSize::SYSTEM, move || {
            shared.lead();
        })?);
        let hooks = Hooks {
            shared: pagers.shared.clone(),
            announced: Mutex::new(None),
            prepared: AtomicBool::new(false),
        };
        pagers.fork_hooks = fork::install(Box::new(hooks));
        Ok(pagers)
    }

    /// Counts so far.
    pub fn stats(&self) -> PagerStats {
        let counts = &self.shared.counts;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PagerStats {
            batches: read(&counts.batches),
            faults: read(&counts.faults),
            handed: read(&counts.handed),
            requeued: read(&counts.requeued),
            own_events: read(&counts.own_events),
            late_events: read(&counts.late_events),
            forks: read(&counts.forks),
            read_errors: read(&counts.read_errors),
        }
    }

    /// Stops the leader and the thread of the arenas, which wait in reads, by their bells.
    fn stop(&mut self) {
        let world = self.shared.world();
        self.shared.stop.store(true, Ordering::Release);
        if let Some(leader) = self.leader.take() {
            world.nudge();
            drop(leader);
        }
        // Where the leader never started, nobody else says so.
        world.own_changes().reader_gone();
        if let Some(arenas) = self.arenas.take() {
            world.nudge_arena();
            drop(arenas);
        }
        self.shared.ring.close();
        self.helpers.clear();
    }
}

impl<P: Pagee> Drop for Pagers<P> {
    fn drop(&mut self) {
        self.fork_hooks = None;
        if self.shared.world().is_current() {
            self.stop();
        }
    }
}
