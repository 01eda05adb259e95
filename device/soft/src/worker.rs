//! A worker: the thread that runs kernels, and its way to program memory.
//!
//! Each access pins the page-table entry, copies, and lets go. A miss is serviced by the worker itself, as a replayable fault, with no
//! pin held (SOFT-2).

use core::any::Any;
use core::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use isomem_core::addr::{BlockId, VirtAddr};
use isomem_core::bus::{AtomicOp, Bus, BusError, Span, Window};
use isomem_core::mirror::pin::{PINS_PER_SLOT, PinSlot, Wanted};
use isomem_core::mirror::range::Placement;
use isomem_core::mirror::table::Flags;
use isomem_core::world::Access;

use crate::device::{Common, Shared};
use crate::error::{DeviceFault, PanicNote};
use crate::mirror::State;
use crate::queue::Turn;
use crate::sync::Ordering;

/// Services of one access after which pages are no longer sent to the device for it.
const MIGRATING_TRIES: u32 = 8;
/// Services of one access after which it fails.
const TRIES: u32 = 1000;
/// The pause before another service, once several did not last.
const PAUSE_NS: u64 = 20_000;

/// Filled in before it is used.
const NOWHERE: VirtAddr = match VirtAddr::new(0) {
    Ok(addr) => addr,
    Err(_) => panic!("0 is a user-space address"),
};

/// What every worker runs once.
pub type Kernel<W> = dyn for<'k> Fn(Worker<'k, W>) + Sync;

thread_local! {
    // Without a destructor and set at its birth, so reaching it neither allocates nor registers anything.
    static IN_KERNEL: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is a device's worker.
pub(crate) fn in_kernel() -> bool {
    IN_KERNEL.with(Cell::get)
}

/// A launch in the job slot.
pub(crate) struct Job<W: Bus> {
    kernel: &'static Kernel<W>,
    state: Shared<W, State<W>>,
}

impl<W: Bus> Job<W> {
    pub(crate) fn new(kernel: &'static Kernel<W>, state: Shared<W, State<W>>) -> Self {
        Self { kernel, state }
    }
}

impl<W: Bus> Clone for Job<W> {
    fn clone(&self) -> Self {
        Self {
            kernel: self.kernel,
            state: self.state.clone(),
        }
    }
}

/// The body of worker thread `index`.
pub(crate) fn run_jobs<W: Bus>(common: &Common<W>, index: usize) {
    IN_KERNEL.with(|here| here.set(true));
    let mut seen = 0;
    while let Some(job) = common.slot.next(&mut seen) {
        let panic = run(common, &job, index);
        // Before the launcher goes on: it may be the mirror's last user.
        drop(job);
        common.slot.finish(panic);
    }
}

fn run<W: Bus>(common: &Common<W>, job: &Job<W>, index: usize) -> Option<PanicNote> {
    let side = job.state.device();
    // There is a slot for each worker, and each gives its own back after the kernel.
    let slot = side.pins.claim(job.state.table()).expect("a slot for each worker");
    side.owners[slot.number()].store(index as u64, Ordering::Relaxed);
    let worker = Worker {
        common,
        state: &job.state,
        index,
        slot,
    };
    let kernel = job.kernel;
    let payload = catch_unwind(AssertUnwindSafe(|| kernel(worker))).err()?;
    Some(PanicNote::new(index, message(&*payload)))
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Memory that a kernel wants to access: an operand of [`Worker::with_many`].
#[derive(Debug, Clone, Copy)]
pub struct Operand<'w, W: Bus> {
    /// Who vouches for it.
    pub window: &'w W::Window,
    /// Program address of the first byte.
    pub addr: usize,
    /// Length in bytes, at least 1.
    pub len_bytes: usize,
    /// What for.
    pub access: Access,
}

impl<W: Bus> Operand<'_, W> {
    /// The address of its first byte, if its window permits the access.
    #[inline]
    fn check(&self) -> Result<VirtAddr, DeviceFault> {
        match VirtAddr::new(self.addr) {
            Ok(addr) if self.window.allows(self.addr, self.len_bytes, self.access) => Ok(addr),
            _ => Err(self.refused()),
        }
    }

    fn refused(&self) -> DeviceFault {
        DeviceFault::NotGiven {
            addr: self.addr,
            len_bytes: self.len_bytes,
            access: self.access,
        }
    }
}

/// What a kernel gets: one of the device's threads, with its way to program memory.
pub struct Worker<'k, W: Bus> {
    common: &'k Common<W>,
    state: &'k State<W>,
    index: usize,
    slot: PinSlot<'k, W::Meta>,
}

impl<W: Bus> core::fmt::Debug for Worker<'_, W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Worker")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

impl<W: Bus> Worker<'_, W> {
    /// Number of this worker, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Workers that run the kernel.
    pub fn count(&self) -> usize {
        self.common.config.workers
    }

    /// Copies the bytes from program address `addr` on, as many as `out` holds. On an error the first bytes may have been copied.
    #[inline]
    pub fn read(&mut self, window: &W::Window, addr: usize, out: &mut [u8]) -> Result<(), DeviceFault> {
        let mut done = 0;
        while done < out.len() {
            let rest = &mut out[done..];
            let operand = Operand {
                window,
                addr: addr + done,
                len_bytes: rest.len(),
                access: Access::Read,
            };
            done += self.with(operand, |world, span| {
                let len = span.len_bytes();
                world.load(&span, 0, &mut rest[..len]).map(|()| len)
            })?;
        }
        Ok(())
    }

    /// Copies `from` to program address `addr`. On an error the first bytes may have been copied.
    #[inline]
    pub fn write(&mut self, window: &W::Window, addr: usize, from: &[u8]) -> Result<(), DeviceFault> {
        let mut done = 0;
        while done < from.len() {
            let rest = &from[done..];
            let operand = Operand {
                window,
                addr: addr + done,
                len_bytes: rest.len(),
                access: Access::Write,
            };
            done += self.with(operand, |world, span| {
                let len = span.len_bytes();
                world.store(&span, 0, &rest[..len]).map(|()| len)
            })?;
        }
        Ok(())
    }

    /// An atomic operation on the word at program address `addr`; returns the value before.
    #[inline]
    pub fn atomic_u32(&mut self, window: &W::Window, addr: usize, op: AtomicOp<u32>) -> Result<u32, DeviceFault> {
        let operand = word(window, addr, 4, op.access())?;
        self.with(operand, |world, span| world.atomic_u32(&span, 0, op))
    }

    /// An atomic operation on the word at program address `addr`; returns the value before.
    #[inline]
    pub fn atomic_u64(&mut self, window: &W::Window, addr: usize, op: AtomicOp<u64>) -> Result<u64, DeviceFault> {
        let operand = word(window, addr, 8, op.access())?;
        self.with(operand, |world, span| world.atomic_u64(&span, 0, op))
    }

    /// Pins `operand`, or its first bytes as far as they lie together on the device, and calls `access` with them. Services misses first.
    ///
    /// An invalidation of these pages waits while `access` runs: it should only copy. It cannot use the worker, so no second span can
    /// wait for the first.
    #[inline]
    pub fn with<R>(
        &mut self,
        operand: Operand<'_, W>,
        access: impl FnOnce(&W, Span<'_>) -> Result<R, BusError>,
    ) -> Result<R, DeviceFault> {
        let addr = operand.check()?;
        let mut tries = 0;
        loop {
            let state = self.state;
            if self.runs_hot(addr) {
                state.migrate_hot(addr);
            }
            if let Some(pin) = self.slot.pin(addr, operand.len_bytes, operand.access) {
                check_alive(state, self.common)?;
                let span = Span::new(pin, operand.window, operand.access).ok_or(operand.refused())?;
                return Ok(access(state.mm().world(), span)?);
            }
            self.service(&operand, addr, &mut tries)?;
        }
    }

    /// The same for up to [`PINS_PER_SLOT`] operands at once.
    pub fn with_many<const N: usize, R>(
        &mut self,
        operands: [Operand<'_, W>; N],
        access: impl FnOnce(&W, [Span<'_>; N]) -> Result<R, BusError>,
    ) -> Result<R, DeviceFault> {
        const { assert!(N <= PINS_PER_SLOT) };
        let mut wanted = [(NOWHERE, 0, Access::Read); N];
        for (wanted, operand) in wanted.iter_mut().zip(&operands) {
            *wanted = (operand.check()?, operand.len_bytes, operand.access);
        }
        let mut tries = 0;
        loop {
            let state = self.state;
            if let Some(pins) = self.slot.pin_many(wanted) {
                check_alive(state, self.common)?;
                let mut given = operands.iter();
                let spans = pins.map(|pin| given.next().and_then(|by| Span::new(pin, by.window, by.access)));
                // Each pin lies within its operand, and each operand within its window: that was checked.
                if spans.iter().all(Option::is_some) {
                    return Ok(access(
                        state.mm().world(),
                        spans.map(|span| span.expect("looked at just now")),
                    )?);
                }
            }
            // Each that misses is serviced, with no pin held; then all are tried again.
            let missing = |&(addr, _, access): &Wanted| state.table().run_at(addr, 1, access).is_none();
            let first = wanted.iter().position(missing).unwrap_or(0);
            self.service(&operands[first], wanted[first].0, &mut tries)?;
        }
    }

    /// Counts an access in place; true when the block was accessed often enough to migrate. No pin may be held.
    #[inline]
    fn runs_hot(&self, addr: VirtAddr) -> bool {
        let placement = self.common.config.placement;
        matches!(placement, Placement::AfterAccesses(_))
            && self
                .state
                .table()
                .get(addr)
                .is_some_and(|leaf| !leaf.entry.flags().has(Flags::DEVICE))
            && self.state.count_access(addr, placement)
    }

    /// Services a miss on the first byte of `operand`, or waits while another worker does. No pin is held (SOFT-2): the caller could not
    /// have borrowed the worker otherwise.
    #[cold]
    fn service(&mut self, operand: &Operand<'_, W>, addr: VirtAddr, tries: &mut u32) -> Result<(), DeviceFault> {
        check_alive(self.state, self.common)?;
        let mm = self.state.mm();
        if *tries >= TRIES {
            return Err(DeviceFault::Thrashing { addr, tries: *tries });
        }
        if *tries > 0 {
            self.common.counters.replays.fetch_add(1, Ordering::Relaxed);
        }
        // Pages that do not stay on the device long enough for one access are better left where they are.
        let placement = if *tries < MIGRATING_TRIES {
            self.common.config.placement
        } else {
            Placement::Stay
        };
        if *tries >= MIGRATING_TRIES {
            mm.world().pause(PAUSE_NS);
        }
        *tries += 1;
        let began = mm.world().now_ns();
        let merged = match self
            .common
            .queue
            .enter(self.index, self.state.device().number, BlockId::of(addr))
        {
            Turn::Service(_entry) => {
                let serviced = self.state.service_miss(addr, operand.access, placement);
                serviced.map_err(|error| DeviceFault::from_driver(addr, error))?;
                false
            }
            Turn::Merged => true,
        };
        mm.count_device_fault(mm.world().now_ns().saturating_sub(began), merged);
        Ok(())
    }
}

/// SOFT-4: looked at after a pin was published.
#[inline]
fn check_alive<W: Bus>(state: &State<W>, common: &Common<W>) -> Result<(), DeviceFault> {
    // SeqCst pairs with `Side::release`; Acquire on the other with the Release in `SoftDevice::fail`.
    if state.device().released.load(Ordering::SeqCst) || common.failed.load(Ordering::Acquire) {
        return Err(DeviceFault::Released);
    }
    Ok(())
}

/// The operand of an atomic operation of `size` bytes.
#[inline]
fn word<W: Bus>(window: &W::Window, addr: usize, size: usize, access: Access) -> Result<Operand<'_, W>, DeviceFault> {
    if !addr.is_multiple_of(size) {
        return Err(DeviceFault::Misaligned { addr });
    }
    Ok(Operand {
        window,
        addr,
        len_bytes: size,
        access,
    })
}

impl From<BusError> for DeviceFault {
    fn from(error: BusError) -> Self {
        match error {
            BusError::Outside {
                addr,
                len_bytes,
                access,
            } => Self::NotGiven {
                addr,
                len_bytes,
                access,
            },
            BusError::Misaligned { addr } => Self::Misaligned { addr },
        }
    }
}
