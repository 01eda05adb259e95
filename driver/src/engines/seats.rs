//! The device's side of the mirror: which compute queues an invalidation evicts, and accesses of both engines in flight.
//!
//! # Locking
//! None: a callback marks, and waits for accesses.

use isomem_core::addr::PageRange;
use isomem_core::device::Device;
use isomem_core::mirror::pin::PinnedSide;
use isomem_core::mm::Mm;
use isomem_core::notifier::{Answer, CallbackScope, Invalidation};
use isomem_core::sync::{AtomicU32, AtomicUsize, Ordering};
use isomem_core::world::{OutOfMetadata, World};

use super::{MAX_QUEUES, MAX_UNITS};

// What a compute queue is.
const EVICTED: u32 = 0;
/// Evicted, and none of its pages has gone since.
const RESTORING: u32 = 1;
const RUNS: u32 = 2;

/// A compute queue, as invalidations see it.
///
/// Its pages are set while it is evicted, so whoever reads half of the old and half of the new evicts a queue for nothing, or passes by one
/// that is restored, if at all, by a look that waits for the end of that invalidation.
struct Seat {
    first_page: AtomicUsize,
    end_page: AtomicUsize,
    is: AtomicU32,
}

/// See the module.
pub(super) struct Sides<W: World> {
    pub(super) accesses: PinnedSide<W>,
    seats: [Seat; MAX_QUEUES],
}

impl<W: World> Sides<W> {
    pub(super) fn new(mm: &Mm<W>) -> Result<Self, OutOfMetadata> {
        Ok(Self {
            accesses: PinnedSide::new(mm, MAX_UNITS)?,
            seats: core::array::from_fn(|_| Seat {
                first_page: AtomicUsize::new(0),
                end_page: AtomicUsize::new(0),
                is: AtomicU32::new(EVICTED),
            }),
        })
    }

    /// A queue without work gets other memory; it is evicted.
    pub(super) fn assign(&self, seat: usize, memory: PageRange) {
        let seat = &self.seats[seat];
        seat.is.store(EVICTED, Ordering::SeqCst);
        seat.first_page.store(memory.first_page(), Ordering::SeqCst);
        seat.end_page.store(memory.end_page(), Ordering::SeqCst);
    }

    /// Whether a queue may make an access that it has a pin for.
    pub(super) fn runs(&self, seat: usize) -> bool {
        // SeqCst: against `evict`, which is followed by a look for pins.
        self.seats[seat].is.load(Ordering::SeqCst) == RUNS
    }

    /// Lets an evicted queue run whose pages were all there in a look, if that is not stale.
    pub(super) fn resume(&self, seat: usize, is_stale: impl FnOnce() -> bool) -> bool {
        let is = &self.seats[seat].is;
        // Who evicts has made the look stale before. If he came before this, it is found stale; if he comes after it, what he leaves is no longer this.
        is.swap(RESTORING, Ordering::SeqCst);
        !is_stale()
            && is
                .compare_exchange(RESTORING, RUNS, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
    }

    /// Evicts the queues with memory in `range`; those that ran until now, by their memory.
    fn evict(&self, range: PageRange) -> impl Iterator<Item = PageRange> {
        self.seats.iter().filter_map(move |seat| {
            let first = seat.first_page.load(Ordering::SeqCst);
            let count = seat.end_page.load(Ordering::SeqCst).saturating_sub(first);
            let memory = PageRange::from_pages(first, count)?;
            let ran = memory.overlaps(range) && seat.is.swap(EVICTED, Ordering::SeqCst) == RUNS;
            ran.then_some(memory)
        })
    }
}

impl<W: World> Device for Sides<W> {
    fn invalidate(&self, invalidation: &Invalidation, scope: &CallbackScope<'_>) {
        for memory in self.evict(invalidation.range) {
            // Preempted whole: also its accesses elsewhere (ENG-2).
            let preempted = Invalidation {
                range: memory,
                ..*invalidation
            };
            self.accesses.invalidate(&preempted, scope);
        }
        self.accesses.invalidate(invalidation, scope);
    }

    fn try_invalidate(&self, invalidation: &Invalidation, scope: &CallbackScope<'_>) -> Answer {
        self.evict(invalidation.range).for_each(drop);
        self.accesses.try_invalidate(invalidation, scope)
    }

    fn release(&self) {
        // Every access asks whether the mirror is released, after its pin was published.
        self.accesses.release();
    }
}
