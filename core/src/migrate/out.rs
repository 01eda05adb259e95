//! Sending pages to a device: which ones, and on whose account.
//!
//! What is chosen goes into a batch of [`Outward`]s; how those travel is in [`carry`](super::carry), and how they settle in
//! [`commit`](super::commit).

use crate::addr::{BLOCK_SIZE, PAGES_PER_BLOCK, PageMask, PageRange, PageSpan};
use crate::devmem::{Budget, DeviceMemory, MemoryKind};
use crate::migrate::carry::Outward;
use crate::migrate::{Elsewhere, Report, SkipReason, bytes};
use crate::mm::block::{BlockState, Residency};
use crate::mm::{MmState, Shared};
use crate::stats::add;
use crate::sync::{MODEL, Ordering};
use crate::world::{Access, Area, Backing, Metadata, OutOfMetadata, World, WorldError};

/// Blocks that share one invalidation and one look at the areas.
pub(super) const BATCH: usize = if MODEL { 4 } else { 64 };

/// What pages are sent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// To be in the device's memory: moved to private memory, claimed for coherent memory.
    Memory,
    /// To be out of the CPU's reach, whatever the device's memory is (MIG-11).
    Exclusive,
}

/// Why pages are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// Somebody wants them there. A device that failed takes none.
    Asked,
    /// A device missed on them, or used them often: the same, but nobody asked.
    Miss,
    /// An access in flight needs a page that was taken from under it. One that failed takes it until its mirrors are released, for that waits
    /// for the access.
    Recall,
}

/// Who sends pages, on whose account, and what for.
pub(crate) struct Sender<'a, W: World> {
    pub(crate) memory: &'a DeviceMemory<W::Meta>,
    pub(crate) budget: &'a Shared<W, Budget>,
    pub(crate) goal: Goal,
    pub(crate) occasion: Occasion,
    pub(crate) elsewhere: Elsewhere,
}

impl<'a, W: World> Sender<'a, W> {
    /// For the ordinary migration.
    pub(crate) fn new(memory: &'a DeviceMemory<W::Meta>, budget: &'a Shared<W, Budget>) -> Self {
        Self {
            memory,
            budget,
            goal: Goal::Memory,
            occasion: Occasion::Asked,
            elsewhere: Elsewhere::Take,
        }
    }

    fn takes_pages(&self) -> bool {
        // Acquire pairs with the Release in DeviceHandle::fail.
        match self.occasion {
            Occasion::Asked | Occasion::Miss => !self.memory.failed.load(Ordering::Acquire),
            Occasion::Recall => !self.memory.closed.load(Ordering::Acquire),
        }
    }

    /// Whether pages are claimed where they are, instead of moved to the arena.
    pub(super) fn claims(&self) -> bool {
        self.goal == Goal::Memory && self.memory.kind == MemoryKind::Coherent
    }
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

/// Pages of one block that are to be taken.
pub(super) struct Chosen {
    /// They are at home, or on another device, and get memory that was reserved.
    pub(super) fresh: PageMask,
    /// They are in the device's arena already, and become exclusive.
    pub(super) marked: PageMask,
    /// They are claimed by this device, and move to its arena.
    pub(super) retaken: PageMask,
}

impl Chosen {
    pub(super) fn all(&self) -> PageMask {
        self.fresh.or(self.marked).or(self.retaken)
    }
}

/// What a batch holds until it is committed.
pub(super) struct Batch<'a, W: World> {
    pub(super) outward: [Option<Outward<'a, W>>; BATCH],
    pub(super) used: usize,
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
        add(&self.counters.pages_between_devices, report.from_device);
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
        self.collapse_for(sender, range);
        if sender.claims() {
            report.from_device += self.prepare_claims(sender, range);
        }
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
        } else if sender.takes_pages() {
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
            .map_or(0, |residency| residency.held().and(span.mask()).count())
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
            (Backing::Anonymous, Some(Access::Read)) if sender.goal == Goal::Exclusive => Some(SkipReason::ReadOnly),
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
        let needed = if sender.claims() {
            PageMask::NONE
        } else {
            self.world().needed_at_home(span.block)?
        };
        let mut state = block.lock();
        let chosen = Self::choose(sender, &state, span, needed, batch.reserved, report);
        if chosen.all().is_empty() {
            return Ok(());
        }
        if !self.transfer_charge(sender, &state, chosen.fresh.count()) {
            skip_all(report, span, chosen.all(), SkipReason::NoDeviceMemory);
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
                    skip_all(report, span, chosen.all(), reason);
                    return Ok(());
                }
            },
        };
        state.transit = state.transit.or(chosen.all());
        batch.reserved -= chosen.fresh.count();
        match existing {
            // A second area in the same block: its pages travel together with the first's.
            Some(outward) => outward.take_along(&chosen, &state, sender.memory.id),
            None => {
                let mut outward = Outward::new(block, base_page, broken);
                outward.take_along(&chosen, &state, sender.memory.id);
                batch.outward[batch.used] = Some(outward);
                batch.used += 1;
            }
        }
        Ok(())
    }

    /// Which pages of the span to take, and how. The others are reported.
    fn choose(
        sender: &Sender<'_, W>,
        state: &BlockState<W::Meta>,
        span: PageSpan,
        needed: PageMask,
        room: usize,
        report: &mut Report<W::Meta>,
    ) -> Chosen {
        let here = state.on(sender.memory.id);
        let mask = |of: fn(&Residency<W::Meta>) -> PageMask| here.map_or(PageMask::NONE, of);
        let exclusively = sender.goal == Goal::Exclusive;
        skip_all(report, span, span.mask().and(state.transit), SkipReason::InTransit);
        let mut left = span.mask().without(state.transit);
        // They were none a moment ago: duplicates that are in the way end before.
        let others = |device| device != sender.memory.id;
        let duplicated = left.and(state.duplicates(|device| others(device) || exclusively));
        if sender.elsewhere == Elsewhere::Take || exclusively {
            skip_all(report, span, duplicated, SkipReason::InTransit);
            left = left.without(duplicated);
        }
        let already = left.and(if exclusively {
            mask(|r| r.exclusive)
        } else {
            mask(Residency::held)
        });
        report.already += already.count();
        left = left.without(already);
        let marked = left.and(mask(|r| r.pages));
        left = left.without(marked);
        let foreign = left.and(state.away().or(state.claimed_by_others(sender.memory.id)));
        let refused = match sender.elsewhere {
            Elsewhere::Leave => (foreign, SkipReason::OnOtherDevice),
            // They were called home, and were gone again.
            Elsewhere::Take if sender.claims() => (foreign.and(state.away()), SkipReason::InTransit),
            Elsewhere::Take => (PageMask::NONE, SkipReason::InTransit),
        };
        skip_all(report, span, refused.0, refused.1);
        left = left.without(refused.0);
        let needed = needed.and(left).and(state.at_home());
        skip_all(report, span, needed, SkipReason::ThreadBlock);
        left = left.without(needed);
        let retaken = left.and(mask(|r| r.claimed));
        left = left.without(retaken);
        let fresh = limit(left, room);
        skip_all(report, span, left.without(fresh), SkipReason::NoDeviceMemory);
        Chosen { fresh, marked, retaken }
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
            claimed: PageMask::NONE,
            exclusive: PageMask::NONE,
            duplicates: PageMask::NONE,
            huge: false,
            fenced: false,
            incoming: 1,
            charge: sender.budget.clone(),
        });
        Ok((grant.base_page, grant.broken))
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

fn skip_all<M: Metadata>(report: &mut Report<M>, span: PageSpan, pages: PageMask, reason: SkipReason) {
    for run in pages.runs() {
        report.skip(span.block.pages(run), reason);
    }
}
