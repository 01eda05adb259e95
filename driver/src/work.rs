//! Work on a thread of its own, whose end somebody waits for.
//!
//! # Locking
//! `outcome`, a leaf, for single moves of the value.

use isomem_core::mm::{EntryError, Mm};
use isomem_core::sync::Mutex;
use isomem_core::world::{Metadata, OutOfMetadata, World, WorldError};

use crate::link::Shared;

/// The stacks of a driver's threads.
pub(crate) const STACK_BYTES: usize = 256 << 10;

/// Work that was launched. Dropping it waits for its end, too.
#[must_use = "dropping it waits for the work's end"]
pub struct Work<W: World, T: Send + 'static> {
    thread: W::Thread,
    outcome: Shared<W, Mutex<Option<T>>>,
    mm: Mm<W>,
}

impl<W: World, T: Send + 'static> core::fmt::Debug for Work<W, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Work").finish_non_exhaustive()
    }
}

impl<W: World, R: Send + 'static, E: Send + From<EntryError> + 'static> Work<W, Result<R, E>> {
    /// Starts `body` on a thread of isomem's own.
    pub(crate) fn start<S: From<WorldError> + From<OutOfMetadata>>(
        mm: &Mm<W>,
        name: &'static str,
        body: impl FnOnce() -> Result<R, E> + Send + 'static,
    ) -> Result<Self, S> {
        let outcome = W::Meta::share(Mutex::new("outcome", None))?;
        let told = outcome.clone();
        let thread = mm.world().spawn(name, STACK_BYTES, move || {
            let ended = body();
            *told.lock() = Some(ended);
        })?;
        Ok(Self {
            thread,
            outcome,
            mm: mm.clone(),
        })
    }

    /// Waits for its end, and says what it ended with.
    ///
    /// # Errors
    /// Its own; or that it is another process's: a fork's child does not have the thread.
    pub fn wait(self) -> Result<R, E> {
        let Self { thread, outcome, mm } = self;
        // Where the thread is not, its lock may be held for ever.
        if !mm.world().is_current() {
            return Err(EntryError::WrongAddressSpace.into());
        }
        drop(thread);
        // Moved out: the lock must not be held when what it guards goes.
        let ended = { outcome.lock().take() };
        ended.expect("a thread that has ended told its outcome")
    }
}
