//! A device worker as a kernel sees it.

use core::ops::Range;

use bytemuck::Pod;
use isomem_linux::Linux;

/// The device's own notion of a worker.
pub(crate) type SoftWorker<'k> = isomem_soft::Worker<'k, Linux>;

/// Bytes that are copied in one go: enough that the pin costs nothing, little enough to stay in the first-level cache.
const SCRATCH_BYTES: usize = 8192;

/// Where pieces of slices are copied to. It lies on the worker's stack, which is never mirrored.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Scratch([u8; SCRATCH_BYTES]);

impl Scratch {
    pub(crate) const fn new() -> Self {
        Self([0; SCRATCH_BYTES])
    }

    /// Room for `len` elements, or for as many as fit.
    pub(crate) fn piece<T: Pod>(&mut self, len: usize) -> &mut [T] {
        let size = size_of::<T>();
        let len = len.min(SCRATCH_BYTES / size);
        bytemuck::cast_slice_mut(&mut self.0[..len * size])
    }
}

/// Refuses, when the program is compiled, elements that do not fit the scratch memory.
pub(crate) const fn check_scratch<T>() {
    assert!(
        size_of::<T>() > 0,
        "elements without a size cannot be shared with a device"
    );
    assert!(
        size_of::<T>() <= SCRATCH_BYTES,
        "elements larger than 8 KiB cannot be shared with a device"
    );
    assert!(
        align_of::<T>() <= 64,
        "elements aligned to more than 64 bytes cannot be shared with a device"
    );
}

/// One of the device's workers, running a kernel. Every access to program memory goes through it.
pub struct Worker<'k> {
    pub(crate) soft: SoftWorker<'k>,
    pub(crate) scratch: &'k mut Scratch,
}

impl core::fmt::Debug for Worker<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Worker")
            .field("index", &self.index())
            .field("count", &self.count())
            .finish()
    }
}

impl Worker<'_> {
    /// Number of this worker, from 0.
    pub fn index(&self) -> usize {
        self.soft.index()
    }

    /// Workers that run the kernel.
    pub fn count(&self) -> usize {
        self.soft.count()
    }

    /// This worker's even share of `len` things. The shares of all workers are disjoint and cover `0..len`.
    pub fn share(&self, len: usize) -> Range<usize> {
        share(len, self.index(), self.count())
    }
}

/// Share `index` of `count` even shares of `len` things.
pub(crate) fn share(len: usize, index: usize, count: usize) -> Range<usize> {
    // Wide enough that the products cannot overflow.
    let at = |index: usize| (len as u128 * index as u128 / count as u128) as usize;
    at(index)..at(index + 1)
}

#[cfg(test)]
mod tests;
