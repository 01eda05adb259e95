//! What the tests of all checkers share, and that the lists of them are complete.

use super::{Checker, Finding, all, all_with_lock_order};
use crate::journal::{Actor, Event};

/// The only device of most tests.
pub(super) const GPU: Actor = Actor::Device("gpu");

/// Steps of the thread `name`, which has number `thread`.
pub(super) struct By(pub(super) usize, pub(super) &'static str);

impl By {
    pub(super) fn step(&self, checker: &mut impl Checker, event: Event) -> Result<(), Finding> {
        checker.observe(self.0, self.1, &event)
    }
}

/// All steps are of one thread, and the story ends after them.
pub(super) fn judge(mut checker: impl Checker, events: impl IntoIterator<Item = Event>) -> Result<(), Finding> {
    let worker = By(0, "worker");
    for event in events {
        worker.step(&mut checker, event)?;
    }
    checker.finish()
}

#[test]
fn prf_3_every_list_has_the_checkers_of_all_kinds() {
    let locks = usize::from(cfg!(feature = "shuttle"));
    assert_eq!(all().len(), 9 + locks);
    assert_eq!(all_with_lock_order().len(), 9 + locks);
}

#[test]
fn an_actor_is_named_as_in_a_sentence() {
    assert_eq!(super::who(Actor::Cpu), "the CPU");
    assert_eq!(super::who(GPU), "the device gpu");
    assert_eq!(super::who(Actor::Device("device")), "the device");
}
