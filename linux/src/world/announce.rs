//! Makes changes that the kernel reports as events so that they are known as isomem's own, prepares the program's changes, and nudges who reads.

use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::world::World;
use rustix::io::Errno;

use super::Linux;
use crate::own::{Change, Settled, Ticket};
use crate::sys::mapping::{self, Mapping};
use crate::sys::maps::Maps;

/// Looks at an own change's state, with a yield between, before the reader of events is nudged.
const LOOKS: usize = 16;

impl Linux {
    /// Makes a change that the kernel reports as an event, and lets the reader of events know that it is ours (LNX-3).
    pub(super) fn as_own<R>(&self, change: Change, make: impl FnOnce() -> R) -> R {
        let ticket = self.announce(change);
        let made = make();
        self.settle(ticket);
        made
    }

    /// Lets the reader of events know that a change is ours. `None` where the kernel does not report it.
    pub(crate) fn announce(&self, change: Change) -> Option<Ticket> {
        let features = self.features();
        let reported = match change {
            Change::Removed(_) => features.event_remove(),
            Change::Unmapped(_) => features.event_unmap(),
            Change::Remapped(..) => features.event_remap(),
            Change::Forked => features.event_fork(),
            Change::Within(_) => features.event_remove() || features.event_unmap() || features.event_remap(),
        };
        if !reported {
            return None;
        }
        loop {
            if let Some(ticket) = self.own.announce(change) {
                return Some(ticket);
            }
            // The others whose changes are under way give their places back by themselves.
            self.pause(10_000);
        }
    }

    /// Says that the change was made, and waits until nothing else can be taken for it any more (OWN-3).
    pub(crate) fn settle(&self, ticket: Option<Ticket>) {
        let Some(ticket) = ticket else { return };
        if self.own.done(ticket) == Settled::Yes {
            return;
        }
        for _ in 0..LOOKS {
            if !self.own.is_open(ticket) {
                return;
            }
            self.pause(0);
        }
        self.nudge();
    }

    /// Makes the reader of the program's events return from its read, with a [`Msg::Remove`](crate::sys::uffd::Msg) of [`Linux::bell`], or a
    /// fault there where the kernel has no such event. Blocks until it has read; does nothing where there is no reader.
    pub fn nudge(&self) {
        if !self.own.begin_nudge() {
            return;
        }
        // Who nudges relies on it, so it is tried until it works: the bell is a page of isomem's own, and only want of memory is in the way.
        while mapping::discard(self.bell.range()).is_err() {
            self.pause(100_000);
        }
        if !self.features().event_remove() {
            mapping::touch(&self.bell);
        }
    }

    /// Makes the reader of the arena's descriptor return from its read, with a fault on [`Linux::arena_bell`]. Blocks until that is served.
    pub fn nudge_arena(&self) {
        while mapping::discard(self.arena_bell.range()).is_err() {
            self.pause(100_000);
        }
        mapping::touch(&self.arena_bell);
    }

    /// From now on every fork is reported as an event, also where the child would get no page that is watched.
    ///
    /// # Errors
    /// The kernel's refusal to map or watch one page; nothing is left behind.
    pub(crate) fn watch_forks(&self) -> Result<(), Errno> {
        if self.fork_bell.get().is_some() || !self.features().event_fork() {
            return Ok(());
        }
        let bell = Mapping::new(PAGE_SIZE)?;
        self.program.register(bell.range())?;
        // Who comes second lets go of his own.
        let _ = self.fork_bell.set(bell);
        Ok(())
    }

    /// The areas of the process.
    pub(crate) fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Makes the areas of `range`, whose pages are all at home and stay there, what they would be without us: tracking a part of an area splits it,
    /// and the kernel refuses to move what is split.
    pub(crate) fn join_areas(&self, range: PageRange) {
        // Where there is nothing, or something that is never tracked, there is nothing to join.
        let _ = self.program.unregister(range);
    }

    /// The page whose fault is a nudge.
    pub fn arena_bell(&self) -> PageRange {
        self.arena_bell.range()
    }

    /// The page whose event is a nudge.
    pub fn bell(&self) -> PageRange {
        self.bell.range()
    }

    /// Drops contents, area by area: the kernel reports each by itself.
    pub(super) fn discard_announced(&self, range: PageRange) -> Result<(), Errno> {
        let mut result = Ok(());
        self.maps.in_range(range, &mut |vma| {
            if let (Ok(()), Some(part)) = (result, vma.range.intersect(range)) {
                result = self.as_own(Change::Removed(part), || mapping::discard(part));
            }
        })?;
        result
    }
}
