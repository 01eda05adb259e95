//! A mirror is released exactly once.
//!
//! # Invariants
//! - CHK-3 (LIFE-3): release is called at most once for each mirror, and by the end of the story for each that was unregistered.
//!
//! That the one call comes before unregister returns is the affair of [`AfterUnregister`](super::AfterUnregister), so that each failure has
//! one name.

use std::collections::{BTreeMap, BTreeSet};

use super::{Checker, Finding, Verdict};
use crate::journal::{Event, Name};

/// Counts releases.
#[derive(Debug, Default)]
pub struct ReleaseOnce {
    /// Who released it.
    released: BTreeMap<Name, String>,
    unregistered: BTreeSet<Name>,
}

impl Checker for ReleaseOnce {
    fn observe(&mut self, _thread: usize, name: &str, event: &Event) -> Result<(), Finding> {
        match *event {
            Event::Release { mirror } => {
                if let Some(first) = self.released.insert(mirror, String::from(name)) {
                    let sentence = format!(
                        "the mirror {mirror} was released twice, first by thread {first} and then by thread {name}"
                    );
                    return Err(Finding::new(Verdict::ReleaseCount, sentence));
                }
            }
            Event::Unregistered { mirror } => {
                self.unregistered.insert(mirror);
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Finding> {
        let never = |mirror: &&Name| !self.released.contains_key(*mirror);
        self.unregistered.iter().find(never).map_or(Ok(()), |mirror| {
            let sentence = format!("the mirror {mirror} was unregistered and never released");
            Err(Finding::new(Verdict::ReleaseCount, sentence))
        })
    }
}

#[cfg(test)]
mod tests;
