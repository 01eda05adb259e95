//! Queues of work requests, and the engine that works on each.

use allocator_api2::vec::Vec;
use isomem_core::addr::{PAGE_SIZE, VirtAddr};
use isomem_core::bus::{AtomicOp, Bus, BusError, Span};
use isomem_core::mirror::pin::{PinSlot, Wanted};
use isomem_core::sync::{Condvar, Mutex, MutexGuard, spin_loop};
use isomem_core::world::{Access, Metadata, OutOfMetadata};

use super::{Advice, Card, Key, Known, OdpError, Region, Segment};
use crate::link::Shared;
use crate::work::STACK_BYTES;

/// Requests that a queue holds: posted, or completed and not collected.
pub const DEPTH: usize = 16;
/// Bytes that travel at a time.
const PACKET_BYTES: usize = PAGE_SIZE;
/// Completions for which whoever waits is woken while there are more requests.
const MODERATION: usize = 4;
/// Looks at the rings before sleeping, and spins between them: some microseconds.
const LOOKS: usize = if cfg!(feature = "shuttle") { 1 } else { 4 };
const SPINS: usize = if cfg!(feature = "shuttle") { 1 } else { 16 };

/// What a card does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Copies bytes from one segment to another of the same length. Completes with their number.
    Copy {
        /// Source.
        from: Segment,
        /// Destination.
        to: Segment,
    },
    /// An atomic operation on a word of 8 bytes. Completes with the value before.
    Atomic {
        /// The word.
        at: Segment,
        /// What to do.
        op: AtomicOp<u64>,
    },
    /// As [`Nic::advise`](super::Nic::advise), in its turn. Completes with the number of pages.
    Advise {
        /// What to do.
        advice: Advice,
        /// With what.
        segment: Segment,
    },
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// As it was posted.
    pub id: u64,
    /// See [`Work`]. On an error the first bytes may have been copied.
    pub result: Result<u64, OdpError>,
}

/// A queue of work requests. Dropping it ends the engine, after the request that it is at.
pub struct Queue<W: Bus> {
    shared: Shared<W, State<W>>,
    engine: Option<W::Thread>,
}

impl<W: Bus> core::fmt::Debug for Queue<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

struct State<W: Bus> {
    card: Shared<W, Card<W>>,
    rings: Mutex<Rings<W::Meta>>,
    posted: Condvar,
    completed: Condvar,
}

struct Rings<M: Metadata> {
    /// Not more than [`DEPTH`] in both.
    requests: Vec<(u64, Work), M>,
    completions: Vec<Completion, M>,
    /// A request is being worked on.
    busy: bool,
    /// The engine is asleep: it has to be told of a request.
    idle: bool,
    /// Somebody waits for a completion, and was not told of one since.
    awaited: bool,
    /// A request failed: those that follow are flushed.
    failed: bool,
    stop: bool,
}

impl<M: Metadata> Rings<M> {
    fn new() -> Result<Self, OutOfMetadata> {
        let (mut requests, mut completions) = (Vec::new_in(M::default()), Vec::new_in(M::default()));
        requests.try_reserve_exact(DEPTH).map_err(|_| OutOfMetadata)?;
        completions.try_reserve_exact(DEPTH).map_err(|_| OutOfMetadata)?;
        Ok(Self {
            requests,
            completions,
            busy: false,
            idle: false,
            awaited: false,
            failed: false,
            stop: false,
        })
    }

    fn len(&self) -> usize {
        self.requests.len() + self.completions.len() + usize::from(self.busy)
    }
}

impl<W: Bus> Queue<W> {
    pub(super) fn start(card: Shared<W, Card<W>>) -> Result<Self, OdpError> {
        if !card.regions.lock().add_queue() {
            return Err(OdpError::TooMany);
        }
        let state = Rings::new().and_then(|rings| {
            W::Meta::share(State {
                card: card.clone(),
                rings: Mutex::new("rings", rings),
                posted: Condvar::new("posted"),
                completed: Condvar::new("completed"),
            })
        });
        let shared = state.inspect_err(|_| card.regions.lock().remove_queue())?;
        // From here on dropping it counts it out.
        let mut queue = Self { shared, engine: None };
        let state = queue.shared.clone();
        let engine = card.world().spawn("isomem-nic", STACK_BYTES, move || state.run())?;
        queue.engine = Some(engine);
        Ok(queue)
    }

    /// Posts a request, which completes under `id`.
    ///
    /// # Errors
    /// The queue is full, or is another process's: nothing was posted.
    #[doc(alias = "ibv_post_send")]
    pub fn post(&self, id: u64, work: Work) -> Result<(), OdpError> {
        // Before any lock: in a fork's child its holder is not there. And the card may meet new memory where old was unmapped just now.
        self.shared.card.mirror.synchronize()?;
        let mut rings = self.shared.rings.lock();
        if rings.len() >= DEPTH {
            return Err(OdpError::QueueFull);
        }
        rings.requests.push((id, work));
        let idle = rings.idle;
        drop(rings);
        if idle {
            self.shared.posted.notify_all();
        }
        Ok(())
    }

    /// Waits for the oldest completion. `None` where nothing is posted.
    #[doc(alias = "ibv_poll_cq")]
    pub fn wait(&self) -> Result<Option<Completion>, OdpError> {
        self.shared.card.mirror.synchronize()?;
        let mut rings = self
            .shared
            .look_for(|rings| !rings.completions.is_empty() || rings.len() == 0);
        while rings.completions.is_empty() {
            if rings.len() == 0 {
                return Ok(None);
            }
            rings.awaited = true;
            rings = self.shared.completed.wait(rings);
        }
        Ok(Some(rings.completions.remove(0)))
    }

    /// Lets a queue whose request failed work again.
    pub fn reset(&self) -> Result<(), OdpError> {
        self.shared.card.mirror.synchronize()?;
        self.shared.rings.lock().failed = false;
        Ok(())
    }
}

impl<W: Bus> Drop for Queue<W> {
    fn drop(&mut self) {
        // In a fork's child the engine, which is not there, may have the lock.
        if !self.shared.card.world().is_current() {
            return;
        }
        self.shared.rings.lock().stop = true;
        self.shared.posted.notify_all();
        drop(self.engine.take());
        self.shared.card.regions.lock().remove_queue();
    }
}

impl<W: Bus> State<W> {
    /// The engine's body.
    fn run(&self) {
        let state = self.card.mirror.state();
        // There are as many places as queues, and each engine gives its own back.
        let slot = state.device().pins.claim(state.table());
        let mut port = Port {
            slot: slot.expect("a place for each queue"),
            source: None,
            target: None,
            packet: Packet([0; PACKET_BYTES]),
        };
        while let Some((id, work)) = self.next() {
            let result = work.and_then(|work| self.perform(&mut port, work));
            self.complete(Completion { id, result });
        }
    }

    /// The next request, or that it is to be flushed (ODP-3). `None` when the queue ends.
    fn next(&self) -> Option<(u64, Result<Work, OdpError>)> {
        let mut rings = self.look_for(|rings| rings.stop || !rings.requests.is_empty());
        loop {
            if rings.stop {
                return None;
            }
            if !rings.requests.is_empty() {
                break;
            }
            rings.idle = true;
            rings = self.posted.wait(rings);
            rings.idle = false;
        }
        rings.busy = true;
        let (id, work) = rings.requests.remove(0);
        Some((id, if rings.failed { Err(OdpError::Flushed) } else { Ok(work) }))
    }

    fn complete(&self, completion: Completion) {
        let mut rings = self.rings.lock();
        rings.busy = false;
        rings.failed |= completion.result.is_err();
        rings.completions.push(completion);
        // Whoever waits is woken once for some completions, but not kept waiting for a request that takes long (ODP-5).
        if rings.requests.is_empty() || rings.completions.len() >= MODERATION {
            self.tell(rings);
        }
    }

    /// Looks a few times before somebody goes to sleep: the other side takes less for a request than to sleep and be woken takes.
    fn look_for(&self, there: impl Fn(&Rings<W::Meta>) -> bool) -> MutexGuard<'_, Rings<W::Meta>> {
        let mut rings = self.rings.lock();
        for _ in 0..LOOKS {
            if there(&rings) {
                break;
            }
            drop(rings);
            (0..SPINS).for_each(|_| spin_loop());
            rings = self.rings.lock();
        }
        rings
    }

    /// What comes next may take long.
    fn tell_before(&self) {
        let rings = self.rings.lock();
        if !rings.completions.is_empty() {
            self.tell(rings);
        }
    }

    fn tell(&self, mut rings: MutexGuard<'_, Rings<W::Meta>>) {
        let awaited = core::mem::take(&mut rings.awaited);
        drop(rings);
        if awaited {
            self.completed.notify_all();
        }
    }
}

/// What an engine works with.
struct Port<'p, W: Bus> {
    slot: PinSlot<'p, W::Meta>,
    /// The regions of the last request: they are most often those of the next, which then takes no lock that queues share.
    source: Known<W>,
    target: Known<W>,
    packet: Packet,
}

/// On a page of its own, as bytes are copied fastest.
#[repr(align(4096))]
struct Packet([u8; PACKET_BYTES]);

impl<W: Bus> State<W> {
    fn perform(&self, port: &mut Port<'_, W>, work: Work) -> Result<u64, OdpError> {
        match work {
            Work::Copy { from, to } => self.copy(port, from, to),
            Work::Atomic { at, op } => {
                let at = Segment { len_bytes: 8, ..at };
                let region = self.card.find(&mut port.target, &at, op.access())?;
                let wanted = (address(&at, 0, op.access())?, 8, op.access());
                self.reach(&mut port.slot, (at.key, region), wanted, |world, span| {
                    world.atomic_u64(&span, 0, op)
                })
            }
            Work::Advise { advice, segment } => {
                self.tell_before();
                Ok(self.card.advise(advice, &segment)? as u64)
            }
        }
    }

    /// Packet by packet: what was read of one is written before the next is read.
    fn copy(&self, port: &mut Port<'_, W>, from: Segment, to: Segment) -> Result<u64, OdpError> {
        let (slot, packet) = (&mut port.slot, &mut port.packet.0);
        let source = self.card.find(&mut port.source, &from, Access::Read)?;
        let target = self.card.find(&mut port.target, &to, Access::Write)?;
        if from.len_bytes != to.len_bytes {
            return Err(to.refused(Access::Write));
        }
        let mut done = 0;
        while done < from.len_bytes {
            if done > 0 {
                self.tell_before();
            }
            let len = PACKET_BYTES.min(from.len_bytes - done);
            let wanted = (address(&from, done, Access::Read)?, len, Access::Read);
            let got = self.reach(slot, (from.key, source), wanted, |world, span| {
                let piece = &mut packet[..span.len_bytes()];
                world.load(&span, 0, piece).map(|()| piece.len())
            })?;
            self.deliver(slot, (to.key, target), (&to, done), &packet[..got])?;
            done += got;
        }
        Ok(done as u64)
    }

    /// One access of a request, after misses were served.
    fn reach<R>(
        &self,
        slot: &mut PinSlot<'_, W::Meta>,
        region: (Key, &Region<W>),
        wanted: Wanted,
        by: impl FnOnce(&W, Span<'_>) -> Result<R, BusError>,
    ) -> Result<R, OdpError> {
        self.card.reach(slot, region, wanted, &|| self.tell_before(), by)
    }

    /// Writes a packet at `offset` of a segment.
    fn deliver(
        &self,
        slot: &mut PinSlot<'_, W::Meta>,
        region: (Key, &Region<W>),
        (to, offset): (&Segment, usize),
        packet: &[u8],
    ) -> Result<(), OdpError> {
        let mut written = 0;
        while written < packet.len() {
            let rest = &packet[written..];
            let wanted = (address(to, offset + written, Access::Write)?, rest.len(), Access::Write);
            written += self.reach(slot, region, wanted, |world, span| {
                let piece = &rest[..span.len_bytes()];
                world.store(&span, 0, piece).map(|()| piece.len())
            })?;
        }
        Ok(())
    }
}

fn address(segment: &Segment, offset: usize, access: Access) -> Result<VirtAddr, OdpError> {
    VirtAddr::new(segment.addr + offset).map_err(|_| segment.refused(access))
}
