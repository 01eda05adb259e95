//! Where pages that were sent settle, and who is charged for them from then on.

use crate::addr::PageMask;
use crate::devmem::{Budget, Contents, DeviceId};
use crate::migrate::Report;
use crate::migrate::carry::Outward;
use crate::migrate::out::{Goal, Sender};
use crate::mm::block::{BlockState, RESIDENCIES, arena_pages};
use crate::mm::{Memory, MmState, Shared};
use crate::stats::add;
use crate::world::World;

/// What another device no longer holds.
struct Left<W: World> {
    device: DeviceId,
    pages: usize,
    charge: Shared<W, Budget>,
}

impl<W: World> MmState<W> {
    /// Ends the transit: what arrived is the device's, what did not is where it was (MGR-2).
    pub(super) fn settle_out(&self, sender: &Sender<'_, W>, outward: &Outward<'_, W>, report: &mut Report<W::Meta>) {
        let arrived = outward.moved.or(outward.zeroed).or(outward.kept);
        let (mut state, dropped) = self.drop_on_the_way(outward);
        let stays = arrived.without(dropped);
        let unused = Self::settle_here(sender, outward, &mut state, stays, dropped);
        let (left, came) = Self::settle_there(sender, outward, &mut state, arrived, dropped);
        let residency = state
            .on(sender.memory.id)
            .expect("an incoming transit keeps the residency");
        let (empty, charge) = (residency.held().is_empty(), residency.charge.clone());
        // Before the pages settle: who waits for that, to unregister a device, then finds its memory empty (LIFE-1).
        if unused > 0 {
            sender.memory.unreserve(unused, &charge);
        }
        let left = left.map(|left| self.uncharge(left?));
        let waiting = outward.block.settle(&mut state, outward.pages);
        drop(state);
        if empty {
            self.free_if_empty(outward.block, sender.memory, Contents::Small);
        }
        for memory in left.iter().flatten() {
            self.free_if_empty(outward.block, memory, Contents::Small);
        }
        self.wake_settled(outward.block, waiting);
        report.zeroed += outward.zeroed.count();
        report.copied += outward.copied;
        report.moved += outward.moved.count() - outward.copied.min(outward.moved.count());
        report.in_place += outward.kept.count();
        report.from_device += came;
        self.count_sent(sender, stays.count());
    }

    /// Takes a load off another device's memory, which is returned.
    fn uncharge(&self, left: Left<W>) -> Option<Memory<W>> {
        let memory = self.memory(left.device)?;
        memory.unreserve(left.pages, &left.charge);
        Some(memory)
    }

    fn count_sent(&self, sender: &Sender<'_, W>, pages: usize) {
        if sender.goal == Goal::Exclusive {
            add(&self.counters.pages_exclusive, pages);
        } else if sender.claims() {
            add(&self.counters.pages_claimed, pages);
        }
    }

    /// What was discarded on the way is dropped here, where nobody can have written to it: in the arena that it reached, or in the one that it
    /// did not leave. Says which pages those are, and returns with the block locked.
    fn drop_on_the_way<'b>(
        &self,
        outward: &'b Outward<'_, W>,
    ) -> (crate::sync::MutexGuard<'b, BlockState<W::Meta>>, PageMask) {
        let reached = outward.moved.or(outward.zeroed).or(outward.marked);
        let mut dropped = PageMask::NONE;
        let mut state = outward.block.lock();
        loop {
            let more = state.dropped.and(outward.pages).without(dropped);
            if more.is_empty() {
                break;
            }
            dropped = dropped.or(more);
            drop(state);
            for run in more.and(reached).runs() {
                self.world().scrub_arena(arena_pages(outward.base_page, run));
            }
            for source in outward.sources.iter().flatten() {
                for run in more.and(source.pages).without(outward.moved).runs() {
                    self.world().scrub_arena(source.at(run));
                }
            }
            state = outward.block.lock();
        }
        state.dropped = state.dropped.without(outward.pages);
        (state, dropped)
    }

    /// The device's own residency. Says how many pages it is no longer charged for.
    fn settle_here(
        sender: &Sender<'_, W>,
        outward: &Outward<'_, W>,
        state: &mut BlockState<W::Meta>,
        stays: PageMask,
        dropped: PageMask,
    ) -> usize {
        let residency = state
            .on_mut(sender.memory.id)
            .expect("an incoming transit keeps the residency");
        residency.incoming -= 1;
        let was_marked = outward.marked.and(dropped);
        residency.leave(was_marked);
        // Pages that were claimed before: they have moved to the arena now, or are void.
        let retaken = outward.pages.without(outward.fresh).without(outward.marked);
        let void = residency.give_back(retaken.and(dropped));
        if sender.claims() {
            residency.claimed = residency.claimed.or(stays);
        } else {
            residency.give_back(retaken.and(stays));
            residency.pages = residency.pages.or(stays);
        }
        if sender.goal == Goal::Exclusive {
            residency.exclusive = residency.exclusive.or(stays);
        }
        residency.huge |= outward.huge && outward.moved.is_full();
        residency.huge &= residency.pages.is_full();
        outward.fresh.without(stays).count() + was_marked.count() + void
    }

    /// The other devices lose what came over, was dropped on the way, or was theirs by a claim. Says how many pages came from them.
    fn settle_there(
        sender: &Sender<'_, W>,
        outward: &Outward<'_, W>,
        state: &mut BlockState<W::Meta>,
        arrived: PageMask,
        dropped: PageMask,
    ) -> ([Option<Left<W>>; RESIDENCIES], usize) {
        let mut left = [const { None }; RESIDENCIES];
        let mut came = 0;
        for (slot, residency) in left.iter_mut().zip(&mut state.residencies) {
            let Some(other) = residency.as_mut().filter(|other| other.device != sender.memory.id) else {
                continue;
            };
            let sources = outward.sources.iter().flatten();
            let source = sources
                .filter(|source| source.device == other.device)
                .fold(PageMask::NONE, |mask, source| mask.or(source.pages));
            let gone = source.and(outward.moved.or(dropped));
            other.leave(gone);
            came += source.and(outward.moved).count() + other.claimed.and(arrived).count();
            let pages = gone.count() + other.give_back(outward.pages.and(arrived.or(dropped)));
            let (device, charge) = (other.device, other.charge.clone());
            *slot = (pages > 0).then_some(Left { device, pages, charge });
        }
        (left, came)
    }
}
