//! Tells subscribers that the CPU's mapping of a range is about to change, and readers that what they saw went stale.
//!
//! [`Notifier::invalidate`] is *start*: it calls every subscriber whose interval meets the range, and returns a guard. The change is
//! made while the guard lives. Dropping the guard is *end*, in reverse order, for exactly those who accepted.
//! There is no other way to write either, so an unpaired start cannot be written.
//!
//! A reader ([`Read`]) is told of collisions per range: the core counts, once, for all subscribers.
//!
//! # Invariants
//! - NTF-1 (INV-2): each accepted start has exactly one end; who refused gets none.
//! - NTF-2 (INV-8): an invalidation that starts after `subscribe` returned reaches the subscriber; a read that overlaps one already in
//!   flight waits for it.
//! - NTF-3 (INV-5): a read is told stale exactly by invalidations that share a page with it.
//! - NTF-4 (LIFE-2): once `unsubscribe` returned, no callback runs and none will.
//! - NTF-5 (LIFE-3): `release` runs once for each subscription, at `exit` or at `unsubscribe`, whichever is first.
//!
//! # Locking
//! One lock, `state`, a leaf but for a subscription's seat, which is held for single reads and writes of it. Neither is held across
//! a callback. A pass allocates nothing: it works on a snapshot of the list, which subscribing replaces as a whole.
//!
//! ```text
//! device thread                         invalidating thread
//! read = begin(range)                   .
//! look at the CPU's pages               start: the range is active; every overlapping read is stale
//! update lock { read.is_stale() -> yes }  callbacks zap under the update lock
//! retry: begin waits                    the change; end: no longer active
//! ```
//!
//! Linux: mm/mmu_notifier.c, mmu_interval_read_begin.

use core::fmt;
use std::time::Duration;
#[cfg(not(feature = "shuttle"))]
use std::time::Instant;

use crate::addr::PageRange;
use crate::sync::{AtomicU64, Condvar, MODEL, Mutex, MutexGuard};
use crate::world::{Metadata, OutOfMetadata};

mod callback;
mod deferred;
mod invalidate;
mod read;
mod slots;
mod subscribe;

pub use callback::{CallbackScope, in_callback};
pub use deferred::{Deferred, Inside};
pub use invalidate::{Guard, InvalidateError, Refused};
pub use read::{Attempt, Read, ReadError, Reader};
pub use subscribe::Subscription;

pub(crate) use callback::Here;
use slots::Slots;
use subscribe::List;

/// Invalidations in flight at a time. One less than the bits of a subscription's word: the last says that it is dying.
pub(crate) const ACTIVE_SLOTS: usize = if MODEL { 3 } else { 63 };
/// Reads in flight at a time: the bits of the word that says which are stale.
pub(crate) const READ_SLOTS: usize = if MODEL { 2 } else { 64 };

/// Why a mapping changes (INV-1).
#[doc(alias = "mmu_notifier_event")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The area goes: munmap, mremap's old place.
    Unmap,
    /// The entries go, the area stays: contents discarded or pages replaced.
    Clear,
    /// What the program may do in the area changes: mprotect.
    ProtectArea,
    /// What it may do to single pages changes: write-protection for copy-on-write or dirty tracking.
    ProtectPage,
    /// Soft-dirty bits are cleared; the pages stay readable as they are.
    SoftDirty,
    /// The address space goes.
    Release,
    /// The pages move to a device or home.
    Migrate,
    /// A device takes the pages for itself, for atomics.
    Exclusive,
}

impl Cause {
    /// Whether the pages only change place: an access through a stale entry is then not an access to memory that is gone, and where the MMU
    /// fences it ([`World::FENCED`](crate::world::World::FENCED)) it need not be waited for without bound.
    pub const fn moves_pages(self) -> bool {
        matches!(self, Self::Migrate | Self::Exclusive)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unmap => "unmap",
            Self::Clear => "clear",
            Self::ProtectArea => "protection of an area",
            Self::ProtectPage => "protection of a page",
            Self::SoftDirty => "soft dirty",
            Self::Release => "release",
            Self::Migrate => "migrate",
            Self::Exclusive => "exclusive",
        })
    }
}

/// Whether a pass may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blocking {
    /// It may wait; no subscriber can refuse (INV-3).
    May,
    /// It must not; a subscriber that would have to wait refuses.
    Never,
}

/// Who caused an invalidation, so that it need not be told of it (INV-6).
#[doc(alias = "pgmap_owner")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(pub u64);

/// What a subscriber is told (INV-1).
#[doc(alias = "mmu_notifier_range")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalidation {
    /// The pages whose mapping changes.
    pub range: PageRange,
    /// Why.
    pub cause: Cause,
    /// Who is left out.
    pub owner: Option<Owner>,
    /// Whether the pass may wait.
    pub blocking: Blocking,
}

impl fmt::Display for Invalidation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.cause, self.range)
    }
}

/// A subscriber's answer in a pass that must not wait (INV-9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The device no longer uses the pages.
    Done,
    /// It cannot be had without waiting; nothing was changed. No end follows.
    Refused,
    /// The device is stopped from using the pages by a flag; the entries go later. An end follows.
    Fenced,
}

/// What became of the change that an invalidation announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The mapping changed.
    Committed,
    /// It did not.
    Aborted,
}

/// Someone who must stop using pages before their mapping changes.
///
/// The callbacks of one pass run on the invalidating thread, with no lock of the core held. They update the device's page table
/// and nothing else: they cannot invalidate or read (both are refused inside), must not allocate and must not panic.
#[doc(alias = "mmu_notifier_ops")]
#[doc(alias = "mmu_interval_notifier_ops")]
pub trait Subscriber: Send + Sync + 'static {
    /// Left out of invalidations of this owner (INV-6). Asked once, when it subscribes.
    fn owner(&self) -> Option<Owner> {
        None
    }

    /// Stop using the range. May wait for the device; cannot refuse (INV-3).
    #[doc(alias = "invalidate_range_start")]
    fn start(&self, inv: &Invalidation, scope: &CallbackScope<'_>);

    /// Stop using the range without waiting, or refuse.
    fn try_start(&self, inv: &Invalidation, scope: &CallbackScope<'_>) -> Answer;

    /// The change announced by a start that was accepted is over. Called once for each, later subscribers first.
    #[doc(alias = "invalidate_range_end")]
    fn end(&self, inv: &Invalidation, outcome: Outcome, scope: &CallbackScope<'_>) {
        let _ = (inv, outcome, scope);
    }

    /// Stop using the address space, and forget what was seen of it. Called once for each subscription, when it begins to end, with no lock
    /// held. Invalidations come while this runs, and may come until `release`. May wait for those in flight.
    #[doc(alias = "mmu_notifier_release")]
    fn stop(&self) {}

    /// The subscription is over. Called once for each (LIFE-3), after its last callback returned and with no lock held, so it may wait for other
    /// invalidations in flight.
    fn release(&self) {}
}

/// What happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Passes that started, refused ones included.
    pub invalidations: u64,
    /// Passes that did not come about: a subscriber refused, or the table was full and waiting was not allowed.
    pub refused: u64,
    /// Times a read met an invalidation: it went stale, or had to wait for one in flight.
    pub collisions: u64,
    /// Attempts of readers after their first.
    pub retries: u64,
    /// Times a blocking pass waited for a reader that had collided too often.
    pub turns: u64,
    /// Readers that gave up.
    pub timeouts: u64,
}

/// The subscribers and readers of one address space. A handle: clones are the same notifier.
#[doc(alias = "mmu_notifier_subscriptions")]
pub struct Notifier<M: Metadata> {
    inner: M::Shared<Inner<M>>,
}

impl<M: Metadata> Clone for Notifier<M> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<M: Metadata> fmt::Debug for Notifier<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifier")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl<M: Metadata> Notifier<M> {
    /// A notifier with no subscriber.
    pub fn new() -> Result<Self, OutOfMetadata> {
        Ok(Self {
            inner: M::share(Inner::new())?,
        })
    }

    /// What happened so far. Takes the leaf lock.
    pub fn stats(&self) -> Stats {
        self.inner.state.lock().stats
    }
}

/// What the handles share.
pub(crate) struct Inner<M: Metadata> {
    state: Mutex<State<M>>,
    /// A slot got free, a window closed, or a release returned.
    changed: Condvar,
    /// A bit for each reader slot: what it saw went stale. Set under `state`, read without it.
    stale: AtomicU64,
}

struct State<M: Metadata> {
    /// The subscriptions; `None` for none.
    list: Option<M::Shared<List<M>>>,
    /// How often `list` was replaced.
    edition: u64,
    exited: bool,
    active: Slots<Active, ACTIVE_SLOTS>,
    readers: Slots<read::Reading, READ_SLOTS>,
    /// Threads that wait on `changed`: waking nobody would cost a system call.
    waiters: usize,
    stats: Stats,
}

/// An invalidation in flight.
#[derive(Clone, Copy)]
struct Active {
    invalidation: Invalidation,
    thread: Here,
}

impl<M: Metadata> State<M> {
    fn invalidating(&self, thread: Here) -> bool {
        self.active.iter().any(|(_, active)| active.thread == thread)
    }
}

impl<M: Metadata> Inner<M> {
    fn new() -> Self {
        let state = State {
            list: None,
            edition: 0,
            exited: false,
            active: Slots::new(),
            readers: Slots::new(),
            waiters: 0,
            stats: Stats::default(),
        };
        Self {
            state: Mutex::new("notifier state", state),
            changed: Condvar::new("notifier changed"),
            stale: AtomicU64::new(0),
        }
    }

    fn wait<'a>(&self, mut state: MutexGuard<'a, State<M>>) -> MutexGuard<'a, State<M>> {
        state.waiters += 1;
        let mut state = self.changed.wait(state);
        state.waiters -= 1;
        state
    }

    /// Waits, but not past `deadline`. Callers test their condition and the deadline again.
    fn wait_until<'a>(&'a self, mut state: MutexGuard<'a, State<M>>, deadline: Deadline) -> MutexGuard<'a, State<M>> {
        state.waiters += 1;
        #[cfg(feature = "shuttle")]
        if let Deadline::Looks(_) = deadline {
            CLOCK.with(|clock| clock.set(clock.get() + 1));
            state.waiters -= 1;
            drop(state);
            crate::sync::thread::yield_now();
            return self.state.lock();
        }
        let mut state = match deadline.left() {
            Some(left) => self.changed.wait_timeout(state, left),
            None => state,
        };
        state.waiters -= 1;
        state
    }

    fn wake(&self, state: &State<M>) {
        if state.waiters > 0 {
            self.changed.notify_all();
        }
    }
}

/// A moment after which waiting ends.
///
/// Under the model checkers no time passes. A short turn is over after some looks there (not under loom), no time at all is over at once, and anything longer
/// never comes: what waits for it is a deadlock that the checker should find.
#[derive(Debug, Clone, Copy)]
enum Deadline {
    #[cfg(not(feature = "shuttle"))]
    At(Instant),
    #[cfg(feature = "shuttle")]
    Looks(u64),
    Never,
}

/// Looks that a turn lasts under shuttle: with all threads in step, a reader must be able to look at some blocks in that time.
#[cfg(feature = "shuttle")]
const LOOKS: u64 = 100;

#[cfg(feature = "shuttle")]
std::thread_local! {
    // Looks so far: all threads of an execution run on one thread of the system.
    static CLOCK: core::cell::Cell<u64> = const { core::cell::Cell::new(0) };
}

impl Deadline {
    #[cfg(not(feature = "shuttle"))]
    fn after(duration: Duration) -> Self {
        if MODEL {
            return Self::Never;
        }
        Instant::now().checked_add(duration).map_or(Self::Never, Self::At)
    }

    #[cfg(feature = "shuttle")]
    fn after(duration: Duration) -> Self {
        let now = CLOCK.with(core::cell::Cell::get);
        match duration {
            Duration::ZERO => Self::Looks(now),
            invalidate::TURN => Self::Looks(now + LOOKS),
            _ => Self::Never,
        }
    }

    /// The time left, or `None` when it is past.
    fn left(self) -> Option<Duration> {
        match self {
            Self::Never => Some(Duration::MAX),
            #[cfg(feature = "shuttle")]
            Self::Looks(end) => (CLOCK.with(core::cell::Cell::get) < end).then_some(Duration::ZERO),
            #[cfg(not(feature = "shuttle"))]
            Self::At(end) => end
                .checked_duration_since(Instant::now())
                .filter(|left| !left.is_zero()),
        }
    }

    fn is_past(self) -> bool {
        self.left().is_none()
    }
}

#[cfg(test)]
mod tests;
