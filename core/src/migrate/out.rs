//! Sending pages to a device.

use core::ops::Range;

use crate::addr::{BLOCK_SIZE, PAGES_PER_BLOCK, PageMask, PageRange, PageSpan};
use crate::devmem::{Budget, DeviceMemory};
use crate::migrate::{HUGE_GROUP, Report, SkipReason, bytes, huge_group};
use crate::mm::block::{Block, BlockState, Residency, arena_pages};
use crate::mm::{MmState, Shared};
use crate::notifier::Cause;
use crate::stats::add;
use crate::sync::{MODEL, Ordering};
use crate::world::{Area, Backing, Moved, OutOfMetadata, Pte, Stop, World, WorldError};

/// Blocks that share one invalidation and one look at the areas.
const BATCH: usize = if MODEL { 4 } else { 64 };
/// Attempts at a page that is busy for the moment.
const ATTEMPTS: usize = if MODEL { 4 } else { 64 };

/// Who sends pages, and on whose account.
pub(crate) struct Sender<'a, W: World> {
    pub(crate) memory: &'a DeviceMemory<W::Meta>,
    pub(crate) budget: &'a Shared<W, Budget>,
}

/// Why nothing could be sent at all.
#[derive(Debug, Clone, Copy)]
pub(crate) enum OutError {
    World(WorldError),
    Metadata(OutOfMetadata),
}

impl From<WorldError> for OutError {
    fn from(error: WorldError) -> Self {
        Self::World(error)
    }
}

impl From<OutOfMetadata> for OutError {
    fn from(error: OutOfMetadata) -> Self {
        Self::Metadata(error)
    }
}

/// Pages of one block on their way to a device.
struct Outward<'a, W: World> {
    block: &'a Block<W::Meta>,
    base_page: usize,
    pages: PageMask,
    /// The chunk has page tables left in it, which would break a huge page.
    broken: bool,
    /// From the look at the CPU's page table.
    holes: PageMask,
    huge: bool,
    moved: PageMask,
    zeroed: PageMask,
    copied: usize,
}

/// What a batch holds until it is committed.
struct Batch<'a, W: World> {
    outward: [Option<Outward<'a, W>>; BATCH],
    used: usize,
    /// Pages reserved and not yet put in transit.
    reserved: usize,
}

impl<W: World> MmState<W> {
    /// Sends the pages of `range` to the device, batch by batch. Runs on an own thread, with nothing in transit and no lock held.
    pub(crate) fn send(&self, sender: &Sender<'_, W>, range: PageRange) -> Result<Report<W::Meta>, OutError> {
        let mut report = Report::new();
        let most = (sender.memory.capacity_pages / 2).clamp(1, BATCH * PAGES_PER_BLOCK);
        let mut rest = Some(range);
        while let Some(next) = rest {
            let batch = next_batch(next, most);
            rest = next.skip(batch.page_count());
            self.send_batch(sender, batch, &mut report)?;
        }
        add(&self.counters.pages_to_device, report.migrated());
        add(&self.counters.pages_skipped, report.skipped);
        add(&self.counters.bytes_moved, bytes(report.moved));
        add(&self.counters.bytes_copied, bytes(report.copied));
        Ok(report)
    }

    fn send_batch(
        &self,
        sender: &Sender<'_, W>,
        range: PageRange,
        report: &mut Report<W::Meta>,
    ) -> Result<(), OutError> {
        // Pages that others have in transit settle first; those that get into transit from here on are skipped.
        self.blocks
            .known(range)
            .for_each(|(block, span)| drop(block.wait_settled(span.mask())));
        self.call_from_other_devices(sender, range);
        let away: usize = range.spans().map(|span| self.count_on(sender, span)).sum();
        let wanted = range.page_count() - away;
        let reserved = if wanted > 0 {
            self.make_room(sender, wanted, range)
        } else {
            0
        };
        let mut batch = Batch {
            outward: [const { None }; BATCH],
            used: 0,
            reserved,
        };
        // Once pages are in transit no slot is waited for.
        self.notifier.wait_for_slot();
        let pass = self.gate.pass();
        // Looked at with the pass in hand: a device that fails and an address space that exits wait for passes, and then for nothing any more.
        let collected = if self.has_exited() {
            report.skip(range, SkipReason::Exited);
            Ok(())
        } else if Self::takes_pages(sender.memory) {
            self.collect(sender, range, &mut batch, report)
        } else {
            report.skip(range, SkipReason::DeviceFailed);
            Ok(())
        };
        if batch.used > 0 {
            self.carry_out(sender, &mut batch, report);
        }
        drop(pass);
        if batch.reserved > 0 {
            sender.memory.unreserve(batch.reserved, sender.budget);
        }
        collected
    }

    fn count_on(&self, sender: &Sender<'_, W>, span: PageSpan) -> usize {
        let Some(block) = self.blocks.get(span.block) else {
            return 0;
        };
        block
            .lock()
            .on(sender.memory.id)
            .map_or(0, |residency| residency.pages.and(span.mask()).count())
    }

    /// Pages on another device come home first; a direct way is a matter of its own.
    fn call_from_other_devices(&self, sender: &Sender<'_, W>, range: PageRange) {
        let foreign = |(block, span): (&Block<W::Meta>, PageSpan)| {
            let state = block.lock();
            state
                .residencies
                .iter()
                .flatten()
                .any(|r| r.device != sender.memory.id && r.pages.overlaps(&span.mask()))
        };
        if self.blocks.known(range).any(foreign) {
            let other = |device| device != sender.memory.id;
            for device in (0..crate::mm::MAX_DEVICES as u8)
                .map(crate::devmem::DeviceId)
                .filter(|&d| other(d))
            {
                self.home_range(range, Some(device), crate::migrate::home::Why::Request);
            }
        }
    }

    /// Chooses pages, tracks their areas and puts them in transit: all under the areas lock, so that nobody stops tracking in between.
    fn collect<'a>(
        &'a self,
        sender: &Sender<'_, W>,
        range: PageRange,
        batch: &mut Batch<'a, W>,
        report: &mut Report<W::Meta>,
    ) -> Result<(), OutError> {
        let _areas = self.lock_areas();
        let mut next = range.first_page();
        let mut result = Ok(());
        let looked = self.world().areas(range.round_to_blocks(), &mut |area| {
            let Some(wanted) = area.range.intersect(range) else {
                return;
            };
            if wanted.first_page() > next {
                report.skip(gap(next, wanted.first_page()), SkipReason::Hole);
            }
            next = wanted.end_page();
            if result.is_ok() {
                result = self.collect_area(sender, area, wanted, batch, report);
            }
        });
        looked?;
        if next < range.end_page() {
            report.skip(gap(next, range.end_page()), SkipReason::Hole);
        }
        result
    }

    fn collect_area<'a>(
        &'a self,
        sender: &Sender<'_, W>,
        area: Area,
        wanted: PageRange,
        batch: &mut Batch<'a, W>,
        report: &mut Report<W::Meta>,
    ) -> Result<(), OutError> {
        let refused = match (area.backing, area.access) {
            (Backing::Mapped, _) => Some(SkipReason::NotAnonymous),
            (Backing::Excluded, _) => Some(SkipReason::Excluded),
            (Backing::Anonymous, None) => Some(SkipReason::NoAccess),
            (Backing::Anonymous, Some(_)) => None,
        };
        if let Some(reason) = refused {
            report.skip(wanted, reason);
            return Ok(());
        }
        // Whole blocks are tracked, as far as the area goes, so that neighbouring migrations do not split it further.
        let tracked = match wanted.round_to_blocks().intersect(area.range) {
            Some(blocks) if self.world().takes_neighbours() => blocks,
            _ => wanted,
        };
        self.world().track(tracked)?;
        for span in wanted.spans() {
            self.collect_span(sender, span, batch, report)?;
        }
        Ok(())
    }

    fn collect_span<'a>(
        &'a self,
        sender: &Sender<'_, W>,
        span: PageSpan,
        batch: &mut Batch<'a, W>,
        report: &mut Report<W::Meta>,
    ) -> Result<(), OutError> {
        let block = self.blocks.get_or_insert(span.block)?;
        let needed = self.world().needed_at_home(span.block)?;
        let mut state = block.lock();
        let already = state
            .on(sender.memory.id)
            .map_or(PageMask::NONE, |r| r.pages.and(span.mask()));
        report.already += already.without(state.transit).count();
        let busy = state.transit.or(state.away()).and(span.mask()).without(already);
        for run in busy.or(already.and(state.transit)).runs() {
            report.skip(span.block.pages(run), SkipReason::InTransit);
        }
        let mut pages = span.mask().and(state.at_home());
        for run in pages.and(needed).runs() {
            report.skip(span.block.pages(run), SkipReason::ThreadBlock);
        }
        pages = pages.without(needed);
        let fits = limit(pages, batch.reserved);
        for run in pages.without(fits).runs() {
            report.skip(span.block.pages(run), SkipReason::NoDeviceMemory);
        }
        pages = fits;
        if !pages.is_empty() && !self.transfer_charge(sender, &state, pages.count()) {
            pages
                .runs()
                .for_each(|run| report.skip(span.block.pages(run), SkipReason::NoDeviceMemory));
            return Ok(());
        }
        if pages.is_empty() {
            return Ok(());
        }
        let existing = batch.outward[..batch.used]
            .iter_mut()
            .flatten()
            .find(|outward| outward.block.id == span.block);
        let (base_page, broken) = match state.on_mut(sender.memory.id) {
            Some(residency) => {
                residency.incoming += u32::from(existing.is_none());
                sender.memory.touch(residency.chunk);
                (residency.base_page, false)
            }
            None => match self.open_residency(sender, span, &mut state.residencies) {
                Ok(opened) => opened,
                Err(reason) => {
                    pages.runs().for_each(|run| report.skip(span.block.pages(run), reason));
                    return Ok(());
                }
            },
        };
        state.transit = state.transit.or(pages);
        batch.reserved -= pages.count();
        match existing {
            // A second area in the same block: its pages travel together with the first's.
            Some(outward) => outward.pages = outward.pages.or(pages),
            None => {
                batch.outward[batch.used] = Some(Outward::new(block, base_page, pages, broken));
                batch.used += 1;
            }
        }
        Ok(())
    }

    /// The pages of a block are charged to one mirror: to the one that had the first of them there. False when its budget is used up.
    fn transfer_charge(&self, sender: &Sender<'_, W>, state: &BlockState<W::Meta>, count: usize) -> bool {
        match state.on(sender.memory.id) {
            Some(residency) if !core::ptr::eq(&*residency.charge, &**sender.budget) => {
                let fits = residency.charge.charge_all(count);
                if fits {
                    sender.budget.uncharge(count);
                }
                fits
            }
            _ => true,
        }
    }

    fn open_residency(
        &self,
        sender: &Sender<'_, W>,
        span: PageSpan,
        slots: &mut [Option<Residency<W::Meta>>],
    ) -> Result<(usize, bool), SkipReason> {
        let slot = slots
            .iter_mut()
            .find(|slot| slot.is_none())
            .ok_or(SkipReason::TooManyDevices)?;
        let grant = sender.memory.grant(span.block).ok_or(SkipReason::NoDeviceMemory)?;
        *slot = Some(Residency {
            device: sender.memory.id,
            chunk: grant.chunk,
            base_page: grant.base_page,
            pages: PageMask::NONE,
            huge: false,
            fenced: false,
            incoming: 1,
            charge: sender.budget.clone(),
        });
        Ok((grant.base_page, grant.broken))
    }

    /// Unmap, move, commit.
    fn carry_out(&self, sender: &Sender<'_, W>, batch: &mut Batch<'_, W>, report: &mut Report<W::Meta>) {
        let outward = &mut batch.outward[..batch.used];
        let hull = outward
            .iter()
            .flatten()
            .map(Outward::range)
            .reduce(PageRange::hull)
            .expect("the batch has pages");
        self.look(outward, hull);
        let guard = self.notifier.invalidate_unless_full(hull, Cause::Migrate, None);
        let mut next = 0;
        while next < outward.len() {
            let group = if guard.is_ok() {
                self.move_huge(&mut outward[next..])
            } else {
                0
            };
            let end = next + group.max(1);
            for outward in outward[next..end].iter_mut().flatten() {
                if guard.is_ok() {
                    self.carry_block(outward, report);
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
                    _ => outward.huge = outward.pages.is_full() && span.mask().is_full(),
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
        let moved = self.world().move_out(from, to).pages;
        for (index, outward) in batch[..group].iter_mut().flatten().enumerate() {
            outward.broken = false;
            let pages = moved.saturating_sub(index * PAGES_PER_BLOCK).min(PAGES_PER_BLOCK);
            outward.moved = PageMask::of(0, pages);
        }
        group
    }

    fn carry_block(&self, outward: &mut Outward<'_, W>, report: &mut Report<W::Meta>) {
        let holes = outward.pages.and(outward.holes);
        for run in holes.runs() {
            self.zero_run(outward, run, report);
        }
        for run in outward.pages.without(holes).without(outward.moved).runs() {
            self.move_run(outward, run, report);
        }
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
                outward.fail(report, run.start, crate::migrate::home::skip_reason(Some(stop)));
                run.start += 1;
            }
        }
    }

    fn move_run(&self, outward: &mut Outward<'_, W>, mut run: Range<usize>, report: &mut Report<W::Meta>) {
        let mut attempts = 0;
        let (mut unshared, mut cleared) = (None, None);
        while !run.is_empty() {
            let from = outward.block.id.pages(run.clone());
            let done = self.world().move_out(from, arena_pages(outward.base_page, run.clone()));
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
                Some(stop) => Err(crate::migrate::home::skip_reason(Some(stop))),
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
            Some(stop) => Err(crate::migrate::home::skip_reason(Some(stop))),
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
        let mut reason = crate::migrate::home::skip_reason(done.stop);
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

    fn settle_out(&self, sender: &Sender<'_, W>, outward: &Outward<'_, W>, report: &mut Report<W::Meta>) {
        let arrived = outward.moved.or(outward.zeroed);
        let mut stays = arrived;
        let mut state = outward.block.lock();
        loop {
            // What was discarded on the way is dropped here, where nobody can have written to it.
            let dropped = state.dropped.and(stays);
            if dropped.is_empty() {
                break;
            }
            stays = stays.without(dropped);
            drop(state);
            for run in dropped.runs() {
                self.world().scrub_arena(arena_pages(outward.base_page, run));
            }
            state = outward.block.lock();
        }
        state.dropped = state.dropped.without(outward.pages);
        let residency = state
            .on_mut(sender.memory.id)
            .expect("an incoming transit keeps the residency");
        residency.pages = residency.pages.or(stays);
        residency.incoming -= 1;
        residency.huge = outward.huge && residency.pages.is_full() && outward.moved.is_full();
        let empty = residency.pages.is_empty();
        let charge = residency.charge.clone();
        let unused = outward.pages.without(stays).count();
        if unused > 0 {
            sender.memory.unreserve(unused, &charge);
        }
        let waiting = outward.block.settle(&mut state, outward.pages);
        drop(state);
        if empty {
            self.free_if_empty(outward.block, sender.memory, crate::devmem::Contents::Small);
        }
        self.wake_settled(outward.block, waiting);
        report.zeroed += outward.zeroed.count();
        report.copied += outward.copied;
        report.moved += outward.moved.count() - outward.copied.min(outward.moved.count());
    }

    /// Whether the device still takes pages.
    pub(crate) fn takes_pages(memory: &DeviceMemory<W::Meta>) -> bool {
        // Acquire pairs with the Release in DeviceHandle::fail.
        !memory.failed.load(Ordering::Acquire)
    }
}

impl<'a, W: World> Outward<'a, W> {
    fn new(block: &'a Block<W::Meta>, base_page: usize, pages: PageMask, broken: bool) -> Self {
        let none = PageMask::NONE;
        Self {
            block,
            base_page,
            pages,
            broken,
            holes: none,
            huge: false,
            moved: none,
            zeroed: none,
            copied: 0,
        }
    }

    fn range(&self) -> PageRange {
        let mut runs = self.pages.runs();
        let first = runs.next().expect("a transit is not empty");
        let end = runs.last().map_or(first.end, |run| run.end);
        self.block.id.pages(first.start..end)
    }

    fn fail(&self, report: &mut Report<W::Meta>, page: usize, reason: SkipReason) {
        self.fail_run(report, page..page + 1, reason);
    }

    fn fail_run(&self, report: &mut Report<W::Meta>, run: Range<usize>, reason: SkipReason) {
        report.skip(self.block.id.pages(run), reason);
    }

    fn fail_all(&self, report: &mut Report<W::Meta>, reason: SkipReason) {
        for run in self.pages.runs() {
            self.fail_run(report, run, reason);
        }
    }
}

/// The next part of `range` that makes a batch: ends at a block border where it can.
fn next_batch(range: PageRange, most_pages: usize) -> PageRange {
    if range.page_count() <= most_pages && range.spans().count() <= BATCH {
        return range;
    }
    let block_pages = BLOCK_SIZE / crate::addr::PAGE_SIZE;
    let border = (range.first_page() / block_pages + BATCH) * block_pages;
    let end = (range.first_page() + most_pages).min(border).min(range.end_page());
    let aligned = end / block_pages * block_pages;
    let end = if aligned > range.first_page() { aligned } else { end };
    range.take(end - range.first_page())
}

fn gap(first: usize, end: usize) -> PageRange {
    PageRange::from_pages(first, end - first).expect("a gap between areas is not empty")
}

/// The first `count` pages of the set.
fn limit(pages: PageMask, count: usize) -> PageMask {
    if pages.count() <= count {
        return pages;
    }
    let mut left = count;
    let mut kept = PageMask::NONE;
    for run in pages.runs() {
        let take = run.len().min(left);
        kept = kept.or(PageMask::of(run.start, run.start + take));
        left -= take;
    }
    kept
}
