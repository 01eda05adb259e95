//! Each start that a subscriber accepted gets one end; a refused one gets none.
//!
//! # Invariants
//! - CHK-2 (INV-2): of each pass and subscriber, ends never outnumber accepted starts, and equal them when the story is over.

use std::collections::BTreeMap;

use super::{Checker, Finding, Verdict};
use crate::journal::{Event, Name};

/// What a subscriber has seen of a pass.
#[derive(Debug, Default)]
struct Seen {
    accepted: u32,
    refused: u32,
    ended: u32,
}

/// Counts starts and ends.
#[derive(Debug, Default)]
pub struct Pairing {
    passes: BTreeMap<(u64, Name), Seen>,
}

impl Pairing {
    fn ended(&mut self, subscriber: Name, pass: u64) -> Result<(), Finding> {
        let seen = self.passes.entry((pass, subscriber)).or_default();
        if seen.ended < seen.accepted {
            seen.ended += 1;
            return Ok(());
        }
        let why = match seen {
            Seen {
                accepted: 0,
                refused: 0,
                ..
            } => "which it was never told the start of",
            Seen { accepted: 0, .. } => "whose start it had refused",
            _ => "which it had been told the end of before",
        };
        let mut sentence = format!("the subscriber {subscriber} was told the end of pass {pass}, {why}");
        let waits = self.open().find(|&(other, who)| other == pass && who != subscriber);
        if let Some((_, waits)) = waits {
            sentence += &format!("; the subscriber {waits}, which had accepted it, still waits for that end");
        }
        Err(Finding::new(Verdict::UnpairedEnd, sentence))
    }

    /// The passes that were accepted and not ended, each with by whom.
    fn open(&self) -> impl Iterator<Item = (u64, Name)> {
        let open = self.passes.iter().filter(|(_, seen)| seen.ended < seen.accepted);
        open.map(|(&key, _)| key)
    }
}

impl Checker for Pairing {
    fn observe(&mut self, _thread: usize, _name: &str, event: &Event) -> Result<(), Finding> {
        match *event {
            Event::Start { subscriber, pass } => self.passes.entry((pass, subscriber)).or_default().accepted += 1,
            Event::Refused { subscriber, pass } => self.passes.entry((pass, subscriber)).or_default().refused += 1,
            Event::End { subscriber, pass } => return self.ended(subscriber, pass),
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Finding> {
        let Some((pass, subscriber)) = self.open().next() else {
            return Ok(());
        };
        Err(Finding::new(
            Verdict::MissingEnd,
            format!(
                "the subscriber {subscriber} accepted the start of pass {pass} and was never told its end: for it the invalidation goes on for ever"
            ),
        ))
    }
}

#[cfg(test)]
mod tests;
