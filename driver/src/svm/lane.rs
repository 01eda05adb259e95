//! A lane and its work: accesses by plain addresses, which stall on a miss.

use isomem_core::addr::VirtAddr;
use isomem_core::bus::{AtomicOp, Bus, BusError, Span};
use isomem_core::mirror::copy::{Patience, ReachError};
use isomem_core::mirror::pin::{PinSlot, Wanted};
use isomem_core::mirror::range::FaultError;
use isomem_core::world::Access;

use super::batch::Miss;
use super::{Context, Entry, Gpu, Inner, Stall, SvmError};
use crate::link::Shared;
use crate::work::Work;

type Outcome = Result<(), ReachError>;

/// Work that was launched on a lane.
pub type WorkItem<W> = Work<W, Outcome>;

impl<W: Bus> Context<W> {
    /// Runs `work` on a lane of its own. Errors of its accesses it hands on, or deals with.
    pub fn launch(
        &self,
        work: impl FnOnce(&mut Lane<'_, W>) -> Outcome + Send + 'static,
    ) -> Result<WorkItem<W>, SvmError> {
        // The work may use memory where other memory was unmapped just now.
        self.inner.mirror.synchronize()?;
        let mut faults = self.gpu.faults.lock();
        let free = faults.lanes.iter().position(|lane| *lane == Stall::Free);
        let lane = free.ok_or(SvmError::Busy)?;
        faults.lanes[lane] = Stall::Runs;
        drop(faults);
        // Given back when it is dropped, on whichever way.
        let seat = Seat {
            gpu: self.gpu.clone(),
            lane,
        };
        let inner = self.inner.clone();
        Work::start(self.inner.mirror.state().mm(), "isomem-lane", move || {
            run(&seat, inner, work)
        })
    }
}

/// A lane that somebody has.
struct Seat<W: Bus> {
    gpu: Shared<W, Gpu<W>>,
    lane: usize,
}

impl<W: Bus> Drop for Seat<W> {
    fn drop(&mut self) {
        self.gpu.faults.lock().lanes[self.lane] = Stall::Free;
    }
}

fn run<W: Bus>(
    seat: &Seat<W>,
    context: Shared<W, Inner<W>>,
    work: impl FnOnce(&mut Lane<'_, W>) -> Outcome,
) -> Outcome {
    let state = context.mirror.state();
    // A context has as many places as the GPU has lanes.
    let slot = state.device().pins.claim(state.table()).expect("a place for each lane");
    work(&mut Lane {
        seat,
        context: &context,
        slot,
    })
}

/// What work gets: its way to memory.
pub struct Lane<'l, W: Bus> {
    seat: &'l Seat<W>,
    context: &'l Shared<W, Inner<W>>,
    slot: PinSlot<'l, W::Meta>,
}

impl<W: Bus> core::fmt::Debug for Lane<'_, W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Lane")
            .field("number", &self.seat.lane)
            .finish_non_exhaustive()
    }
}

impl<W: Bus> Lane<'_, W> {
    /// Loads the word at `addr`.
    pub fn load(&mut self, window: &W::Window, addr: usize) -> Result<u64, ReachError> {
        let mut word = [0; 8];
        self.word(window, addr, Access::Read, |world, span| {
            world.load(&span, 0, &mut word)
        })?;
        Ok(u64::from_ne_bytes(word))
    }

    /// Stores a word at `addr`.
    pub fn store(&mut self, window: &W::Window, addr: usize, value: u64) -> Result<(), ReachError> {
        self.word(window, addr, Access::Write, |world, span| {
            world.store(&span, 0, &value.to_ne_bytes())
        })
    }

    /// An atomic operation on the word at `addr`; returns the value before.
    pub fn atomic(&mut self, window: &W::Window, addr: usize, op: AtomicOp<u64>) -> Result<u64, ReachError> {
        self.word(window, addr, op.access(), |world, span| world.atomic_u64(&span, 0, op))
    }

    /// An access to a word.
    fn word<R>(
        &mut self,
        window: &W::Window,
        addr: usize,
        access: Access,
        by: impl FnOnce(&W, Span<'_>) -> Result<R, BusError>,
    ) -> Result<R, ReachError> {
        if !addr.is_multiple_of(size_of::<u64>()) {
            return Err(BusError::Misaligned { addr }.into());
        }
        self.with(window, addr, size_of::<u64>(), access, by)
    }

    /// Calls `by` with the bytes from `addr` on: at most `len_bytes`, less where a block of 2 MiB ends. Where it misses the lane stalls, without a pin
    /// (SVM-3).
    ///
    /// An invalidation of these pages waits while `by` runs: it should only copy.
    pub fn with<R>(
        &mut self,
        window: &W::Window,
        addr: usize,
        len_bytes: usize,
        access: Access,
        by: impl FnOnce(&W, Span<'_>) -> Result<R, BusError>,
    ) -> Result<R, ReachError> {
        let outside = BusError::Outside {
            addr,
            len_bytes,
            access,
        };
        let at = VirtAddr::new(addr).map_err(|_| outside)?;
        let wanted: Wanted = (at, len_bytes, access);
        let (seat, context) = (self.seat, self.context);
        let mut serve = |patience| seat.gpu.miss(entry(context, seat.lane, at, access, patience));
        let state = context.mirror.state();
        state.reach_served(&mut self.slot, window, wanted, &mut serve, by)
    }
}

fn entry<W: Bus>(
    context: &Shared<W, Inner<W>>,
    lane: usize,
    at: VirtAddr,
    access: Access,
    patience: Patience,
) -> Entry<W> {
    let miss = Miss {
        context: context.number,
        lane,
        page: at.page().first_page(),
        access,
        patience,
        error: None::<FaultError>,
    };
    Entry {
        miss,
        context: context.clone(),
    }
}
