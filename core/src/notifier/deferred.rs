//! What is ended where it cannot be waited for: the reason, and the token to wait with later.
//!
//! # Locking
//! None of its own.

use core::fmt;

use super::Subscription;
use crate::world::Metadata;

/// Why something that waits for callbacks cannot be done here: it would wait for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Inside {
    /// The thread is inside a callback.
    #[error("the calling thread is inside a callback")]
    Callback,
    /// The thread holds the guard of an invalidation.
    #[error("the calling thread is between the start and the end of an invalidation")]
    Invalidation,
    /// The thread is inside the `release` of this subscription.
    #[error("the calling thread is inside this subscription's release")]
    Release,
}

/// A subscription that is ending, and the right to wait for that (LIFE-8). Dropping it where waiting is possible waits.
#[must_use = "the subscriber may still be in a callback until `wait` returned"]
pub struct Deferred<M: Metadata> {
    subscription: Subscription<M>,
    inside: Inside,
}

impl<M: Metadata> Deferred<M> {
    pub(super) fn new(subscription: Subscription<M>, inside: Inside) -> Self {
        Self { subscription, inside }
    }

    /// Why it was deferred.
    pub fn inside(&self) -> Inside {
        self.inside
    }

    /// Waits as `unsubscribe` would have. Fails with the token where the caller is still inside.
    pub fn wait(self) -> Result<(), Self> {
        self.subscription.unsubscribe()
    }
}

impl<M: Metadata> fmt::Debug for Deferred<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deferred")
            .field("inside", &self.inside)
            .finish_non_exhaustive()
    }
}

impl<M: Metadata> fmt::Display for Deferred<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot wait for the subscription's end here: {}", self.inside)
    }
}

impl<M: Metadata> core::error::Error for Deferred<M> {}
