//! How pages travel to a device: the devices are told, then each page is relinked, filled or copied.
//!
//! # Invariants
//! - MGR-2, MGR-3 as stated in [`migrate`](super).

use core::ops::Range;

use crate::addr::{PAGES_PER_BLOCK, PageMask, PageRange};
use crate::devmem::DeviceId;
use crate::migrate::across::Source;
use crate::migrate::home::skip_reason;
use crate::migrate::out::{Batch, Chosen, Goal, Sender};
use crate::migrate::{HUGE_GROUP, Report, SkipReason, huge_group};
use crate::mm::MmState;
use crate::mm::block::{Block, BlockState, RESIDENCIES, arena_pages};
use crate::notifier::{Cause, Guard};
use crate::sync::MODEL;
use crate::world::{Moved, Pte, Stop, World, WorldError};

/// Attempts at a page that is busy for the moment.
pub(super) const ATTEMPTS: usize = if MODEL { 4 } else { 64 };

/// Pages of one block on their way to a device.
pub(super) struct Outward<'a, W: World> {
    pub(super) block: &'a Block<W::Meta>,
    pub(super) base_page: usize,
    /// All that are in transit.
    pub(super) pages: PageMask,
    /// Those of them that memory was reserved for.
    pub(super) fresh: PageMask,
    /// Those that are in the device's arena already.
    pub(super) marked: PageMask,
    /// Those that come from other devices.
    pub(super) sources: [Option<Source>; RESIDENCIES],
    /// The chunk has page tables left in it, which would break a huge page.
    pub(super) broken: bool,
    /// From the look at the CPU's page table.
    holes: PageMask,
    pub(super) huge: bool,
    pub(super) moved: PageMask,
    pub(super) zeroed: PageMask,
    /// Arrived without moving: claimed where they are, or made exclusive.
    pub(super) kept: PageMask,
    pub(super) copied: usize,
}

impl<W: World> MmState<W> {
    /// Unmap, move, commit.
    pub(super) fn carry_out(&self, sender: &Sender<'_, W>, batch: &mut Batch<'_, W>, report: &mut Report<W::Meta>) {
        let outward = &mut batch.outward[..batch.used];
        let hull = outward
            .iter()
            .flatten()
            .map(Outward::range)
            .reduce(PageRange::hull)
            .expect("the batch has pages");
        self.look(outward, hull);
        let cause = match sender.goal {
            Goal::Memory => Cause::Migrate,
            Goal::Exclusive => Cause::Exclusive,
        };
        let guard = self.notifier.invalidate_unless_full(hull, cause, None);
        if guard.as_ref().is_ok_and(Guard::fenced) {
            outward
                .iter_mut()
                .flatten()
                .for_each(|outward| self.note_sources_fenced(outward));
        }
        let mut next = 0;
        while next < outward.len() {
            let group = if guard.is_ok() && !sender.claims() {
                self.move_huge(&mut outward[next..])
            } else {
                0
            };
            let end = next + group.max(1);
            for outward in outward[next..end].iter_mut().flatten() {
                if guard.is_ok() {
                    self.carry_block(sender, outward, report);
                } else {
                    outward.fail_all(report, SkipReason::Changed);
                }
                self.settle_out(sender, outward, report);
            }
            next = end;
        }
        if let Ok(guard) = guard {
            guard.commit();
        }
    }

    /// One pass over the CPU's page table: which pages are holes, which blocks are huge pages. A hint; the moves find the truth.
    fn look(&self, batch: &mut [Option<Outward<'_, W>>], hull: PageRange) {
        let mut index = 0;
        let _ = self.world().scan(hull, &mut |run| {
            let interesting = matches!(run.pte, Pte::None | Pte::Present { huge: true, .. });
            if !interesting {
                return;
            }
            for span in run.range.spans() {
                while batch
                    .get(index)
                    .and_then(Option::as_ref)
                    .is_some_and(|o| o.block.id < span.block)
                {
                    index += 1;
                }
                let Some(outward) = batch.get_mut(index).and_then(Option::as_mut) else {
                    return;
                };
                if outward.block.id != span.block {
                    continue;
                }
                match run.pte {
                    Pte::None => outward.holes = outward.holes.or(span.mask()),
                    _ => outward.huge = outward.home_pages().is_full() && span.mask().is_full(),
                }
            }
        });
    }

    /// Moves whole huge pages in neighbouring blocks by one call. Says how many blocks those were; what did not move is left to be moved by
    /// itself.
    fn move_huge(&self, batch: &mut [Option<Outward<'_, W>>]) -> usize {
        for outward in batch
            .iter()
            .take(HUGE_GROUP)
            .flatten()
            .filter(|outward| outward.huge && outward.broken)
        {
            self.world()
                .scrub_arena(arena_pages(outward.base_page, 0..PAGES_PER_BLOCK));
        }
        let whole = |outward: &Outward<'_, W>| outward.huge.then(|| (outward.block.id.first_page(), outward.base_page));
        let group = huge_group(batch, whole);
        let Some((from, to)) = batch.first().and_then(Option::as_ref).and_then(whole) else {
            return 0;
        };
        let count = group * PAGES_PER_BLOCK;
        let (Some(from), Some(to)) = (PageRange::from_pages(from, count), PageRange::from_pages(to, count)) else {
            return 0;
        };
        // As in `relink_out`.
        let arrivals = self.arrivals.read();
        let discarded = |outward: &Outward<'_, W>| !outward.block.lock().dropped.is_empty();
        let moved = if batch[..group].iter().flatten().any(discarded) {
            0
        } else {
            self.world().move_out(from, to).pages
        };
        drop(arrivals);
        for (index, outward) in batch[..group].iter_mut().flatten().enumerate() {
            outward.broken = false;
            let pages = moved.saturating_sub(index * PAGES_PER_BLOCK).min(PAGES_PER_BLOCK);
            outward.moved = PageMask::of(0, pages);
        }
        group
    }

    fn carry_block(&self, sender: &Sender<'_, W>, outward: &mut Outward<'_, W>, report: &mut Report<W::Meta>) {
        let at_home = outward.home_pages();
        let holes = at_home.and(outward.holes);
        if sender.claims() {
            // What was populated and is gone again: the program dropped it.
            for run in holes.runs() {
                outward.fail_run(report, run, SkipReason::Changed);
            }
            outward.kept = at_home.without(holes);
            return;
        }
        outward.kept = outward.marked;
        for run in holes.runs() {
            self.zero_run(outward, run, report);
        }
        for run in at_home.without(holes).without(outward.moved).runs() {
            self.move_run(outward, run, report);
        }
        self.carry_across(outward, report);
    }

    fn zero_run(&self, outward: &mut Outward<'_, W>, mut run: Range<usize>, report: &mut Report<W::Meta>) {
        let mut cleared = None;
        while !run.is_empty() {
            let done = self.world().zero_arena(arena_pages(outward.base_page, run.clone()));
            outward.zeroed = outward.zeroed.or(PageMask::of(run.start, run.start + done.pages));
            run.start += done.pages;
            if done.stop == Some(Stop::Exists) && cleared != Some(run.start) {
                // As in `move_run`.
                cleared = Some(run.start);
                self.world()
                    .scrub_arena(arena_pages(outward.base_page, run.start..run.start + 1));
            } else if let Some(stop) = done.stop {
                outward.fail(report, run.start, skip_reason(Some(stop)));
                run.start += 1;
            }
        }
    }

    fn move_run(&self, outward: &mut Outward<'_, W>, mut run: Range<usize>, report: &mut Report<W::Meta>) {
        let mut attempts = 0;
        let (mut unshared, mut cleared) = (None, None);
        while !run.is_empty() {
            let done = self.relink_out(outward, run.clone());
            outward.moved = outward.moved.or(PageMask::of(run.start, run.start + done.pages));
            run.start += done.pages;
            attempts = if done.pages > 0 { 0 } else { attempts + 1 };
            let page = run.start;
            let next = match done.stop {
                None => Ok(0),
                Some(Stop::Again) if attempts < ATTEMPTS => {
                    self.world().pause(1_000);
                    Ok(0)
                }
                // Discarded, or never touched, since the look.
                Some(Stop::Hole) => {
                    self.zero_run(outward, page..page + 1, report);
                    Ok(1)
                }
                // Shared copy-on-write: it gets a copy of its own and can move then. Busy once more means pinned.
                Some(Stop::Busy) if unshared != Some(page) => {
                    unshared = Some(page);
                    self.unshare(outward, page)
                }
                Some(Stop::Busy) => {
                    // Its own copy did not help, so it does not count: the page stays.
                    outward.copied -= 1;
                    Err(SkipReason::Pinned)
                }
                // Left there when it could not be dropped; a slot in transit holds nothing of value.
                Some(Stop::Exists) if cleared != Some(page) => {
                    cleared = Some(page);
                    self.world().scrub_arena(arena_pages(outward.base_page, page..page + 1));
                    Ok(0)
                }
                Some(Stop::Unlike) => {
                    self.copy_run(outward, run.clone(), report);
                    Ok(run.len())
                }
                Some(stop) => Err(skip_reason(Some(stop))),
            };
            match next {
                Ok(pages) => run.start += pages,
                Err(reason) => {
                    outward.fail(report, page, reason);
                    run.start += 1;
                }
            }
        }
    }

    /// Moves pages out, as far as they are those that were chosen. What was discarded or replaced on the way, and said to be, may have been written
    /// since, and stays.
    fn relink_out(&self, outward: &Outward<'_, W>, run: Range<usize>) -> Moved {
        // While this is held no event can be read; and until its event is read the program that discards or replaces a page does not go on, so
        // what moves now is what was there before.
        let _arrivals = self.arrivals.read();
        let dropped = outward.block.lock().dropped;
        match PageMask::of(run.start, run.end).without(dropped).next_run(0) {
            Some(part) if part.start == run.start => self.world().move_out(
                outward.block.id.pages(part.clone()),
                arena_pages(outward.base_page, part),
            ),
            _ => Moved {
                pages: 0,
                stop: Some(Stop::Gone),
            },
        }
    }

    /// Gives the page a copy of its own by writing to it as the CPU would. That must not fault on us, who have it in transit and would wait for
    /// ourselves: so it must be there, not be protected by a copy that failed before, and stay so.
    fn unshare(&self, outward: &mut Outward<'_, W>, page: usize) -> Result<usize, SkipReason> {
        let source = outward.block.id.pages(page..page + 1);
        // While this is held no event can be read, and until it is read a discard has not happened.
        let _arrivals = self.arrivals.read();
        if outward.block.lock().dropped.has(page) {
            return Err(SkipReason::Changed);
        }
        let failed = |error: WorldError| SkipReason::Failed(error.errno);
        self.world().write_protect(source, false).map_err(failed)?;
        let mut is_there = true;
        self.world()
            .scan(source, &mut |run| is_there &= run.pte != Pte::None)
            .map_err(failed)?;
        if !is_there {
            return Err(SkipReason::Changed);
        }
        let done = self.world().unshare(source);
        match done.stop {
            None => {
                outward.copied += 1;
                Ok(0)
            }
            Some(stop) => Err(skip_reason(Some(stop))),
        }
    }

    /// The way for pages that cannot be relinked (read-only or locked areas): write-protect, copy, drop. A writer meanwhile faults and
    /// waits for the transit, so no write is lost (MIG-3); the source goes only when the copy is complete (MIG-9).
    fn copy_run(&self, outward: &mut Outward<'_, W>, run: Range<usize>, report: &mut Report<W::Meta>) {
        let source = outward.block.id.pages(run.clone());
        if let Err(error) = self.world().write_protect(source, true) {
            outward.fail_run(report, run, SkipReason::Failed(error.errno));
            return;
        }
        // Reading a hole would fault on ourselves: look for them now that nobody can make or fill one.
        let mut holes = PageMask::NONE;
        let looked = self.world().scan(source, &mut |ptes| {
            if ptes.pte == Pte::None {
                ptes.range.spans().for_each(|span| holes = holes.or(span.mask()));
            }
        });
        if let Err(error) = looked {
            let _ = self.world().write_protect(source, false);
            outward.fail_run(report, run, SkipReason::Failed(error.errno));
            return;
        }
        let all = PageMask::of(run.start, run.end);
        for hole in all.and(holes).runs() {
            self.zero_run(outward, hole, report);
        }
        for present in all.without(holes).runs() {
            self.copy_present(outward, present, report);
        }
    }

    fn copy_present(&self, outward: &mut Outward<'_, W>, run: Range<usize>, report: &mut Report<W::Meta>) {
        let to = arena_pages(outward.base_page, run.clone());
        // As in `unshare`: a page that was discarded since the look would be a hole, and reading it would be a fault on ourselves.
        let arrivals = self.arrivals.read();
        let discarded = PageMask::of(run.start, run.end).overlaps(&outward.block.lock().dropped);
        let done = if discarded {
            Moved {
                pages: 0,
                stop: Some(Stop::Again),
            }
        } else {
            self.world().copy_out(outward.block.id.pages(run.clone()), to)
        };
        drop(arrivals);
        let copied = run.start..run.start + done.pages;
        let mut reason = skip_reason(done.stop);
        let mut kept = copied.end..run.end;
        if !copied.is_empty() {
            match self.world().drop_source(outward.block.id.pages(copied.clone())) {
                Ok(()) => {
                    self.world().open_copies(arena_pages(outward.base_page, copied.clone()));
                    outward.moved = outward.moved.or(PageMask::of(copied.start, copied.end));
                    outward.copied += copied.len();
                }
                // The source is still whole, so the copy goes (MGR-2).
                Err(error) => {
                    self.world().scrub_arena(arena_pages(outward.base_page, copied));
                    reason = SkipReason::Failed(error.errno);
                    kept = run;
                }
            }
        }
        if !kept.is_empty() {
            let _ = self.world().write_protect(outward.block.id.pages(kept.clone()), false);
            outward.fail_run(report, kept, reason);
        }
    }
}

impl<'a, W: World> Outward<'a, W> {
    pub(super) fn new(block: &'a Block<W::Meta>, base_page: usize, broken: bool) -> Self {
        let none = PageMask::NONE;
        Self {
            block,
            base_page,
            pages: none,
            fresh: none,
            marked: none,
            sources: [const { None }; RESIDENCIES],
            broken,
            holes: none,
            huge: false,
            moved: none,
            zeroed: none,
            kept: none,
            copied: 0,
        }
    }

    /// Adds pages; where they are on another device than `to`, it is remembered.
    pub(super) fn take_along(&mut self, chosen: &Chosen, state: &BlockState<W::Meta>, to: DeviceId) {
        self.pages = self.pages.or(chosen.all());
        self.fresh = self.fresh.or(chosen.fresh);
        self.marked = self.marked.or(chosen.marked);
        for (source, residency) in self.sources.iter_mut().zip(&state.residencies) {
            if let Some(other) = residency.as_ref().filter(|other| other.device != to) {
                let pages = other.pages.and(chosen.fresh);
                match source {
                    Some(source) => source.pages = source.pages.or(pages),
                    None if pages.is_empty() => {}
                    None => *source = Some(Source::new(other, pages)),
                }
            }
        }
    }

    /// The pages that the CPU's page table has, or has a hole for.
    fn home_pages(&self) -> PageMask {
        let elsewhere = |mask: PageMask, source: &Source| mask.or(source.pages);
        let across = self.sources.iter().flatten().fold(self.marked, elsewhere);
        self.pages.without(across)
    }

    pub(super) fn range(&self) -> PageRange {
        let mut runs = self.pages.runs();
        let first = runs.next().expect("a transit is not empty");
        let end = runs.last().map_or(first.end, |run| run.end);
        self.block.id.pages(first.start..end)
    }

    pub(super) fn fail(&self, report: &mut Report<W::Meta>, page: usize, reason: SkipReason) {
        self.fail_run(report, page..page + 1, reason);
    }

    pub(super) fn fail_run(&self, report: &mut Report<W::Meta>, run: Range<usize>, reason: SkipReason) {
        report.skip(self.block.id.pages(run), reason);
    }

    fn fail_all(&self, report: &mut Report<W::Meta>, reason: SkipReason) {
        for run in self.pages.runs() {
            self.fail_run(report, run, reason);
        }
    }
}
