//! One invalidation: start for all it concerns, a guard while the mapping changes, end for those who accepted.
//!
//! # Invariants
//! - GRD-1 (NTF-1): a window is open on an entry exactly from an accepted start to the return of its end.
//! - GRD-2 (NTF-2, NTF-3): under one hold of `state` the range becomes active, the overlapping reads stale, and the list is taken.
//!
//! # Locking
//! `state` for that moment and for the moment the range ceases to be active; nothing during callbacks.
//!
//! Linux: __mmu_notifier_invalidate_range_start and _end, mm/mmu_notifier.c.

use core::fmt;
use core::marker::PhantomData;
use std::time::Duration;

use super::subscribe::{List, Window};
use super::{
    Active, Answer, Blocking, Cause, Deadline, Here, Inner, Invalidation, Notifier, Outcome, Owner, State, in_callback,
};
use crate::addr::PageRange;
use crate::sync::{MutexGuard, Ordering};
use crate::world::Metadata;

/// The longest that one pass waits for readers that collided too often.
pub(super) const TURN: Duration = Duration::from_millis(10);

/// A blocking invalidation could not start. Nobody was told anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidateError {
    /// A callback tried to invalidate (INV-7).
    #[error("a callback cannot invalidate {0}: it updates the device's page table and nothing else")]
    InCallback(PageRange),
    /// The thread holds the guard of another invalidation, and all slots are taken: waiting for one might be for ever.
    #[error("no slot is free to invalidate {0} within another invalidation")]
    Exhausted(PageRange),
}

/// A non-blocking invalidation did not come about. Those told of it were told that it is aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A subscriber would have to wait.
    #[error("a subscriber cannot give up {0} without waiting")]
    Subscriber(PageRange),
    /// Too many invalidations are in flight.
    #[error("too many invalidations are in flight to invalidate {0} without waiting")]
    Busy(PageRange),
    /// A callback tried to invalidate (INV-7).
    #[error("a callback cannot invalidate {0}: it updates the device's page table and nothing else")]
    InCallback(PageRange),
}

/// No slot was to be had.
struct NoSlot;

/// What to do where every slot is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WhenFull {
    Wait,
    Fail,
}

impl<M: Metadata> Notifier<M> {
    /// Tells every subscriber that meets `range`, but those of `owner`, to stop using it, and waits until they did. Make the change,
    /// then [`Guard::commit`]; a guard dropped without says that nothing changed.
    ///
    /// May wait for subscribers, for a free slot, and a few milliseconds for a reader that collided too often; no lock that a callback takes
    /// may be held. Allocates nothing.
    #[doc(alias = "mmu_notifier_invalidate_range_start")]
    pub fn invalidate(
        &self,
        range: PageRange,
        cause: Cause,
        owner: Option<Owner>,
    ) -> Result<Guard<'_, M>, InvalidateError> {
        self.start(range, cause, owner, WhenFull::Wait)
    }

    /// The same, but where all slots are taken it fails at once: for who has pages in transit, which those with slots may wait for. To be tried
    /// again with nothing in transit, after [`Notifier::wait_for_slot`].
    pub(crate) fn invalidate_unless_full(
        &self,
        range: PageRange,
        cause: Cause,
        owner: Option<Owner>,
    ) -> Result<Guard<'_, M>, InvalidateError> {
        self.start(range, cause, owner, WhenFull::Fail)
    }

    fn start(
        &self,
        range: PageRange,
        cause: Cause,
        owner: Option<Owner>,
        when_full: WhenFull,
    ) -> Result<Guard<'_, M>, InvalidateError> {
        if in_callback() {
            return Err(InvalidateError::InCallback(range));
        }
        let invalidation = Invalidation {
            range,
            cause,
            owner,
            blocking: Blocking::May,
        };
        let mut guard = self
            .inner
            .activate(invalidation, when_full)
            .map_err(|NoSlot| InvalidateError::Exhausted(range))?;
        guard.start();
        Ok(guard)
    }

    /// Waits until a slot is free, which another may take then. The caller has nothing that anybody waits for. False, and at once, where it
    /// is inside a callback or an invalidation, which might have the slots itself.
    pub(crate) fn wait_for_slot(&self) -> bool {
        if self.inner.outside().is_err() {
            return false;
        }
        let mut state = self.inner.state.lock();
        while state.active.is_full() {
            state = self.inner.wait(state);
        }
        true
    }

    /// The same in a pass that does not wait: for reclaim, and where a CPU fault is served (INV-9). Allocates nothing.
    ///
    /// When a subscriber refuses, those before it get their end, as aborted and in reverse order, and later ones are not asked (INV-2).
    #[doc(alias = "mmu_notifier_invalidate_range_start_nonblock")]
    pub fn try_invalidate(
        &self,
        range: PageRange,
        cause: Cause,
        owner: Option<Owner>,
    ) -> Result<Guard<'_, M>, Refused> {
        if in_callback() {
            return Err(Refused::InCallback(range));
        }
        let invalidation = Invalidation {
            range,
            cause,
            owner,
            blocking: Blocking::Never,
        };
        let refused = match self.inner.activate(invalidation, WhenFull::Fail) {
            Ok(mut guard) => match guard.try_start() {
                Ok(()) => return Ok(guard),
                Err(refused) => refused,
            },
            Err(NoSlot) => Refused::Busy(range),
        };
        self.inner.state.lock().stats.refused += 1;
        Err(refused)
    }
}

impl<M: Metadata> Inner<M> {
    /// GRD-2.
    fn activate(&self, invalidation: Invalidation, when_full: WhenFull) -> Result<Guard<'_, M>, NoSlot> {
        let active = Active {
            invalidation,
            thread: Here::now(),
        };
        let mut state = self.state.lock();
        // Who holds a guard never waits for slots or readers: those might wait for that guard.
        let may_wait = invalidation.blocking == Blocking::May && !state.invalidating(active.thread);
        if may_wait {
            state = self.let_readers_finish(state, active);
        }
        let slot = loop {
            match state.active.insert(active) {
                Some(slot) => break slot,
                None if may_wait && when_full == WhenFull::Wait => state = self.wait(state),
                None => return Err(NoSlot),
            }
        };
        state.stats.invalidations += 1;
        self.mark_stale(&mut state, invalidation);
        let list = state.list.clone();
        drop(state);
        Ok(Guard {
            list,
            invalidation,
            reached: 0,
            fenced: false,
            outcome: Outcome::Aborted,
            active: ActiveSlot { inner: self, slot },
            thread: PhantomData,
        })
    }

    fn mark_stale(&self, state: &mut State<M>, invalidation: Invalidation) {
        let mut stale = 0;
        for (slot, reading) in state.readers.iter_mut() {
            reading.note_overtaking(invalidation.range);
            if reading.is_under_way() && reading.range.overlaps(invalidation.range) {
                reading.collider = Some(invalidation);
                stale |= 1 << slot;
            }
        }
        if stale != 0 {
            // Release: partner of the Acquire in `Read::is_stale`; but what makes a reader see it in time is the update
            // lock, which the callbacks take after this and the reader holds while it asks.
            let before = self.stale.fetch_or(stale, Ordering::Release);
            state.stats.collisions += u64::from((stale & !before).count_ones());
        }
    }

    /// Gives readers that collided too often their turn (FLT-3): waits at most [`TURN`], after which their tickets are spent. One that itself waits
    /// for another invalidation is not waited for at first (READ-3).
    fn let_readers_finish<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<M>>,
        active: Active,
    ) -> MutexGuard<'a, State<M>> {
        let mut turn: Option<Deadline> = None;
        while state
            .readers
            .iter()
            .any(|(_, reading)| reading.is_owed_a_turn_by(&active))
        {
            let ends = match turn {
                Some(ends) => ends,
                None => {
                    state.stats.turns += 1;
                    *turn.insert(Deadline::after(TURN))
                }
            };
            if ends.is_past() {
                let owed = state
                    .readers
                    .iter_mut()
                    .filter(|(_, reading)| reading.is_owed_a_turn_by(&active));
                owed.for_each(|(_, reading)| reading.spend_ticket());
                break;
            }
            state = self.wait_until(state, ends);
        }
        state
    }
}

/// An invalidation under way: from start to end. It stays on its thread.
#[must_use = "dropping the guard ends the invalidation, as aborted"]
pub struct Guard<'a, M: Metadata> {
    list: Option<M::Shared<List<M>>>,
    invalidation: Invalidation,
    /// Entries of the list that the pass has dealt with.
    reached: usize,
    fenced: bool,
    outcome: Outcome,
    /// Last, so that the range is active until every end returned.
    active: ActiveSlot<'a, M>,
    /// What a thread must not do inside its own invalidation is known by the thread.
    thread: PhantomData<*const ()>,
}

impl<M: Metadata> Guard<'_, M> {
    /// What was announced.
    pub fn invalidation(&self) -> &Invalidation {
        &self.invalidation
    }

    /// Whether a subscriber left an access in flight to a fence: it may still hold a stale address.
    pub fn fenced(&self) -> bool {
        self.fenced
    }

    /// Ends the invalidation; the mapping has changed.
    pub fn commit(mut self) {
        self.outcome = Outcome::Committed;
    }

    fn start(&mut self) {
        let invalidation = self.invalidation;
        let accept = self.pass(|subscriber, scope| {
            subscriber.start(&invalidation, scope);
            if scope.is_fenced() {
                Answer::Fenced
            } else {
                Answer::Done
            }
        });
        debug_assert!(accept.is_ok(), "INV-3: a blocking pass was refused");
    }

    fn try_start(&mut self) -> Result<(), Refused> {
        let invalidation = self.invalidation;
        self.pass(|subscriber, scope| subscriber.try_start(&invalidation, scope))
    }

    /// Opens a window on each entry concerned and calls its subscriber, up to the first that refuses.
    fn pass(
        &mut self,
        call: impl Fn(&dyn super::Subscriber, &super::CallbackScope<'_>) -> Answer,
    ) -> Result<(), Refused> {
        let Some(list) = self.list.clone() else { return Ok(()) };
        for (index, entry) in list.before_end_of(self.invalidation.range).iter().enumerate() {
            if !entry.concerns(&self.invalidation) {
                continue;
            }
            let Some(window) = entry.open(self.active.slot, self.active.inner) else {
                continue;
            };
            match entry.call(&call) {
                Answer::Refused => return Err(Refused::Subscriber(self.invalidation.range)),
                Answer::Fenced => self.fenced = true,
                Answer::Done => {}
            }
            window.keep();
            self.reached = index + 1;
        }
        Ok(())
    }
}

impl<M: Metadata> Drop for Guard<'_, M> {
    fn drop(&mut self) {
        let Some(list) = self.list.take() else { return };
        let told = &list.before_end_of(self.invalidation.range)[..self.reached];
        for entry in told.iter().rev() {
            let Some(_window) = Window::resume(entry, self.active.slot, self.active.inner) else {
                continue;
            };
            entry.call(|subscriber, scope| subscriber.end(&self.invalidation, self.outcome, scope));
        }
    }
}

impl<M: Metadata> fmt::Debug for Guard<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("invalidation", &self.invalidation)
            .finish_non_exhaustive()
    }
}

/// Keeps the range active.
struct ActiveSlot<'a, M: Metadata> {
    inner: &'a Inner<M>,
    slot: usize,
}

impl<M: Metadata> Drop for ActiveSlot<'_, M> {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        state.active.remove(self.slot);
        self.inner.wake(&state);
    }
}
