//! Nobody touches a page frame that was taken from it, or that went back to the kernel.
//!
//! What an actor may reach is what its page table was told: [`Event::Mapped`] gives it a frame for a page, [`Event::Taken`] takes away whatever is
//! there. A touch through anything else is stale: a kept translation, an entry that was entered after its invalidation, a pin that
//! outlived its page.
//!
//! # Invariants
//! - CHK-1 (FLT-2): a touch of a page is accepted only if the frame is the one that is mapped for this actor at this page, and lives.
//!
//! ```text
//! device                                    invalidating thread
//! looks: page 3 is frame 17                 .
//! .                                         takes frame 17, frees it
//! enters frame 17, touches it: stale        .
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::{Checker, Finding, Verdict, who};
use crate::journal::{Actor, Event, Frame};

/// Knows who may reach which frame.
#[derive(Debug, Default)]
pub struct StaleAccess {
    mapped: BTreeMap<(Actor, u64), Frame>,
    /// Why an actor may no longer reach a frame at a page.
    taken: BTreeSet<(Actor, u64, Frame)>,
    freed: BTreeSet<Frame>,
}

impl StaleAccess {
    fn touched(&self, actor: Actor, page: u64, frame: Frame) -> Result<(), Finding> {
        let mapped = self.mapped.get(&(actor, page)).copied();
        let lives = !self.freed.contains(&frame);
        if mapped == Some(frame) && lives {
            return Ok(());
        }
        let who = who(actor);
        let gone = if lives {
            ""
        } else {
            "; the frame had gone back to the kernel"
        };
        let sentence = match mapped {
            Some(mapped) if mapped == frame => {
                format!(
                    "{who} touched page {page} through an entry for frame {frame}, which had gone back to the kernel"
                )
            }
            _ if self.taken.contains(&(actor, page, frame)) => format!(
                "{who} touched page {page} after an invalidation it accepted had taken that page's frame {frame} away{gone}"
            ),
            Some(mapped) => {
                format!(
                    "{who} touched frame {frame} for page {page}, though its page table has frame {mapped} there{gone}"
                )
            }
            None => format!("{who} touched frame {frame} for page {page}, where its page table never had it{gone}"),
        };
        Err(Finding::new(Verdict::StaleAccess, sentence))
    }
}

impl Checker for StaleAccess {
    fn observe(&mut self, _thread: usize, _name: &str, event: &Event) -> Result<(), Finding> {
        match *event {
            Event::Mapped { actor, page, frame } => {
                self.mapped.insert((actor, page), frame);
            }
            Event::Taken { actor, page, frame } => {
                // Whatever is there goes: an entry for another frame than the kernel's is wrong, but it is erased as well.
                self.mapped.remove(&(actor, page));
                self.taken.insert((actor, page, frame));
            }
            Event::Freed { frame } => {
                self.freed.insert(frame);
            }
            Event::Touched { actor, page, frame } => return self.touched(actor, page, frame),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
