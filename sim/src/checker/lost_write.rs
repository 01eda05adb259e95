//! A read sees the latest write, whoever made it and wherever the page was meanwhile.
//!
//! Each address has a sequential history. Writes and reads are recorded at the moment they take effect, so their order in the journal is their order in
//! the story, and the latest write is the only right answer; zero where nothing was written yet, or where the contents were thrown away
//! since.
//!
//! # Which failure it is
//!
//! A wrong read alone does not say whether the right value still is somewhere. This is how it is named; the first line that fits decides:
//!
//! | what is read | the latest step there was | verdict |
//! |---|---|---|
//! | zero | a write | lost write: no copy, however old, turns to zero by itself |
//! | an older value | a discard | stale data: it was thrown away |
//! | an older value | a write of the reader's own | lost write: an actor reaches an address through one page table, so the page was exchanged for one without the write |
//! | an older value | a write of another actor | stale data: the two reach the address through different tables, and the reader's led it to the old copy |
//! | what nobody wrote | any | stale data: it belongs to somebody else, or to an earlier life of the frame |
//!
//! A discard takes a while: between its begin and its end a word may be read as it was or as zero, but not as it was once it was read as zero.
//!
//! All threads of the CPU are one actor: they share its page table. To recognize an old value the history needs values that differ; a
//! story writes each value once.
//!
//! # Invariants
//! - CHK-8 (MIG-3): a read sees the value of the latest write or discard of its address.

use std::collections::BTreeMap;

use super::{Checker, Finding, Verdict, who};
use crate::journal::{Actor, Event};

#[derive(Debug, Clone, Copy)]
enum Change {
    Written(Actor, u64),
    Discarded,
}

/// The history of every address.
#[derive(Debug, Default)]
pub struct LostWrite {
    histories: BTreeMap<u64, Vec<Change>>,
    /// Discards under way.
    discarding: Vec<Window>,
}

/// What a thread is throwing away, from the front.
#[derive(Debug, Clone, Copy)]
struct Window {
    thread: usize,
    start: u64,
    end: u64,
}

impl LostWrite {
    /// A thread has thrown away what lies between.
    fn discarded(&mut self, thread: usize, start: u64, end: u64) {
        // Where nothing was written there is nothing to throw away.
        for (_, history) in self.histories.range_mut(start..end.max(start)) {
            history.push(Change::Discarded);
        }
        for window in self.discarding.iter_mut().filter(|window| window.thread == thread) {
            window.start = window.start.max(end);
        }
        self.discarding.retain(|window| window.start < window.end);
    }

    /// A word that is being thrown away and is zero has been thrown away.
    fn settle(&mut self, addr: u64) {
        let doomed = |window: &Window| (window.start..window.end).contains(&addr);
        if self.discarding.iter().any(doomed)
            && let Some(history) = self.histories.get_mut(&addr)
        {
            history.push(Change::Discarded);
        }
    }

    fn read(&self, actor: Actor, addr: u64, value: u64) -> Result<(), Finding> {
        let history = self.histories.get(&addr).map_or(&[][..], Vec::as_slice);
        let latest = history.last().copied();
        let right = match latest {
            Some(Change::Written(_, value)) => value,
            Some(Change::Discarded) | None => 0,
        };
        if value == right {
            return Ok(());
        }
        let was_there = |change: &Change| matches!(*change, Change::Written(_, older) if older == value);
        let is_older = history.iter().any(was_there);
        let reader = who(actor);
        let (verdict, sentence) = match latest {
            Some(Change::Written(writer, written)) if value == 0 => (
                Verdict::LostWrite,
                format!(
                    "{reader} read 0 at {addr:#x}, where {} had written {written} and nobody had thrown it away: the write is gone",
                    who(writer)
                ),
            ),
            _ if !is_older => (
                Verdict::StaleData,
                format!("{reader} read {value} at {addr:#x}, which nobody had written there"),
            ),
            Some(Change::Written(writer, written)) if writer == actor => (
                Verdict::LostWrite,
                format!(
                    "{reader} had written {written} at {addr:#x} and then read the older {value} there: its write is gone"
                ),
            ),
            Some(Change::Written(writer, written)) => (
                Verdict::StaleData,
                format!(
                    "{reader} read {value} at {addr:#x} after {} had overwritten it with {written}",
                    who(writer)
                ),
            ),
            Some(Change::Discarded) | None => (
                Verdict::StaleData,
                format!("{reader} read {value} at {addr:#x} after it had been thrown away"),
            ),
        };
        Err(Finding::new(verdict, sentence))
    }
}

impl Checker for LostWrite {
    fn observe(&mut self, thread: usize, _name: &str, event: &Event) -> Result<(), Finding> {
        match *event {
            Event::Write { actor, addr, value, .. } => {
                self.histories
                    .entry(addr)
                    .or_default()
                    .push(Change::Written(actor, value));
            }
            Event::Discarding { start, end } => self.discarding.push(Window { thread, start, end }),
            Event::Discarded { start, end } => self.discarded(thread, start, end),
            Event::Read { actor, addr, value } => {
                if value == 0 {
                    self.settle(addr);
                }
                return self.read(actor, addr, value);
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
