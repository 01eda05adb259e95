//! Nothing comes after the end: no callback of a mirror after unregister returned, no work on an address space that is dead.
//!
//! # Invariants
//! - CHK-4 (LIFE-2): after [`Event::Unregistered`] no callback of the mirror is entered; start, end and release are callbacks, and so is
//!   a start that is refused.
//! - CHK-5 (LIFE-3, LIFE-4): after [`Event::Died`] no device works on the address space.

use std::collections::BTreeSet;

use super::{Checker, Finding, Verdict};
use crate::journal::{Event, Name};

/// Knows who is gone.
#[derive(Debug, Default)]
pub struct AfterUnregister {
    unregistered: BTreeSet<Name>,
    dead: BTreeSet<Name>,
}

impl AfterUnregister {
    fn called(&self, mirror: Name, callback: &str, thread: &str) -> Result<(), Finding> {
        if !self.unregistered.contains(mirror) {
            return Ok(());
        }
        Err(Finding::new(
            Verdict::CallbackAfterUnregister,
            format!("thread {thread} called {callback} of {mirror}, whose unregister had returned"),
        ))
    }

    fn works(&self, device: Name, mm: Name) -> Result<(), Finding> {
        if !self.dead.contains(mm) {
            return Ok(());
        }
        let device = super::who(crate::journal::Actor::Device(device));
        Err(Finding::new(
            Verdict::DeadAddressSpace,
            format!("{device} works on the address space {mm}, which is dead"),
        ))
    }
}

impl Checker for AfterUnregister {
    fn observe(&mut self, _thread: usize, name: &str, event: &Event) -> Result<(), Finding> {
        match *event {
            Event::Unregistered { mirror } => {
                self.unregistered.insert(mirror);
            }
            Event::Died { mm } => {
                self.dead.insert(mm);
            }
            Event::Callback { mirror } => return self.called(mirror, "a callback", name),
            Event::Release { mirror } => return self.called(mirror, "the release callback", name),
            Event::Start { subscriber, .. } | Event::Refused { subscriber, .. } => {
                return self.called(subscriber, "the start callback", name);
            }
            Event::End { subscriber, .. } => return self.called(subscriber, "the end callback", name),
            Event::Works { device, mm } => return self.works(device, mm),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
