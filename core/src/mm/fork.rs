//! Forks: every page is at home when the process forks, so that the child has its copy by the kernel's own means (MIG-4).
//!
//! # Invariants
//! - FRK-1 (MIG-4): a child never finds zeroes where its parent has a page on a device. What cannot come home, however often it is tried, is
//!   remembered, and given to the child when the world hears of the fork.
//!
//! # Locking
//! The gate is closed from *prepare* to *done*: pages only come home.
//!
//! ```text
//! forking thread                         reader of the world's events
//! prepare: pages come home, none leaves  .
//! fork: waits until the event is read    fork event: are there stragglers?
//! done: pages may leave                  copies them to the child, before any page comes home
//! ```
//!
//! Linux: dup_mmap, copy_nonpresent_pte for a device-private entry.

use crate::addr::{PageMask, PageRange};
use crate::migrate::home::Why;
use crate::migrate::homeward::Which;
use crate::mm::block::arena_pages;
use crate::mm::{Mm, MmState};
use crate::stats::add;
use crate::sync::{MODEL, Ordering};
use crate::world::{ArenaRange, World};

/// How often pages are called home for a fork: some seconds, with the pauses between.
const ROUNDS: usize = if MODEL { 100 } else { 300 };
const PAUSE_NS: u64 = 10_000_000;

impl<W: World> Mm<W> {
    /// To be called before the process forks: brings every page home and lets none leave until [`Mm::fork_done`] (MIG-4). Duplicates end, and claims of coherent
    /// memory are given back: whoever writes first gets a page of his own, which is none of the device's.
    ///
    /// Blocks until the pages are home. Where one cannot come (the kernel has no memory for it, or it is pinned), for some seconds; then
    /// [`MmState::has_stragglers`].
    pub fn fork_prepare(&self) {
        if self.check_entry().is_err() {
            return;
        }
        let mm = self.clone();
        self.off_stack(move || {
            mm.gate.close();
            mm.home_for_fork();
        });
    }

    /// To be called in the parent when the fork is done.
    pub fn fork_done(&self) {
        if self.world().is_current() {
            self.gate.open();
        }
    }
}

impl<W: World> MmState<W> {
    fn home_for_fork(&self) {
        let mut is_home = false;
        for round in 0..ROUNDS {
            if round > 0 {
                self.world().pause(PAUSE_NS);
            }
            self.home_those(PageRange::ALL, |_| true, Which::All, Why::Request);
            is_home = self.is_all_home();
            if is_home {
                break;
            }
        }
        // Release pairs with the Acquire in `has_stragglers`.
        self.stragglers.store(!is_home, Ordering::Release);
    }

    /// Whether nothing is away. The gate is closed, so nothing is on its way out.
    fn is_all_home(&self) -> bool {
        self.blocks
            .known(PageRange::ALL)
            .all(|(block, _)| block.wait_settled(PageMask::FULL).away().is_empty())
    }

    /// Whether pages were away when the process forked last although that was announced: then the child lacks them, and is to be given
    /// them by [`MmState::arena_runs`] as after a fork that was not announced (FRK-1).
    pub fn has_stragglers(&self) -> bool {
        self.stragglers.load(Ordering::Acquire)
    }

    /// Counts a fork that was not announced.
    pub fn late_fork(&self) {
        add(&self.counters.late_forked, 1);
    }

    /// Every run of pages that may lie in an arena, with its place there; those in transit too, whichever way they go. For a fork that was not
    /// announced, or left stragglers: the child's copies of these pages are holes, or (where there is nothing in the arena) the pages themselves. Waits for nobody.
    ///
    /// For the reader of events, with arrivals held: then nothing came home since the fork, because the kernel refuses that until its event is read.
    pub fn arena_runs(&self, each: &mut dyn FnMut(PageRange, ArenaRange)) {
        for (block, _) in self.blocks.known(PageRange::ALL) {
            let state = block.lock();
            let (transit, dropped) = (state.transit, state.dropped);
            let there = state.residencies.each_ref().map(|slot| {
                slot.as_ref()
                    // Of a duplicate the child has the page that is at home.
                    .map(|r| (r.base_page, r.pages.without(r.duplicates).or(transit).without(dropped)))
            });
            drop(state);
            // Twice where pages may be on their way from one device to another.
            let rounds = if transit.is_empty() { 1 } else { 2 };
            for (base_page, pages) in (0..rounds).flat_map(|_| there).flatten() {
                for run in pages.runs() {
                    each(block.id.pages(run.clone()), arena_pages(base_page, run));
                }
            }
        }
    }
}
