//! Two engines of one device behind one mirror: graphics stops where an invalidation meets it, compute is evicted and restored later.
//!
//! A [`Queue`] belongs to an engine and works on some memory of the program; [`Queue::launch`] starts work, which makes accesses through a [`Unit`].
//! *Graphics* looks pages up as it goes: an invalidation waits for its accesses in flight there, and the work that comes to these pages next
//! gets them again itself. *Compute* cannot miss: a queue runs while all of its pages are there. An invalidation of any of them preempts the
//! queue whole; its work waits, and a worker brings every page in and lets the queue run again.
//!
//! What the threads had against such a driver, and what its users complain of:
//! - one process had two notifiers, one an engine, in an order that nobody chose, where one might refuse after the other had stopped: here is one
//!   mirror, whose callback deals with both;
//! - start took a lock that end released, for as long as the pages changed: callbacks here take no lock at all;
//! - the restore worker tried again every millisecond, each try in the way of everybody else's, for days on an idle process whose pages were swapped out: here a
//!   queue is restored when its work waits for it, and who collides too often gets its turn from the core's look (FLT-3), not from a timer.
//!
//! # Invariants
//! - ENG-1 (FLT-2): a compute queue is let run only while all of its pages are in the table: they were in a look that was not stale then.
//! - ENG-2 (INV-1): when a blocking invalidation's callback returned, neither engine makes an access to the range, and a compute queue with memory in
//!   it makes none at all until it is restored. But where pages only move, the MMU may end an access in flight.
//! - ENG-3 (FLT-3): a restore is over when every unit of work that waited could make its access, or was told why not. Invalidations go on meanwhile; one
//!   that met it too often lets it finish one look.
//! - ENG-4: the worker sleeps unless work waits: an evicted queue that has nothing to do stays evicted.
//! - ENG-5 (INV-9): a pass that must not wait marks queues as evicted, and waits for a moment only. It is refused where an access to the range is in flight that
//!   no MMU stops.
//!
//! # Locking
//! `desk`, a leaf but for table lookups, for those that wait and the worker. No callback takes it, nor is it held across an access.
//!
//! ```text
//! compute work            worker                              invalidating thread
//! .                       .                                   the look is stale; entries go
//! pin, runs? no: waits    wakes: brings all pages in          mark evicted; wait for pins; the change
//! .                       look { all there? not stale?
//! pin, runs? yes: access    lets the queue run, waits for     start: a collision, or, if the look met too many,
//! .                         those who waited }                it waits for the end of the look
//! ```
//!
//! Linux: drivers/gpu/drm/amd/amdgpu/amdgpu_hmm.c (once amdgpu_mn.c); amdgpu_amdkfd_evict_userptr and amdgpu_amdkfd_restore_userptr_worker,
//! amdgpu_amdkfd_gpuvm.c.

mod restore;
mod seats;

use isomem_core::addr::{PageRange, RangeError, VirtAddr};
use isomem_core::mirror::MirrorState;
use isomem_core::mirror::pin::{Pin, PinSlot, Wanted};
use isomem_core::mirror::range::FaultError;
use isomem_core::mm::{EntryError, Mm};
use isomem_core::notifier::Attempt;
use isomem_core::world::{Access, Metadata, OutOfMetadata, World, WorldError};

use self::restore::Desk;
pub use self::restore::Restores;
use self::seats::Sides;
pub use crate::link::OpenError;
use crate::link::{Link, Shared};
use crate::work::{STACK_BYTES, Work};

/// Compute queues that there can be.
pub const MAX_QUEUES: usize = 8;
/// Units of work that can be in flight, of both engines.
pub const MAX_UNITS: usize = 16;

type State<W> = MirrorState<W, Sides<W>>;

/// What a queue's work runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// It gets missing pages when it comes to them.
    Graphics,
    /// It is evicted when a page goes, and restored with all of them.
    Compute,
}

/// Why there is no queue, or work was not done to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// There are as many queues, or as many units of work in flight, as there can be.
    #[error("there are {MAX_QUEUES} compute queues, or {MAX_UNITS} units of work in flight")]
    Full,
    /// The bytes are none of user space.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Not the queue's memory, or not for this access.
    #[error("{len_bytes} bytes at {addr:#x} are not the queue's memory for {access:?}")]
    Outside {
        /// The first byte.
        addr: usize,
        /// How many.
        len_bytes: usize,
        /// What for.
        access: Access,
    },
    /// Pages could not be had. Of compute: some page of the queue's memory.
    #[error(transparent)]
    Fault(#[from] FaultError),
    /// The work's thread could not be started.
    #[error(transparent)]
    World(#[from] WorldError),
    /// isomem's own memory is used up.
    #[error(transparent)]
    Metadata(#[from] OutOfMetadata),
}

impl From<EntryError> for EngineError {
    fn from(error: EntryError) -> Self {
        Self::Fault(error.into())
    }
}

/// A device with both engines, and its mirror of one address space. Dropping it ends them: work that goes on is refused.
pub struct Engines<W: World> {
    worker: Option<W::Thread>,
    desk: Shared<W, Desk<W>>,
    link: Link<W, Sides<W>>,
}

impl<W: World> core::fmt::Debug for Engines<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Engines")
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

impl<W: World> Engines<W> {
    /// Registers a device with `mm` and links it. Effective on return (INV-8).
    pub fn new(mm: &Mm<W>) -> Result<Self, OpenError> {
        let link = Link::open(mm, "engines", Sides::new(mm)?)?;
        let desk = W::Meta::share(Desk::new(link.state().clone()))?;
        let served = desk.clone();
        Ok(Self {
            worker: Some(mm.world().spawn("engines", STACK_BYTES, move || served.serve())?),
            desk,
            link,
        })
    }

    /// A queue whose work may access `memory`, for `access` at the most. No page is got before there is work.
    pub fn queue(&self, engine: Engine, memory: PageRange, access: Access) -> Result<Queue<W>, EngineError> {
        self.link.state().synchronize()?;
        let seat = match engine {
            Engine::Graphics => None,
            Engine::Compute => Some(self.desk.seat(memory, access).ok_or(EngineError::Full)?),
        };
        let inner = Inner {
            desk: self.desk.clone(),
            seat,
            memory,
            access,
        };
        // Where there is no room for it, dropping it gives the seat back.
        Ok(Queue(W::Meta::share(inner)?))
    }

    /// What the restore worker did so far.
    pub fn restores(&self) -> Result<Restores, EntryError> {
        self.link.state().synchronize()?;
        Ok(self.desk.restores())
    }

    /// The device is gone on return: no access is in flight, and work that goes on is refused.
    pub fn close(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(worker) = self.worker.take() else { return };
        // First, so that a restore under way ends.
        self.link.end();
        // In a fork's child the worker, which is not there, may have the lock.
        if self.link.state().mm().world().is_current() {
            self.desk.stop();
        }
        drop(worker);
    }
}

impl<W: World> Drop for Engines<W> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Memory, and the engine that works on it. Work that was launched goes on without it.
pub struct Queue<W: World>(Shared<W, Inner<W>>);

impl<W: World> core::fmt::Debug for Queue<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Queue")
            .field("memory", &self.0.memory)
            .finish_non_exhaustive()
    }
}

/// What a queue and its work share.
struct Inner<W: World> {
    desk: Shared<W, Desk<W>>,
    /// Of a compute queue.
    seat: Option<usize>,
    memory: PageRange,
    access: Access,
}

impl<W: World> Inner<W> {
    fn state(&self) -> &Shared<W, State<W>> {
        &self.desk.state
    }
}

impl<W: World> Drop for Inner<W> {
    fn drop(&mut self) {
        // In a fork's child somebody who is not there may have the lock.
        if let Some(seat) = self.seat
            && self.state().mm().world().is_current()
        {
            self.desk.leave(seat);
        }
    }
}

impl<W: World> Queue<W> {
    /// Runs `work` on the engine, beside what was launched before. It should end when an access fails; its own error is passed on.
    pub fn launch<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Unit<'_, W>) -> Result<R, EngineError> + Send + 'static,
    ) -> Result<Work<W, Result<R, EngineError>>, EngineError> {
        let state = self.0.state();
        // The queue's memory may lie where memory lay that the program has just unmapped.
        state.synchronize()?;
        let queue = self.0.clone();
        Work::start(state.mm(), "engines-unit", move || {
            let state = queue.state();
            let slot = state.device().accesses.pins.claim(state.table());
            work(&mut Unit {
                queue: &queue,
                slot: slot.ok_or(EngineError::Full)?,
            })
        })
    }
}

/// Work in flight: its way to the queue's memory.
pub struct Unit<'u, W: World> {
    queue: &'u Inner<W>,
    slot: PinSlot<'u, W::Meta>,
}

impl<W: World> core::fmt::Debug for Unit<'_, W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Unit").field("slot", &self.slot).finish_non_exhaustive()
    }
}

impl<W: World> Unit<'_, W> {
    /// Calls `reach` with a pin of the bytes from `addr` on: at most `len_bytes`, less where a block of 2 MiB ends. Where pages are gone it
    /// waits for them before, as its engine does.
    ///
    /// An invalidation waits while `reach` runs: it should only copy.
    #[inline]
    pub fn with<R>(
        &mut self,
        addr: usize,
        len_bytes: usize,
        access: Access,
        reach: impl FnOnce(&W, Pin<'_>) -> R,
    ) -> Result<R, EngineError> {
        let (queue, pages) = (self.queue, PageRange::covering(addr, len_bytes)?);
        if !queue.memory.covers(pages) || access > queue.access {
            return Err(EngineError::Outside {
                addr,
                len_bytes,
                access,
            });
        }
        let wanted: Wanted = (VirtAddr::new(addr)?, len_bytes, access);
        if let Some(pin) = self.pin(wanted)? {
            return Ok(reach(queue.state().mm().world(), pin));
        }
        self.miss(pages, wanted, reach)
    }

    /// The pin of an access, if its pages are there and the queue runs.
    #[inline(always)]
    fn pin(&mut self, (addr, len_bytes, access): Wanted) -> Result<Option<Pin<'_>>, FaultError> {
        let Some(pin) = self.slot.pin(addr, len_bytes, access) else {
            return Ok(None);
        };
        let state = self.queue.state();
        // Both after the pin was published: who ends the mirror or evicts the queue finds it, or is found.
        if state.is_released() {
            return Err(FaultError::Released);
        }
        let runs = self.queue.seat.is_none_or(|seat| state.device().runs(seat));
        Ok(runs.then_some(pin))
    }

    /// Waits until the access can be made, and makes it. Apart from those that can be made at once, which are to be short.
    #[cold]
    fn miss<R>(
        &mut self,
        pages: PageRange,
        wanted: Wanted,
        reach: impl FnOnce(&W, Pin<'_>) -> R,
    ) -> Result<R, EngineError> {
        let queue = self.queue;
        let mut reach = Some(reach);
        let mut access = || {
            let pin = self.pin(wanted)?;
            Ok(pin.map(|pin| {
                let reach = reach.take().expect("the access is made once");
                reach(queue.state().mm().world(), pin)
            }))
        };
        let done = match queue.seat {
            Some(seat) => queue.desk.wait_for(seat, &mut access),
            // The access is made with the look still under way: who misses for the core's patience long gets its turn.
            None => queue.state().fault_then(pages, &[(pages, wanted.2)], &mut |_| {
                access().transpose().map_or(Attempt::Retry, Attempt::Done)
            })?,
        };
        Ok(done?)
    }
}
