//! A simulated device: a page table in the core, threads that access memory by it, and a record of what it was told.
//!
//! # Invariants
//! - SIMD-1 (FLT-2): every access is made through a pin, so an invalidation that returned knows that none is in flight.
//! - SIMD-2 (LIFE-3): `release` raises a flag and then waits for pins; an access looks at the flag after it has pinned.
//!
//! # Locking
//! `frames` is a leaf of std, not held across scheduling points.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard as StdGuard, PoisonError};

use allocator_api2::alloc::Global;
use isomem_core::addr::{PAGE_SIZE, PageRange, VirtAddr};
use isomem_core::device::{Device, DeviceAddr, DmaError};
use isomem_core::migrate::MigrateError;
use isomem_core::mirror::pin::{Pin, Pins};
use isomem_core::mirror::range::{FaultError, Placement, Snapshot};
use isomem_core::mirror::table::Flags;
use isomem_core::mirror::{DeviceHandle, Mirror, MirrorError, MirrorState};
use isomem_core::mm::{Advice, AdviseError, MemoryKind, ThrashPolicy};
use isomem_core::notifier::{Answer, CallbackScope, Invalidation};
use isomem_core::world::Access;

use crate::checker::Verdict;
use crate::journal::{Actor, Event, Frame, Journal, Name};
use crate::kernel::{Errno, Op, Process, Segv, WORDS, Words};
use crate::sync::{AtomicBool, Ordering};
use crate::world::SimWorld;

/// How the device reaches memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// By the CPU's page table, as a software device does: what is gone faults, so a migration need not wait for a pin for ever.
    SharedMmu,
    /// By frame numbers in a table of its own, as hardware behind an IOMMU does: nothing stops a stale access, and the checkers see it. The
    /// program's pages must not change frames behind isomem's back (copy-on-write, swap).
    Frames,
}

/// Looks at the clock that a migration waits for a pin, before it leaves it to the MMU.
const PATIENCE_NS: u64 = 2;
/// Services of one access after which it fails.
const TRIES: usize = 200;
/// Services of one access after which pages are no longer sent to the device for it.
const MIGRATING_TRIES: usize = 8;
/// Threads that can access memory at the same time.
const WORKERS: usize = 4;

/// The device's side of a mirror.
pub struct Side {
    name: Name,
    reach: Reach,
    process: Process,
    pins: Pins<Global>,
    released: AtomicBool,
    /// With [`Reach::Frames`], what is behind each page that was mapped, as the device knows it.
    frames: StdMutex<BTreeMap<usize, Frame>>,
}

impl Side {
    fn journal(&self) -> &Journal {
        self.process.kernel().journal()
    }

    fn frames(&self) -> StdGuard<'_, BTreeMap<usize, Frame>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn actor(&self) -> Actor {
        Actor::Device(self.name)
    }

    fn called(&self) {
        self.journal().record(Event::Callback { mirror: self.name });
    }

    fn wait_clear(&self, range: PageRange, patience_ns: u64) -> bool {
        let kernel = self.process.kernel();
        self.pins
            .wait_clear(range, patience_ns, &|| kernel.now_ns(), &|ns| kernel.pause(ns))
            .is_ok()
    }

    fn wait_unpinned(&self, range: PageRange) {
        while !self.wait_clear(range, u64::MAX / 2) && !self.journal().is_decided() {}
    }

    /// Who finds the frame comes after who entered it, in the journal as well: both under the lock.
    fn enter(&self, page: usize, frame: Frame) {
        let mut frames = self.frames();
        frames.insert(page, frame);
        let (actor, page) = (self.actor(), page as u64);
        self.journal().record(Event::Mapped { actor, page, frame });
    }

    /// No access to these pages is in flight, and no entry is left.
    fn forget(&self, range: PageRange) {
        let mut frames = self.frames();
        let pages: Vec<usize> = frames
            .range(range.first_page()..range.end_page())
            .map(|(page, _)| *page)
            .collect();
        for page in pages {
            if let Some(frame) = frames.remove(&page) {
                let (actor, page) = (self.actor(), page as u64);
                self.journal().record(Event::Taken { actor, page, frame });
            }
        }
    }

    /// The access that a pin permits.
    fn reach(&self, pin: &Pin<'_>, word: usize, op: Op) -> Result<u64, GpuError> {
        let (page, at) = (pin.start().get() / PAGE_SIZE, pin.addr() / PAGE_SIZE);
        let (device, mm) = (self.name, crate::rig::MM);
        self.journal().record(Event::Works { device, mm });
        if self.reach == Reach::SharedMmu {
            return Ok(self.process.access(self.actor(), at, page, word, op)?);
        }
        let known = self.frames().get(&page).copied();
        let frame = match (known, pin.flags().has(Flags::DEVICE)) {
            (Some(frame), _) => frame,
            (None, true) => {
                let Some(frame) = self.process.frame_at(at) else {
                    let name = self.name;
                    self.journal().found(
                        Verdict::StaleAccess,
                        format!("{name} has an entry for page {page} in its own memory, where there is no page"),
                    );
                    return Err(GpuError::Decided);
                };
                self.enter(page, frame);
                frame
            }
            (None, false) => {
                let name = self.name;
                self.journal().found(
                    Verdict::StaleAccess,
                    format!("{name} has an entry for page {page}, but the page is not mapped for DMA"),
                );
                return Err(GpuError::Decided);
            }
        };
        Ok(self.process.kernel().dma(self.actor(), page, frame, word, op))
    }
}

impl Device for Side {
    fn invalidate(&self, invalidation: &Invalidation, scope: &CallbackScope<'_>) {
        self.called();
        let range = invalidation.range;
        self.pins.flush(range);
        if self.reach == Reach::SharedMmu && invalidation.cause.moves_pages() {
            if !self.wait_clear(range, PATIENCE_NS) {
                scope.leave_to_the_mmu();
            }
        } else {
            self.wait_unpinned(range);
        }
        self.forget(range);
    }

    fn try_invalidate(&self, invalidation: &Invalidation, _scope: &CallbackScope<'_>) -> Answer {
        self.called();
        let range = invalidation.range;
        self.pins.flush(range);
        let answer = match (self.pins.overlaps(range), self.reach) {
            (None, _) => Answer::Done,
            (Some(_), Reach::SharedMmu) => Answer::Fenced,
            (Some(_), Reach::Frames) => Answer::Refused,
        };
        if answer == Answer::Done {
            self.forget(range);
        }
        answer
    }

    fn release(&self) {
        self.journal().record(Event::Release { mirror: self.name });
        // SeqCst: against the look at the flag after a pin was published (SIMD-2).
        self.released.store(true, Ordering::SeqCst);
        self.pins.flush(PageRange::ALL);
        self.wait_unpinned(PageRange::ALL);
        self.forget(PageRange::ALL);
    }

    fn dma_map(&self, range: PageRange) -> Result<DeviceAddr, DmaError> {
        if self.reach == Reach::Frames {
            for page in range.first_page()..range.end_page() {
                // Frame 0 is the page of zeroes: the first write would take the program elsewhere.
                let frame = self.process.frame_at(page).filter(|&frame| frame != 0);
                let errno = Errno::AGAIN.0;
                self.enter(page, frame.ok_or(DmaError { range, errno })?);
            }
        }
        Ok(DeviceAddr(range.start() as u64))
    }
}

/// Why an access of the device failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuError {
    /// The miss could not be served.
    Fault(FaultError),
    /// The mirror was released or unregistered.
    Released,
    /// The page never stayed long enough.
    Thrashing,
    /// There is nothing there any more.
    Segv(Segv),
    /// A checker has found something: the story is over.
    Decided,
}

impl From<Segv> for GpuError {
    fn from(segv: Segv) -> Self {
        Self::Segv(segv)
    }
}

/// What a device is to be like.
#[derive(Debug, Clone, Copy)]
pub struct GpuConfig {
    /// What timelines call it.
    pub name: Name,
    /// Pages of its memory.
    pub memory_pages: usize,
    /// Whether the CPU can map its memory.
    pub kind: MemoryKind,
    /// How it reaches memory.
    pub reach: Reach,
    /// Where pages go on a miss.
    pub placement: Placement,
    /// When pages that go back and forth are left at home.
    pub thrash: ThrashPolicy,
}

impl GpuConfig {
    /// A device of this name with room for 8 pages, which maps pages in place until told to migrate them. Nothing is damped: stories are about
    /// what happens while pages move.
    pub const fn named(name: Name) -> Self {
        Self {
            name,
            memory_pages: 8,
            kind: MemoryKind::Private,
            reach: Reach::SharedMmu,
            placement: Placement::InPlace,
            thrash: ThrashPolicy::OFF,
        }
    }
}

type TheMirror = Mirror<SimWorld, Side>;

/// A device with its mirror of one address space. Any thread may work for it.
pub struct Gpu {
    config: GpuConfig,
    state: Arc<MirrorState<SimWorld, Side>>,
    mirror: StdMutex<Option<Arc<TheMirror>>>,
    handle: StdMutex<Option<DeviceHandle<SimWorld>>>,
    journal: Journal,
}

impl core::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Gpu")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Gpu {
    /// Opens a mirror for a registered device.
    pub fn new(handle: DeviceHandle<SimWorld>, process: &Process, config: GpuConfig) -> Result<Self, MirrorError> {
        let side = Side {
            name: config.name,
            reach: config.reach,
            process: process.clone(),
            pins: Pins::new(WORKERS)?,
            released: AtomicBool::new(false),
            frames: StdMutex::default(),
        };
        let mirror = handle.mirror(Arc::new(side))?;
        Ok(Self {
            config,
            state: mirror.state().clone(),
            mirror: StdMutex::new(Some(Arc::new(mirror))),
            handle: StdMutex::new(Some(handle)),
            journal: process.kernel().journal().clone(),
        })
    }

    /// Loads a word on the device.
    pub fn read(&self, page: usize, word: usize) -> Result<u64, GpuError> {
        self.access(page, word, Op::Load)
    }

    /// Stores a word on the device.
    pub fn write(&self, page: usize, word: usize, value: u64) -> Result<(), GpuError> {
        self.access(page, word, Op::Store(value)).map(drop)
    }

    /// Adds to a word on the device, atomically; returns the value before.
    pub fn add(&self, page: usize, word: usize, value: u64) -> Result<u64, GpuError> {
        self.access(page, word, Op::Add(value))
    }

    /// Reads the words of a page one after another, and tells the journal what it saw.
    pub fn read_page(&self, page: usize) -> Result<Words, GpuError> {
        let mut words = Words::default();
        for (index, word) in words.iter_mut().enumerate().take(WORDS) {
            *word = self.read(page, index)?;
        }
        self.journal.record(Event::SawPage {
            actor: Actor::Device(self.config.name),
            page: page as u64,
            words: words.to_vec(),
        });
        Ok(words)
    }

    /// One access by program page number: by the device's page table, or after a miss that is served on this thread.
    pub fn access(&self, page: usize, word: usize, op: Op) -> Result<u64, GpuError> {
        let side = self.state.device();
        let addr = VirtAddr::new(page * PAGE_SIZE + word * 8).map_err(|_| GpuError::Segv(Segv { page }))?;
        let mut slot = side.pins.claim(self.state.table()).ok_or(GpuError::Thrashing)?;
        let mut wanted = op.access();
        for tries in 0..TRIES {
            if self.journal.is_decided() {
                return Err(GpuError::Decided);
            }
            if let Some(pin) = slot.pin(addr, 8, op.access()) {
                // SeqCst: SIMD-2.
                if side.released.load(Ordering::SeqCst) {
                    return Err(GpuError::Released);
                }
                return side.reach(&pin, word, op);
            }
            if side.released.load(Ordering::SeqCst) {
                return Err(GpuError::Released);
            }
            let placement = if tries < MIGRATING_TRIES {
                self.config.placement
            } else {
                Placement::Stay
            };
            match self.state.service_miss(addr, wanted, placement) {
                Ok(_) => {}
                // The page of zeroes, or a page that went just now: bring in one of its own.
                Err(FaultError::Dma(_)) => wanted = Access::Write,
                Err(FaultError::Released) => return Err(GpuError::Released),
                Err(error) => return Err(GpuError::Fault(error)),
            }
        }
        Err(GpuError::Thrashing)
    }

    /// The mirror, while it is registered.
    pub fn mirror(&self) -> Option<Arc<TheMirror>> {
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What device threads hold on to.
    pub fn state(&self) -> &Arc<MirrorState<SimWorld, Side>> {
        &self.state
    }

    /// Sends pages to the device; says how many went.
    pub fn migrate(&self, range: PageRange) -> Result<usize, MigrateError> {
        let mirror = self.mirror().ok_or(MigrateError::Released)?;
        Ok(mirror.migrate_to_device(range)?.migrated())
    }

    /// Brings pages home; says how many came.
    pub fn home(&self, range: PageRange) -> Result<usize, MigrateError> {
        let mirror = self.mirror().ok_or(MigrateError::Released)?;
        Ok(mirror.migrate_home(range)?.migrated())
    }

    /// Says how pages are used, or where they are best.
    pub fn advise(&self, range: PageRange, advice: Advice) -> Result<(), AdviseError> {
        self.mirror().ok_or(AdviseError::Released)?.advise(range, advice)
    }

    /// Takes pages exclusively; says how many the device has of them (MIG-11).
    pub fn exclusive(&self, range: PageRange) -> Result<usize, MigrateError> {
        let mirror = self.mirror().ok_or(MigrateError::Released)?;
        let taken = mirror.exclusive(range)?;
        Ok(taken.migrated() + taken.already)
    }

    /// Gives them back; says how many came home.
    pub fn end_exclusive(&self, range: PageRange) -> Result<usize, MigrateError> {
        let mirror = self.mirror().ok_or(MigrateError::Released)?;
        Ok(mirror.end_exclusive(range)?.migrated())
    }

    /// How many pages of the range it has exclusively.
    pub fn exclusive_pages(&self, range: PageRange) -> usize {
        let mirror = self.mirror();
        mirror.map_or(0, |mirror| mirror.exclusive_pages(range).unwrap_or(0))
    }

    /// The device fails or is unplugged (LIFE-7); says how many pages could not come home.
    pub fn fail(&self) -> usize {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(handle) = handle else { return 0 };
        let left = handle.fail();
        *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
        left
    }

    /// Brings pages in where they are, before they are missed; says how many the device can reach.
    pub fn fault(&self, range: PageRange, access: Access) -> Result<usize, FaultError> {
        let mirror = self.mirror().ok_or(FaultError::Released)?;
        Ok(mirror.fault(range, access)?.pages)
    }

    /// What is mapped in a range; nothing is brought in.
    pub fn snapshot(&self, range: PageRange) -> Result<Snapshot<Global>, FaultError> {
        self.mirror().ok_or(FaultError::Released)?.snapshot(range)
    }

    /// Empties its memory, also without a mirror; nothing once it is closed.
    pub fn evict_all(&self) {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(handle) = handle else { return };
        let _ = handle.evict_all();
        *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
    }

    /// Pages of its memory that are in use, or reserved; `None` once it is closed.
    pub fn used_pages(&self) -> Option<usize> {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        handle.as_ref().map(|handle| handle.memory_pages().0)
    }

    /// Ends the mirror (LIFE-2), unless another thread is just using it to migrate: then it ends after that. False in that case, and if it was
    /// ended before.
    pub fn unregister(&self) -> bool {
        let mirror = self.mirror.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mirror) = mirror.and_then(Arc::into_inner) else {
            return false;
        };
        let done = mirror.unregister().is_ok();
        if done {
            let mirror = self.config.name;
            self.journal.record(Event::Unregistered { mirror });
        }
        done
    }

    /// Ends the mirror and the registration of the device. False while somebody uses them.
    pub fn close(&self) -> bool {
        self.unregister();
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
        handle.is_some_and(|handle| handle.unregister().is_ok())
    }
}
