//! A page is seen as a whole: old or new, never half of each.
//!
//! # Invariants
//! - CHK-9 (MIG-3): the words of a page that was seen at one moment are equal, as the story writes them.

use super::{Checker, Finding, Verdict, who};
use crate::journal::Event;

/// Compares words.
#[derive(Debug, Default)]
pub struct HalfPage;

impl Checker for HalfPage {
    fn observe(&mut self, _thread: usize, _name: &str, event: &Event) -> Result<(), Finding> {
        let Event::SawPage { actor, page, words } = event else {
            return Ok(());
        };
        let Some((&first, rest)) = words.split_first() else {
            return Ok(());
        };
        let Some(other) = rest.iter().position(|word| *word != first) else {
            return Ok(());
        };
        let word = other + 1;
        Err(Finding::new(
            Verdict::HalfPage,
            format!(
                "{} saw half of page {page}: its word 0 was {first} while its word {word} was {}",
                who(*actor),
                words[word]
            ),
        ))
    }
}

#[cfg(test)]
mod tests;
