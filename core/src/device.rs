//! What the core needs of a device: to stop using pages when told, and to say how it reaches system memory.
//!
//! A device keeps its page table in the core ([`crate::mirror::MirrorState::table`]); the core erases entries, then calls the device to flush what it
//! cached of them. The callbacks get a [`CallbackScope`], which has no method to fault, invalidate or migrate (INV-7).

use crate::addr::PageRange;
use crate::notifier::{Answer, CallbackScope, Invalidation};

/// An address as the device sees it: what a device page-table entry holds, page-aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceAddr(pub u64);

/// The device cannot reach a page of system memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the device cannot map {range} for DMA: {}", std::io::Error::from_raw_os_error(*.errno))]
pub struct DmaError {
    /// The pages.
    pub range: PageRange,
    /// The raw errno that the device gave.
    pub errno: i32,
}

/// A device's side of one mirror.
///
/// Each callback runs with no lock of the core held but the mirror's update lock where noted. It must
/// touch only memory that is never mirrored, and must not allocate: it may run on the thread that serves CPU faults.
pub trait Device: Send + Sync + 'static {
    /// Flush cached translations of `invalidation.range` and return when no access through them is in flight. The page-table entries are gone.
    /// Called without locks; may wait for the device, but not for a CPU fault or another invalidation.
    fn invalidate(&self, invalidation: &Invalidation, scope: &CallbackScope<'_>);

    /// The same in a pass that must not wait (reclaim, the OOM reaper, the serving of a CPU fault).
    fn try_invalidate(&self, invalidation: &Invalidation, scope: &CallbackScope<'_>) -> Answer;

    /// Stop using the address space: it, the mirror or the device is going. Called exactly once per mirror, without locks; may wait for
    /// invalidations in flight and for work to stop. Invalidations come while it runs, as long as the device may still make accesses.
    fn release(&self);

    /// Makes system pages reachable. Called under the mirror's update lock, once for each run of pages that enters the device's page table.
    fn dma_map(&self, range: PageRange) -> Result<DeviceAddr, DmaError> {
        Ok(DeviceAddr(range.start() as u64))
    }

    /// Undoes [`Device::dma_map`] for pages that left the device's page table. Called under the mirror's update lock.
    fn dma_unmap(&self, range: PageRange, at: DeviceAddr) {
        let _ = (range, at);
    }
}
