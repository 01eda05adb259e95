//! On-demand paging for a network card, in the manner of RDMA: memory regions with keys, and queues of work requests that fault on access.
//!
//! A [`Nic`] pins nothing when memory is registered. A region is a promise (the window that vouches for it), a range and a key; a work request
//! names memory by key and address, and what its accesses miss is brought in then. The implicit region is all of the address space:
//! the mirror's table is one for all regions, so it needs no regions inside it that come and go with the memory.
//!
//! What the threads had against such a driver, and what is done about it here:
//! - it took a lock in *start* and left it in *end*, or refused a non-blocking pass after others had counted: here *start* finds entries erased by the
//!   core, waits for accesses, and there is no *end*;
//! - it kept a count of invalidations under way for each region, to tell a fault that it collided: the core's reads do (INV-4);
//! - a descriptor that a child inherited went on working on the parent's memory: every call checks (LIFE-6).
//!
//! # Invariants
//! - ODP-1: an access through a region is made under a pin, and only if the region was found registered after the pin was published.
//! - ODP-2: once [`Nic::deregister`] returned, no access through the region is in flight and none will come. Faults in flight are not waited for:
//!   they enter pages in the table, which is everybody's, and then find the region gone.
//! - ODP-3: each work request that was accepted gets one completion, in order; after a failed one those that follow are flushed untouched.
//! - ODP-4: a key is never used again for another region.
//! - ODP-5: whoever waits for a completion is told before the engine serves a miss of the table, does a further packet of a request, or sleeps. While requests are done
//!   one after the other at once, it is told of some together.
//!
//! # Locking
//! `regions` and a queue's `rings`, both leaves. Neither is held while the core is called.
//!
//! ```text
//! queue's engine                           program thread
//! finds the region by its key              .
//! pins: a miss; the page is faulted in     deregister: the key is gone; the region is marked
//! pins again; is the region marked? yes    waits for pins of the region: none
//! lets go; the request fails               may free the memory
//! ```
//!
//! Linux: drivers/infiniband/core/umem_odp.c, drivers/infiniband/hw/mlx5/odp.c.

mod queue;
mod region;

use isomem_core::addr::PageRange;
use isomem_core::bus::{Bus, BusError, Span};
use isomem_core::mirror::pin::{PinSlot, PinnedSide, Wanted};
use isomem_core::mirror::range::{FaultError, Placement};
use isomem_core::mirror::{Busy, DeviceHandle, Mirror};
use isomem_core::mm::{EntryError, Mm};
use isomem_core::sync::Mutex;
use isomem_core::world::{Access, Metadata, OutOfMetadata, WorldError};

pub use self::queue::{Completion, DEPTH, Queue, Work};
pub use self::region::{Key, MAX_REGIONS, Segment};
use self::region::{Known, Region, Regions};
pub use crate::link::OpenError;
use crate::link::{Shared, without_memory};

/// Queues that a card can have at the same time.
pub const MAX_QUEUES: usize = 8;

/// Why a call was refused, or a work request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OdpError {
    /// The caller may not use the card: after a fork, the child opens its own.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// No region has this key, or has it any more.
    #[error("no region has the key {0}")]
    NoRegion(Key),
    /// The segment leaves its region, or the region does not permit the access.
    #[error("{len_bytes} bytes at {addr:#x} are not in the region for {access:?}")]
    NotInRegion {
        /// The first byte.
        addr: usize,
        /// How many.
        len_bytes: usize,
        /// What for.
        access: Access,
    },
    /// The memory could not be reached.
    #[error(transparent)]
    Reach(#[from] isomem_core::mirror::copy::ReachError),
    /// Advised pages could not be brought in.
    #[error(transparent)]
    Fault(#[from] FaultError),
    /// A request before this one failed.
    #[error("flushed: an earlier request of the queue failed")]
    Flushed,
    /// As many requests as a queue takes are posted, or not collected.
    #[error("the queue holds {DEPTH} requests")]
    QueueFull,
    /// There are as many regions or queues as there can be.
    #[error("the card has {MAX_REGIONS} regions or {MAX_QUEUES} queues already")]
    TooMany,
    /// isomem's own memory is used up.
    #[error(transparent)]
    Metadata(#[from] OutOfMetadata),
    /// A queue's engine could not be started.
    #[error(transparent)]
    World(#[from] WorldError),
}

/// What is to be done with pages before they are needed (Linux: ibv_advise_mr).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Bring them in for reading.
    Prefetch,
    /// Bring them in for writing.
    PrefetchWrite,
    /// Map those that are resident; fault nothing.
    Resident,
}

/// A network card with its mirror of one address space.
pub struct Nic<W: Bus> {
    device: DeviceHandle<W>,
    card: Shared<W, Card<W>>,
}

impl<W: Bus> core::fmt::Debug for Nic<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Nic")
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

/// What the handle and the queues share.
struct Card<W: Bus> {
    mirror: Mirror<W, PinnedSide<W>>,
    regions: Mutex<Regions<W>>,
}

impl<W: Bus> Nic<W> {
    /// Registers a card with `mm`.
    pub fn open(mm: &Mm<W>) -> Result<Self, OpenError> {
        let device = mm.register(without_memory("nic"))?;
        let side = W::Meta::share(PinnedSide::new(mm, MAX_QUEUES)?)?;
        let card = W::Meta::share(Card {
            mirror: device.mirror(side)?,
            regions: Mutex::new("regions", Regions::new()?),
        })?;
        Ok(Self { device, card })
    }

    /// Ends the card. Refused while there are queues: they hold its mirror.
    pub fn close(self) -> Result<(), Busy<W>> {
        let Self { device, card } = self;
        drop(card);
        device.unregister()
    }

    /// A region of the pages of `range` that `window` vouches for; `None` is the implicit one, over the whole address space. Nothing is brought in.
    #[doc(alias = "ibv_reg_mr")]
    pub fn register(&self, window: W::Window, range: Option<PageRange>, access: Access) -> Result<Key, OdpError> {
        self.card.mirror.synchronize()?;
        let region = W::Meta::share(Region::new(window, range.unwrap_or(PageRange::ALL), access))?;
        self.card.regions.lock().insert(region).ok_or(OdpError::TooMany)
    }

    /// Ends a region (ODP-2). Requests that name it fail from here on, also those posted before. Waits for single accesses, not for faults.
    #[doc(alias = "ibv_dereg_mr")]
    pub fn deregister(&self, key: Key) -> Result<(), OdpError> {
        self.card.mirror.synchronize()?;
        let region = self.card.regions.lock().remove(key).ok_or(OdpError::NoRegion(key))?;
        region.end();
        self.card.mirror.state().device().drain(region.range);
        Ok(())
    }

    /// Does as advised with `segments`, and says how many pages the card can reach of them. On an error those before have been dealt with.
    #[doc(alias = "ibv_advise_mr")]
    pub fn advise(&self, advice: Advice, segments: &[Segment]) -> Result<usize, OdpError> {
        self.card.mirror.synchronize()?;
        segments
            .iter()
            .try_fold(0, |pages, segment| Ok(pages + self.card.advise(advice, segment)?))
    }

    /// A queue, with an engine that works on it.
    pub fn queue(&self) -> Result<Queue<W>, OdpError> {
        self.card.mirror.synchronize()?;
        Queue::start(self.card.clone())
    }
}

impl<W: Bus> Card<W> {
    fn world(&self) -> &W {
        self.mirror.state().mm().world()
    }

    /// The region of a segment that lies in it and may be accessed so. Kept in `known`, and found there the next time: no other region gets its key (ODP-4).
    fn find<'k>(&self, known: &'k mut Known<W>, segment: &Segment, access: Access) -> Result<&'k Region<W>, OdpError> {
        if known.as_ref().is_none_or(|(key, _)| *key != segment.key) {
            let region = self.regions.lock().get(segment.key);
            *known = region.map(|region| (segment.key, region));
        }
        let found = known.as_ref().map(|(_, region)| &**region);
        let region = found.filter(|region| region.is_registered());
        let region = region.ok_or(OdpError::NoRegion(segment.key))?;
        let permitted = region.permits(segment.addr, segment.len_bytes, access);
        permitted.then_some(region).ok_or(segment.refused(access))
    }

    fn advise(&self, advice: Advice, segment: &Segment) -> Result<usize, OdpError> {
        let access = match advice {
            Advice::Prefetch | Advice::Resident => Access::Read,
            Advice::PrefetchWrite => Access::Write,
        };
        self.find(&mut None, segment, access)?;
        let range = PageRange::covering(segment.addr, segment.len_bytes).map_err(|_| segment.refused(access))?;
        let mapped = match advice {
            Advice::Prefetch | Advice::PrefetchWrite => self.mirror.fault(range, access)?,
            Advice::Resident => self.mirror.map_resident(range)?,
        };
        Ok(mapped.pages)
    }

    /// One access of a work request through `region` (ODP-1). `missed` is called before a miss is served.
    fn reach<R>(
        &self,
        slot: &mut PinSlot<'_, W::Meta>,
        (key, region): (Key, &Region<W>),
        wanted: Wanted,
        missed: &dyn Fn(),
        by: impl FnOnce(&W, Span<'_>) -> Result<R, BusError>,
    ) -> Result<R, OdpError> {
        let (state, (addr, _, access)) = (self.mirror.state(), wanted);
        let mut serve = |_| {
            missed();
            state.service_miss(addr, access, Placement::InPlace).map(drop)
        };
        let reached = state.reach_served(slot, &region.window, wanted, &mut serve, |world, span| {
            region.is_registered().then(|| by(world, span)).transpose()
        });
        reached?.ok_or(OdpError::NoRegion(key))
    }
}
