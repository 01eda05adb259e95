//! Subscriptions: how one begins, who is in its callbacks, and how it ends.
//!
//! # Invariants
//! - SUB-1 (NTF-4): the dying bit and the open windows of an entry are one word, so that a pass either enters before the entry
//!   dies, and is waited for, or sees that it died.
//! - SUB-4: an entry dies only after its subscriber's [`Subscriber::stop`] returned. So who is passed by has nothing left to be told about.
//! - SUB-2 (NTF-5): the subscriber is taken out of its seat by the one thread that calls `release`.
//! - SUB-3: a subscriber's destructor never runs on an invalidating thread for the notifier's sake: the seat is emptied by who
//!   ends the subscription.
//!
//! # Locking
//! `state` before `seat`. The list is rebuilt without a lock and swapped in under `state` if it is still the same edition.
//!
//! ```text
//! unsubscribing thread                 invalidating thread
//! stop()                               start .. the change .. end, as before
//! word |= DYING                        word |= window        (or sees DYING, and skips)
//! .                                    start .. the change .. end
//! sleeps until no window is open       word &= !window; sees DYING, wakes
//! release()
//! ```
//!
//! Linux: mmu_interval_notifier_insert and _remove, mmu_notifier_unregister, mm/mmu_notifier.c.

use core::fmt;

use allocator_api2::vec::Vec;

use super::{
    ACTIVE_SLOTS, CallbackScope, Deferred, Here, Inner, Inside, Invalidation, Notifier, Owner, Subscriber, in_callback,
};
use crate::addr::PageRange;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use crate::world::{Metadata, OutOfMetadata};

/// Set once the subscription ends; no window opens any more.
const DYING: u64 = 1 << 63;
const _: () = assert!(ACTIVE_SLOTS < 64);

/// Where a subscription's life stands.
enum Seat<M: Metadata> {
    Live(M::Shared<dyn Subscriber>),
    /// `stop` runs, on this thread.
    Stopping(M::Shared<dyn Subscriber>, Here),
    Stopped(M::Shared<dyn Subscriber>),
    /// `release` runs, on this thread.
    Releasing(Here),
    Released,
}

/// One subscription, as the list holds it.
pub(super) struct Entry<M: Metadata> {
    interval: PageRange,
    owner: Option<Owner>,
    /// A bit for each active slot whose invalidation has a window open here, and [`DYING`].
    windows: AtomicU64,
    /// Its end was asked for.
    ending: AtomicBool,
    seat: Mutex<Seat<M>>,
}

impl<M: Metadata> Entry<M> {
    pub(super) fn concerns(&self, invalidation: &Invalidation) -> bool {
        let left_out = self.owner.is_some() && self.owner == invalidation.owner;
        self.interval.overlaps(invalidation.range) && !left_out
    }

    pub(super) fn is_open(&self, slot: usize) -> bool {
        // Relaxed: the slot's bit is written by the thread that asks.
        self.windows.load(Ordering::Relaxed) & (1 << slot) != 0
    }

    /// Opens the window of `slot`, unless the subscription is dying.
    pub(super) fn open<'e>(&'e self, slot: usize, inner: &'e Inner<M>) -> Option<Window<'e, M>> {
        let bit = 1 << slot;
        // Acquire: partner of the Release in `subscribe`'s publication, through the list. AcqRel and one word: SUB-1.
        let seen = self.windows.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |word| {
            if word & DYING != 0 { None } else { Some(word | bit) }
        });
        seen.is_ok().then_some(Window {
            entry: self,
            slot,
            inner,
        })
    }

    /// Runs a callback of an open window.
    pub(super) fn call<R>(&self, callback: impl FnOnce(&dyn Subscriber, &CallbackScope<'_>) -> R) -> R {
        let subscriber = match &*self.seat.lock() {
            Seat::Live(subscriber) | Seat::Stopping(subscriber, _) | Seat::Stopped(subscriber) => subscriber.clone(),
            _ => unreachable!("NTF-4: a callback after the end of its subscription"),
        };
        let scope = CallbackScope::enter();
        callback(&*subscriber, &scope)
    }

    fn die(&self) {
        self.windows.fetch_or(DYING, Ordering::AcqRel);
    }

    fn ask_for_its_end(&self) {
        // Relaxed, as in `is_ending`.
        self.ending.store(true, Ordering::Relaxed);
    }

    fn is_ending(&self) -> bool {
        // Relaxed: nothing is read on its account; `finish` looks for itself.
        self.ending.load(Ordering::Relaxed)
    }

    fn is_idle(&self) -> bool {
        // Acquire: partner of the Release in `Window::drop`.
        self.windows.load(Ordering::Acquire) & !DYING == 0
    }

    fn is_released(&self) -> bool {
        matches!(*self.seat.lock(), Seat::Released)
    }
}

/// An open window. It closes when dropped, unless it is kept for the end.
pub(super) struct Window<'e, M: Metadata> {
    entry: &'e Entry<M>,
    slot: usize,
    inner: &'e Inner<M>,
}

impl<'e, M: Metadata> Window<'e, M> {
    /// The start was accepted: the end takes the window up again.
    pub(super) fn keep(self) {
        core::mem::forget(self);
    }

    /// Takes up a window that was kept.
    pub(super) fn resume(entry: &'e Entry<M>, slot: usize, inner: &'e Inner<M>) -> Option<Self> {
        entry.is_open(slot).then_some(Self { entry, slot, inner })
    }
}

impl<M: Metadata> Drop for Window<'_, M> {
    fn drop(&mut self) {
        let bit = 1 << self.slot;
        // Release: partner of the Acquire in `is_idle`. What the callbacks did happens before `unsubscribe` returns.
        let left = self.entry.windows.fetch_and(!bit, Ordering::AcqRel) & !bit;
        if left == DYING {
            self.inner.wake(&self.inner.state.lock());
        }
    }
}

/// The subscriptions at one moment, by the start of their intervals. Never changed, only replaced.
pub(super) struct List<M: Metadata> {
    entries: Vec<M::Shared<Entry<M>>, M>,
}

impl<M: Metadata> List<M> {
    /// Those whose interval starts before the end of `range`; the others cannot meet it.
    pub(super) fn before_end_of(&self, range: PageRange) -> &[M::Shared<Entry<M>>] {
        let end = self
            .entries
            .partition_point(|entry| entry.interval.first_page() < range.end_page());
        &self.entries[..end]
    }

    /// A copy without the released ones and with `extra`.
    fn rebuild(
        old: Option<&Self>,
        extra: Option<&M::Shared<Entry<M>>>,
    ) -> Result<Option<M::Shared<Self>>, OutOfMetadata> {
        let old = old.map_or(&[][..], |list| &list.entries[..]);
        let mut entries = Vec::new_in(M::default());
        entries.try_reserve_exact(old.len() + 1).map_err(|_| OutOfMetadata)?;
        entries.extend(old.iter().filter(|entry| !entry.is_released()).cloned());
        if let Some(extra) = extra {
            let at = entries.partition_point(|entry| entry.interval.first_page() <= extra.interval.first_page());
            entries.insert(at, extra.clone());
        }
        if entries.is_empty() {
            return Ok(None);
        }
        M::share(Self { entries }).map(Some)
    }
}

/// Whether a new list was put in place.
enum Relisted {
    Done,
    /// The address space exited: there is no list any more.
    Exited,
}

impl<M: Metadata> Inner<M> {
    /// Replaces the list by one without the released subscriptions and with `extra`.
    fn relist(&self, extra: Option<&M::Shared<Entry<M>>>) -> Result<Relisted, OutOfMetadata> {
        loop {
            let (edition, old) = {
                let state = self.state.lock();
                if state.exited {
                    return Ok(Relisted::Exited);
                }
                (state.edition, state.list.clone())
            };
            let new = List::rebuild(old.as_deref(), extra)?;
            let mut state = self.state.lock();
            if state.edition == edition {
                state.edition += 1;
                let replaced = core::mem::replace(&mut state.list, new);
                drop(state);
                drop(replaced);
                return Ok(Relisted::Done);
            }
        }
    }

    /// Whether the calling thread may wait for callbacks of others.
    pub(super) fn outside(&self) -> Result<(), Inside> {
        if in_callback() {
            return Err(Inside::Callback);
        }
        if self.state.lock().invalidating(Here::now()) {
            return Err(Inside::Invalidation);
        }
        Ok(())
    }

    /// Has the subscriber stop, while passes still reach it, or waits for who does (SUB-4).
    fn stop(&self, entry: &Entry<M>) -> Result<(), Inside> {
        self.outside()?;
        let here = Here::now();
        let mut state = self.state.lock();
        let subscriber = loop {
            let mut seat = entry.seat.lock();
            match &*seat {
                Seat::Live(subscriber) => {
                    let subscriber = subscriber.clone();
                    *seat = Seat::Stopping(subscriber.clone(), here);
                    break subscriber;
                }
                Seat::Stopping(_, thread) if *thread == here => return Err(Inside::Release),
                Seat::Stopping(..) => {}
                Seat::Stopped(_) | Seat::Releasing(_) | Seat::Released => return Ok(()),
            }
            drop(seat);
            state = self.wait(state);
        };
        drop(state);
        // Also when `stop` panics: others may wait for it.
        let stopping = Stopping { inner: self, entry };
        subscriber.stop();
        drop(stopping);
        Ok(())
    }

    /// Lets `entry` die once its subscriber has stopped, waits until no window is open, then releases it; or waits for who does.
    fn finish(&self, entry: &Entry<M>) -> Result<(), Inside> {
        self.stop(entry)?;
        entry.die();
        let here = Here::now();
        let mut state = self.state.lock();
        let subscriber = loop {
            if entry.is_idle() {
                let mut seat = entry.seat.lock();
                match &*seat {
                    Seat::Live(subscriber) | Seat::Stopping(subscriber, _) | Seat::Stopped(subscriber) => {
                        let subscriber = subscriber.clone();
                        *seat = Seat::Releasing(here);
                        break subscriber;
                    }
                    Seat::Releasing(thread) if *thread == here => return Err(Inside::Release),
                    Seat::Releasing(_) => {}
                    Seat::Released => return Ok(()),
                }
            }
            state = self.wait(state);
        };
        drop(state);
        // Also when `release` panics: others may wait for it.
        let _releasing = Releasing { inner: self, entry };
        subscriber.release();
        drop(subscriber);
        Ok(())
    }
}

struct Stopping<'a, M: Metadata> {
    inner: &'a Inner<M>,
    entry: &'a Entry<M>,
}

impl<M: Metadata> Drop for Stopping<'_, M> {
    fn drop(&mut self) {
        let mut seat = self.entry.seat.lock();
        if let Seat::Stopping(subscriber, _) = &*seat {
            *seat = Seat::Stopped(subscriber.clone());
        }
        drop(seat);
        self.inner.wake(&self.inner.state.lock());
    }
}

struct Releasing<'a, M: Metadata> {
    inner: &'a Inner<M>,
    entry: &'a Entry<M>,
}

impl<M: Metadata> Drop for Releasing<'_, M> {
    fn drop(&mut self) {
        *self.entry.seat.lock() = Seat::Released;
        self.inner.wake(&self.inner.state.lock());
    }
}

impl<M: Metadata> Notifier<M> {
    /// Whether `thread`, which is in no callback, may wait for callbacks of others.
    pub(crate) fn outside(&self, thread: Here) -> Result<(), Inside> {
        if self.inner.state.lock().invalidating(thread) {
            return Err(Inside::Invalidation);
        }
        Ok(())
    }

    /// From its return on, every invalidation that meets `interval` calls `subscriber` (INV-8); a read that overlaps an earlier one
    /// still in flight waits for it. After [`Notifier::exit`] the subscriber is released at once, as if it had come just before.
    ///
    /// Takes the leaf lock. On error nothing is changed.
    #[doc(alias = "mmu_interval_notifier_insert")]
    pub fn subscribe(
        &self,
        interval: PageRange,
        subscriber: M::Shared<dyn Subscriber>,
    ) -> Result<Subscription<M>, OutOfMetadata> {
        let owner = subscriber.owner();
        let seat = Mutex::new("seat", Seat::Live(subscriber));
        let entry = M::share(Entry {
            interval,
            owner,
            windows: AtomicU64::new(0),
            ending: AtomicBool::new(false),
            seat,
        })?;
        let relisted = self.inner.relist(Some(&entry))?;
        let subscription = Subscription {
            inner: self.inner.clone(),
            entry,
        };
        if let Relisted::Exited = relisted {
            // Refused only inside a callback: then the subscription's drop does it.
            let _ = subscription.end();
        }
        Ok(subscription)
    }

    /// The address space goes: each subscriber stops, its callbacks are waited for, then it is released, once (LIFE-3). No lock is held
    /// while `stop` and `release` run. A second call finds nothing left to do and returns at once.
    ///
    /// Fails, and changes nothing, where it would wait for its own caller: inside a callback or an invalidation.
    #[doc(alias = "mmu_notifier_release")]
    pub fn exit(&self) -> Result<(), Inside> {
        self.inner.outside()?;
        let list = {
            let mut state = self.inner.state.lock();
            if state.exited {
                return Ok(());
            }
            // From here on the list does not change. It stays in place until everybody has stopped (SUB-4).
            state.exited = true;
            state.edition += 1;
            state.list.clone()
        };
        let entries = list.as_deref().map_or(&[][..], |list| &list.entries[..]);
        for entry in entries {
            entry.ask_for_its_end();
        }
        for entry in entries {
            // Only a `release` that exits again could be refused, and then it is on its way.
            let _ = self.inner.finish(entry);
        }
        let left = self.inner.state.lock().list.take();
        drop(left);
        Ok(())
    }

    /// Finishes what was deferred (LIFE-8): waits until no callback of a subscription that is ending runs, and until it is released.
    ///
    /// Does nothing where it would wait for its own caller.
    pub fn finish_deferred(&self) {
        let list = self.inner.state.lock().list.clone();
        let mut finished = false;
        let entries = list.iter().flat_map(|list| &list.entries);
        for entry in entries.filter(|entry| entry.is_ending() && !entry.is_released()) {
            finished |= self.inner.finish(entry).is_ok();
        }
        if finished {
            // Without memory for a new list the dead entries stay, empty, until the next change.
            let _ = self.inner.relist(None);
        }
    }
}

/// An interest in an interval. It needs no notifier beside it. Dropping it is [`Subscription::unsubscribe`], except where that would have to
/// be deferred: then it ends at [`Notifier::finish_deferred`] or [`Notifier::exit`].
#[must_use = "dropping a subscription ends it"]
pub struct Subscription<M: Metadata> {
    inner: M::Shared<Inner<M>>,
    entry: M::Shared<Entry<M>>,
}

impl<M: Metadata> Subscription<M> {
    /// The interval it is for.
    pub fn interval(&self) -> PageRange {
        self.entry.interval
    }

    /// Whether the address space has not exited and no `unsubscribe` began.
    pub fn is_live(&self) -> bool {
        !self.entry.is_ending()
    }

    /// Ends the subscription: once the subscriber has stopped no new callback begins, and when this returns `Ok`, those that ran, from start to
    /// end, and `release` have returned (NTF-4). May wait for invalidations in flight, `stop` and `release`; no lock that these need may be held.
    ///
    /// Where that would wait for the caller itself (LIFE-8), the error is a token to wait with later. Until then the subscriber, which may have
    /// something to be told about, is told as before.
    #[doc(alias = "mmu_interval_notifier_remove")]
    pub fn unsubscribe(self) -> Result<(), Deferred<M>> {
        self.end().map_err(|inside| Deferred::new(self, inside))
    }

    /// The end cannot be waited for here, as the caller knows.
    pub(crate) fn defer(self, inside: Inside) -> Deferred<M> {
        self.entry.ask_for_its_end();
        Deferred::new(self, inside)
    }

    fn end(&self) -> Result<(), Inside> {
        self.entry.ask_for_its_end();
        if self.entry.is_released() {
            return Ok(());
        }
        self.inner.finish(&self.entry)?;
        // Without memory for a new list the dead entry stays in the old one, empty, until the next change.
        let _ = self.inner.relist(None);
        Ok(())
    }
}

impl<M: Metadata> Drop for Subscription<M> {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

impl<M: Metadata> fmt::Debug for Subscription<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("interval", &self.interval())
            .finish_non_exhaustive()
    }
}
