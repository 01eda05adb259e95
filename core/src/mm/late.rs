//! What the world noticed only afterwards: changes of the address space that did not come through the API.
//!
//! At the cooperative level this is the *late detector*: devices are told after the fact, and it is counted. The thread that reads the
//! world's events calls this before it serves any fault it read with them.

use crate::addr::{PageMask, PageRange};
use crate::mm::MmState;
use crate::mm::block::{Block, arena_pages};
use crate::notifier::Cause;
use crate::stats::add;
use crate::world::{ArenaRange, Stop, World};

/// A change that has happened, or is about to without waiting for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LateEvent {
    /// The contents are dropped (MADV_DONTNEED and its like).
    Removed(PageRange),
    /// The mapping is gone; there may be another in its place already.
    Unmapped(PageRange),
    /// The mapping lives at `to` now.
    Remapped {
        /// Where it was.
        from: PageRange,
        /// Where it is; of the same length, or longer by pages that are new.
        to: PageRange,
    },
}

/// How devices took the news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// No access is in flight.
    Quiet,
    /// One may be: it runs into a place that is empty, and asks there for its page. Until a later invalidation finds the device quiet the place keeps
    /// its owner, or the access would find nobody to ask, and end the process.
    Fenced,
}

/// Attempts to place a page of a moved mapping.
const ATTEMPTS: usize = 1000;

impl<W: World> MmState<W> {
    /// Tells devices, and lets go of what they hold of pages that are no more.
    pub fn late(&self, event: LateEvent) {
        match event {
            LateEvent::Removed(range) => {
                add(&self.counters.late_removed, 1);
                let told = self.tell_late(range, Cause::Clear);
                self.drop_away(range, told);
            }
            LateEvent::Unmapped(range) => {
                add(&self.counters.late_unmapped, 1);
                self.advice.forget(range);
                let told = self.tell_late(range, Cause::Unmap);
                self.drop_away(range, told);
            }
            LateEvent::Remapped { from, to } => {
                add(&self.counters.late_remapped, 1);
                self.advice.forget(from);
                self.advice.forget(to);
                let told = self.tell_late(from, Cause::Unmap);
                let replaced = self.tell_late(to, Cause::Unmap);
                self.drop_away(to, replaced);
                self.follow(from, to, told);
            }
        }
    }

    /// Non-blocking: the reader of events must not wait for a device that may wait for a CPU fault. A subscriber that refuses is asked again.
    fn tell_late(&self, range: PageRange, cause: Cause) -> Told {
        for _ in 0..ATTEMPTS {
            if let Ok(guard) = self.notifier.try_invalidate(range, cause, None) {
                let told = if guard.fenced() { Told::Fenced } else { Told::Quiet };
                guard.commit();
                return told;
            }
            self.world().pause(10_000);
        }
        add(&self.counters.late_untold, 1);
        Told::Fenced
    }

    /// Frees the device's copies of pages whose contents are void, and ends claims on such pages.
    fn drop_away(&self, range: PageRange, told: Told) {
        for (block, span) in self.blocks.known(range) {
            self.drop_claims(block, span.mask());
            loop {
                let mut state = block.lock();
                // Who has them in transit drops them.
                let in_transit = state.transit.and(span.mask());
                state.dropped = state.dropped.or(in_transit);
                let wanted = |pages: PageMask| pages.and(span.mask()).without(in_transit);
                let Some(residency) = state
                    .residencies
                    .iter_mut()
                    .flatten()
                    .find(|r| !wanted(r.pages).is_empty())
                else {
                    break;
                };
                let (device, base_page) = (residency.device, residency.base_page);
                let pages = wanted(residency.pages);
                let charge = residency.charge.clone();
                residency.fenced |= told == Told::Fenced;
                state.transit = state.transit.or(pages);
                drop(state);
                for run in pages.runs() {
                    self.world().scrub_arena(arena_pages(base_page, run));
                }
                self.forget(block, device, pages, &charge);
            }
        }
    }

    /// Ends the claims on settled pages of a block: the contents that coherent memory held are void.
    fn drop_claims(&self, block: &Block<W::Meta>, pages: PageMask) {
        loop {
            let mut state = block.lock();
            let settled = pages.without(state.transit);
            let claiming = state.residencies.iter_mut().flatten();
            let Some((residency, ended)) = claiming
                .map(|residency| (residency.give_back(settled), residency))
                .find(|&(ended, _)| ended > 0)
                .map(|(ended, residency)| (residency, ended))
            else {
                return;
            };
            // With the block locked, so that who finds no claim there finds the memory empty, too (LIFE-1).
            let memory = self.memory(residency.device);
            if let Some(memory) = &memory {
                memory.unreserve(ended, &residency.charge);
            }
            drop(state);
            if let Some(memory) = memory {
                self.free_if_empty(block, &memory, crate::devmem::Contents::Small);
            }
        }
    }

    fn forget(
        &self,
        block: &Block<W::Meta>,
        device: crate::devmem::DeviceId,
        pages: PageMask,
        charge: &crate::devmem::Budget,
    ) {
        let memory = self.memory(device);
        let mut state = block.lock();
        let residency = state.on_mut(device).expect("a residency with pages in transit stays");
        residency.leave(pages);
        if let Some(memory) = &memory {
            // Before the pages settle, as at home.
            memory.unreserve(pages.count(), charge);
        }
        let waiting = block.settle(&mut state, pages);
        drop(state);
        if let Some(memory) = memory {
            self.free_if_empty(block, &memory, crate::devmem::Contents::Small);
        }
        self.wake_settled(block, waiting);
    }

    /// Brings the pages of a mapping that moved to where it is now.
    fn follow(&self, from: PageRange, to: PageRange, told: Told) {
        for (block, span) in self.blocks.known(from) {
            drop(block.wait_settled(span.mask()));
            self.drop_claims(block, span.mask());
            loop {
                let mut state = block.wait_settled(span.mask());
                let Some(residency) = state
                    .residencies
                    .iter_mut()
                    .flatten()
                    .find(|r| r.pages.overlaps(&span.mask()))
                else {
                    break;
                };
                residency.fenced |= told == Told::Fenced;
                let (device, base_page) = (residency.device, residency.base_page);
                let pages = residency.pages.and(span.mask());
                // What is at home as well moved with the mapping. It is still protected there; the next write finds out.
                let alone = pages.without(residency.duplicates);
                let charge = residency.charge.clone();
                state.transit = state.transit.or(pages);
                drop(state);
                for run in alone.runs() {
                    let offset = block.id.first_page() + run.start - from.first_page();
                    if let Some(target) = to.skip(offset).filter(|target| target.page_count() >= run.len()) {
                        self.place(arena_pages(base_page, run.clone()), target.take(run.len()));
                    }
                }
                for run in pages.runs() {
                    self.world().scrub_arena(arena_pages(base_page, run));
                }
                self.forget(block, device, pages, &charge);
            }
        }
    }

    fn place(&self, mut from: ArenaRange, mut to: PageRange) {
        for _ in 0..ATTEMPTS {
            let mut done = self.relink_home(from, to);
            if done.pages == 0 && done.stop == Some(Stop::Unlike) {
                done = self.world().copy_home(from, to);
            }
            let (Some(rest_from), Some(rest_to)) = (from.skip(done.pages), to.skip(done.pages)) else {
                return;
            };
            (from, to) = (rest_from, rest_to);
            match done.stop {
                Some(Stop::Again) => self.world().pause(10_000),
                Some(_) if done.pages == 0 => {
                    // This page's place is taken or gone; the others may still find theirs.
                    let (Some(rest_from), Some(rest_to)) = (from.skip(1), to.skip(1)) else {
                        return;
                    };
                    (from, to) = (rest_from, rest_to);
                }
                _ => {}
            }
        }
    }
}
