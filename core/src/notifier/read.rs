//! Reads of the CPU's mappings that are told when an invalidation collides with them, and that get their turn in the end.
//!
//! A [`Reader`] is one request, over all its attempts; a [`Read`] is one attempt. After [`PATIENCE`] attempts that failed the next one carries a
//! ticket: a blocking invalidation that overlaps it lets it finish first, once, for a bounded time; one that finds it waiting for another may go
//! ahead, but only so many may. A pass that must not wait ignores tickets. When the reader's time is up it fails with the name of who kept invalidating (FLT-3).
//!
//! # Invariants
//! - READ-1 (NTF-3): a read under way overlaps no active invalidation, unless it is marked stale.
//! - READ-2 (FLT-3): a ticket delays its invalidators until the read ends or [`TURN`](super::invalidate::TURN) is over, whichever is first.
//! - READ-3 (FLT-3): a read that waits is overtaken [`PATIENCE`] times before it has a ticket that counts. Who overtakes it may be what the one it
//!   waits for is waiting for.
//!
//! # Locking
//! `state`, as a leaf, for the begin and the end of a read; [`Read::is_stale`] takes no lock.
//!
//! Linux: mmu_interval_read_begin and mmu_interval_read_retry, mm/mmu_notifier.c; tickets have no counterpart there.

use core::fmt;
use core::marker::PhantomData;
use std::time::Duration;

use super::{Active, Deadline, Here, Inner, Invalidation, Notifier, State, in_callback};
use crate::addr::PageRange;
use crate::sync::{MutexGuard, Ordering};
use crate::world::Metadata;

/// Attempts before a reader gets a ticket.
pub(super) const PATIENCE: u32 = if crate::sync::MODEL { 1 } else { 8 };
/// How long a reader tries unless told otherwise: on a machine with much more to do than processors, one migration can take a second.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// A read could not begin. It holds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// A callback tried to read (INV-7).
    #[error("a callback cannot read {0}: it updates the device's page table and nothing else")]
    InCallback(PageRange),
    /// The thread itself holds the guard of an overlapping invalidation, for whose end the read would wait.
    #[error("cannot read {range} inside one's own invalidation ({invalidation})")]
    OwnInvalidation {
        /// What was to be read.
        range: PageRange,
        /// The thread's own invalidation.
        invalidation: Invalidation,
    },
    /// The time was up before an attempt succeeded.
    #[error("gave up reading {range} after {attempts} attempts: {}", Blamed(*.collider))]
    TimedOut {
        /// What was to be read.
        range: PageRange,
        /// Attempts made.
        attempts: u32,
        /// The last invalidation it collided with; `None` when it met none but found no free slot, or its attempts failed otherwise.
        collider: Option<Invalidation>,
    },
}

struct Blamed(Option<Invalidation>);

impl fmt::Display for Blamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(invalidation) => write!(f, "it kept colliding with invalidations, the last was {invalidation}"),
            None => f.write_str("no invalidation was in its way"),
        }
    }
}

/// A row of the table of readers.
#[derive(Clone, Copy)]
pub(super) struct Reading {
    pub(super) range: PageRange,
    thread: Here,
    phase: Phase,
    /// Overlapping invalidations still have to wait for it.
    ticket: bool,
    /// Invalidations that have gone ahead of it while it waited for others.
    overtaken: u32,
    /// The last invalidation that made it stale.
    pub(super) collider: Option<Invalidation>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// For active invalidations to end.
    Waiting,
    UnderWay,
}

impl Reading {
    pub(super) fn is_under_way(&self) -> bool {
        self.phase == Phase::UnderWay
    }

    pub(super) fn is_owed_a_turn_by(&self, active: &Active) -> bool {
        self.ticket
            && (self.is_under_way() || self.overtaken >= PATIENCE)
            && self.collider.is_none()
            && self.thread != active.thread
            && self.range.overlaps(active.invalidation.range)
    }

    pub(super) fn spend_ticket(&mut self) {
        self.ticket = false;
        self.overtaken = 0;
    }

    /// An invalidation begins. Who is overtaken too often gets a ticket, also where no attempt of his has failed: else a stream of invalidations
    /// that overlap each other would keep him from the first.
    pub(super) fn note_overtaking(&mut self, by: PageRange) {
        if !self.is_under_way() && self.range.overlaps(by) {
            self.overtaken = self.overtaken.saturating_add(1);
            self.ticket |= self.overtaken >= PATIENCE;
        }
    }
}

impl<M: Metadata> Notifier<M> {
    /// A request to look at the CPU's mapping of `range`.
    pub fn read(&self, range: PageRange) -> Reader<'_, M> {
        Reader {
            inner: &self.inner,
            range,
            attempts: 0,
            time_limit: TIME_LIMIT,
            deadline: None,
            collider: None,
        }
    }
}

/// One request to read, over all its attempts.
pub struct Reader<'n, M: Metadata> {
    inner: &'n Inner<M>,
    range: PageRange,
    attempts: u32,
    time_limit: Duration,
    /// Counted from the first attempt.
    deadline: Option<Deadline>,
    collider: Option<Invalidation>,
}

/// What an attempt came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt<T> {
    /// It is over, with this.
    Done(T),
    /// It was stale, or something else was in the way: try again.
    Retry,
}

impl<'n, M: Metadata> Reader<'n, M> {
    /// Sets how long it tries, counted from the first attempt. One second unless set.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Attempts made so far.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Begins an attempt: waits until no invalidation that overlaps is in flight. Look at the mapping, then install what was seen under the
    /// lock that the callbacks take, if [`Read::is_stale`] says no there.
    ///
    /// May wait for invalidations, up to the time limit; no lock that a callback takes may be held.
    #[doc(alias = "mmu_interval_read_begin")]
    pub fn begin(&mut self) -> Result<Read<'_, M>, ReadError> {
        if in_callback() {
            return Err(ReadError::InCallback(self.range));
        }
        let deadline = *self.deadline.get_or_insert_with(|| Deadline::after(self.time_limit));
        let mut state = self.inner.state.lock();
        if self.attempts > 0 {
            state.stats.retries += 1;
            if deadline.is_past() {
                return Err(self.time_out(&mut state));
            }
        }
        let here = Here::now();
        let own = state
            .active
            .iter()
            .find(|(_, a)| a.thread == here && a.invalidation.range.overlaps(self.range));
        if let Some((_, own)) = own {
            return Err(ReadError::OwnInvalidation {
                range: self.range,
                invalidation: own.invalidation,
            });
        }
        let (state, slot) = self.register(state, here, deadline)?;
        let (mut state, slot) = self.get_under_way(state, slot, deadline)?;
        if let Some(reading) = state.readers.get_mut(slot) {
            reading.phase = Phase::UnderWay;
        }
        // Relaxed: made and cleared under `state`, and the bit is this attempt's alone.
        self.inner.stale.fetch_and(!(1 << slot), Ordering::Relaxed);
        drop(state);
        self.attempts += 1;
        Ok(Read {
            slot,
            inner: self.inner,
            collider: &mut self.collider,
            thread: PhantomData,
        })
    }

    /// Takes a row of the table, waiting for one if need be.
    fn register(
        &mut self,
        mut state: MutexGuard<'n, State<M>>,
        thread: Here,
        deadline: Deadline,
    ) -> Result<(MutexGuard<'n, State<M>>, usize), ReadError> {
        let ticket = self.attempts >= PATIENCE;
        let reading = Reading {
            range: self.range,
            thread,
            phase: Phase::Waiting,
            ticket,
            overtaken: 0,
            collider: None,
        };
        loop {
            if let Some(slot) = state.readers.insert(reading) {
                return Ok((state, slot));
            }
            if deadline.is_past() {
                return Err(self.time_out(&mut state));
            }
            state = self.inner.wait_until(state, deadline);
        }
    }

    /// Waits until nothing that overlaps is active (READ-1). Gives the row back when time is up.
    fn get_under_way(
        &mut self,
        mut state: MutexGuard<'n, State<M>>,
        slot: usize,
        deadline: Deadline,
    ) -> Result<(MutexGuard<'n, State<M>>, usize), ReadError> {
        let mut met_one = false;
        loop {
            let range = self.range;
            let active = state
                .active
                .iter()
                .find(|(_, active)| active.invalidation.range.overlaps(range));
            let Some(invalidation) = active.map(|(_, active)| active.invalidation) else {
                return Ok((state, slot));
            };
            self.collider = Some(invalidation);
            state.stats.collisions += u64::from(!met_one);
            met_one = true;
            if deadline.is_past() {
                state.readers.remove(slot);
                self.inner.wake(&state);
                return Err(self.time_out(&mut state));
            }
            state = self.inner.wait_until(state, deadline);
        }
    }

    fn time_out(&self, state: &mut State<M>) -> ReadError {
        state.stats.timeouts += 1;
        ReadError::TimedOut {
            range: self.range,
            attempts: self.attempts,
            collider: self.collider,
        }
    }

    /// Attempts until `attempt` is done or the time is up. Whoever stops caring (a killed task) says done with an error of its own.
    pub fn retry_loop<T>(mut self, mut attempt: impl FnMut(&Read<'_, M>) -> Attempt<T>) -> Result<T, ReadError> {
        loop {
            let read = self.begin()?;
            if let Attempt::Done(value) = attempt(&read) {
                return Ok(value);
            }
        }
    }
}

/// One attempt to read. It stays on its thread; dropping it ends it.
#[must_use = "a read tells of collisions only while it lives"]
pub struct Read<'r, M: Metadata> {
    slot: usize,
    inner: &'r Inner<M>,
    /// Where the request remembers whom to blame.
    collider: &'r mut Option<Invalidation>,
    thread: PhantomData<*const ()>,
}

impl<M: Metadata> Read<'_, M> {
    /// Whether an invalidation touched the range since `begin`: then what was seen must not be installed. Ask under the lock that the callbacks
    /// take to erase. Takes no lock.
    #[doc(alias = "mmu_interval_read_retry")]
    pub fn is_stale(&self) -> bool {
        // Acquire: partner of the Release in `mark_stale`.
        self.inner.stale.load(Ordering::Acquire) & (1 << self.slot) != 0
    }
}

impl<M: Metadata> Drop for Read<'_, M> {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        if let Some(Reading {
            collider: Some(collider),
            ..
        }) = state.readers.remove(self.slot)
        {
            *self.collider = Some(collider);
        }
        self.inner.wake(&state);
    }
}

impl<M: Metadata> fmt::Debug for Read<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Read")
            .field("is_stale", &self.is_stale())
            .finish_non_exhaustive()
    }
}

impl<M: Metadata> fmt::Debug for Reader<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("range", &self.range)
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}
