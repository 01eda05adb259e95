//! Tells isomem's own changes of the program's areas from the program's.
//!
//! The kernel reports both alike. A change of ours is announced here first, and the reader of events asks whether what
//! it read was announced.
//!
//! # Invariants
//! - OWN-1: one announcement explains at most one event, of exactly the same kind and range. So when the program discards just
//!   the same range meanwhile, one of the two events still counts as its own.
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
//!   (waits until that is read)      read the nudge: events come in order, so all of what is done was processed: sweep
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Free,
    /// Under way, its event not yet seen.
    Expected(Change),
    /// Under way, its event was seen.
    Seen,
    /// The system call returned; its event, if there was one, may still wait to be processed.
    Done(Change),
}

/// The announced changes.
#[derive(Debug)]
pub struct OwnChanges {
    places: Mutex<[Place; PLACES]>,
    has_reader: AtomicBool,
    /// Nudges that were begun and not yet heard.
    nudges: AtomicUsize,
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
        }
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
        self.lock()[ticket.0] != Place::Free
    }

    /// Whether the event was announced; says so once for each announcement (OWN-1).
    pub fn take(&self, change: Change) -> bool {
        let mut places = self.lock();
        for place in places.iter_mut() {
            *place = match *place {
                Place::Expected(expected) if expected == change => Place::Seen,
                Place::Done(expected) if expected == change => Place::Free,
                _ => continue,
            };
            return true;
        }
        false
    }

    /// Forgets changes that are done. The reader of events calls this at a nudge, and when it has processed everything it read.
    pub fn sweep(&self) {
        for place in self.lock().iter_mut().filter(|place| matches!(place, Place::Done(_))) {
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
