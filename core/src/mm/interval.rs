//! A subscriber that hears of a part of the address space only, beside a mirror: how that ends.
//!
//! # Locking
//! The notifier's, never on a stack of the program's: who brings that home needs the same lock.
//!
//! Linux: mmu_interval_notifier_insert and _remove, mm/mmu_notifier.c.

use super::{Mm, Shared, SubscribeError};
use crate::addr::PageRange;
use crate::notifier::{Subscriber, Subscription, in_callback};
use crate::world::World;

/// The subscription of a part of an address space. Dropping it ends it: no callback runs then, and none will.
///
/// Where it is dropped no lock may be held that a callback needs. Inside a callback its end is only asked for (LIFE-8). In a fork's child nobody is told anything
/// anyway (LIFE-6).
#[must_use = "dropping it ends the subscription"]
pub struct Interval<W: World> {
    mm: Mm<W>,
    subscription: Option<Subscription<W::Meta>>,
}

impl<W: World> core::fmt::Debug for Interval<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Interval").finish_non_exhaustive()
    }
}

impl<W: World> Mm<W> {
    /// Tells `subscriber` of every invalidation that meets `range` and starts after this returned (INV-8): for a driver that is to hear of a part
    /// of the address space only, beside its mirror.
    #[doc(alias = "mmu_interval_notifier_insert")]
    pub fn subscribe(
        &self,
        range: PageRange,
        subscriber: Shared<W, dyn Subscriber>,
    ) -> Result<Interval<W>, SubscribeError> {
        self.check_entry()?;
        let mm = self.clone();
        let subscription = self.off_stack(move || mm.notifier.subscribe(range, subscriber))?;
        Ok(Interval {
            mm: self.clone(),
            subscription: Some(subscription),
        })
    }
}

impl<W: World> Drop for Interval<W> {
    #[doc(alias = "mmu_interval_notifier_remove")]
    fn drop(&mut self) {
        let Some(subscription) = self.subscription.take() else {
            return;
        };
        if !self.mm.world().is_current() {
            // The notifier's lock may be held by somebody who is not here.
            core::mem::forget(subscription);
        } else if in_callback() {
            drop(subscription);
        } else {
            self.mm.off_stack(move || drop(subscription));
        }
    }
}
