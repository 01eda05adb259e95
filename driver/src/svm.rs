//! Shared virtual memory for a GPU, in the manner of nouveau: a fault buffer that is drained in batches, and faults that are replayed or cancelled.
//!
//! A work item runs on a lane and uses plain addresses. Where the lane's table misses, the lane puts the miss into the fault buffer of the
//! GPU, which all contexts share, and stalls. The fault thread takes what is there, sorts it by context, page and strength of access, merges
//! neighbours, serves each run by one range fault (after sending its pages to the device, where the context is to have them), and replays or cancels
//! each lane.
//!
//! What the threads had against such a driver, and what is done about it here:
//! - a count and a lock of its own beside the notifier, to see whether what it found went stale: the core's range fault does that (INV-4);
//! - it refused every non-blocking pass: here only one that meets an access in flight, and where the MMU stops that, none (INV-9);
//! - one bad address failed the neighbours it had been merged with: pages before it keep what they got, those after it are served again (FLT-4).
//!
//! # Invariants
//! - SVM-1: each miss in the buffer is settled once: its lane is replayed, or cancelled with the reason. A lane has one miss at most, so the buffer
//!   never overflows.
//! - SVM-2: a lane is cancelled only for its own access: not for a neighbour's page, nor for a stronger access to the same page.
//! - SVM-3: the fault thread holds no lock while it serves, and no lane holds a pin while it stalls.
//! - SVM-4 (MIG-13): pages that do not stay on the device long enough for an access are served where they are.
//!
//! # Locking
//! `faults`, a leaf. Not held while the core is called.
//!
//! ```text
//! lane                                     fault thread
//! pins: a miss; puts it in, stalls         .
//! .                                        drains, sorts, merges
//! .                                        range fault: entries, or an error with an address
//! pins again: accesses                     replays; or cancels: the work item gets its SIGSEGV
//! ```
//!
//! Linux: drivers/gpu/drm/nouveau/nouveau_svm.c.

mod batch;
mod lane;

use allocator_api2::vec::Vec;
use isomem_core::addr::{PAGE_SIZE, PageRange, VirtAddr};
use isomem_core::bus::Bus;
use isomem_core::mirror::copy::Patience;
use isomem_core::mirror::pin::PinnedSide;
use isomem_core::mirror::range::{FaultError, Placement};
use isomem_core::mirror::{DeviceHandle, Mirror, MirrorError};
use isomem_core::mm::Mm;
use isomem_core::sync::{Condvar, Mutex};
use isomem_core::world::{Metadata, OutOfMetadata, WorldError};

use self::batch::Miss;
pub use self::lane::{Lane, WorkItem};
use crate::link::Shared;
use crate::work::STACK_BYTES;

/// Lanes that a GPU has.
pub const LANES: usize = 16;

/// Why a GPU, a context or a work item could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SvmError {
    /// See [`MirrorError`].
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// The caller may not use the context: after a fork, the child opens its own.
    #[error(transparent)]
    Entry(#[from] isomem_core::mm::EntryError),
    /// Each lane has its work.
    #[error("the {LANES} lanes are busy")]
    Busy,
    /// A thread could not be started.
    #[error(transparent)]
    World(#[from] WorldError),
    /// isomem's own memory is used up.
    #[error(transparent)]
    Metadata(#[from] OutOfMetadata),
}

/// Where a context is to have the pages that it uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// They go to the device when they are missed, as far as the program's advice and the damping of pages that go back and forth let them.
    Device,
    /// They stay where they are, whatever was advised.
    InPlace,
}

/// What the fault thread did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Served {
    /// Misses that were taken from the buffer.
    pub misses: u64,
    /// Range faults by which they were served.
    pub ranges: u64,
    /// Lanes that were cancelled.
    pub cancelled: u64,
}

/// A GPU: a fault buffer and the thread that serves it. Dropping it ends them; lanes that stall are cancelled.
pub struct Svm<W: Bus> {
    gpu: Shared<W, Gpu<W>>,
    mm: Mm<W>,
    /// Waited for when this is dropped.
    _thread: W::Thread,
}

impl<W: Bus> core::fmt::Debug for Svm<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Svm")
            .field("served", &self.served())
            .finish_non_exhaustive()
    }
}

/// What the fault thread and the lanes share.
struct Gpu<W: Bus> {
    faults: Mutex<Faults<W>>,
    arrived: Condvar,
    settled: Condvar,
}

/// A miss with whom it concerns.
struct Entry<W: Bus> {
    miss: Miss,
    context: Shared<W, Inner<W>>,
}

struct Faults<W: Bus> {
    /// Room for one miss of each lane.
    buffer: Vec<Entry<W>, W::Meta>,
    lanes: [Stall; LANES],
    contexts: usize,
    served: Served,
    stop: bool,
}

/// What a lane does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stall {
    /// Nobody has it.
    Free,
    Runs,
    /// Its miss is in the buffer, or in the batch.
    Waits,
    Cancelled(FaultError),
}

/// A context: one mirror of an address space, with lanes that work on it.
pub struct Context<W: Bus> {
    gpu: Shared<W, Gpu<W>>,
    inner: Shared<W, Inner<W>>,
}

impl<W: Bus> core::fmt::Debug for Context<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Context")
            .field("number", &self.inner.number)
            .finish_non_exhaustive()
    }
}

/// What the context's handle and its lanes share.
struct Inner<W: Bus> {
    number: usize,
    mirror: Mirror<W, PinnedSide<W>>,
    home: Home,
}

impl<W: Bus> Svm<W> {
    /// A GPU whose fault thread runs in the process of `mm`.
    pub fn new(mm: &Mm<W>) -> Result<Self, SvmError> {
        let room = || {
            let mut room = Vec::new_in(W::Meta::default());
            room.try_reserve_exact(LANES).map_err(|_| OutOfMetadata)?;
            Ok::<_, OutOfMetadata>(room)
        };
        let faults = Faults {
            buffer: room()?,
            lanes: [Stall::Free; LANES],
            contexts: 0,
            served: Served::default(),
            stop: false,
        };
        let gpu = W::Meta::share(Gpu {
            faults: Mutex::new("faults", faults),
            arrived: Condvar::new("arrived"),
            settled: Condvar::new("settled"),
        })?;
        let (served, batch) = (gpu.clone(), room()?);
        let body = move || served.run(batch);
        Ok(Self {
            _thread: mm.world().spawn("isomem-svm", STACK_BYTES, body)?,
            gpu,
            mm: mm.clone(),
        })
    }

    /// A context with a mirror of its own.
    pub fn open(&self, device: &DeviceHandle<W>, home: Home) -> Result<Context<W>, SvmError> {
        let side = W::Meta::share(PinnedSide::new(&self.mm, LANES)?)?;
        let mirror = device.mirror(side)?;
        let mut faults = self.gpu.faults.lock();
        faults.contexts += 1;
        let number = faults.contexts;
        drop(faults);
        Ok(Context {
            gpu: self.gpu.clone(),
            inner: W::Meta::share(Inner { number, mirror, home })?,
        })
    }

    /// What was served so far.
    pub fn served(&self) -> Served {
        self.gpu.faults.lock().served
    }
}

impl<W: Bus> Drop for Svm<W> {
    fn drop(&mut self) {
        // In a fork's child the thread, which is not there, may have the lock.
        if self.mm.world().is_current() {
            self.gpu.faults.lock().stop = true;
            self.gpu.arrived.notify_all();
        }
    }
}

impl<W: Bus> Inner<W> {
    /// One range fault.
    fn bring_in(&self, range: PageRange, run: &[Miss]) -> Result<(), FaultError> {
        if self.home == Home::Device && run.iter().all(|miss| miss.patience == Patience::Left) {
            // The core decides what goes, by what was advised and by what goes back and forth. What does not is served where it is, and what fails
            // does so below, with its address.
            for addr in (range.first_page()..range.end_page()).filter_map(|page| VirtAddr::new(page * PAGE_SIZE).ok()) {
                let _ = self
                    .mirror
                    .state()
                    .service_miss(addr, run[0].access, Placement::OnTouch);
            }
        }
        self.mirror.fault(range, run[0].access).map(drop)
    }
}

impl<W: Bus> Gpu<W> {
    /// The body of the fault thread.
    fn run(&self, mut batch: Vec<Entry<W>, W::Meta>) {
        while self.drain(&mut batch) {
            batch.sort_unstable_by_key(|entry| entry.miss.order());
            let mut misses = [Miss::NONE; LANES];
            let misses = &mut misses[..batch.len()];
            for (miss, entry) in misses.iter_mut().zip(&batch) {
                *miss = entry.miss;
            }
            let mut ranges = 0;
            let mut first = 0;
            while first < misses.len() {
                let run = &mut misses[first..];
                let (range, count) = batch::leading_run(run);
                let context = &batch[first].context;
                let served = context.bring_in(range, &run[..count]);
                first += batch::settle(&mut run[..count], served);
                ranges += 1;
            }
            // The lanes go on from here, and the fault thread must not be the last to have a context.
            batch.clear();
            self.settle(misses, ranges);
        }
    }

    /// Takes what is in the buffer; waits for something to be. False when the GPU ends.
    fn drain(&self, batch: &mut Vec<Entry<W>, W::Meta>) -> bool {
        let mut faults = self.faults.lock();
        while faults.buffer.is_empty() && !faults.stop {
            faults = self.arrived.wait(faults);
        }
        // Both have room for a miss of each lane.
        core::mem::swap(&mut faults.buffer, batch);
        if faults.stop {
            for entry in batch.drain(..) {
                faults.lanes[entry.miss.lane] = Stall::Cancelled(FaultError::Released);
            }
            self.settled.notify_all();
        }
        !faults.stop
    }

    /// Replays and cancels (SVM-1).
    fn settle(&self, misses: &[Miss], ranges: u64) {
        let mut faults = self.faults.lock();
        faults.served.misses += misses.len() as u64;
        faults.served.ranges += ranges;
        for miss in misses {
            faults.served.cancelled += u64::from(miss.error.is_some());
            faults.lanes[miss.lane] = miss.error.map_or(Stall::Runs, Stall::Cancelled);
        }
        self.settled.notify_all();
    }

    /// A lane missed: it stalls until it is to try again, or is cancelled.
    fn miss(&self, entry: Entry<W>) -> Result<(), FaultError> {
        let lane = entry.miss.lane;
        let mut faults = self.faults.lock();
        if faults.stop {
            return Err(FaultError::Released);
        }
        faults.buffer.push(entry);
        faults.lanes[lane] = Stall::Waits;
        self.arrived.notify_all();
        while faults.lanes[lane] == Stall::Waits {
            faults = self.settled.wait(faults);
        }
        match core::mem::replace(&mut faults.lanes[lane], Stall::Runs) {
            Stall::Cancelled(error) => Err(error),
            _ => Ok(()),
        }
    }
}
