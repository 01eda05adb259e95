//! The device: its configuration, its threads, its registration.

use allocator_api2::vec::Vec;
use isomem_core::addr::PageRange;
use isomem_core::bus::Bus;
use isomem_core::mirror::range::Placement;
use isomem_core::mirror::{Busy, DeviceHandle, MirrorError};
use isomem_core::mm::{MemoryConfig, MemoryKind, Mm, RegisterError, ThrashPolicy};
use isomem_core::world::{Metadata, OutOfMetadata, WorldError};

use crate::job::JobSlot;
use crate::mirror::SoftMirror;
use crate::queue::FaultQueue;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use crate::worker::{self, Job};

/// Workers that a device can have.
pub const MAX_WORKERS: usize = 64;
/// A worker's stack: of isomem's own memory, so that kernels run although everything else migrates.
const STACK_BYTES: usize = 2 << 20;

/// A counted pointer into the world's metadata memory.
pub(crate) type Shared<W, T> = <<W as isomem_core::world::World>::Meta as Metadata>::Shared<T>;

/// What a device is to be like.
#[derive(Debug, Clone)]
pub struct SoftConfig {
    /// For messages and statistics.
    pub name: &'static str,
    /// Worker threads, from 1 to [`MAX_WORKERS`].
    pub workers: usize,
    /// Device memory in bytes. It may be smaller than the data; then pages are evicted.
    pub memory_bytes: usize,
    /// Most device memory that one mirror may hold, in bytes; `None` for all.
    pub mirror_budget_bytes: Option<usize>,
    /// Whether the CPU can map the device's memory (MIG-10).
    pub memory_kind: MemoryKind,
    /// Where pages go when a worker misses on them.
    pub placement: Placement,
    /// When pages that go back and forth between the device and the CPU are left at home (MIG-13).
    pub thrash: ThrashPolicy,
}

impl Default for SoftConfig {
    fn default() -> Self {
        let workers = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(MAX_WORKERS);
        Self {
            name: "soft",
            workers,
            memory_bytes: 256 << 20,
            mirror_budget_bytes: None,
            memory_kind: MemoryKind::Private,
            placement: Placement::OnTouch,
            thrash: ThrashPolicy::default(),
        }
    }
}

/// Why there is no device. Nothing is left of the attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SoftError {
    /// See [`SoftConfig::workers`].
    #[error("a device has from 1 to {MAX_WORKERS} workers, not {0}")]
    Workers(usize),
    /// The address space did not take it.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// A worker's thread could not be started.
    #[error("a worker could not be started: {0}")]
    World(#[from] WorldError),
    /// isomem's own memory is used up.
    #[error(transparent)]
    Metadata(#[from] OutOfMetadata),
}

/// A worker that held memory for longer than a second although it was to be taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stall {
    /// The worker's number.
    pub worker: usize,
    /// The pages that it held.
    pub range: PageRange,
}

/// What happened on the device so far. Misses and their latencies are in the address space's statistics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SoftStats {
    /// Kernels run.
    pub launches: u64,
    /// Services that did not last until the access could be made.
    pub replays: u64,
    /// Invalidations that waited for longer than a second for a worker to let go.
    pub stalled_pins: u64,
    /// The last of those.
    pub last_stall: Option<Stall>,
}

/// What the device's threads, its mirrors and its handle share.
pub(crate) struct Common<W: Bus> {
    pub(crate) mm: Mm<W>,
    pub(crate) config: SoftConfig,
    pub(crate) slot: JobSlot<Job<W>>,
    pub(crate) queue: FaultQueue,
    pub(crate) counters: Counters,
    /// Mirrors made so far: numbers them.
    pub(crate) mirrors: AtomicU64,
    /// The device was unplugged (LIFE-7).
    pub(crate) failed: AtomicBool,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) launches: AtomicU64,
    pub(crate) replays: AtomicU64,
    pub(crate) stalls: AtomicU64,
    last_stall: StallCell,
}

struct StallCell(Mutex<Option<Stall>>);

impl Default for StallCell {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl Counters {
    pub(crate) fn stalled(&self, stall: Stall) {
        self.stalls.fetch_add(1, Ordering::Relaxed);
        *self.last_stall.0.lock() = Some(stall);
    }
}

/// The threads; the last of the device and its mirrors ends them.
pub(crate) struct Engine<W: Bus> {
    pub(crate) common: Shared<W, Common<W>>,
    threads: Vec<W::Thread, W::Meta>,
}

impl<W: Bus> Drop for Engine<W> {
    fn drop(&mut self) {
        // In a fork's child one of the threads, which are not there, may have the slot's lock.
        if self.common.mm.world().is_current() {
            self.common.slot.stop();
        }
        self.threads.clear();
    }
}

impl<W: Bus> Engine<W> {
    fn start(mm: &Mm<W>, config: SoftConfig) -> Result<Self, SoftError> {
        let workers = config.workers;
        let common = W::Meta::share(Common {
            slot: JobSlot::new(workers),
            queue: FaultQueue::new(),
            counters: Counters::default(),
            failed: AtomicBool::new(false),
            mirrors: AtomicU64::new(0),
            mm: mm.clone(),
            config,
        })?;
        let mut threads = Vec::new_in(W::Meta::default());
        threads.try_reserve_exact(workers).map_err(|_| OutOfMetadata)?;
        // From here on dropping it ends the threads there are.
        let mut engine = Self { common, threads };
        for index in 0..workers {
            let common = engine.common.clone();
            let body = move || worker::run_jobs::<W>(&common, index);
            engine
                .threads
                .push(mm.world().spawn("isomem-worker", STACK_BYTES, body)?);
        }
        Ok(engine)
    }
}

/// A software device, registered with an address space.
pub struct SoftDevice<W: Bus> {
    handle: DeviceHandle<W>,
    engine: Shared<W, Engine<W>>,
}

impl<W: Bus> core::fmt::Debug for SoftDevice<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SoftDevice")
            .field("config", self.config())
            .finish_non_exhaustive()
    }
}

impl<W: Bus> SoftDevice<W> {
    /// Starts the workers and registers the device (LIFE-1). Nothing is left when it fails.
    pub fn new(mm: &Mm<W>, config: SoftConfig) -> Result<Self, SoftError> {
        if !(1..=MAX_WORKERS).contains(&config.workers) {
            return Err(SoftError::Workers(config.workers));
        }
        let memory = MemoryConfig {
            name: config.name,
            capacity_bytes: config.memory_bytes,
            mirror_budget_bytes: config.mirror_budget_bytes,
            kind: config.memory_kind,
        };
        let handle = mm.register_with(memory, config.thrash)?;
        match Engine::start(mm, config).and_then(|engine| Ok(W::Meta::share(engine)?)) {
            Ok(engine) => Ok(Self { handle, engine }),
            Err(error) => {
                // It has no mirrors, so it cannot be busy.
                let _ = handle.unregister();
                Err(error)
            }
        }
    }

    /// How it was made.
    pub fn config(&self) -> &SoftConfig {
        &self.engine.common.config
    }

    /// Pages of the device's memory in use, and how many it has.
    pub fn memory_pages(&self) -> (usize, usize) {
        self.handle.memory_pages()
    }

    /// Links the device to its address space (LIFE-2).
    pub fn mirror(&self) -> Result<SoftMirror<W>, MirrorError> {
        SoftMirror::new(&self.handle, self.engine.clone())
    }

    /// What happened so far.
    pub fn stats(&self) -> SoftStats {
        let counters = &self.engine.common.counters;
        SoftStats {
            launches: counters.launches.load(Ordering::Relaxed),
            replays: counters.replays.load(Ordering::Relaxed),
            stalled_pins: counters.stalls.load(Ordering::Relaxed),
            last_stall: *counters.last_stall.0.lock(),
        }
    }

    /// Ends the registration (LIFE-1). Pages on the device come home first. With live mirrors it is refused, and says how many.
    pub fn unregister(self) -> Result<(), Unregister<W>> {
        let Self { handle, engine } = self;
        handle.unregister().map_err(|busy| {
            let Busy { mirrors, handle } = busy;
            Unregister {
                mirrors,
                device: Self { handle, engine },
            }
        })
    }

    /// Unplugs the device (LIFE-7): running kernels get [`DeviceFault::Released`](crate::DeviceFault::Released) at their next access, no
    /// launch starts any more, and the pages on it come home. Returns how many could not.
    pub fn fail(&self) -> usize {
        // Release pairs with the Acquire in `Worker::check`.
        self.engine.common.failed.store(true, Ordering::Release);
        self.handle.fail()
    }
}

/// A device cannot be unregistered while it has mirrors.
#[derive(thiserror::Error)]
#[error("the device still has {mirrors} mirrors: unregister or drop them first")]
pub struct Unregister<W: Bus> {
    /// Mirrors that live.
    pub mirrors: usize,
    /// The device, unchanged.
    pub device: SoftDevice<W>,
}

impl<W: Bus> core::fmt::Debug for Unregister<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Unregister")
            .field("mirrors", &self.mirrors)
            .finish_non_exhaustive()
    }
}
