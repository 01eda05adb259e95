//! The device's view of the address space: its side of the mirror, and the launches through it.
//!
//! # Invariants
//! - SOFT-4 (LIFE-3): `release` raises a flag and then waits until no pin is left. A worker looks at the flag after it has pinned, so
//!   either it sees the flag or `release` sees its pin.
//!
//! # Locking
//! None of its own. Callbacks touch the pins and the counters, which lie in memory that is never mirrored.
//!
//! ```text
//! worker                            invalidating thread
//! publishes its pin                 entries are erased
//! looks the entry up: there         flushes, looks for pins: waits
//! accesses, drops the pin           none left: the mapping may change
//! ```

use isomem_core::addr::PageRange;
use isomem_core::bus::Bus;
use isomem_core::device::Device;
use isomem_core::migrate::{MigrateError, Report};
use isomem_core::mirror::pin::{PinHolder, Pins};
use isomem_core::mirror::range::{FaultError, Faulted, Snapshot};
use isomem_core::mirror::{DeviceHandle, Mirror, MirrorError, MirrorState};
use isomem_core::mm::{Advice, AdviseError, EntryError};
use isomem_core::notifier::{Answer, CallbackScope, Invalidation};
use isomem_core::world::{Access, Metadata};

use crate::device::{Common, Engine, MAX_WORKERS, Shared, Stall};
use crate::error::LaunchError;
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use crate::worker::{self, Job, Kernel};

/// The device's side of one mirror.
pub struct Side<W: Bus> {
    /// Number of the mirror among those of the device.
    pub(crate) number: u64,
    pub(crate) pins: Pins<W::Meta>,
    /// Which worker has which slot of `pins`, or had it last.
    pub(crate) owners: [AtomicU64; MAX_WORKERS],
    pub(crate) released: AtomicBool,
    common: Shared<W, Common<W>>,
}

impl<W: Bus> Side<W> {
    /// Counts who holds a pin for longer than a second.
    fn stalled(&self, holder: PinHolder) {
        let worker = self.owners[holder.slot].load(Ordering::Relaxed) as usize;
        self.common.counters.stalled(Stall {
            worker,
            range: holder.range,
        });
    }
}

impl<W: Bus> Device for Side<W> {
    fn invalidate(&self, invalidation: &Invalidation, scope: &CallbackScope<'_>) {
        let world = self.common.mm.world();
        self.pins
            .invalidate(world, invalidation, scope, &|holder| self.stalled(holder));
    }

    fn try_invalidate(&self, invalidation: &Invalidation, _scope: &CallbackScope<'_>) -> Answer {
        self.pins.try_invalidate(self.common.mm.world(), invalidation)
    }

    fn release(&self) {
        // SeqCst: against the look at the flag after a pin was published (SOFT-4).
        self.released.store(true, Ordering::SeqCst);
        let world = self.common.mm.world();
        self.pins.drain(world, PageRange::ALL, &|holder| self.stalled(holder));
    }
}

/// What workers hold of a mirror.
pub(crate) type State<W> = MirrorState<W, Side<W>>;

/// A software device's view of an address space. Dropping it unregisters it.
pub struct SoftMirror<W: Bus> {
    mirror: Mirror<W, Side<W>>,
    engine: Shared<W, Engine<W>>,
}

impl<W: Bus> core::fmt::Debug for SoftMirror<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SoftMirror")
            .field("mirror", &self.mirror)
            .finish_non_exhaustive()
    }
}

impl<W: Bus> SoftMirror<W> {
    pub(crate) fn new(handle: &DeviceHandle<W>, engine: Shared<W, Engine<W>>) -> Result<Self, MirrorError> {
        let common = engine.common.clone();
        let pins = Pins::new(common.config.workers)?;
        let number = common.mirrors.fetch_add(1, Ordering::Relaxed);
        let owners = core::array::from_fn(|_| AtomicU64::new(0));
        let side = W::Meta::share(Side {
            number,
            pins,
            owners,
            released: AtomicBool::new(false),
            common,
        })?;
        Ok(Self {
            mirror: handle.mirror(side)?,
            engine,
        })
    }

    /// Runs `kernel` once on every worker and waits for all of them (LNC-1: when this returns, with whatever result, no worker uses the kernel
    /// any more and the device has forgotten it). Launches of several threads run one after another.
    ///
    /// Not from inside a kernel or a callback. The caller must hold no lock that a kernel or the serving of a CPU fault needs.
    pub fn launch(&self, kernel: &'static Kernel<W>) -> Result<(), LaunchError> {
        if worker::in_kernel() {
            return Err(LaunchError::Nested);
        }
        // The caller's memory may lie where memory lay that it has just unmapped.
        self.mirror.synchronize()?;
        if self.is_released() {
            return Err(LaunchError::Released);
        }
        let common = &self.engine.common;
        common.counters.launches.fetch_add(1, Ordering::Relaxed);
        let panic = common.slot.run(Job::new(kernel, self.mirror.state().clone()));
        panic.map_or(Ok(()), |note| Err(LaunchError::Panicked(Box::new(note))))
    }

    /// Workers that run a launch.
    pub fn workers(&self) -> usize {
        self.engine.common.config.workers
    }

    /// Whether launches are refused: the address space is gone or the device failed.
    pub fn is_released(&self) -> bool {
        // Acquire pairs with the Release in `SoftDevice::fail`.
        self.mirror.state().is_released() || self.engine.common.failed.load(Ordering::Acquire)
    }

    /// See [`Mirror::fault`].
    pub fn fault(&self, range: PageRange, access: Access) -> Result<Faulted, FaultError> {
        self.mirror.fault(range, access)
    }

    /// See [`Mirror::snapshot`].
    pub fn snapshot(&self, range: PageRange) -> Result<Snapshot<W::Meta>, FaultError> {
        self.mirror.snapshot(range)
    }

    /// See [`Mirror::migrate_to_device`].
    pub fn migrate_to_device(&self, range: PageRange) -> Result<Report<W::Meta>, MigrateError> {
        self.mirror.migrate_to_device(range)
    }

    /// See [`Mirror::migrate_home`].
    pub fn migrate_home(&self, range: PageRange) -> Result<Report<W::Meta>, MigrateError> {
        self.mirror.migrate_home(range)
    }

    /// See [`Mirror::advise`].
    pub fn advise(&self, range: PageRange, advice: Advice) -> Result<(), AdviseError> {
        self.mirror.advise(range, advice)
    }

    /// See [`Mirror::exclusive`].
    pub fn exclusive(&self, range: PageRange) -> Result<Report<W::Meta>, MigrateError> {
        self.mirror.exclusive(range)
    }

    /// See [`Mirror::end_exclusive`].
    pub fn end_exclusive(&self, range: PageRange) -> Result<Report<W::Meta>, MigrateError> {
        self.mirror.end_exclusive(range)
    }

    /// See [`Mirror::exclusive_pages`].
    pub fn exclusive_pages(&self, range: PageRange) -> Result<usize, EntryError> {
        self.mirror.exclusive_pages(range)
    }

    /// Ends the mirror (LIFE-2): after it returned no callback runs and none will. From inside a callback it is deferred (LIFE-8).
    pub fn unregister(self) {
        // A deferred end completes by itself when the callback returns.
        let _ = self.mirror.unregister();
    }
}
