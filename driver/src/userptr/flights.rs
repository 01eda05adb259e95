//! The device's side of the mirror: work in flight, and how invalidations cancel it.

use isomem_core::addr::PageRange;
use isomem_core::device::Device;
use isomem_core::mirror::pin::Pins;
use isomem_core::mm::Mm;
use isomem_core::notifier::{Answer, CallbackScope, Invalidation};
use isomem_core::sync::{AtomicBool, Mutex, MutexGuard, Ordering};
use isomem_core::world::{OutOfMetadata, World};

use super::{Shared, State, Stopped, Wants};

/// Work in flight at a time.
pub(super) const MAX_FLIGHTS: usize = 8;

/// Work in flight, as invalidations see it.
struct InFlight {
    wants: Wants,
    by: Option<Invalidation>,
}

type Flights = [Option<InFlight>; MAX_FLIGHTS];

/// The device's side of its mirror.
pub struct Side<W: World> {
    mm: Mm<W>,
    pub(super) pins: Pins<W::Meta>,
    flights: Mutex<Flights>,
    /// Of each flight; set under `flights`, looked at without it.
    cancelled: [AtomicBool; MAX_FLIGHTS],
    released: AtomicBool,
}

/// What became of the wish to begin.
pub(super) enum Begun<W: World> {
    Flies(Flight<W>),
    /// The table does not have every page.
    Missing,
    Full,
    Released,
}

impl<W: World> Side<W> {
    pub(super) fn new(mm: &Mm<W>) -> Result<Self, OutOfMetadata> {
        Ok(Self {
            mm: mm.clone(),
            pins: Pins::new(MAX_FLIGHTS)?,
            flights: Mutex::new("userptr flights", [const { None }; MAX_FLIGHTS]),
            cancelled: core::array::from_fn(|_| AtomicBool::new(false)),
            released: AtomicBool::new(false),
        })
    }

    /// Begins work that wants this, if the table has every page (USR-1): an invalidation erases entries first and cancels then, so either they are
    /// found gone here, or the flight is found there.
    pub(super) fn begin(state: &Shared<W, State<W>>, wants: &Wants) -> Begun<W> {
        let side = state.device();
        let mut flights = side.flights.lock();
        if side.released.load(Ordering::Relaxed) {
            return Begun::Released;
        }
        let has_all = |&(range, access)| state.table().has_all(range, access);
        if !wants.iter().flatten().all(has_all) {
            return Begun::Missing;
        }
        let Some(number) = flights.iter().position(Option::is_none) else {
            return Begun::Full;
        };
        flights[number] = Some(InFlight {
            wants: *wants,
            by: None,
        });
        side.cancelled[number].store(false, Ordering::Relaxed);
        drop(flights);
        Begun::Flies(Flight {
            state: state.clone(),
            number,
        })
    }

    fn cancel(&self, flights: &mut MutexGuard<'_, Flights>, range: PageRange, by: Option<Invalidation>) {
        for (flight, cancelled) in flights.iter_mut().zip(&self.cancelled) {
            if let Some(flight) = flight
                && flight.wants.iter().flatten().any(|(part, _)| part.overlaps(range))
            {
                flight.by = flight.by.or(by);
                // SeqCst: against the look after a pin was published. Who does not see this has a pin that is waited for.
                cancelled.store(true, Ordering::SeqCst);
            }
        }
    }
}

impl<W: World> Device for Side<W> {
    fn invalidate(&self, invalidation: &Invalidation, scope: &CallbackScope<'_>) {
        self.cancel(&mut self.flights.lock(), invalidation.range, Some(*invalidation));
        self.pins.invalidate(self.mm.world(), invalidation, scope, &|_| {});
    }

    /// The work is cancelled, and an access in flight is left to the MMU (USR-3). It may be one that waits for the very page that this pass brings home:
    /// refused, neither would ever go on.
    fn try_invalidate(&self, invalidation: &Invalidation, _: &CallbackScope<'_>) -> Answer {
        let Some(mut flights) = self.flights.try_lock() else {
            return Answer::Refused;
        };
        self.cancel(&mut flights, invalidation.range, Some(*invalidation));
        drop(flights);
        self.pins.try_invalidate(self.mm.world(), invalidation)
    }

    fn release(&self) {
        let mut flights = self.flights.lock();
        // Relaxed: under the lock, as in `begin`.
        self.released.store(true, Ordering::Relaxed);
        self.cancel(&mut flights, PageRange::ALL, None);
        drop(flights);
        self.pins.drain(self.mm.world(), PageRange::ALL, &|_| {});
    }
}

/// The right to work on pages that were all there when it began. Dropping it ends it.
pub(super) struct Flight<W: World> {
    state: Shared<W, State<W>>,
    number: usize,
}

impl<W: World> Flight<W> {
    /// Whether the work may go on.
    pub(super) fn check(&self) -> Result<(), Stopped> {
        // SeqCst: see `Side::cancel`.
        if self.state.device().cancelled[self.number].load(Ordering::SeqCst) {
            return Err(self.cancelled());
        }
        Ok(())
    }

    /// By whom it was cancelled.
    pub(super) fn cancelled(&self) -> Stopped {
        let flights = self.state.device().flights.lock();
        Stopped::Cancelled(flights[self.number].as_ref().and_then(|flight| flight.by))
    }
}

impl<W: World> Drop for Flight<W> {
    fn drop(&mut self) {
        self.state.device().flights.lock()[self.number] = None;
    }
}
