//! Tells isomem's own changes of the program's areas from the program's.
//!
//! The kernel reports both alike. A change of ours is announced here first, and the reader of events asks whether what
//! it read was announced.
//!
//! # Invariants
//! - OWN-1: one announcement explains at most one event, of exactly the same kind and range, or the pieces that it comes in. So when the program discards just
//!   the same range meanwhile, one of the two events still counts as its own. But while devices are kept out of a range
//!   ([`Change::Within`]) whatever happens inside it is explained: it finds no device's entry and no page that is away.
//! - OWN-2: an announcement is forgotten only when its event can be neither unread nor unprocessed.
//! - OWN-3: it is forgotten before any event that began after the cooperative call returned is processed. So a later change of the program
//!   that looks alike is not taken for ours, even where ours made no event.
//!
//! # Locking
//! One leaf lock, never held across a system call.
//!
//! ```text
//! thread that changes               reader of events
//! announce; madvise ...             .
//!   (waits until the event is read) read; was it announced? yes: not late
//! done; still there? nudge ...      .
//!   (waits until that is read)      read the nudge, and all that was read with it: process it, then sweep
//! ```

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use isomem_core::addr::PageRange;

/// Changes under way at the same time.
const PLACES: usize = 64;

/// A change that the kernel reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The contents go.
    Removed(PageRange),
    /// The mapping goes.
    Unmapped(PageRange),
    /// The mapping moves.
    Remapped(PageRange, PageRange),
    /// A child is made.
    Forked,
    /// Anything that happens inside the range, as often as it does. Only to be announced, by who keeps devices out of the range.
    Within(PageRange),
}

impl Change {
    /// What is left to be explained of an announced change after `event`; `None` if the event is none of its.
    fn explain(self, event: Self) -> Option<Left> {
        match (self, event) {
            (Self::Within(range), Self::Removed(part) | Self::Unmapped(part) | Self::Remapped(part, _)) => {
                range.covers(part).then_some(Left::Same)
            }
            // Where the area was split since it was looked at, the kernel reports it piece by piece.
            (Self::Removed(range), Self::Removed(part)) if range.start() == part.start() && range.covers(part) => {
                let rest = range.skip(part.page_count());
                Some(rest.map_or(Left::Nothing, |rest| Left::Rest(Self::Removed(rest))))
            }
            (announced, event) => (announced == event).then_some(Left::Nothing),
        }
    }

    /// Whether `event` repeats the end of a change that was reported before: the area was split just then.
    fn is_repeated_by(self, event: Self) -> bool {
        match (self, event) {
            (Self::Removed(range), Self::Removed(part)) => range.start() < part.start() && range.end() == part.end(),
            _ => false,
        }
    }
}

/// What is left of an announced change.
enum Left {
    /// As much as before.
    Same,
    /// That.
    Rest(Change),
    /// All was reported.
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Free,
    /// Under way, its event not yet seen.
    Expected(Change),
    /// Under way, its event was seen.
    Seen(Change),
    /// The system call returned; its event, if there was one, may still wait to be processed.
    Done(Change),
    /// The same, and its event was seen.
    Past(Change),
}

/// The announced changes.
#[derive(Debug)]
pub struct OwnChanges {
    places: Mutex<[Place; PLACES]>,
    has_reader: AtomicBool,
    /// Nudges that were begun and not yet heard.
    nudges: AtomicUsize,
    /// Forks are held by who sees their system calls, not announced by the C library.
    forks_are_held: AtomicBool,
}

/// An announced change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(usize);

/// Whether the event of a change that is done was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It was; or nobody reads events, so there was none.
    Yes,
    /// Not yet, or there was none. A nudge makes sure.
    Unknown,
}

impl OwnChanges {
    /// None announced, and nobody who reads events.
    pub const fn new() -> Self {
        Self {
            places: Mutex::new([Place::Free; PLACES]),
            has_reader: AtomicBool::new(false),
            nudges: AtomicUsize::new(0),
            forks_are_held: AtomicBool::new(false),
        }
    }

    /// From now on whoever holds system calls announces forks; the C library's hooks need not.
    pub fn hold_forks(&self) {
        self.forks_are_held.store(true, Ordering::SeqCst);
    }

    /// Whether somebody does.
    pub fn holds_forks(&self) -> bool {
        self.forks_are_held.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, [Place; PLACES]> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody reads events from now on.
    pub fn reader_started(&self) {
        self.has_reader.store(true, Ordering::SeqCst);
    }

    /// Nobody reads events any more.
    pub fn reader_gone(&self) {
        self.has_reader.store(false, Ordering::SeqCst);
    }

    /// Somebody is about to nudge the reader. Says whether there is one; only then the nudge will be heard.
    ///
    /// Sequentially consistent, like `is_quiet` after `reader_gone`: either the reader that leaves sees this nudge and
    /// stays for it, or the nudger sees that it left.
    pub fn begin_nudge(&self) -> bool {
        self.nudges.fetch_add(1, Ordering::SeqCst);
        let has_reader = self.has_reader();
        if !has_reader {
            self.nudge_over();
        }
        has_reader
    }

    /// A nudge was heard, or failed.
    pub fn nudge_over(&self) {
        self.nudges.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether no nudge is under way.
    pub fn is_quiet(&self) -> bool {
        self.nudges.load(Ordering::SeqCst) == 0
    }

    /// Whether somebody reads events.
    pub fn has_reader(&self) -> bool {
        self.has_reader.load(Ordering::SeqCst)
    }

    /// Announces `change`. `None` while all places are taken.
    pub fn announce(&self, change: Change) -> Option<Ticket> {
        let mut places = self.lock();
        let place = places.iter().position(|place| *place == Place::Free)?;
        places[place] = Place::Expected(change);
        Some(Ticket(place))
    }

    /// The system call returned. The ticket may be asked about, but is no longer the caller's alone.
    pub fn done(&self, ticket: Ticket) -> Settled {
        let mut places = self.lock();
        let place = &mut places[ticket.0];
        let (next, settled) = match *place {
            Place::Expected(change) if self.has_reader() => (Place::Done(change), Settled::Unknown),
            _ => (Place::Free, Settled::Yes),
        };
        *place = next;
        settled
    }

    /// Whether the place of a change that is done is still taken (perhaps by another one).
    pub fn is_open(&self, ticket: Ticket) -> bool {
        !matches!(self.lock()[ticket.0], Place::Free | Place::Past(_))
    }

    /// Whether the event of a change that is under way was seen.
    pub fn is_seen(&self, ticket: Ticket) -> bool {
        matches!(self.lock()[ticket.0], Place::Seen(_))
    }

    /// Whether the event was announced; says so once for each announcement of a single one (OWN-1).
    pub fn take(&self, event: Change) -> bool {
        let mut places = self.lock();
        for place in places.iter_mut() {
            let next = match *place {
                Place::Expected(announced) => announced.explain(event).map(|left| match left {
                    Left::Same => *place,
                    Left::Rest(rest) => Place::Expected(rest),
                    Left::Nothing => Place::Seen(announced),
                }),
                Place::Done(announced) => announced.explain(event).map(|left| match left {
                    Left::Same => *place,
                    Left::Rest(rest) => Place::Done(rest),
                    Left::Nothing => Place::Past(announced),
                }),
                Place::Seen(announced) | Place::Past(announced) => announced.is_repeated_by(event).then_some(*place),
                Place::Free => None,
            };
            if let Some(next) = next {
                *place = next;
                return true;
            }
        }
        false
    }

    /// Forgets changes that are done. The reader of events calls this when it has processed everything it read, and at no other moment: what is done
    /// has been read, and may lie behind what is being processed.
    pub fn sweep(&self) {
        let over = |place: &&mut Place| matches!(place, Place::Done(_) | Place::Past(_));
        for place in self.lock().iter_mut().filter(over) {
            *place = Place::Free;
        }
    }
}

impl Default for OwnChanges {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
