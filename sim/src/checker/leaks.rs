//! What was opened is closed, once, and is used only in between.
//!
//! Things are told apart by their names. A name that is closed may be opened again: that is another thing.
//!
//! # Invariants
//! - CHK-6 (LIFE-5): when the story is over, everything that was opened is closed.
//! - CHK-7 (LIFE-1): what is used or closed is open.

use std::collections::BTreeMap;

use super::{Checker, Finding, Verdict};
use crate::journal::Event;

#[derive(Debug)]
enum Thing {
    /// By which thread, and how often: several things may have one name.
    Open { by: String, count: u32 },
    /// By which thread.
    Closed { by: String },
}

/// Knows what lives.
#[derive(Debug, Default)]
pub struct Leaks {
    things: BTreeMap<String, Thing>,
}

impl Leaks {
    fn open(&mut self, what: &str, by: &str) {
        match self.things.get_mut(what) {
            Some(Thing::Open { count, .. }) => *count += 1,
            Some(thing) => *thing = Thing::open(by),
            None => {
                self.things.insert(String::from(what), Thing::open(by));
            }
        }
    }

    fn close(&mut self, what: &str, by: &str) -> Result<(), Finding> {
        match self.things.get_mut(what) {
            Some(Thing::Open { count, .. }) if *count > 1 => *count -= 1,
            Some(thing @ Thing::Open { .. }) => *thing = Thing::Closed { by: String::from(by) },
            Some(Thing::Closed { by: first }) => {
                return Err(after_free(format!(
                    "{what} was freed twice, first by thread {first} and then by thread {by}"
                )));
            }
            None => return Err(after_free(format!("thread {by} freed {what}, which never existed"))),
        }
        Ok(())
    }

    fn used(&self, what: &str, by: &str) -> Result<(), Finding> {
        match self.things.get(what) {
            Some(Thing::Open { .. }) => Ok(()),
            Some(Thing::Closed { by: freed }) => Err(after_free(if freed == by {
                format!("thread {by} used {what} after it had freed it itself")
            } else {
                format!("thread {by} used {what} after thread {freed} had freed it")
            })),
            None => Err(after_free(format!("thread {by} used {what}, which did not exist"))),
        }
    }
}

impl Thing {
    fn open(by: &str) -> Self {
        Self::Open {
            by: String::from(by),
            count: 1,
        }
    }
}

fn after_free(sentence: String) -> Finding {
    Finding::new(Verdict::UseAfterFree, sentence)
}

impl Checker for Leaks {
    fn observe(&mut self, _thread: usize, name: &str, event: &Event) -> Result<(), Finding> {
        match event {
            Event::Opened { what } => self.open(what, name),
            Event::Closed { what } => return self.close(what, name),
            Event::Used { what } => return self.used(what, name),
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Finding> {
        for (what, thing) in &self.things {
            if let Thing::Open { by, .. } = thing {
                let sentence = format!("{what}, which thread {by} had made, was never freed");
                return Err(Finding::new(Verdict::Leak, sentence));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
