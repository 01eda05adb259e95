//! From one device's memory to another's, without coming home between (MIG-10).
//!
//! Private memory is arena, so a page is relinked from one chunk to the other; where it cannot be, it is copied. With coherent memory at
//! either end nothing need move: what comes from private memory goes home and is claimed there, and what was claimed leaves as any page at home.
//!
//! ```text
//! migrating thread                         CPU thread that touches the page
//! collect: transit = 1                     .
//! start: entries of both mirrors zapped    touch: fault -> pager: in transit, waits
//! relink arena -> arena                    .
//! commit: resident there, not here; wake   touch again: fault -> pager brings it home
//! ```
//!
//! Linux: migrate_vma_setup with MIGRATE_VMA_SELECT_DEVICE_PRIVATE and a destination page on another device.

use core::ops::Range;

use crate::addr::{PAGES_PER_BLOCK, PageMask, PageRange};
use crate::devmem::DeviceId;
use crate::migrate::carry::{ATTEMPTS, Outward};
use crate::migrate::home::{Why, skip_reason};
use crate::migrate::homeward::Which;
use crate::migrate::out::Sender;
use crate::migrate::{Elsewhere, Report, SkipReason};
use crate::mm::MmState;
use crate::mm::block::{Residency, arena_pages};
use crate::stats::add;
use crate::world::{Access, Backing, Metadata, Pte, Stop, World};

/// Pages of a block in another device's arena.
pub(super) struct Source {
    pub(super) device: DeviceId,
    base_page: usize,
    pub(super) pages: PageMask,
    /// The whole block is one huge page there.
    huge: bool,
    /// A stale access may be on its way to the chunk, so its pages may only be relinked.
    fenced: bool,
}

impl Source {
    pub(super) fn new<M: Metadata>(residency: &Residency<M>, pages: PageMask) -> Self {
        Self {
            device: residency.device,
            base_page: residency.base_page,
            pages,
            huge: residency.huge,
            // As in `Homeward::collect`.
            fenced: false,
        }
    }

    /// Where the pages `run` of the block are.
    pub(super) fn at(&self, run: Range<usize>) -> PageRange {
        arena_pages(self.base_page, run)
    }

    /// Whether the whole block is one huge page and goes as such.
    pub(super) fn is_whole(&self) -> bool {
        self.huge && self.pages.is_full()
    }
}

impl<W: World> MmState<W> {
    /// What claiming needs beforehand, with nothing in transit and no lock held: pages of other devices' private memory at home, and no
    /// untouched page. Says how many pages came from other devices.
    pub(super) fn prepare_claims(&self, sender: &Sender<'_, W>, range: PageRange) -> usize {
        let came = match sender.elsewhere {
            Elsewhere::Leave => 0,
            Elsewhere::Take => {
                let others = |device| device != sender.memory.id;
                self.home_those(range, others, Which::Away, Why::Request).migrated()
            }
        };
        // What cannot be looked at or populated stays a hole, and is skipped as one.
        let _ = self.world().areas(range, &mut |area| {
            let (Backing::Anonymous, Some(access), Some(part)) =
                (area.backing, area.access, area.range.intersect(range))
            else {
                return;
            };
            let _ = self.world().scan(part, &mut |run| {
                let untouched = match run.pte {
                    Pte::None => true,
                    // The page of zeroes belongs to nobody.
                    Pte::Present { zero, .. } => zero && access == Access::Write,
                    Pte::Swapped => false,
                };
                if untouched {
                    self.populate_home(run.range, access);
                }
            });
        });
        came
    }

    /// Touches the pages of `range` that are at home.
    fn populate_home(&self, range: PageRange, access: Access) {
        for span in range.spans() {
            let at_home = self
                .blocks
                .get(span.block)
                .map_or(PageMask::FULL, |block| block.lock().at_home());
            for run in span.mask().and(at_home).runs() {
                let _ = self.world().populate(span.block.pages(run), access);
            }
        }
    }

    /// Remembers that a stale access may still reach the chunks that pages leave.
    pub(super) fn note_sources_fenced(&self, outward: &mut Outward<'_, W>) {
        let mut state = outward.block.lock();
        for source in outward.sources.iter_mut().flatten() {
            add(&self.counters.fenced, 1);
            source.fenced = true;
            if let Some(residency) = state.on_mut(source.device) {
                residency.fenced = true;
            }
        }
    }

    /// Moves what comes from other devices.
    pub(super) fn carry_across(&self, outward: &mut Outward<'_, W>, report: &mut Report<W::Meta>) {
        let sources = core::mem::take(&mut outward.sources);
        for source in sources.iter().flatten() {
            outward.huge |= source.is_whole();
            if outward.huge && outward.broken {
                self.world()
                    .scrub_arena(arena_pages(outward.base_page, 0..PAGES_PER_BLOCK));
            }
            for run in source.pages.runs() {
                self.cross(outward, source, run, report);
            }
        }
        outward.sources = sources;
    }

    fn cross(
        &self,
        outward: &mut Outward<'_, W>,
        source: &Source,
        mut run: Range<usize>,
        report: &mut Report<W::Meta>,
    ) {
        let (mut attempts, mut cleared, mut opened) = (0, None, None);
        while !run.is_empty() {
            let page = run.start;
            let to = arena_pages(outward.base_page, run.clone());
            let done = self.world().move_across(source.at(run.clone()), to);
            outward.moved = outward.moved.or(PageMask::of(page, page + done.pages));
            run.start += done.pages;
            attempts = if done.pages > 0 { 0 } else { attempts + 1 };
            let page = run.start;
            match done.stop {
                None => {}
                Some(Stop::Again) if attempts < ATTEMPTS => self.world().pause(1_000),
                // As in `move_run`.
                Some(Stop::Exists) if cleared != Some(page) => {
                    cleared = Some(page);
                    self.world().scrub_arena(arena_pages(outward.base_page, page..page + 1));
                }
                // As in `relink_home`.
                Some(Stop::Busy) if opened != Some(page) => {
                    opened = Some(page);
                    self.world().open_copies(source.at(page..page + 1));
                }
                Some(Stop::Unlike) if !source.fenced => {
                    self.copy_across(outward, source, run, report);
                    return;
                }
                Some(stop) => {
                    outward.fail(report, page, skip_reason(Some(stop)));
                    run.start += 1;
                }
            }
        }
    }

    /// The way where pages cannot be relinked. Nobody reaches either place: no stale access is on its way, and the CPU waits for the transit.
    fn copy_across(
        &self,
        outward: &mut Outward<'_, W>,
        source: &Source,
        run: Range<usize>,
        report: &mut Report<W::Meta>,
    ) {
        let to = arena_pages(outward.base_page, run.clone());
        let done = self.world().copy_across(source.at(run.clone()), to);
        let copied = run.start..run.start + done.pages;
        if !copied.is_empty() {
            self.world().scrub_arena(source.at(copied.clone()));
            outward.moved = outward.moved.or(PageMask::of(copied.start, copied.end));
            outward.copied += copied.len();
        }
        if copied.end < run.end {
            let reason = done.stop.map_or(SkipReason::Changed, |stop| skip_reason(Some(stop)));
            outward.fail_run(report, copied.end..run.end, reason);
        }
    }
}
