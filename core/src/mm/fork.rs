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
//! done: pages may leave                  a helper copies them to the child, then lets it go
//! ```
//!
//! Linux: dup_mmap, copy_nonpresent_pte for a device-private entry.

use crate::addr::{PageMask, PageRange, PageSpan};
use crate::migrate::home::{Which, Why};
use crate::mm::block::{Block, arena_pages};
use crate::mm::{Mm, MmState};
use crate::stats::add;
use crate::sync::MODEL;
use crate::world::{ArenaRange, World};

/// How often pages are called home for a fork: some seconds, with the pauses between.
const ROUNDS: usize = if MODEL { 100 } else { 300 };
const PAUSE_NS: u64 = 10_000_000;

impl<W: World> Mm<W> {
    /// To be called before the process forks: brings every page home and lets none leave until [`Mm::fork_done`] (MIG-4). Claims of coherent
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
        let mut left = None;
        for round in 0..ROUNDS {
            if round > 0 {
                self.world().pause(PAUSE_NS);
            }
            self.home_those(PageRange::ALL, |_| true, Which::All, Why::Request);
            left = self.away_range();
            if left.is_none() {
                break;
            }
        }
        *self.stragglers.lock() = left;
    }

    /// The smallest range with everything that is away. The gate is closed, so nothing is on its way out.
    fn away_range(&self) -> Option<PageRange> {
        let away = |(block, _): (&Block<W::Meta>, PageSpan)| {
            let state = block.wait_settled(PageMask::FULL);
            let away = state.away();
            drop(state);
            let first = away.runs().next()?;
            let end = away.runs().last().map_or(first.end, |run| run.end);
            Some(block.id.pages(first.start..end))
        };
        self.blocks
            .known(PageRange::ALL)
            .filter_map(away)
            .reduce(PageRange::hull)
    }

    /// Whether pages were away when the process forked last although that was announced: then the child lacks them, and is to be given
    /// them by [`MmState::resident_runs`] as after a fork that was not announced (FRK-1).
    pub fn has_stragglers(&self) -> bool {
        self.stragglers.lock().is_some()
    }

    /// Counts a fork that was not announced.
    pub fn late_fork(&self) {
        add(&self.counters.late_forked, 1);
    }

    /// Every run of pages that is on a device, with its place in the arena; waits for pages in transit. For a fork that was not announced:
    /// the child's copies of these pages are holes.
    ///
    /// After one that was announced and left stragglers also those that came home meanwhile, with their place at home, each by itself.
    pub fn resident_runs(&self, each: &mut dyn FnMut(PageRange, ArenaRange)) {
        let stragglers = self.stragglers.lock().take();
        for (block, span) in self.blocks.known(PageRange::ALL) {
            let state = block.wait_settled(PageMask::FULL);
            let resident = state
                .residencies
                .each_ref()
                .map(|slot| slot.as_ref().map(|r| (r.base_page, r.pages)));
            let at_home = state.at_home();
            drop(state);
            for (base_page, pages) in resident.into_iter().flatten() {
                for run in pages.runs() {
                    each(block.id.pages(run.clone()), arena_pages(base_page, run));
                }
            }
            let came = stragglers.and_then(|range| span.range().intersect(range)?.spans().next());
            let came = came.map_or(PageMask::NONE, |part| part.mask().and(at_home));
            for page in came.runs().flatten() {
                let home = block.id.pages(page..page + 1);
                each(home, home);
            }
        }
    }
}
