//! Range requests: bring in what the CPU maps and enter it in the device's table. To look without touching anything is
//! [`Mirror::snapshot`].
//!
//! # Invariants
//! - RNG-1 (FLT-2): entries are set under the update lock after the read was found fresh there; see [`crate::mirror`].
//! - RNG-2 (FLT-4): an error names the first address that failed; pages before it keep the entries they got.
//! - RNG-3: nobody waits for pages in transit inside a read, because who has them in transit may be invalidating.
//!
//! Linux: hmm_range_fault, mm/hmm.c.

use std::time::Duration;

use crate::addr::{BlockId, PAGE_SIZE, PAGES_PER_BLOCK, PageMask, PageRange, PageSpan, VirtAddr};
use crate::device::{Device, DeviceAddr};
use crate::migrate::home::Why;
use crate::migrate::homeward::Which;
use crate::mirror::table::{Entry, Flags};
use crate::mirror::{Mirror, MirrorState};
use crate::mm::EntryError;
use crate::mm::block::arena_pages;
use crate::notifier::{Read, Reader};
use crate::stats::add;
use crate::world::{Access, Area, PopulateError, Pte, World, WorldError};

mod error;

pub use self::error::FaultError;
pub use crate::mirror::miss::Placement;
pub use crate::mirror::snapshot::{PageState, Snapshot};

/// What a fault brought in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faulted {
    /// Pages the device can reach now.
    pub pages: usize,
    /// Of those, pages in device memory.
    pub on_device: usize,
    /// Reads that had to start again.
    pub retries: u32,
}

/// How much around the missed page is entered as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Around {
    /// Every page of the range is wanted: missing ones are brought in.
    All,
    /// Only the page at this number is. Its neighbours on the device are taken along, and of those at home the ones of this set that are present already:
    /// the others are to migrate when they are missed.
    Page(usize, PageMask),
    /// No page is: those that are present are taken along.
    Nothing,
}

impl Around {
    /// The pages of `range` that must be brought in.
    fn wanted(self, range: PageRange) -> Option<PageRange> {
        match self {
            Self::All => Some(range),
            Self::Page(page, _) => PageRange::from_pages(page, 1),
            Self::Nothing => None,
        }
    }
}

/// The pages of `range` in its block.
fn mask_of(range: PageRange) -> PageMask {
    range.spans().next().map_or(PageMask::NONE, PageSpan::mask)
}

impl<W: World, D: Device> Mirror<W, D> {
    /// Brings the pages of `range` in as if the device had touched each, and enters them in its table where they are (FLT-1).
    ///
    /// Blocks. On an error the pages before the failing address keep the entries they got (FLT-4).
    #[doc(alias = "hmm_range_fault")]
    pub fn fault(&self, range: PageRange, access: Access) -> Result<Faulted, FaultError> {
        self.fault_around(range, access, Around::All)
    }

    /// Enters those pages of `range` that are there already, at home or on this device, for reading at least; nothing is brought in, and what may
    /// not be accessed is passed over. Says how many.
    ///
    /// Blocks, but not for a page to come. On an error the pages before keep the entries they got.
    #[doc(alias = "HMM_PFN_REQ_FAULT")]
    pub fn map_resident(&self, range: PageRange) -> Result<Faulted, FaultError> {
        self.fault_around(range, Access::Read, Around::Nothing)
    }

    fn fault_around(&self, range: PageRange, access: Access, around: Around) -> Result<Faulted, FaultError> {
        self.state.mm.check_entry()?;
        let state = self.state.clone();
        self.state.mm.off_stack(move || {
            state.mm.catch_up();
            state.fault_blocks(range, access, around)
        })
    }

    /// See [`MirrorState::synchronize`].
    pub fn synchronize(&self) -> Result<(), EntryError> {
        self.state.synchronize()
    }
}

impl<W: World, D: Device> MirrorState<W, D> {
    /// Waits until the device has been told of every change of the address space that returned before this call. For a driver, before it
    /// hands the device work.
    ///
    /// A change that comes through the API, or is bracketed, is told before it happens, and needs none of this. Another one (a plain
    /// `munmap` at the cooperative level of WLD-2) returns a moment before it is told: a device that begins in that moment on new memory
    /// in the same place would use the old.
    ///
    /// Blocks for as long as such a change is being told; allocates nothing. The caller may hold no lock that a callback needs.
    #[doc(alias = "mmu_notifier_synchronize")]
    pub fn synchronize(&self) -> Result<(), EntryError> {
        self.mm.check_entry()?;
        self.mm.catch_up();
        Ok(())
    }

    /// Enters the pages of `range` that the device has exclusively. An entry that is not made here comes with the device's first access.
    pub(super) fn enter_exclusive(&self, range: PageRange) {
        self.each_exclusive(range, &mut |run| {
            let _ = self.enter(run, Access::Write, Around::All);
        });
    }

    /// The runs of pages in `range` that the device has exclusively. Waits for pages in transit: one that the CPU was given back may not have
    /// settled yet when the CPU goes on.
    pub(super) fn each_exclusive(&self, range: PageRange, each: &mut dyn FnMut(PageRange)) {
        for (block, span) in self.mm.blocks.known(range) {
            let state = block.wait_settled(span.mask());
            let exclusive = state
                .on(self.memory.id)
                .map_or(PageMask::NONE, |residency| residency.exclusive);
            drop(state);
            for run in exclusive.and(span.mask()).runs() {
                each(block.id.pages(run));
            }
        }
    }

    pub(super) fn fault_blocks(&self, range: PageRange, access: Access, around: Around) -> Result<Faulted, FaultError> {
        let mut total = Faulted::default();
        for span in range.spans() {
            let faulted = self.enter(span.range(), access, around)?;
            total.pages += faulted.pages;
            total.on_device += faulted.on_device;
            total.retries += faulted.retries;
        }
        Ok(total)
    }

    /// Enters pages of one block.
    pub(super) fn enter(&self, range: PageRange, access: Access, around: Around) -> Result<Faulted, FaultError> {
        let (wanted, must) = match around {
            Around::Nothing => (range, Around::Nothing),
            _ => (around.wanted(range).unwrap_or(range), Around::All),
        };
        if let Around::Page(..) = around {
            // What lies around is taken along if nothing is in its way; an invalidation of a neighbour is none of this miss's business (INV-5).
            let mut wide = self.mm.notifier.read(range).time_limit(Duration::ZERO);
            if let Ok(Some(faulted)) = self.attempt(&mut wide, range, access, around) {
                return Ok(faulted);
            }
        }
        let mut reader = self.mm.notifier.read(wanted);
        loop {
            if let Some(faulted) = self.attempt(&mut reader, wanted, access, must)? {
                return Ok(Faulted {
                    retries: reader.attempts() - 1,
                    ..faulted
                });
            }
            add(&self.mm.counters.retries, 1);
        }
    }

    /// One read of `range`. `None` where it went stale, or a page was on its way somewhere.
    fn attempt(
        &self,
        reader: &mut Reader<'_, W::Meta>,
        range: PageRange,
        access: Access,
        around: Around,
    ) -> Result<Option<Faulted>, FaultError> {
        if self.is_released() {
            return Err(FaultError::Released);
        }
        if let Some(wanted) = around.wanted(range) {
            self.bring_near(wanted, access);
        }
        let read = reader.begin()?;
        self.enter_within(&read, range, access, around)
    }

    /// What of that is done inside the read: looks at `range`, in one block, and enters what it saw.
    pub(super) fn enter_within(
        &self,
        read: &Read<'_, W::Meta>,
        range: PageRange,
        access: Access,
        around: Around,
    ) -> Result<Option<Faulted>, FaultError> {
        let span = range.spans().next().expect("a range is not empty");
        match self.look_once(span, around, access) {
            Err(Missed::Error(error)) if !read.is_stale() => Err(error),
            Err(Missed::Moving | Missed::Error(_)) => Ok(None),
            Ok(seen) => {
                let update = self.lock_update();
                if read.is_stale() || self.is_released() {
                    return Ok(None);
                }
                let entered = self.set_entries(&seen, access);
                drop(update);
                finish(seen, entered?).map(Some)
            }
        }
    }

    /// Waits for pages in transit, and calls pages home from other devices: what must not be done inside a read (RNG-3). Before a write duplicates end,
    /// the device's own, too (DUP-1); a reader maps what is duplicated where it is.
    fn bring_near(&self, wanted: PageRange, access: Access) {
        let which = match access {
            Access::Read => Which::Alone,
            Access::Write => {
                self.mm.collapse_those(wanted, |device| device == self.memory.id);
                Which::Away
            }
        };
        for (block, span) in self.mm.blocks.known(wanted) {
            let state = block.wait_settled(span.mask());
            let elsewhere = state
                .residencies
                .iter()
                .flatten()
                .any(|residency| residency.device != self.memory.id && which.concerns(residency, span.mask()));
            drop(state);
            if elsewhere {
                let others = |device| device != self.memory.id;
                self.mm.home_those(span.range(), others, which, Why::Request);
            }
        }
    }

    /// Looks at areas, residency and the CPU's page table of one block, and brings in what is wanted and missing.
    fn look_once(&self, span: PageSpan, around: Around, access: Access) -> Result<Seen, Missed> {
        let wanted = around.wanted(span.range()).map_or(PageMask::NONE, mask_of);
        let mut seen = Seen::new(span.block);
        let failure = self.check_areas(span, wanted, access, &mut seen)?;
        let wanted = wanted.and(seen.allowed);
        if let Some(error) = failure
            && wanted.is_empty()
        {
            return Err(Missed::Error(error));
        }
        seen.failure = failure;
        let mut at_home = self.check_residency(wanted, access, &mut seen)?;
        if let Around::Page(_, stays) = around {
            at_home = at_home.and(wanted.or(seen.claimed).or(stays));
        }
        let missing = self.check_ptes(span, access, at_home.and(seen.allowed), &mut seen)?;
        self.populate(missing.and(wanted), access, &mut seen)?;
        Ok(seen)
    }

    /// Which pages may be accessed so, and the first of `wanted` that may not.
    fn check_areas(
        &self,
        span: PageSpan,
        wanted: PageMask,
        access: Access,
        seen: &mut Seen,
    ) -> Result<Option<FaultError>, Missed> {
        let mut mapped = PageMask::NONE;
        let mut forbidden = PageMask::NONE;
        self.mm.world().areas(span.range(), &mut |area: Area| {
            let pages = mask_of(area.range);
            mapped = mapped.or(pages);
            match area.access {
                None => forbidden = forbidden.or(pages),
                Some(Access::Read) if access == Access::Write => {}
                Some(_) => seen.allowed = seen.allowed.or(pages),
            }
            if area.access == Some(Access::Write) {
                seen.writable = seen.writable.or(pages);
            }
        })?;
        let Some(first) = wanted.without(seen.allowed).next_run(0) else {
            return Ok(None);
        };
        let addr = VirtAddr::new(span.block.pages(first.clone()).start()).map_err(|_| Missed::Moving)?;
        // Only the pages before it count as wanted from here on.
        seen.allowed = seen
            .allowed
            .without(wanted.and(PageMask::of(first.start, PAGES_PER_BLOCK)));
        Ok(Some(if !mapped.has(first.start) {
            FaultError::Hole { addr }
        } else if forbidden.has(first.start) {
            FaultError::NoAccess { addr }
        } else {
            FaultError::ReadOnly { addr }
        }))
    }

    /// Pages on this device go into `seen`; the answer is which pages are at home.
    fn check_residency(&self, wanted: PageMask, access: Access, seen: &mut Seen) -> Result<PageMask, Missed> {
        let Some(block) = self.mm.blocks.get(seen.block) else {
            return Ok(PageMask::FULL);
        };
        let state = block.lock();
        let mut at_home = state.at_home();
        let mut here = state
            .on(self.memory.id)
            .map_or(PageMask::NONE, |residency| residency.pages.without(state.transit));
        // Nobody writes duplicates (DUP-1). Those of other devices are read at home.
        let duplicates = state.duplicates(|_| true);
        seen.writable = seen.writable.without(duplicates);
        match access {
            Access::Read => at_home = at_home.or(duplicates.without(here).without(state.transit)),
            Access::Write => here = here.without(duplicates),
        }
        if wanted.overlaps(&PageMask::FULL.without(at_home.or(here))) {
            return Err(Missed::Moving);
        }
        if let Some(residency) = state.on(self.memory.id) {
            seen.device = here.and(seen.allowed);
            seen.exclusive = residency.exclusive;
            seen.claimed = residency.claimed;
            seen.base_page = residency.base_page;
            self.memory.touch(residency.chunk);
        }
        Ok(at_home)
    }

    /// Pages present at home go into `seen`; the answer is which are missing.
    fn check_ptes(
        &self,
        span: PageSpan,
        access: Access,
        at_home: PageMask,
        seen: &mut Seen,
    ) -> Result<PageMask, Missed> {
        let mut missing = PageMask::NONE;
        if at_home.is_empty() {
            return Ok(missing);
        }
        self.mm.world().scan(span.range(), &mut |run| {
            let pages = mask_of(run.range).and(at_home);
            match run.pte {
                Pte::Present { zero: true, .. } if access == Access::Write => missing = missing.or(pages),
                Pte::Present { zero, .. } => {
                    seen.system = seen.system.or(pages);
                    if zero {
                        seen.writable = seen.writable.without(pages);
                    }
                }
                Pte::None | Pte::Swapped => missing = missing.or(pages),
            }
        })?;
        Ok(missing)
    }

    fn populate(&self, missing: PageMask, access: Access, seen: &mut Seen) -> Result<(), Missed> {
        for run in missing.runs() {
            match self.mm.world().populate(seen.block.pages(run.clone()), access) {
                Ok(()) => {
                    let pages = PageMask::of(run.start, run.end);
                    seen.system = seen.system.or(pages);
                    // What was populated for reading may be the page of zeroes.
                    if access == Access::Read {
                        seen.writable = seen.writable.without(pages);
                    }
                }
                Err(PopulateError::Refused(addr)) => return Err(Missed::Error(FaultError::NoAccess { addr })),
                Err(PopulateError::World(error)) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Enters what was seen; the caller holds the update lock and found the read fresh.
    fn set_entries(&self, seen: &Seen, access: Access) -> Result<Faulted, FaultError> {
        let valid = self.table.valid_mask(seen.block, access);
        let here = seen.device.without(valid);
        for (pages, flags) in [
            (here.without(seen.exclusive), Flags::DEVICE),
            (here.and(seen.exclusive), Flags::DEVICE | Flags::EXCLUSIVE),
        ] {
            for run in pages.runs() {
                let at = arena_pages(seen.base_page, run.clone()).start();
                self.set_run(seen, run, DeviceAddr(at as u64), flags)?;
            }
        }
        // Coherent memory is reached at the page's own address: it is the device's, so it is not mapped for DMA.
        let claimed = seen.system.and(seen.claimed);
        for run in claimed.without(valid).runs() {
            let range = seen.block.pages(run.clone());
            self.zap(range);
            self.set_run(seen, run, DeviceAddr(range.start() as u64), Flags::DEVICE)?;
        }
        for run in seen.system.without(claimed).without(valid).runs() {
            let range = seen.block.pages(run.clone());
            self.zap(range);
            let at = self.device.dma_map(range)?;
            if let Err(error) = self.set_run(seen, run, at, Flags::NONE) {
                self.device.dma_unmap(range, at);
                return Err(error);
            }
        }
        Ok(Faulted {
            pages: seen.device.count() + seen.system.count(),
            on_device: seen.device.count() + claimed.count(),
            retries: 0,
        })
    }

    /// Enters a run of pages whose device addresses follow each other; writable where the program may write.
    fn set_run(
        &self,
        seen: &Seen,
        run: core::ops::Range<usize>,
        at: DeviceAddr,
        flags: Flags,
    ) -> Result<(), FaultError> {
        let pages = PageMask::of(run.start, run.end);
        for (part, flags) in [
            (seen.writable, flags | Flags::WRITE),
            (PageMask::FULL.without(seen.writable), flags),
        ] {
            for part in pages.and(part).runs() {
                let offset = ((part.start - run.start) * PAGE_SIZE) as u64;
                self.table
                    .set(seen.block.pages(part), Entry::new(DeviceAddr(at.0 + offset), flags))?;
            }
        }
        Ok(())
    }
}

/// What one look at a block found.
struct Seen {
    block: BlockId,
    /// Pages that may be accessed as asked.
    allowed: PageMask,
    /// Pages whose entries may be writable.
    writable: PageMask,
    /// Present in system memory.
    system: PageMask,
    /// Resident on this device.
    device: PageMask,
    /// Of those, taken exclusively.
    exclusive: PageMask,
    /// At home, and claimed by this device.
    claimed: PageMask,
    base_page: usize,
    /// To be reported once the pages before it have their entries (RNG-2).
    failure: Option<FaultError>,
}

impl Seen {
    fn new(block: BlockId) -> Self {
        let none = PageMask::NONE;
        Self {
            block,
            allowed: none,
            writable: none,
            system: none,
            device: none,
            exclusive: none,
            claimed: none,
            base_page: 0,
            failure: None,
        }
    }
}

enum Missed {
    /// A wanted page is on its way somewhere.
    Moving,
    Error(FaultError),
}

impl From<WorldError> for Missed {
    fn from(error: WorldError) -> Self {
        Self::Error(FaultError::World(error))
    }
}

fn finish(seen: Seen, entered: Faulted) -> Result<Faulted, FaultError> {
    seen.failure.map_or(Ok(entered), Err)
}
