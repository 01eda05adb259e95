//! Who tries again gets there in the end.
//!
//! Without a bound "for ever" cannot be told from "not yet", so there is one: [`BOUND`] attempts at one thing by one thread. The protocol owes a
//! reader its turn after a few collisions (under a model checker after the first, see `isomem_core::notifier`), so the bound is well above what it
//! needs; and well below what a scheduler's limit of steps permits, so that it is this checker that ends an endless story.
//!
//! # Invariants
//! - CHK-10 (FLT-3): a thread arrives after at most [`BOUND`] attempts.

use std::collections::BTreeMap;

use super::{Checker, Finding, Verdict};
use crate::journal::{Event, Name};

/// Attempts within which a thread must arrive.
pub const BOUND: u32 = 8;

/// Counts attempts.
#[derive(Debug)]
pub struct Progress {
    bound: u32,
    attempts: BTreeMap<(usize, Name), u32>,
}

impl Default for Progress {
    fn default() -> Self {
        Self::within(BOUND)
    }
}

impl Progress {
    /// One that permits `bound` attempts.
    pub fn within(bound: u32) -> Self {
        Self {
            bound,
            attempts: BTreeMap::new(),
        }
    }
}

impl Checker for Progress {
    fn observe(&mut self, thread: usize, name: &str, event: &Event) -> Result<(), Finding> {
        match *event {
            Event::Attempt { what } => {
                let attempts = self.attempts.entry((thread, what)).or_default();
                *attempts += 1;
                if *attempts > self.bound {
                    let sentence = format!(
                        "thread {name} has tried {what} {attempts} times and not got there: nothing bounds how often it is thrown back"
                    );
                    return Err(Finding::new(Verdict::NoProgress, sentence));
                }
            }
            Event::Arrived { what } => {
                self.attempts.remove(&(thread, what));
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
