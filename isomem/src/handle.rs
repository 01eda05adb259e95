//! What a kernel holds of the slices that were lent to it.
//!
//! No handle gives out a reference into the memory: elements and pieces are copied to the worker's own scratch memory and back, each
//! through a pin that lives only for the copying. So a kernel can hold on to what it read as long as it likes, and nobody waits for it.

use core::cell::Cell;
use core::marker::PhantomData;
use core::ops::Range;

use bytemuck::Pod;
use isomem_core::bus::AtomicOp;
use isomem_soft::DeviceFault;

use crate::raw::RawSlice;
use crate::worker::{SoftWorker, Worker, check_scratch};

/// A `&[T]` in the kernel: any worker reads any element.
#[derive(Debug)]
pub struct Shared<'k, T> {
    raw: RawSlice,
    life: PhantomData<&'k [T]>,
}

impl<T> Clone for Shared<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<'_, T> {}

impl<T: Pod> Shared<'_, T> {
    pub(crate) fn new(raw: RawSlice) -> Self {
        const { check_scratch::<T>() }
        Self { raw, life: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element `index`.
    pub fn get(&self, worker: &mut Worker<'_>, index: usize) -> Result<T, DeviceFault> {
        get(worker, &self.raw, index)
    }

    /// Elements from `first` on, as many as `out` holds.
    pub fn read(&self, worker: &mut Worker<'_>, first: usize, out: &mut [T]) -> Result<(), DeviceFault> {
        check_range(&self.raw, first..first.saturating_add(out.len()))?;
        read(&mut worker.soft, &self.raw, first, out)
    }

    /// Calls `each` with consecutive pieces of `range` and the index of each piece's first element, at about the speed of a
    /// plain loop over the slice. A piece is a copy of at most a few pages.
    pub fn for_chunks(
        &self,
        worker: &mut Worker<'_>,
        range: Range<usize>,
        each: impl FnMut(usize, &[T]),
    ) -> Result<(), DeviceFault> {
        for_chunks(worker, &self.raw, range, each)
    }

    /// Reads the elements at `indices`, in any order, into `out`, which must be as long.
    ///
    /// # Panics
    /// When `indices` and `out` differ in length.
    pub fn gather(&self, worker: &mut Worker<'_>, indices: &[usize], out: &mut [T]) -> Result<(), DeviceFault> {
        assert_eq!(indices.len(), out.len(), "gather needs one place for each index");
        for (&index, out) in indices.iter().zip(out) {
            *out = self.get(worker, index)?;
        }
        Ok(())
    }
}

/// A worker's own part of a `&mut [T]`. Indices count from the part's first element.
///
/// It is neither `Copy` nor `Send`: nobody else touches the part while the kernel runs.
#[derive(Debug)]
pub struct Part<'k, T> {
    raw: RawSlice,
    offset: usize,
    life: PhantomData<(&'k mut [T], Cell<T>, *const T)>,
}

impl<T: Pod> Part<'_, T> {
    pub(crate) fn new(raw: RawSlice, offset: usize) -> Self {
        const { check_scratch::<T>() }
        Self {
            raw,
            offset,
            life: PhantomData,
        }
    }

    /// Number of elements in the part.
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// Whether the part is empty, as when there are fewer elements than workers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Index in the whole slice of the part's first element.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Element `index` of the part.
    pub fn get(&self, worker: &mut Worker<'_>, index: usize) -> Result<T, DeviceFault> {
        get(worker, &self.raw, index)
    }

    /// Sets element `index` of the part.
    pub fn set(&mut self, worker: &mut Worker<'_>, index: usize, value: T) -> Result<(), DeviceFault> {
        check_index(&self.raw, index)?;
        write(&mut worker.soft, &self.raw, index, core::slice::from_ref(&value))
    }

    /// Elements from `first` on, as many as `out` holds.
    pub fn read(&self, worker: &mut Worker<'_>, first: usize, out: &mut [T]) -> Result<(), DeviceFault> {
        check_range(&self.raw, first..first.saturating_add(out.len()))?;
        read(&mut worker.soft, &self.raw, first, out)
    }

    /// Sets the elements from `first` on to those of `from`.
    pub fn write(&mut self, worker: &mut Worker<'_>, first: usize, from: &[T]) -> Result<(), DeviceFault> {
        check_range(&self.raw, first..first.saturating_add(from.len()))?;
        write(&mut worker.soft, &self.raw, first, from)
    }

    /// Calls `each` with consecutive pieces of `range`; see [`Shared::for_chunks`].
    pub fn for_chunks(
        &self,
        worker: &mut Worker<'_>,
        range: Range<usize>,
        each: impl FnMut(usize, &[T]),
    ) -> Result<(), DeviceFault> {
        for_chunks(worker, &self.raw, range, each)
    }

    /// Calls `each` with consecutive pieces of `range`, and the index in the part of each piece's first element, and writes each piece
    /// back after the call.
    pub fn for_chunks_mut(
        &mut self,
        worker: &mut Worker<'_>,
        range: Range<usize>,
        mut each: impl FnMut(usize, &mut [T]),
    ) -> Result<(), DeviceFault> {
        check_range(&self.raw, range.clone())?;
        let mut at = range.start;
        while at < range.end {
            let piece = worker.scratch.piece::<T>(range.end - at);
            read(&mut worker.soft, &self.raw, at, piece)?;
            each(at, piece);
            write(&mut worker.soft, &self.raw, at, piece)?;
            at += piece.len();
        }
        Ok(())
    }
}

/// A `&[AtomicU32]` or `&[AtomicU64]` in the kernel: atomic operations, sequentially consistent, against other workers and CPU threads.
#[derive(Debug)]
pub struct Atomics<'k, T> {
    raw: RawSlice,
    life: PhantomData<&'k [Cell<T>]>,
}

impl<T> Clone for Atomics<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Atomics<'_, T> {}

/// The words that have atomic operations on the device: `u32` and `u64`.
pub trait Word: Pod + Eq + private::Operate {}
impl Word for u32 {}
impl Word for u64 {}

mod private {
    use super::{AtomicOp, DeviceFault, RawSlice, Worker};

    pub trait Operate: Sized {
        fn operate(
            worker: &mut Worker<'_>,
            raw: &RawSlice,
            index: usize,
            op: AtomicOp<Self>,
        ) -> Result<Self, DeviceFault>;
    }

    impl Operate for u32 {
        #[inline]
        fn operate(
            worker: &mut Worker<'_>,
            raw: &RawSlice,
            index: usize,
            op: AtomicOp<u32>,
        ) -> Result<u32, DeviceFault> {
            worker.soft.atomic_u32(raw.window(), raw.addr_of::<u32>(index), op)
        }
    }

    impl Operate for u64 {
        #[inline]
        fn operate(
            worker: &mut Worker<'_>,
            raw: &RawSlice,
            index: usize,
            op: AtomicOp<u64>,
        ) -> Result<u64, DeviceFault> {
            worker.soft.atomic_u64(raw.window(), raw.addr_of::<u64>(index), op)
        }
    }
}

impl<T: Word> Atomics<'_, T> {
    pub(crate) fn new(raw: RawSlice) -> Self {
        Self { raw, life: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    fn operate(&self, worker: &mut Worker<'_>, index: usize, op: AtomicOp<T>) -> Result<T, DeviceFault> {
        check_index(&self.raw, index)?;
        T::operate(worker, &self.raw, index, op)
    }

    /// Element `index`.
    pub fn load(&self, worker: &mut Worker<'_>, index: usize) -> Result<T, DeviceFault> {
        self.operate(worker, index, AtomicOp::Load)
    }

    /// Sets element `index`.
    pub fn store(&self, worker: &mut Worker<'_>, index: usize, value: T) -> Result<(), DeviceFault> {
        self.operate(worker, index, AtomicOp::Swap(value)).map(drop)
    }

    /// Sets element `index` and returns what it was.
    pub fn swap(&self, worker: &mut Worker<'_>, index: usize, value: T) -> Result<T, DeviceFault> {
        self.operate(worker, index, AtomicOp::Swap(value))
    }

    /// Adds to element `index`, wrapping around, and returns what it was.
    pub fn fetch_add(&self, worker: &mut Worker<'_>, index: usize, value: T) -> Result<T, DeviceFault> {
        self.operate(worker, index, AtomicOp::Add(value))
    }

    /// Bitwise and with element `index`; returns what it was.
    pub fn fetch_and(&self, worker: &mut Worker<'_>, index: usize, value: T) -> Result<T, DeviceFault> {
        self.operate(worker, index, AtomicOp::And(value))
    }

    /// Bitwise or with element `index`; returns what it was.
    pub fn fetch_or(&self, worker: &mut Worker<'_>, index: usize, value: T) -> Result<T, DeviceFault> {
        self.operate(worker, index, AtomicOp::Or(value))
    }

    /// Bitwise exclusive or with element `index`; returns what it was.
    pub fn fetch_xor(&self, worker: &mut Worker<'_>, index: usize, value: T) -> Result<T, DeviceFault> {
        self.operate(worker, index, AtomicOp::Xor(value))
    }

    /// Keeps the smaller of element `index` and `value`; returns what it was.
    pub fn fetch_min(&self, worker: &mut Worker<'_>, index: usize, value: T) -> Result<T, DeviceFault> {
        self.operate(worker, index, AtomicOp::Min(value))
    }

    /// Keeps the larger of element `index` and `value`; returns what it was.
    pub fn fetch_max(&self, worker: &mut Worker<'_>, index: usize, value: T) -> Result<T, DeviceFault> {
        self.operate(worker, index, AtomicOp::Max(value))
    }

    /// Replaces element `index` by `new` if it is `expected`. `Ok` with what it was when it did, `Err` with what it is when not.
    pub fn compare_exchange(
        &self,
        worker: &mut Worker<'_>,
        index: usize,
        expected: T,
        new: T,
    ) -> Result<Result<T, T>, DeviceFault> {
        let before = self.operate(worker, index, AtomicOp::CompareExchange { expected, new })?;
        Ok(if before == expected { Ok(before) } else { Err(before) })
    }
}

fn check_index(raw: &RawSlice, index: usize) -> Result<(), DeviceFault> {
    if index >= raw.len() {
        return Err(DeviceFault::OutOfBounds { index, len: raw.len() });
    }
    Ok(())
}

fn check_range(raw: &RawSlice, range: Range<usize>) -> Result<(), DeviceFault> {
    if range.end > raw.len() {
        return Err(DeviceFault::OutOfBounds {
            index: range.end,
            len: raw.len(),
        });
    }
    Ok(())
}

fn get<T: Pod>(worker: &mut Worker<'_>, raw: &RawSlice, index: usize) -> Result<T, DeviceFault> {
    check_index(raw, index)?;
    let mut value = T::zeroed();
    read(&mut worker.soft, raw, index, core::slice::from_mut(&mut value))?;
    Ok(value)
}

fn for_chunks<T: Pod>(
    worker: &mut Worker<'_>,
    raw: &RawSlice,
    range: Range<usize>,
    mut each: impl FnMut(usize, &[T]),
) -> Result<(), DeviceFault> {
    check_range(raw, range.clone())?;
    let mut at = range.start;
    while at < range.end {
        let piece = worker.scratch.piece::<T>(range.end - at);
        read(&mut worker.soft, raw, at, piece)?;
        each(at, piece);
        at += piece.len();
    }
    Ok(())
}

fn read<T: Pod>(soft: &mut SoftWorker<'_>, raw: &RawSlice, first: usize, out: &mut [T]) -> Result<(), DeviceFault> {
    soft.read(raw.window(), raw.addr_of::<T>(first), bytemuck::cast_slice_mut(out))
}

fn write<T: Pod>(soft: &mut SoftWorker<'_>, raw: &RawSlice, first: usize, from: &[T]) -> Result<(), DeviceFault> {
    soft.write(raw.window(), raw.addr_of::<T>(first), bytemuck::cast_slice(from))
}
