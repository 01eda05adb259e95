//! Range requests: bring in what the CPU maps and enter it in the device's table, or look without touching anything.
//!
//! # Invariants
//! - RNG-1 (FLT-2): entries are set under the update lock after the read was found fresh there; see [`crate::mirror`].
//! - RNG-2 (FLT-4): an error names the first address that failed; pages before it keep the entries they got.
//! - RNG-3: nobody waits for pages in transit inside a read, because who has them in transit may be invalidating.
//!
//! Linux: hmm_range_fault, mm/hmm.c.

use std::time::Duration;

use allocator_api2::vec::Vec;

use crate::addr::{BlockId, PAGE_SIZE, PAGES_PER_BLOCK, PageMask, PageRange, PageSpan, VirtAddr};
use crate::device::{Device, DeviceAddr, DmaError};
use crate::devmem::DeviceId;
use crate::migrate::home::Why;
use crate::mirror::table::{Entry, Flags};
use crate::mirror::{Mirror, MirrorState};
use crate::mm::EntryError;
use crate::mm::block::arena_pages;
use crate::notifier::{ReadError, Reader};
use crate::stats::add;
use crate::world::{Access, Area, Metadata, OutOfMetadata, PopulateError, Pte, World, WorldError};

/// Where pages are to be when a device misses on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// On the device, from the first touch.
    #[default]
    OnTouch,
    /// Where they are: system pages are mapped in place.
    InPlace,
    /// In place until the device accessed the block so many times, then on the device.
    AfterAccesses(u32),
}

/// Why a range could not be brought in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultError {
    /// No area there.
    #[error("nothing is mapped at {addr}")]
    Hole {
        /// The first such address.
        addr: VirtAddr,
    },
    /// PROT_NONE, or isomem's own memory.
    #[error("no access is allowed at {addr}")]
    NoAccess {
        /// The first such address.
        addr: VirtAddr,
    },
    /// A write to a read-only area.
    #[error("{addr} is read-only")]
    ReadOnly {
        /// The first such address.
        addr: VirtAddr,
    },
    /// Invalidations kept colliding (FLT-3).
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The mirror was released: its address space, its device or itself is gone.
    #[error("the mirror was released")]
    Released,
    /// See [`EntryError`].
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// A system call failed.
    #[error(transparent)]
    World(#[from] WorldError),
    /// The device cannot reach the page.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// isomem's own memory is used up.
    #[error(transparent)]
    Metadata(#[from] OutOfMetadata),
}

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
enum Around {
    /// Every page of the range is wanted: missing ones are brought in.
    All,
    /// Only the page at this number is; its neighbours are taken along where they are present already.
    Page(usize),
    /// The same, but of its neighbours only those on the device: the others are to migrate when they are missed.
    PageOnDevice(usize),
}

impl Around {
    /// The pages of `range` that must be brought in.
    fn wanted(self, range: PageRange) -> PageRange {
        match self {
            Self::All => range,
            Self::Page(page) | Self::PageOnDevice(page) => PageRange::from_pages(page, 1).expect("one page"),
        }
    }
}

impl<W: World, D: Device> Mirror<W, D> {
    /// Brings the pages of `range` in as if the device had touched each, and enters them in its table where they are (FLT-1).
    ///
    /// Blocks. On an error the pages before the failing address keep the entries they got (FLT-4).
    #[doc(alias = "hmm_range_fault")]
    pub fn fault(&self, range: PageRange, access: Access) -> Result<Faulted, FaultError> {
        self.state.mm.check_entry()?;
        let state = self.state.clone();
        self.state.mm.off_stack(move || {
            state.mm.catch_up();
            state.fault_blocks(range, access)
        })
    }

    /// Tells what is mapped in `range`, and never faults (FLT-1).
    ///
    /// Pages may change place meanwhile; each run is right for some moment during the call.
    #[doc(alias = "hmm_range_snapshot")]
    pub fn snapshot(&self, range: PageRange) -> Result<Snapshot<W::Meta>, FaultError> {
        self.state.mm.check_entry()?;
        let state = self.state.clone();
        self.state.mm.off_stack(move || {
            state.mm.catch_up();
            state.look(range)
        })
    }

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
        self.state.mm.check_entry()?;
        self.state.mm.catch_up();
        Ok(())
    }
}

impl<W: World, D: Device> MirrorState<W, D> {
    /// Services a device miss at `addr`: migrates or maps by `placement`, and enters the page with what is around it. After it returned
    /// the access is to be tried again; it may miss again when the page was taken meanwhile.
    ///
    /// Runs on the calling thread, which must be one of isomem's own and hold no pin.
    pub fn service_miss(&self, addr: VirtAddr, access: Access, placement: Placement) -> Result<Faulted, FaultError> {
        self.mm.check_entry()?;
        add(&self.mm.counters.device_faults, 1);
        let page = addr.get() / PAGE_SIZE;
        let id = BlockId::of(addr);
        let around = if self.wants_migration(placement) {
            self.send_around(page, id);
            Around::PageOnDevice(page)
        } else {
            Around::Page(page)
        };
        self.enter(id.range(), access, around)
    }

    fn wants_migration(&self, placement: Placement) -> bool {
        !self.has_failed()
            && match placement {
                Placement::OnTouch => true,
                Placement::InPlace => false,
                // The accesses themselves are counted where they happen, see `count_access`.
                Placement::AfterAccesses(accesses) => accesses == 0,
            }
    }

    /// Sends the page and, while misses are sequential, a growing part of its block after it. What cannot go is mapped in place instead,
    /// so failures here are not errors.
    fn send_around(&self, page: usize, id: BlockId) {
        let index = page - id.first_page();
        if self.mm.blocks.get(id).is_some_and(|block| {
            let state = block.lock();
            state
                .on(self.memory.id)
                .is_some_and(|residency| residency.pages.has(index))
        }) {
            return;
        }
        let pages = self.around(index, page);
        let _ = self.mm.send(&self.sender(), id.pages(pages.clone()));
        self.streams.note(id.first_page() + pages.start, pages.len());
    }

    /// Which pages of the block to send when page `index` of it, number `page`, was missed.
    fn around(&self, index: usize, page: usize) -> core::ops::Range<usize> {
        /// Pages that are sent at the least: single pages cost a system call each.
        const LEAST: usize = 16;
        if !self.mm.world().takes_neighbours() {
            return index..index + 1;
        }
        let most = self.memory.capacity_pages.div_ceil(4);
        let window = self.streams.window(page).max(LEAST).min(most);
        let first = if window >= LEAST { index / LEAST * LEAST } else { index };
        first..(first + window).max(index + 1).min(PAGES_PER_BLOCK)
    }

    /// Counts an access to pages mapped in place; true when the block is to migrate now.
    pub fn count_access(&self, addr: VirtAddr, placement: Placement) -> bool {
        match placement {
            Placement::AfterAccesses(accesses) => self.table.count_access(BlockId::of(addr)) == accesses,
            _ => false,
        }
    }

    /// Migrates the block of `addr`, which the device accessed often enough in place.
    pub fn migrate_hot(&self, addr: VirtAddr) {
        if !self.is_released() && !self.has_failed() {
            let neighbours = self.mm.world().takes_neighbours();
            let range = if neighbours {
                BlockId::of(addr).range()
            } else {
                addr.page()
            };
            let _ = self.mm.send(&self.sender(), range);
        }
    }

    fn fault_blocks(&self, range: PageRange, access: Access) -> Result<Faulted, FaultError> {
        let mut total = Faulted::default();
        for span in range.spans() {
            let faulted = self.enter(span.range(), access, Around::All)?;
            total.pages += faulted.pages;
            total.on_device += faulted.on_device;
            total.retries += faulted.retries;
        }
        Ok(total)
    }

    /// Enters pages of one block.
    fn enter(&self, range: PageRange, access: Access, around: Around) -> Result<Faulted, FaultError> {
        let wanted = around.wanted(range);
        if around != Around::All {
            // What lies around is taken along if nothing is in its way; an invalidation of a neighbour is none of this miss's business (INV-5).
            let mut wide = self.mm.notifier.read(range).time_limit(Duration::ZERO);
            if let Ok(Some(faulted)) = self.attempt(&mut wide, range, access, around) {
                return Ok(faulted);
            }
        }
        let mut reader = self.mm.notifier.read(wanted);
        loop {
            if let Some(faulted) = self.attempt(&mut reader, wanted, access, Around::All)? {
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
        self.bring_near(around.wanted(range));
        let read = reader.begin()?;
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

    /// Waits for pages in transit, and calls pages home from other devices: what must not be done inside a read (RNG-3).
    fn bring_near(&self, wanted: PageRange) {
        for (block, span) in self.mm.blocks.known(wanted) {
            let state = block.wait_settled(span.mask());
            let elsewhere = state
                .residencies
                .iter()
                .flatten()
                .any(|residency| residency.device != self.memory.id && residency.pages.overlaps(&span.mask()));
            drop(state);
            if elsewhere {
                self.mm.home_range(span.range(), None, Why::Request);
            }
        }
    }

    /// Looks at areas, residency and the CPU's page table of one block, and brings in what is wanted and missing.
    fn look_once(&self, span: PageSpan, around: Around, access: Access) -> Result<Seen, Missed> {
        let wanted = around.wanted(span.range());
        let mut seen = Seen::new(span.block);
        let failure = self.check_areas(span, wanted, access, &mut seen)?;
        let wanted = wanted
            .spans()
            .next()
            .expect("a range is not empty")
            .mask()
            .and(seen.allowed);
        if let Some(error) = failure
            && wanted.is_empty()
        {
            return Err(Missed::Error(error));
        }
        seen.failure = failure;
        let mut at_home = self.check_residency(wanted, &mut seen)?;
        if let Around::PageOnDevice(_) = around {
            at_home = at_home.and(wanted);
        }
        let missing = self.check_ptes(span, access, at_home.and(seen.allowed), &mut seen)?;
        self.populate(missing.and(wanted), access, &mut seen)?;
        Ok(seen)
    }

    /// Which pages may be accessed so, and the first of `wanted` that may not.
    fn check_areas(
        &self,
        span: PageSpan,
        wanted: PageRange,
        access: Access,
        seen: &mut Seen,
    ) -> Result<Option<FaultError>, Missed> {
        let mut mapped = PageMask::NONE;
        let mut forbidden = PageMask::NONE;
        self.mm.world().areas(span.range(), &mut |area: Area| {
            let pages = area.range.spans().next().map_or(PageMask::NONE, PageSpan::mask);
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
        let wanted_span = wanted.spans().next().expect("a range is not empty");
        let Some(first) = wanted_span.mask().without(seen.allowed).next_run(0) else {
            return Ok(None);
        };
        let addr = VirtAddr::new(span.block.pages(first.clone()).start()).map_err(|_| Missed::Moving)?;
        // Only the pages before it count as wanted from here on.
        seen.allowed = seen.allowed.without(PageMask::of(first.start, wanted_span.end));
        Ok(Some(if !mapped.has(first.start) {
            FaultError::Hole { addr }
        } else if forbidden.has(first.start) {
            FaultError::NoAccess { addr }
        } else {
            FaultError::ReadOnly { addr }
        }))
    }

    /// Pages on this device go into `seen`; the answer is which pages are at home.
    fn check_residency(&self, wanted: PageMask, seen: &mut Seen) -> Result<PageMask, Missed> {
        let Some(block) = self.mm.blocks.get(seen.block) else {
            return Ok(PageMask::FULL);
        };
        let state = block.lock();
        let at_home = state.at_home();
        let here = state
            .on(self.memory.id)
            .map_or(PageMask::NONE, |residency| residency.pages.without(state.transit));
        if wanted.overlaps(&PageMask::FULL.without(at_home.or(here))) {
            return Err(Missed::Moving);
        }
        if let Some(residency) = state.on(self.memory.id) {
            seen.device = here.and(seen.allowed);
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
            let pages = run
                .range
                .spans()
                .next()
                .map_or(PageMask::NONE, PageSpan::mask)
                .and(at_home);
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
                Ok(()) => seen.system = seen.system.or(PageMask::of(run.start, run.end)),
                Err(PopulateError::Refused(addr)) => return Err(Missed::Error(FaultError::NoAccess { addr })),
                Err(PopulateError::World(error)) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Enters what was seen; the caller holds the update lock and found the read fresh.
    fn set_entries(&self, seen: &Seen, access: Access) -> Result<Faulted, FaultError> {
        let valid = self.table.valid_mask(seen.block, access);
        for run in seen.device.without(valid).runs() {
            let at = arena_pages(seen.base_page, run.clone()).start();
            self.set_run(seen, run, DeviceAddr(at as u64), Flags::DEVICE)?;
        }
        for run in seen.system.without(valid).runs() {
            let range = seen.block.pages(run.clone());
            self.zap(range);
            let at = self.device.dma_map(range)?;
            if let Err(error) = self.set_run(seen, run, at, Flags::NONE) {
                self.device.dma_unmap(range, at);
                return Err(error);
            }
        }
        let on_device = seen.device.count();
        Ok(Faulted {
            pages: on_device + seen.system.count(),
            on_device,
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

    fn look(&self, range: PageRange) -> Result<Snapshot<W::Meta>, FaultError> {
        let mut snapshot = Snapshot {
            range,
            runs: Vec::new_in(W::Meta::default()),
        };
        let mut next = range.first_page();
        let mut result = Ok(());
        self.mm.world().areas(range, &mut |area| {
            if result.is_ok() {
                result = self.look_area(area, next, &mut snapshot);
                next = area.range.end_page();
            }
        })?;
        result?;
        snapshot.gap(next, range.end_page())?;
        Ok(snapshot)
    }

    fn look_area(&self, area: Area, next: usize, snapshot: &mut Snapshot<W::Meta>) -> Result<(), FaultError> {
        snapshot.gap(next, area.range.first_page())?;
        let Some(access) = area.access else {
            return Ok(snapshot.push(area.range, PageState::NoAccess)?);
        };
        let mut result = Ok(());
        self.mm.world().scan(area.range, &mut |run| {
            if result.is_err() {
                return;
            }
            result = match run.pte {
                Pte::None => self.look_away(run.range, access, snapshot),
                Pte::Swapped => snapshot.push(run.range, PageState::Missing),
                Pte::Present { zero: true, .. } => snapshot.push(run.range, PageState::Zero),
                Pte::Present { huge, .. } => snapshot.push(run.range, PageState::System { access, huge }),
            };
        })?;
        Ok(result?)
    }

    /// What the CPU's page table has nothing of: on a device, or nowhere.
    fn look_away(
        &self,
        range: PageRange,
        access: Access,
        snapshot: &mut Snapshot<W::Meta>,
    ) -> Result<(), OutOfMetadata> {
        let mut next = range.first_page();
        for (block, span) in self.mm.blocks.known(range) {
            let resident = block
                .lock()
                .residencies
                .each_ref()
                .map(|slot| slot.as_ref().map(|r| (r.device, r.pages)));
            let mut index = span.first;
            while index < span.end {
                let holder = resident.iter().flatten().find(|(_, pages)| pages.has(index));
                let any = resident
                    .iter()
                    .flatten()
                    .fold(PageMask::NONE, |mask, (_, pages)| mask.or(*pages));
                let (state, end) = match holder {
                    Some((device, pages)) => {
                        let run = pages.next_run(index).expect("the page is in it");
                        let local = *device == self.memory.id;
                        (
                            PageState::Device {
                                device: *device,
                                local,
                                access,
                            },
                            run.end.min(span.end),
                        )
                    }
                    None => (
                        PageState::Missing,
                        any.next_run(index).map_or(span.end, |run| run.start.min(span.end)),
                    ),
                };
                let run = span.block.pages(index..end);
                snapshot.missing(next, run.first_page())?;
                snapshot.push(run, state)?;
                next = run.end_page();
                index = end;
            }
        }
        snapshot.missing(next, range.end_page())
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

/// What a snapshot says of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageState {
    /// No area.
    Hole,
    /// PROT_NONE.
    NoAccess,
    /// An area, but no page: untouched, discarded or on swap.
    Missing,
    /// The shared page of zeroes.
    Zero,
    /// In system memory.
    System {
        /// What the area allows.
        access: Access,
        /// Part of a huge page.
        huge: bool,
    },
    /// In device memory, which the CPU cannot map.
    Device {
        /// Which device.
        device: DeviceId,
        /// It is the device of the mirror that was asked.
        local: bool,
        /// What the area allows.
        access: Access,
    },
}

/// What is mapped in a range, as runs of pages in the same state, in address order and gapless.
pub struct Snapshot<M: Metadata> {
    range: PageRange,
    runs: Vec<(PageRange, PageState), M>,
}

impl<M: Metadata> core::fmt::Debug for Snapshot<M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.runs()).finish()
    }
}

impl<M: Metadata> Snapshot<M> {
    /// The range that was asked for.
    pub fn range(&self) -> PageRange {
        self.range
    }

    /// The runs.
    pub fn runs(&self) -> &[(PageRange, PageState)] {
        &self.runs
    }

    /// The state of the page that holds `addr`; `None` outside the range.
    pub fn at(&self, addr: usize) -> Option<PageState> {
        let after = self.runs.partition_point(|(run, _)| run.end() <= addr);
        self.runs
            .get(after)
            .filter(|(run, _)| run.contains(addr))
            .map(|(_, state)| *state)
    }

    fn push(&mut self, range: PageRange, state: PageState) -> Result<(), OutOfMetadata> {
        if let Some((last, same)) = self.runs.last_mut()
            && *same == state
            && last.end_page() == range.first_page()
        {
            *last = last.hull(range);
            return Ok(());
        }
        self.runs.try_reserve(1).map_err(|_| OutOfMetadata)?;
        self.runs.push((range, state));
        Ok(())
    }

    fn fill(&mut self, first: usize, end: usize, state: PageState) -> Result<(), OutOfMetadata> {
        match PageRange::from_pages(first, end.saturating_sub(first)) {
            Some(range) => self.push(range, state),
            None => Ok(()),
        }
    }

    fn gap(&mut self, first: usize, end: usize) -> Result<(), OutOfMetadata> {
        self.fill(first, end, PageState::Hole)
    }

    fn missing(&mut self, first: usize, end: usize) -> Result<(), OutOfMetadata> {
        self.fill(first, end, PageState::Missing)
    }
}
