//! The work that every driver does, told once: each item is a program that uses its memory while a device does, and says what must be there at its end.
//!
//! A [`Worker`] is the device's side in its driver's own terms: lanes, queues of requests, submitted jobs, a guest. A [`Program`] is the other side: a live process, or
//! one of the simulated kernel. An item knows neither. What it expects comes from a flat model: a word for each address, and who may write it.
//!
//! # Invariants
//! - WORK-1: a word of the flat model has one writer, so each answer and the contents at the end are known; words that all add to are known by their sum, and
//!   each value before is seen once.
//! - WORK-2: memory that comes and goes never shows what was stored in an earlier life of it: a store that was over before the memory went does not come back.
//! - WORK-3: what a worker says was not done has changed nothing.
//!
//! # Locking
//! None. Threads tell each other by atomic numbers, and wait for each other through memory and at their end only.
//!
//! Linux: tools/testing/selftests/mm/hmm-tests.c does such work for its one driver.

mod changes;
mod mixed;
mod model;
mod quiet;

use isomem_core::addr::PageRange;
use isomem_core::mirror::copy::ReachError;
use isomem_core::mirror::range::FaultError;
use isomem_core::mm::EntryError;
use isomem_core::world::Access;

use crate::bench::{Failure, Outcome};

/// What is done to a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// It is read.
    Load,
    /// It becomes this.
    Store(u64),
    /// This is added in one step with the look at it.
    Add(u64),
}

impl Op {
    /// What it needs of the page.
    pub const fn access(self) -> Access {
        match self {
            Self::Load => Access::Read,
            Self::Store(_) | Self::Add(_) => Access::Write,
        }
    }
}

/// An access to a word of 8 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Where the word is, in the program's terms.
    pub addr: usize,
    /// What is done to it.
    pub op: Op,
}

/// Why a worker did not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// There is no memory, or it may not be accessed so.
    Denied,
    /// The address space has ended.
    Over,
    /// The caller is another process than the device works for.
    Foreign,
    /// Something came between. Nothing is wrong: it may be tried again at once.
    Again,
    /// What should not happen.
    Failed(String),
}

impl Stop {
    /// For errors that no item expects.
    pub fn failed(error: impl core::fmt::Debug) -> Self {
        Self::Failed(format!("{error:?}"))
    }
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        Self::Wrong(format!("the device stopped: {stop:?}"))
    }
}

impl From<EntryError> for Stop {
    fn from(error: EntryError) -> Self {
        match error {
            EntryError::WrongAddressSpace => Self::Foreign,
            other => Self::failed(other),
        }
    }
}

impl From<FaultError> for Stop {
    fn from(error: FaultError) -> Self {
        match error {
            FaultError::Hole { .. } | FaultError::NoAccess { .. } | FaultError::ReadOnly { .. } => Self::Denied,
            FaultError::Released => Self::Over,
            FaultError::Entry(error) => error.into(),
            other => Self::failed(other),
        }
    }
}

impl From<ReachError> for Stop {
    fn from(error: ReachError) -> Self {
        match error {
            ReachError::Fault(error) => error.into(),
            ReachError::TakenAway { .. } => Self::Again,
            other => Self::failed(other),
        }
    }
}

/// What became of some steps: those that have an answer were done, in order, and no other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Done {
    /// What each step that was done found.
    pub seen: Vec<u64>,
    /// Why not all were done.
    pub stop: Option<Stop>,
}

/// Who accesses memory on behalf of a device, by whatever means its driver has. Used by one thread at a time.
pub trait Worker: Send {
    /// Does steps, in order and in as few pieces of work as the driver needs.
    fn attempt(&mut self, steps: &[Step]) -> Done;

    /// The same, again and again while something comes between.
    fn perform(&mut self, steps: &[Step]) -> Done {
        let mut all = Done::default();
        loop {
            let Done { seen, stop } = self.attempt(&steps[all.seen.len()..]);
            all.seen.extend(seen);
            if stop != Some(Stop::Again) {
                all.stop = stop;
                return all;
            }
        }
    }
}

/// A driver that was opened for some memory of a program.
pub trait Driver {
    /// Somebody who works; several can at the same time.
    fn worker(&self) -> Result<Box<dyn Worker>, Stop>;

    /// Ends the device; its workers are gone.
    fn close(self: Box<Self>) -> Outcome;
}

/// Opens a driver for ranges of the program's memory, two at most, which may have holes at times.
pub type Open<P> = fn(&P, &[PageRange]) -> Result<Box<dyn Driver>, Failure>;

/// A thread of the program.
pub type Thread<P, R> = (&'static str, Box<dyn FnOnce(&P) -> R + Send>);

/// A process that uses its memory, and changes it through isomem, so that devices are told first.
pub trait Program: Clone + Send + Sync + 'static {
    /// Words of a page that keep what is written to them, from the first on.
    fn words(&self) -> usize;

    /// Pages of much memory.
    fn many(&self) -> usize;

    /// A number of its own: what is drawn, and what is done first, differs with it.
    fn seed(&self) -> u64;

    /// Whether a thread that did so many rounds should do another.
    fn goes_on(&self, round: usize) -> bool;

    /// Rounds of who wait for each other in each.
    fn rounds(&self) -> usize;

    /// Lets others run.
    fn pause(&self);

    /// The same, for who waits for somebody: fails when it has waited for too long.
    fn wait(&self) -> Outcome;

    /// Neighbouring pages of its own, private and anonymous, readable and writable.
    fn map(&self, pages: usize) -> PageRange;

    /// The same where nothing is.
    fn map_again(&self, range: PageRange) -> Outcome;

    /// Removes memory.
    fn unmap(&self, range: PageRange) -> Outcome;

    /// Drops contents.
    fn discard(&self, range: PageRange) -> Outcome;

    /// Sets what may be done.
    fn protect(&self, range: PageRange, access: Access) -> Outcome;

    /// Moves memory to where nothing is.
    fn remap(&self, from: PageRange, to: PageRange) -> Outcome;

    /// Another device takes what it can get.
    fn take_away(&self, range: PageRange);

    /// The CPU reads a word.
    fn load(&self, addr: usize) -> u64;

    /// The CPU writes a word.
    fn store(&self, addr: usize, value: u64);

    /// The CPU adds to a word in one step; what was there before.
    fn add(&self, addr: usize, value: u64) -> u64;

    /// Forks, and runs `body` in the child, which ends with it. A worker that the child tries must not be in use.
    fn fork(&self, body: &mut dyn FnMut(&Self) -> Outcome) -> Outcome;

    /// The address space ends for its devices.
    fn exit(&self);

    /// Runs threads, and waits for them.
    fn in_parallel<R: Send + 'static>(&self, threads: Vec<Thread<Self, R>>) -> Vec<R>;
}

/// One kind of work.
pub struct Item<P> {
    /// What is promised.
    pub name: &'static str,
    /// The work, by a program that nothing was done with and a driver.
    pub run: fn(&P, Open<P>) -> Outcome,
}

impl<P> core::fmt::Debug for Item<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name)
    }
}

/// The list.
pub fn list<P: Program>() -> Vec<Item<P>> {
    macro_rules! items {
        ($($module:ident $name:ident)*) => {
            vec![$(Item { name: stringify!($name), run: $module::$name::<P> }),*]
        };
    }
    items! {
        quiet scan
        quiet random
        quiet producer_and_consumer
        quiet adds
        changes unmap_and_remap
        changes forks
        changes exit
    }
}

pub use mixed::mixed;
