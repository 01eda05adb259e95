//! The scenarios: one file each.

pub mod eviction;
pub mod exclusive;
pub mod fault;
pub mod hole;
pub mod machine;
pub mod migration;
pub mod outlives;
pub mod refused;
pub mod release;
pub mod unplug;
pub mod unregister;

use isomem_sim::checker::Verdict;
use isomem_sim::journal::{self, Journal, Name};
use isomem_sim::sync::thread::JoinHandle;

use crate::explore::guarded;

/// A failure that was argued about, and the designs that were proposed.
pub struct Scenario {
    /// What `isomem check NAME` calls it: lower case, with hyphens.
    pub name: &'static str,
    /// What it is about, in a sentence or two for somebody who never read the threads.
    pub about: &'static str,
    /// The seeds and promises, such as "S1, INV-2".
    pub source: &'static str,
    /// The designs that failed, and last the one that ships.
    pub designs: &'static [Design],
}

/// One way to do it.
pub struct Design {
    /// Lower case, with hyphens; ours is called `shipped`.
    pub name: &'static str,
    /// How it works, in a sentence.
    pub about: &'static str,
    /// What the checkers must say.
    pub expected: Verdict,
    /// The story with this design.
    pub story: fn(&Run),
}

/// What a story runs with.
#[derive(Debug, Clone)]
pub struct Run {
    /// Told of every step.
    pub journal: Journal,
}

impl Run {
    /// Starts a thread of the story.
    pub fn spawn<R: Send + 'static>(&self, name: Name, body: impl FnOnce() -> R + Send + 'static) -> JoinHandle<R> {
        let journal = self.journal.clone();
        journal::spawn(&self.journal, name, move || guarded(&journal, body))
    }
}

/// All scenarios, in the order of the table.
pub const ALL: &[&Scenario] = &[
    &release::SCENARIO,
    &refused::SCENARIO,
    &fault::SCENARIO,
    &unregister::SCENARIO,
    &outlives::SCENARIO,
    &migration::SCENARIO,
    &hole::SCENARIO,
    &eviction::SCENARIO,
    &unplug::SCENARIO,
    &exclusive::SCENARIO,
];
