//! What happened, step by step, and who judges it.
//!
//! # Invariants
//! - JRN-1: steps are judged in the order in which they are recorded; after the first finding none is.
//! - JRN-2: recording is no point where the model checker may switch threads, so a step is recorded at the very moment it stands for.
//!
//! # Locking
//! One lock of std, a leaf, never held while anything else is called but a checker.

use core::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::checker::{Checker, Finding, Verdict};
use crate::sync::thread;

/// A thing in a story, by name: a subscriber, a mirror, an object.
pub type Name = &'static str;

/// Who touches memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Actor {
    /// A thread of the program.
    Cpu,
    /// A device.
    Device(Name),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("the CPU"),
            Self::Device(name) => f.write_str(name),
        }
    }
}

/// A page frame of the simulated kernel. Numbers are never used again within a story.
pub type Frame = u64;

/// Something that happened. Each names the promise that its checker guards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// For the reader of the timeline; judged by nobody.
    Note(String),
    /// A subscriber accepted the start of pass number `pass` (INV-2).
    Start {
        /// Who.
        subscriber: Name,
        /// Which pass.
        pass: u64,
    },
    /// A subscriber refused it.
    Refused {
        /// Who.
        subscriber: Name,
        /// Which pass.
        pass: u64,
    },
    /// A subscriber is told the end of it.
    End {
        /// Who.
        subscriber: Name,
        /// Which pass.
        pass: u64,
    },
    /// A mirror's release callback is entered (LIFE-3).
    Release {
        /// Whose.
        mirror: Name,
    },
    /// A callback of a mirror is entered; Start, End and Release count as such, too (LIFE-2).
    Callback {
        /// Whose.
        mirror: Name,
    },
    /// Unregister returned: no callback of the mirror may follow.
    Unregistered {
        /// Which.
        mirror: Name,
    },
    /// An address space is dead: no device may work on it (LIFE-3, LIFE-4).
    Died {
        /// Which.
        mm: Name,
    },
    /// A device works on an address space.
    Works {
        /// Which device.
        device: Name,
        /// On which.
        mm: Name,
    },
    /// Something exists from here on, and must be closed by the end of the story (LIFE-5).
    Opened {
        /// What.
        what: String,
    },
    /// It is gone; to use it from here on is a use after free.
    Closed {
        /// What.
        what: String,
    },
    /// It is used.
    Used {
        /// What.
        what: String,
    },
    /// An actor may reach a frame through its page table from here on.
    Mapped {
        /// Who.
        actor: Actor,
        /// Which page of the program.
        page: u64,
        /// What is behind it.
        frame: Frame,
    },
    /// It no longer may: an invalidation it accepted took the frame away.
    Taken {
        /// From whom.
        actor: Actor,
        /// Which page.
        page: u64,
        /// What was behind it.
        frame: Frame,
    },
    /// An actor touches a frame (stale access: it was taken, or the frame was freed).
    Touched {
        /// Who.
        actor: Actor,
        /// Which page it believes to touch.
        page: u64,
        /// What it really touches.
        frame: Frame,
    },
    /// A frame goes back to the kernel.
    Freed {
        /// Which.
        frame: Frame,
    },
    /// A write to the program's memory took effect; for the sequential history (MIG-3).
    Write {
        /// Who.
        actor: Actor,
        /// Program address.
        addr: u64,
        /// What.
        value: u64,
        /// The frame that it went to, where the story knows it.
        frame: Option<Frame>,
    },
    /// The kernel copied a page to where it is to be read only, and the page that was copied stays (MIG-12).
    Duplicated {
        /// Which page of the program.
        page: u64,
        /// The copy.
        home: Frame,
        /// What was copied.
        away: Frame,
        /// The first word in which they differ.
        differs: Option<usize>,
    },
    /// A read saw this value.
    Read {
        /// Who.
        actor: Actor,
        /// Program address.
        addr: u64,
        /// What.
        value: u64,
    },
    /// The program or the kernel threw away the contents of these addresses: what is read next is zero.
    Discarded {
        /// First address.
        start: u64,
        /// End address.
        end: u64,
    },
    /// The program is throwing away the contents of these addresses; each word may be zero from here on, and is when the thread's
    /// [`Event::Discarded`] for it follows.
    Discarding {
        /// First address.
        start: u64,
        /// End address.
        end: u64,
    },
    /// A reader saw a page as a whole: every word of it was written by one writer at one time, or it saw half a page (MIG-3).
    SawPage {
        /// Who.
        actor: Actor,
        /// Which page.
        page: u64,
        /// Its words, as the story keeps them: equal in a page that is whole.
        words: Vec<u64>,
    },
    /// Somebody tries again what it could not do (FLT-3).
    Attempt {
        /// What.
        what: Name,
    },
    /// It got there.
    Arrived {
        /// What.
        what: Name,
    },
    /// A lock is wanted, taken or left.
    #[cfg(feature = "shuttle")]
    Lock(crate::sync::LockStep, crate::sync::LockId),
}

/// One event, and whose it is.
#[derive(Debug, Clone)]
pub struct Step {
    /// Index into [`Record::threads`].
    pub thread: usize,
    /// What happened.
    pub event: Event,
}

/// What a journal holds when the story is over.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// Names of the threads, in the order of their first step.
    pub threads: Vec<String>,
    /// The steps, the finding's last; without those of locks unless asked for.
    pub steps: Vec<Step>,
    /// What a checker found.
    pub finding: Option<Finding>,
}

struct Inner {
    record: Record,
    /// Whether steps are kept: only for the timeline.
    keeps: bool,
    /// The record was handed out: what comes now belongs to no story.
    is_over: bool,
    /// Threads that have taken a step, each with its index into [`Record::threads`]. A handful, so a search is cheap; every step makes one.
    known: Vec<(thread::ThreadId, usize)>,
    /// Threads that were given a name and have taken no step yet.
    named: Vec<(thread::ThreadId, String)>,
    checkers: Vec<Box<dyn Checker>>,
    passes: u64,
}

/// A handle to the journal of one story.
#[derive(Clone)]
pub struct Journal(Arc<Mutex<Inner>>);

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}

impl Journal {
    /// An empty one that `checkers` judge. `keeps`: whether the steps can be read afterwards.
    pub fn new(checkers: Vec<Box<dyn Checker>>, keeps: bool) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            record: Record::default(),
            keeps,
            is_over: false,
            known: Vec::new(),
            named: Vec::new(),
            checkers,
            passes: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records and judges a step of the calling thread.
    pub fn record(&self, event: Event) {
        let mut inner = self.lock();
        if inner.is_decided() {
            return;
        }
        let thread = inner.thread();
        let found = inner.judge(thread, &event);
        if inner.keeps || found.is_some() {
            inner.record.steps.push(Step { thread, event });
        }
        inner.record.finding = found;
    }

    /// Records something that nobody judges.
    pub fn note(&self, text: impl fmt::Display) {
        if self.keeps() {
            self.record(Event::Note(text.to_string()));
        }
    }

    /// What the story itself found.
    pub fn found(&self, verdict: Verdict, sentence: impl Into<String>) {
        let mut inner = self.lock();
        if !inner.is_decided() {
            inner.record.finding = Some(Finding::new(verdict, sentence));
        }
    }

    /// Whether the matter is decided: loops of a story end then.
    pub fn is_decided(&self) -> bool {
        self.lock().is_decided()
    }

    /// Whether steps are kept for a timeline.
    pub fn keeps(&self) -> bool {
        self.lock().keeps
    }

    /// A number for a pass of invalidations.
    pub fn next_pass(&self) -> u64 {
        let mut inner = self.lock();
        inner.passes += 1;
        inner.passes
    }

    /// Gives the calling thread a name in the timeline, before its first step. A thread without one is called `story`; a second thread of
    /// one name has a number behind it.
    pub fn name_thread(&self, name: impl Into<String>) {
        let id = thread::current().id();
        self.lock().named.push((id, name.into()));
    }

    /// The story is over: the checkers' last look. Also right after a deadlock.
    pub fn finish(&self) -> Record {
        let mut inner = self.lock();
        if inner.record.finding.is_none() {
            let found = inner.checkers.iter_mut().find_map(|checker| checker.finish().err());
            inner.record.finding = found;
        }
        inner.hand_out()
    }

    /// The checkers' account of a deadlock that the scheduler met: who holds and wants what.
    pub fn deadlocked(&self) -> Record {
        let mut inner = self.lock();
        if inner.record.finding.is_none() {
            let threads = inner.record.threads.clone();
            let told = inner.checkers.iter().find_map(|checker| checker.deadlock(&threads));
            let sentence = told.unwrap_or_else(|| String::from("every thread waits"));
            inner.record.finding = Some(Finding::new(Verdict::Deadlock, sentence));
        }
        inner.hand_out()
    }
}

impl Inner {
    fn is_decided(&self) -> bool {
        self.is_over || self.record.finding.is_some()
    }

    fn hand_out(&mut self) -> Record {
        self.is_over = true;
        core::mem::take(&mut self.record)
    }

    /// Index of the calling thread.
    fn thread(&mut self) -> usize {
        let id = thread::current().id();
        if let Some((_, index)) = self.known.iter().find(|(known, _)| *known == id) {
            return *index;
        }
        let named = self.named.iter().rev().find(|(of, _)| *of == id);
        let name = named.map_or("story", |(_, name)| name.as_str());
        // Threads of one name stay apart: what they hold must not be mixed up.
        let is_taken = |name: &str| self.record.threads.iter().any(|other| other == name);
        let mut unique = String::from(name);
        let mut number = 1;
        while is_taken(&unique) {
            number += 1;
            unique = format!("{name} {number}");
        }
        let index = self.record.threads.len();
        self.record.threads.push(unique);
        self.known.push((id, index));
        index
    }

    fn judge(&mut self, thread: usize, event: &Event) -> Option<Finding> {
        let name = self.record.threads[thread].as_str();
        self.checkers
            .iter_mut()
            .find_map(|checker| checker.observe(thread, name, event).err())
    }
}

/// From now on the journal is told of every step with a lock in executions on this thread of the system.
///
/// Steps while a panic unwinds are left out: then guards go because the story was broken off, not because somebody leaves a lock, and
/// the account of a deadlock needs what was held.
#[cfg(feature = "shuttle")]
pub fn watch_locks(journal: &Journal) {
    let journal = journal.clone();
    let told = move |step, id| {
        if !std::thread::panicking() {
            journal.record(Event::Lock(step, id));
        }
    };
    crate::sync::watch(Some(std::rc::Rc::new(told)));
}

/// Nobody is told any more.
#[cfg(feature = "shuttle")]
pub fn unwatch_locks() {
    crate::sync::watch(None);
}

/// Runs `body` on a thread that is called `name` in the timeline.
pub fn spawn<R: Send + 'static>(
    journal: &Journal,
    name: &str,
    body: impl FnOnce() -> R + Send + 'static,
) -> thread::JoinHandle<R> {
    let journal = journal.clone();
    let name = String::from(name);
    thread::spawn(move || {
        journal.name_thread(name);
        body()
    })
}

// Under a model checker there is no thread outside of an execution.
#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
