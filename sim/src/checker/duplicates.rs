//! Two copies of a page that are both there to be read are the same.
//!
//! [`Event::Duplicated`] makes a pair of two frames. As long as neither has gone back to the kernel either may be read, so nobody may write
//! either: who wants to write must see to it first that the other is gone.
//!
//! # Invariants
//! - CHK-12 (MIG-12): the frames of a pair are equal when it is made, and neither is written while both live.
//!
//! ```text
//! CPU                                       device
//! reads: frame 18 is a copy of frame 17     .
//! writes frame 18                           reads frame 17: what was there before
//! ```

use std::collections::BTreeMap;

use super::{Checker, Finding, Verdict, who};
use crate::journal::{Actor, Event, Frame};

/// Knows which frames are copies of which.
#[derive(Debug, Default)]
pub struct Duplicates {
    /// From each frame of a pair to the other, and the page.
    pairs: BTreeMap<Frame, (Frame, u64)>,
}

impl Duplicates {
    fn made(&mut self, page: u64, home: Frame, away: Frame, differs: Option<usize>) -> Result<(), Finding> {
        if let Some(word) = differs {
            return Err(Finding::new(
                Verdict::Diverged,
                format!("page {page} was copied from frame {away} to frame {home}, and they differ in word {word}"),
            ));
        }
        // A frame that is copied again has lost its former copy to somebody else's page table: that one is nobody's to compare any more.
        self.forget(home);
        self.forget(away);
        self.pairs.insert(home, (away, page));
        self.pairs.insert(away, (home, page));
        Ok(())
    }

    fn forget(&mut self, frame: Frame) {
        if let Some((other, _)) = self.pairs.remove(&frame) {
            self.pairs.remove(&other);
        }
    }

    fn written(&self, actor: Actor, frame: Frame) -> Result<(), Finding> {
        let Some((other, page)) = self.pairs.get(&frame) else {
            return Ok(());
        };
        Err(Finding::new(
            Verdict::Diverged,
            format!(
                "{} wrote frame {frame} of page {page} while frame {other} was there to be read with what was before",
                who(actor)
            ),
        ))
    }
}

impl Checker for Duplicates {
    fn observe(&mut self, _thread: usize, _name: &str, event: &Event) -> Result<(), Finding> {
        match *event {
            Event::Duplicated {
                page,
                home,
                away,
                differs,
            } => return self.made(page, home, away, differs),
            Event::Freed { frame } => self.forget(frame),
            Event::Write {
                actor,
                frame: Some(frame),
                ..
            } => return self.written(actor, frame),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
