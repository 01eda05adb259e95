//! Making room on a full device.
//!
//! The block that was not used for longest goes home whole (LRU). The evictor holds nothing in transit while it works, so two of them
//! never wait for each other (MGR-4).

use crate::addr::{BlockId, PageMask, PageRange};
use crate::devmem::Full;
use crate::migrate::home::Why;
use crate::migrate::homeward::{Homeward, Which};
use crate::migrate::out::{Occasion, Sender};
use crate::mm::MmState;
use crate::notifier::Cause;
use crate::stats::add;
use crate::sync::MODEL;
use crate::world::World;

/// Rounds of waiting for pages that others have in transit.
const PATIENCE: usize = if MODEL { 100 } else { 1000 };

impl<W: World> MmState<W> {
    /// Reserves up to `wanted` pages, evicting as needed. Fewer (also none) when there is no more to evict.
    pub(crate) fn make_room(&self, sender: &Sender<'_, W>, wanted: usize, keep: PageRange) -> usize {
        self.free_chunks_for(sender, keep);
        let mut reserved = 0;
        let mut waited = 0;
        let budget = sender.budget.limit_pages();
        let wanted = wanted.min(sender.memory.capacity_pages).min(budget);
        while reserved < wanted {
            match sender.memory.reserve(wanted - reserved, sender.budget) {
                Ok(pages) => reserved += pages,
                Err(full) => match self.evict_one(sender, full, keep) {
                    Evicted::Yes => waited = 0,
                    Evicted::Later if waited < PATIENCE => {
                        waited += 1;
                        self.world().pause(10_000);
                    }
                    Evicted::Later | Evicted::Nothing => break,
                },
            }
        }
        reserved
    }

    /// Sees to it that each block of `range` can get a chunk: sparse blocks can use up the chunks before the pages.
    fn free_chunks_for(&self, sender: &Sender<'_, W>, range: PageRange) {
        let needed = range.spans().count();
        while sender.memory.free_chunks() < needed {
            match self.evict_one(sender, Full::Device, range) {
                Evicted::Yes => {}
                Evicted::Later | Evicted::Nothing => return,
            }
        }
    }

    /// Sends pages of a block home, the oldest first: see [`Round`].
    fn evict_one(&self, sender: &Sender<'_, W>, full: Full, keep: PageRange) -> Evicted {
        let mut seen = false;
        for round in Round::ALL {
            let mut skip = 0;
            while let Some(victim) = sender.memory.oldest(|block| round.looks_at(block, keep), skip) {
                seen = true;
                if self.evict_block(sender, victim, full, (round, keep)) {
                    return Evicted::Yes;
                }
                skip += 1;
            }
        }
        if seen { Evicted::Later } else { Evicted::Nothing }
    }

    fn evict_block(
        &self,
        sender: &Sender<'_, W>,
        victim: BlockId,
        full: Full,
        (round, keep): (Round, PageRange),
    ) -> bool {
        let Some(block) = self.blocks.get(victim) else {
            return false;
        };
        if sender.occasion == Occasion::Miss && self.has_just_come(block, &sender.memory.thrash) {
            return false;
        }
        let best_here = self.advice.preferring(victim, sender.memory.id);
        let mut state = block.lock();
        let Some(residency) = state.on(sender.memory.id) else {
            return false;
        };
        if full == Full::Budget && !core::ptr::eq(&*residency.charge, &**sender.budget) {
            return false;
        }
        let held = residency.held();
        let wanted = round.pages(held, best_here, mask_of(victim, keep));
        if wanted.is_empty() && !held.is_empty() {
            return false;
        }
        let homeward = Homeward::<W>::collect(block, &mut state, sender.memory.id, wanted, Which::All);
        drop(state);
        let Some(mut homeward) = homeward else {
            return self.reclaim_empty(sender, victim);
        };
        let invalidated = self
            .notifier
            .invalidate_unless_full(homeward.range(), Cause::Migrate, None);
        let Ok(guard) = invalidated else {
            self.give_up(&homeward);
            return false;
        };
        if guard.fenced() {
            self.note_fenced(&mut homeward);
        }
        let arrived = self.carry_home(&homeward, PageMask::NONE, Why::Eviction);
        guard.commit();
        if arrived.made_room() {
            add(&self.counters.evictions, 1);
        }
        arrived.made_room()
    }

    /// An empty chunk that was kept for a stale access: free it once the devices are found quiet.
    fn reclaim_empty(&self, sender: &Sender<'_, W>, victim: BlockId) -> bool {
        let Some(block) = self.blocks.get(victim) else {
            return false;
        };
        let Ok(guard) = self.notifier.invalidate(victim.range(), Cause::Migrate, None) else {
            return false;
        };
        if guard.fenced() {
            return false;
        }
        let mut state = block.lock();
        let Some(residency) = state.on_mut(sender.memory.id) else {
            return false;
        };
        residency.fenced = false;
        drop(state);
        self.free_if_empty(block, sender.memory, crate::devmem::Contents::Small);
        guard.commit();
        // No pages became free, but a chunk did; the caller needs pages and goes on looking.
        false
    }
}

/// Who makes room, one after the other. What is best on the device goes when nothing else is left; what is just being sent there, last of all, because
/// a miss could not be served otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// Blocks in which nothing is being sent: what is not best on the device.
    Others,
    /// Blocks in which something is: the same, beside that.
    Beside,
    /// Any block: what is best on the device, beside what is being sent.
    Preferring,
    /// Whatever is left.
    Rest,
}

impl Round {
    const ALL: [Self; 4] = [Self::Others, Self::Beside, Self::Preferring, Self::Rest];

    /// Whether pages of `block` go in this round, while `keep` is being sent.
    fn looks_at(self, block: BlockId, keep: PageRange) -> bool {
        match self {
            Self::Others => !block.range().overlaps(keep),
            Self::Beside | Self::Rest => block.range().overlaps(keep),
            Self::Preferring => true,
        }
    }

    /// Of the pages `held` of a block, those that go. `keep` is being sent.
    fn pages(self, held: PageMask, best_here: PageMask, keep: PageMask) -> PageMask {
        match self {
            Self::Others => held.without(best_here),
            Self::Beside => held.without(best_here).without(keep),
            Self::Preferring => held.and(best_here).without(keep),
            Self::Rest => held,
        }
    }
}

fn mask_of(block: BlockId, range: PageRange) -> PageMask {
    let part = block.range().intersect(range);
    part.and_then(|part| part.spans().next())
        .map_or(PageMask::NONE, |span| span.mask())
}

enum Evicted {
    Yes,
    /// What could go is in transit.
    Later,
    Nothing,
}
