//! Bringing pages home: on a CPU fault, on request, to make room.
//!
//! It needs no budget and no device memory, and allocates nothing, so it can always be done (MIG-8).

use core::ops::Range;

use crate::addr::{PAGES_PER_BLOCK, PageMask, PageRange};
use crate::devmem::{Contents, DeviceId};
use crate::migrate::homeward::{Arrived, Homeward, Which};
use crate::migrate::{Report, SkipReason, bytes, huge_group};
use crate::mm::MmState;
use crate::mm::block::{Block, Residency, Waiting, arena_pages};
use crate::notifier::Cause;
use crate::stats::add;
use crate::sync::MODEL;
use crate::world::{ArenaRange, Moved, Stop, World};

/// On whose behalf pages come home; for the statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    Fault,
    Eviction,
    Request,
}

/// Blocks that share one invalidation.
const BATCH: usize = if MODEL { 4 } else { 64 };
/// Attempts at a page while the address space keeps changing: until the reader of the world's events comes round.
pub(super) const ATTEMPTS: usize = if MODEL { 4 } else { 64 };
/// The same for who is not waited for by that reader: some seconds. Giving up would fail a change or an announced fork.
const PATIENT_ATTEMPTS: usize = if MODEL { 500 } else { 50_000 };

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Batched {
    Done,
    /// Nothing moved, and nothing is in transit any more.
    NoSlot,
}

impl<W: World> MmState<W> {
    /// Moves the pages home (no lock held), of which `moved` are there, then settles them. Says what arrived; what did not is still on the device.
    pub(crate) fn carry_home(&self, homeward: &Homeward<'_, W>, moved: PageMask, why: Why) -> Arrived {
        let mut arrived = Arrived {
            pages: moved,
            given_back: homeward.claims,
            ..Arrived::default()
        };
        self.collapse(homeward, &mut arrived);
        if homeward.is_copied {
            self.duplicate(homeward, &mut arrived);
        }
        for run in homeward.pages.without(moved).without(arrived.duplicated).runs() {
            self.carry_run(homeward, run, why, &mut arrived);
        }
        self.note_taken(
            homeward.block,
            homeward.device,
            why,
            arrived.pages.or(arrived.collapsed),
        );
        self.count_home(&arrived, why);
        self.settle_home(homeward, &mut arrived);
        arrived
    }

    /// Before the pages settle: who sees that they have finds them counted.
    fn count_home(&self, arrived: &Arrived, why: Why) {
        let count = arrived.pages.count();
        let counter = match why {
            Why::Fault => &self.counters.pages_home_by_fault,
            Why::Eviction => &self.counters.pages_home_by_eviction,
            Why::Request => &self.counters.pages_home_by_request,
        };
        add(counter, count + arrived.given_back.count());
        add(&self.counters.pages_duplicated, arrived.duplicated.count());
        add(&self.counters.duplicates_collapsed, arrived.collapsed.count());
        add(
            &self.counters.bytes_copied,
            bytes(arrived.copied + arrived.duplicated.count()),
        );
        add(&self.counters.bytes_moved, bytes(count - arrived.copied));
    }

    /// Drops those pages whose contents the program discarded since they were collected. Later discards are the kernel's to do, at home:
    /// dropping a page once it is home could lose a write that came after.
    fn drop_discarded(&self, homeward: &Homeward<'_, W>, arrived: &mut Arrived) {
        let mut state = homeward.block.lock();
        let discarded = state.dropped.and(homeward.pages).without(arrived.pages);
        state.dropped = state.dropped.without(discarded);
        drop(state);
        arrived.discarded = arrived.discarded.or(discarded);
        for run in discarded.runs() {
            self.world().scrub_arena(arena_pages(homeward.base_page, run));
        }
    }

    fn carry_run(&self, homeward: &Homeward<'_, W>, mut run: Range<usize>, why: Why, arrived: &mut Arrived) {
        let most = match why {
            Why::Fault => ATTEMPTS,
            Why::Eviction | Why::Request => PATIENT_ATTEMPTS,
        };
        let mut attempts = 0;
        loop {
            // While this is held no event can be read, and those that were read are handled: what they discarded is marked, and for what is
            // discarded from here on the kernel refuses the move, or drops the page once it is home.
            let arrivals = self.arrivals.read();
            self.drop_discarded(homeward, arrived);
            let Some(part) = PageMask::of(run.start, run.end).without(arrived.discarded).next_run(0) else {
                return;
            };
            let (pages, stop) = self.carry_part(homeward, part.clone(), arrived);
            drop(arrivals);
            run.start = part.start + pages;
            attempts = if pages > 0 { 0 } else { attempts + 1 };
            match stop {
                Some(Stop::Again) if attempts < most => self.world().pause(1_000),
                Some(Stop::Unlike) if pages > 0 => {}
                Some(stop) if pages == 0 => {
                    // This page stays; the others may still come.
                    arrived.stop = Some(stop);
                    if stop == Stop::Again {
                        return;
                    }
                    run.start += 1;
                    attempts = 0;
                }
                _ => {}
            }
        }
    }

    /// One move, or where the kernel refuses to relink, one copy. Says how many pages arrived, and why not all.
    fn carry_part(
        &self,
        homeward: &Homeward<'_, W>,
        part: Range<usize>,
        arrived: &mut Arrived,
    ) -> (usize, Option<Stop>) {
        let from = arena_pages(homeward.base_page, part.clone());
        let to = homeward.block.id.pages(part.clone());
        let mut done = self.relink_home(from, to);
        if done.pages == 0 && done.stop == Some(Stop::Unlike) {
            // A copy leaves the arena's page in place for a moment, so nothing may reach it: only relinking fences.
            if homeward.fenced {
                return (0, Some(Stop::Again));
            }
            done = self.world().copy_home(from, to);
            arrived.copied += done.pages;
        }
        arrived.pages = arrived.pages.or(PageMask::of(part.start, part.start + done.pages));
        (done.pages, done.stop)
    }

    /// Moves pages out of the arena. A copy there that could not be opened when it came to be ([`World::open_copies`]) would stay for ever, so it is
    /// opened now.
    pub(crate) fn relink_home(&self, from: ArenaRange, to: PageRange) -> Moved {
        let done = self.world().move_home(from, to);
        if done.pages > 0 || done.stop != Some(Stop::Busy) {
            return done;
        }
        self.world().open_copies(from);
        self.world().move_home(from, to)
    }

    fn settle_home(&self, homeward: &Homeward<'_, W>, arrived: &mut Arrived) {
        if arrived.copied > 0 {
            // The arena's copies go before the pages settle: a later transit must find the slots empty.
            for run in arrived.pages.runs() {
                self.world().scrub_arena(arena_pages(homeward.base_page, run));
            }
        }
        let memory = self.memory(homeward.device);
        let mut state = homeward.block.lock();
        loop {
            // Discarded on the way and not arrived, as where the program mapped and touched something new at their place.
            let void = state
                .dropped
                .and(homeward.pages.or(homeward.duplicates))
                .without(arrived.pages.or(arrived.collapsed))
                .without(arrived.discarded);
            if void.is_empty() {
                break;
            }
            arrived.discarded = arrived.discarded.or(void);
            drop(state);
            for run in void.runs() {
                self.world().scrub_arena(arena_pages(homeward.base_page, run));
            }
            state = homeward.block.lock();
        }
        let gone = arrived.pages.or(arrived.collapsed).or(arrived.discarded);
        let dropped = state.dropped.and(homeward.claims);
        let residency = state
            .on_mut(homeward.device)
            .expect("a residency with pages in transit stays");
        residency.leave(gone);
        residency.keep_copies(arrived.duplicated.without(arrived.discarded));
        let whole = homeward.huge && residency.pages.is_empty();
        // A claim on contents that were dropped meanwhile has ended by itself.
        let ended = residency.give_back(arrived.given_back.or(dropped));
        let charge = residency.charge.clone();
        let travelled = homeward.all();
        state.dropped = state.dropped.without(travelled);
        if let Some(memory) = &memory {
            // Before the pages settle: who waits for that, to unregister the device, then finds its memory empty (LIFE-1).
            memory.unreserve(gone.count() + ended, &charge);
        }
        let waiting = homeward.block.settle(&mut state, travelled);
        drop(state);
        if let Some(memory) = memory {
            self.free_if_empty(
                homeward.block,
                &memory,
                if whole { Contents::Huge } else { Contents::Small },
            );
        }
        // Also for what arrived: the move has woken who waited then, but the program may have dropped the page since, touched it again, and
        // found it still in transit.
        self.wake_settled(homeward.block, waiting);
    }

    /// Gives the chunk back when nothing is in it, unless an access through a stale pin may still be on its way to it.
    pub(crate) fn free_if_empty(
        &self,
        block: &Block<W::Meta>,
        memory: &crate::devmem::DeviceMemory<W::Meta>,
        contents: Contents,
    ) {
        let mut state = block.lock();
        if state.on(memory.id).is_some_and(|residency| residency.fenced) {
            return;
        }
        let empty: Option<Residency<W::Meta>> = state.take_empty(memory.id);
        drop(state);
        if let Some(empty) = empty {
            memory.revoke(empty.chunk, contents);
        }
    }

    pub(crate) fn wake_settled(&self, block: &Block<W::Meta>, waiting: Waiting) {
        for run in waiting.pages.runs() {
            self.world().wake(block.id.pages(run));
        }
        for base_page in waiting.arenas.into_iter().flatten() {
            self.world().wake_arena(arena_pages(base_page, 0..PAGES_PER_BLOCK));
        }
    }

    /// Brings home what is away in `range`. Waits for pages in transit. Runs on an own thread, with nothing in transit and no lock held.
    pub(crate) fn home_range(&self, range: PageRange, only: Option<DeviceId>, why: Why) -> Report<W::Meta> {
        self.home_those(range, |device| only.is_none_or(|only| only == device), Which::All, why)
    }

    /// Brings home those pages of `range` that are on one of the devices that `from` accepts. Else like [`MmState::home_range`].
    pub(crate) fn home_those(
        &self,
        range: PageRange,
        from: impl Fn(DeviceId) -> bool,
        which: Which,
        why: Why,
    ) -> Report<W::Meta> {
        let mut report = Report::new();
        let mut rest = Some(range);
        while let Some(range) = rest {
            rest = self.home_part(range, &from, which, why, &mut report);
        }
        report
    }

    /// As far as there are slots for invalidations; gives what is left, with nothing in transit.
    fn home_part(
        &self,
        range: PageRange,
        from: &impl Fn(DeviceId) -> bool,
        which: Which,
        why: Why,
        report: &mut Report<W::Meta>,
    ) -> Option<PageRange> {
        let mut known = self.blocks.known(range).peekable();
        while known.peek().is_some() {
            let mut batch: [Option<Homeward<'_, W>>; BATCH] = [const { None }; BATCH];
            let mut used = 0;
            let mut hull: Option<PageRange> = None;
            while used + crate::mm::block::RESIDENCIES <= BATCH
                && let Some(&(block, span)) = known.peek()
            {
                // Nobody waits for others' transits while holding some himself: such a block begins a batch of its own.
                let mut state = if used == 0 {
                    block.wait_settled(span.mask())
                } else {
                    block.lock()
                };
                if state.transit.overlaps(&span.mask()) {
                    break;
                }
                known.next();
                let devices = state.residencies.each_ref().map(|slot| slot.as_ref().map(|r| r.device));
                for device in devices.into_iter().flatten().filter(|&device| from(device)) {
                    if let Some(homeward) = Homeward::collect(block, &mut state, device, span.mask(), which) {
                        hull = Some(hull.map_or(homeward.range(), |hull| hull.hull(homeward.range())));
                        batch[used] = Some(homeward);
                        used += 1;
                    }
                }
            }
            let Some(hull) = hull else { continue };
            if self.home_batch(&mut batch[..used], hull, why, report) == Batched::NoSlot {
                return range.skip(hull.first_page().saturating_sub(range.first_page()));
            }
        }
        None
    }

    fn home_batch(
        &self,
        batch: &mut [Option<Homeward<'_, W>>],
        hull: PageRange,
        why: Why,
        report: &mut Report<W::Meta>,
    ) -> Batched {
        let Ok(guard) = self.notifier.invalidate_unless_full(hull, Cause::Migrate, None) else {
            batch.iter().flatten().for_each(|homeward| self.give_up(homeward));
            // Those with slots may have waited for these pages.
            if self.notifier.wait_for_slot() {
                return Batched::NoSlot;
            }
            // Devices could not be told, so nothing moves.
            for homeward in batch.iter().flatten() {
                homeward
                    .all()
                    .runs()
                    .for_each(|run| report.skip(homeward.block.id.pages(run), SkipReason::Changed));
            }
            return Batched::Done;
        };
        if guard.fenced() {
            batch
                .iter_mut()
                .flatten()
                .for_each(|homeward| self.note_fenced(homeward));
        }
        let mut next = 0;
        while next < batch.len() {
            let (group, moved) = self.move_huge_home(&batch[next..]);
            let end = next + group.max(1);
            for (index, homeward) in batch[next..end].iter().flatten().enumerate() {
                let pages = moved.saturating_sub(index * PAGES_PER_BLOCK).min(PAGES_PER_BLOCK);
                self.finish_home(homeward, PageMask::of(0, pages), why, report);
            }
            next = end;
        }
        guard.commit();
        Batched::Done
    }

    /// Moves whole huge pages of neighbouring blocks by one call. Says how many blocks those were, and how many of their pages arrived.
    fn move_huge_home(&self, batch: &[Option<Homeward<'_, W>>]) -> (usize, usize) {
        let whole = |homeward: &Homeward<'_, W>| {
            let is_whole = homeward.huge && homeward.pages.is_full();
            is_whole.then(|| (homeward.block.id.first_page(), homeward.base_page))
        };
        let group = huge_group(batch, whole);
        let Some((to, from)) = batch.first().and_then(Option::as_ref).and_then(whole) else {
            return (0, 0);
        };
        let count = group * PAGES_PER_BLOCK;
        let (Some(to), Some(from)) = (PageRange::from_pages(to, count), PageRange::from_pages(from, count)) else {
            return (0, 0);
        };
        // As in `carry_run`.
        let _arrivals = self.arrivals.read();
        if batch[..group]
            .iter()
            .flatten()
            .any(|homeward| !homeward.block.lock().dropped.is_empty())
        {
            return (group, 0);
        }
        (group, self.world().move_home(from, to).pages)
    }

    fn finish_home(&self, homeward: &Homeward<'_, W>, moved: PageMask, why: Why, report: &mut Report<W::Meta>) {
        let arrived = self.carry_home(homeward, moved, why);
        report.copied += arrived.copied;
        report.moved += arrived.pages.count() - arrived.copied;
        report.in_place += arrived.given_back.or(arrived.collapsed).count();
        let left = homeward.pages.or(homeward.duplicates).without(arrived.pages);
        for run in left.without(arrived.collapsed).without(arrived.discarded).runs() {
            report.skip(homeward.block.id.pages(run), skip_reason(arrived.stop));
        }
    }

    /// Settles pages that did not travel.
    pub(crate) fn give_up(&self, homeward: &Homeward<'_, W>) {
        self.settle_home(homeward, &mut Arrived::default());
    }

    /// Remembers that a stale access may still reach the chunk: it must not get another owner until an invalidation found the device quiet.
    pub(crate) fn note_fenced(&self, homeward: &mut Homeward<'_, W>) {
        add(&self.counters.fenced, 1);
        if homeward.pages.or(homeward.duplicates).is_empty() {
            // Only claims end: what a stale pin reaches stays where it is.
            return;
        }
        homeward.fenced = true;
        // Who writes too late would write the device's side of it only.
        homeward.is_copied = false;
        if let Some(residency) = homeward.block.lock().on_mut(homeward.device) {
            residency.fenced = true;
        }
    }

    /// Brings every such page home from every device.
    pub(crate) fn home_everything(&self, which: Which) {
        // Pages can be in transit outwards, so one pass may miss some; the second finds them settled.
        for _ in 0..2 {
            self.home_those(PageRange::ALL, |_| true, which, Why::Request);
        }
    }
}

/// The reason to report for a page that a move or copy stopped at.
pub(crate) fn skip_reason(stop: Option<Stop>) -> SkipReason {
    match stop {
        Some(Stop::Failed(errno)) => SkipReason::Failed(errno),
        Some(Stop::Busy) => SkipReason::Pinned,
        _ => SkipReason::Changed,
    }
}
