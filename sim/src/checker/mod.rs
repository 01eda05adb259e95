//! Judges: each looks at the steps of a story for one kind of failure, and knows nothing of the code that made them.

use core::fmt;

use crate::journal::{Actor, Event};

mod after_unregister;
mod duplicates;
mod half_page;
mod leaks;
#[cfg(feature = "shuttle")]
mod lock_order;
mod lost_write;
mod pairing;
mod progress;
mod release_once;
mod stale_access;

pub use after_unregister::AfterUnregister;
pub use duplicates::Duplicates;
pub use half_page::HalfPage;
pub use leaks::Leaks;
#[cfg(feature = "shuttle")]
pub use lock_order::LockOrder;
pub use lost_write::LostWrite;
pub use pairing::Pairing;
pub use progress::{BOUND, Progress};
pub use release_once::ReleaseOnce;
pub use stale_access::StaleAccess;

/// What became of a story.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing was found.
    Holds,
    /// Every thread waits for another.
    Deadlock,
    /// Locks are taken in orders that can deadlock, though this schedule did not.
    LockOrder,
    /// A device or the CPU touched a frame that was taken from it.
    StaleAccess,
    /// An accepted start got no end.
    MissingEnd,
    /// An end reached somebody without a start, or a second one.
    UnpairedEnd,
    /// Release was called not once.
    ReleaseCount,
    /// A callback ran after unregister returned.
    CallbackAfterUnregister,
    /// Something was used after it was freed.
    UseAfterFree,
    /// Something was never freed.
    Leak,
    /// A device works on an address space that is dead.
    DeadAddressSpace,
    /// A handle of another address space was used and not refused.
    WrongAddressSpace,
    /// A write is gone.
    LostWrite,
    /// A read saw what was overwritten or thrown away before.
    StaleData,
    /// Two copies of a page, of which either may be read, are not the same.
    Diverged,
    /// A page was seen half old, half new.
    HalfPage,
    /// The contents of pages are gone.
    LostData,
    /// Somebody tries for ever.
    NoProgress,
    /// A good object was given up.
    ObjectLost,
    /// An assertion of the code or of the story failed.
    Panicked,
}

impl Verdict {
    /// In words, as tables and `--json` have it.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Deadlock => "deadlock",
            Self::LockOrder => "lock-order cycle",
            Self::StaleAccess => "stale access",
            Self::MissingEnd => "start without end",
            Self::UnpairedEnd => "end without start",
            Self::ReleaseCount => "release not once",
            Self::CallbackAfterUnregister => "callback after unregister",
            Self::UseAfterFree => "use after free",
            Self::Leak => "leak",
            Self::DeadAddressSpace => "device on a dead address space",
            Self::WrongAddressSpace => "wrong address space",
            Self::LostWrite => "lost write",
            Self::StaleData => "stale data",
            Self::Diverged => "copies differ",
            Self::HalfPage => "half page",
            Self::LostData => "lost data",
            Self::NoProgress => "no progress",
            Self::ObjectLost => "good object lost",
            Self::Panicked => "panic",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// A failure, in a sentence that names who and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its kind.
    pub verdict: Verdict,
    /// The checker's sentence.
    pub sentence: String,
}

impl Finding {
    /// A finding.
    pub fn new(verdict: Verdict, sentence: impl Into<String>) -> Self {
        Self {
            verdict,
            sentence: sentence.into(),
        }
    }
}

/// One judge.
pub trait Checker: Send {
    /// Looks at a step of thread number `thread`, which is called `name`.
    fn observe(&mut self, thread: usize, name: &str, event: &Event) -> Result<(), Finding>;

    /// The story is over and every thread has ended.
    fn finish(&mut self) -> Result<(), Finding> {
        Ok(())
    }

    /// What it knows of a deadlock: a sentence with the chains of who holds and wants what.
    fn deadlock(&self, threads: &[String]) -> Option<String> {
        let _ = threads;
        None
    }
}

/// Every checker. Locks are watched for the account of a deadlock only: for designs that are expected to deadlock in earnest.
pub fn all() -> Vec<Box<dyn Checker>> {
    let checkers = apart_from_locks();
    #[cfg(feature = "shuttle")]
    let checkers = and_of_locks(checkers, LockOrder::watching());
    checkers
}

/// The same, and a cycle in the order of locks is a finding, also where the schedule did not deadlock.
pub fn all_with_lock_order() -> Vec<Box<dyn Checker>> {
    let checkers = apart_from_locks();
    #[cfg(feature = "shuttle")]
    let checkers = and_of_locks(checkers, LockOrder::reporting());
    checkers
}

#[cfg(feature = "shuttle")]
fn and_of_locks(mut checkers: Vec<Box<dyn Checker>>, locks: LockOrder) -> Vec<Box<dyn Checker>> {
    checkers.push(Box::new(locks));
    checkers
}

/// Where two find something in one step, the first in this order names it.
fn apart_from_locks() -> Vec<Box<dyn Checker>> {
    vec![
        Box::new(StaleAccess::default()),
        Box::new(Duplicates::default()),
        Box::new(Pairing::default()),
        Box::new(ReleaseOnce::default()),
        Box::new(AfterUnregister::default()),
        Box::new(Leaks::default()),
        Box::new(LostWrite::default()),
        Box::new(HalfPage),
        Box::new(Progress::default()),
    ]
}

/// An actor as the subject of a sentence.
fn who(actor: Actor) -> String {
    match actor {
        Actor::Cpu => String::from("the CPU"),
        Actor::Device("device") => String::from("the device"),
        Actor::Device(name) => format!("the device {name}"),
    }
}

#[cfg(test)]
mod tests;
