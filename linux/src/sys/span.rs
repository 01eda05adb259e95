//! How a device thread touches the memory of a span: raw accesses, with bounds and alignment checked, and never a reference to it.
//!
//! # Invariants
//! - SPAN-1: no access leaves the span; what would is a [`SpanError`] and touches nothing.
//! - SPAN-2: a single value is read or written by one volatile access, or as an atomic. Both may meet concurrent accesses
//!   of the CPU; an atomic is then also ordered.
//! - SPAN-3: in bulk, memory is only copied, to or from a local buffer; the kernel's loop runs over that. What bulk copies
//!   meet nobody may write (a read) or touch (a write) at the same time: a `launch` borrows it, or its unsafe contract says so.
//!
//! The copy is what makes a fold run at the speed of a slice: a loop of atomic or volatile loads is not vectorised, and costs
//! several times as much once the data is in a cache; the buffer stays in the first-level cache.
//!
//! # Locking
//! None. The pin around the span is what keeps the memory where it is.
//!
//! Linux: copy_from_user and READ_ONCE, for the manner.

use core::ops::Range;
use core::sync::atomic::Ordering;

use bytemuck::Pod;

mod word;
pub use word::{Update, Word};

#[cfg(test)]
mod tests;

/// The local buffer of bulk accesses. Measured, as the time of a fold over that of a slice's: 0.99 to 1.01 with 1.5 KiB, 1.02 to 1.16
/// with 768 bytes to 8 KiB otherwise: from 2 KiB on `memcpy` turns to string moves, which take long to start.
const PIECE_BYTES: usize = 1536;

/// An access that the span does not allow. Nothing was touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpanError {
    /// It would leave the span.
    #[error("{len_bytes} bytes at offset {offset} are out of the bounds of a span of {span_bytes} bytes")]
    OutOfBounds {
        /// First byte of the access, from the span's start.
        offset: usize,
        /// Its length.
        len_bytes: usize,
        /// The span's length.
        span_bytes: usize,
    },
    /// A single value must lie at a multiple of its alignment.
    #[error("address {addr:#x} is not a multiple of {align}")]
    Misaligned {
        /// Where the value would lie.
        addr: usize,
        /// Its alignment.
        align: usize,
    },
}

/// A span of memory by its address. It is a number: whether the memory is there is the caller's promise, at each access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawSpan {
    addr: usize,
    len_bytes: usize,
}

/// # Safety of the accesses
/// Each unsafe method asks that the whole span is mapped and pinned for the call (and for a write, writable), and that its provenance was exposed,
/// which all memory of a mirrored address space counts as. Single values may be accessed by others at the same time; of bulk accesses see SPAN-3.
#[expect(clippy::missing_safety_doc, reason = "said once, for all methods, above")]
impl RawSpan {
    /// The span of `len_bytes` from `addr`; cut off where it would leave the address space.
    pub const fn new(addr: usize, len_bytes: usize) -> Self {
        let most = usize::MAX - addr;
        Self {
            addr,
            len_bytes: if len_bytes < most { len_bytes } else { most },
        }
    }

    /// Where it begins.
    pub const fn addr(self) -> usize {
        self.addr
    }

    /// Its length.
    pub const fn len_bytes(self) -> usize {
        self.len_bytes
    }

    /// Whether it has no bytes.
    pub const fn is_empty(self) -> bool {
        self.len_bytes == 0
    }

    /// A part of it.
    ///
    /// # Errors
    /// [`SpanError::OutOfBounds`].
    pub fn part(self, bytes: Range<usize>) -> Result<Self, SpanError> {
        let len_bytes = bytes.end.saturating_sub(bytes.start);
        let addr = self.locate(bytes.start, len_bytes)?;
        Ok(Self { addr, len_bytes })
    }

    /// Reads one value.
    #[inline]
    pub unsafe fn read<T: Pod>(self, offset: usize) -> Result<T, SpanError> {
        let from = self.aligned::<T>(offset)?;
        // SAFETY: in bounds of a mapped span, by the caller; aligned by the check; any bytes are a `T`.
        Ok(unsafe { from.read_volatile() })
    }

    /// Writes one value.
    #[inline]
    pub unsafe fn write<T: Pod>(self, offset: usize, value: T) -> Result<(), SpanError> {
        let to = self.aligned::<T>(offset)?;
        // SAFETY: in bounds of a mapped, writable span, by the caller; aligned by the check.
        unsafe { to.write_volatile(value) };
        Ok(())
    }

    /// The word at `offset`, as an atomic, for as long as the caller keeps the span pinned.
    #[inline]
    pub unsafe fn atomic<'a, W: Word>(self, offset: usize) -> Result<&'a W::Atomic, SpanError> {
        let word = self.aligned::<W>(offset)?;
        // SAFETY: in bounds of a span that is mapped for 'a, by the caller; aligned by the check; concurrent accesses are atomic (SPAN-2).
        Ok(unsafe { W::from_ptr(word) })
    }

    /// Loads a word atomically.
    #[inline]
    pub unsafe fn load<W: Word>(self, offset: usize, order: Ordering) -> Result<W, SpanError> {
        // SAFETY: passed on.
        Ok(W::load(unsafe { self.atomic::<W>(offset) }?, order))
    }

    /// Stores a word atomically.
    #[inline]
    pub unsafe fn store<W: Word>(self, offset: usize, value: W, order: Ordering) -> Result<(), SpanError> {
        // SAFETY: passed on.
        W::store(unsafe { self.atomic::<W>(offset) }?, value, order);
        Ok(())
    }

    /// Stores `new` if the word is `current`; `Ok` with the word before, or `Err` with the word that was there.
    #[inline]
    pub unsafe fn compare_exchange<W: Word>(
        self,
        offset: usize,
        current: W,
        new: W,
        orders: (Ordering, Ordering),
    ) -> Result<Result<W, W>, SpanError> {
        // SAFETY: passed on.
        Ok(W::compare_exchange(
            unsafe { self.atomic::<W>(offset) }?,
            current,
            new,
            orders,
        ))
    }

    /// Changes a word atomically, and returns what it was.
    #[inline]
    pub unsafe fn update<W: Word>(
        self,
        offset: usize,
        update: Update,
        operand: W,
        order: Ordering,
    ) -> Result<W, SpanError> {
        // SAFETY: passed on.
        Ok(W::update(unsafe { self.atomic::<W>(offset) }?, update, operand, order))
    }

    /// Copies values out, from any byte offset (SPAN-3).
    #[inline]
    pub unsafe fn copy_to_slice<T: Pod>(self, offset: usize, to: &mut [T]) -> Result<(), SpanError> {
        let from = self.start_of(offset, size_of_val(to))?;
        // SAFETY: both sides have that many bytes; a borrowed slice of the caller's does not overlap memory that
        // nobody may write, nor does the alignment of bytes matter.
        unsafe { from.copy_to_nonoverlapping(to.as_mut_ptr().cast(), size_of_val(to)) };
        Ok(())
    }

    /// Copies values in, to any byte offset (SPAN-3).
    #[inline]
    pub unsafe fn copy_from_slice<T: Pod>(self, offset: usize, from: &[T]) -> Result<(), SpanError> {
        let to = self.start_of(offset, size_of_val(from))?;
        // SAFETY: as in `copy_to_slice`, in the other direction.
        unsafe { to.copy_from_nonoverlapping(from.as_ptr().cast(), size_of_val(from)) };
        Ok(())
    }

    /// Writes `count` copies of `value` (SPAN-3).
    pub unsafe fn fill<T: Pod>(self, offset: usize, count: usize, value: T) -> Result<(), SpanError> {
        self.locate(offset, count.saturating_mul(size_of::<T>()))?;
        let mut piece = Piece::new();
        let values = piece.values::<T>();
        values.fill(value);
        for (at, part) in pieces::<T>(offset, count) {
            // SAFETY: passed on.
            unsafe { self.copy_from_slice(at, &values[..part]) }?;
        }
        Ok(())
    }

    /// Folds `count` values from `offset` on, at the speed of a slice (SPAN-3).
    #[inline]
    pub unsafe fn fold<T: Pod, A>(
        self,
        offset: usize,
        count: usize,
        init: A,
        mut each: impl FnMut(A, T) -> A,
    ) -> Result<A, SpanError> {
        self.locate(offset, count.saturating_mul(size_of::<T>()))?;
        let mut piece = Piece::new();
        let values = piece.values::<T>();
        let mut sum = init;
        for (at, part) in pieces::<T>(offset, count) {
            // SAFETY: passed on.
            unsafe { self.copy_to_slice(at, &mut values[..part]) }?;
            sum = values[..part].iter().fold(sum, |sum, value| each(sum, *value));
        }
        Ok(sum)
    }

    /// Calls `each` with `count` values from `offset` on (SPAN-3).
    #[inline]
    pub unsafe fn for_each<T: Pod>(
        self,
        offset: usize,
        count: usize,
        mut each: impl FnMut(T),
    ) -> Result<(), SpanError> {
        // SAFETY: passed on.
        unsafe { self.fold(offset, count, (), |(), value| each(value)) }
    }

    /// Replaces `count` values from `offset` on by what `each` makes of them (SPAN-3).
    #[inline]
    pub unsafe fn map<T: Pod>(
        self,
        offset: usize,
        count: usize,
        mut each: impl FnMut(T) -> T,
    ) -> Result<(), SpanError> {
        self.locate(offset, count.saturating_mul(size_of::<T>()))?;
        let mut piece = Piece::new();
        let values = piece.values::<T>();
        for (at, part) in pieces::<T>(offset, count) {
            // SAFETY: passed on.
            unsafe { self.copy_to_slice(at, &mut values[..part]) }?;
            values[..part].iter_mut().for_each(|value| *value = each(*value));
            // SAFETY: passed on.
            unsafe { self.copy_from_slice(at, &values[..part]) }?;
        }
        Ok(())
    }

    /// The address of an access that is in bounds (SPAN-1).
    #[inline]
    fn locate(self, offset: usize, len_bytes: usize) -> Result<usize, SpanError> {
        if offset <= self.len_bytes && len_bytes <= self.len_bytes - offset {
            Ok(self.addr + offset)
        } else {
            Err(SpanError::OutOfBounds {
                offset,
                len_bytes,
                span_bytes: self.len_bytes,
            })
        }
    }

    #[inline]
    fn start_of(self, offset: usize, len_bytes: usize) -> Result<*mut u8, SpanError> {
        self.locate(offset, len_bytes)
            .map(core::ptr::with_exposed_provenance_mut)
    }

    #[inline]
    fn aligned<T>(self, offset: usize) -> Result<*mut T, SpanError> {
        let addr = self.locate(offset, size_of::<T>())?;
        if !addr.is_multiple_of(align_of::<T>()) {
            return Err(SpanError::Misaligned {
                addr,
                align: align_of::<T>(),
            });
        }
        Ok(core::ptr::with_exposed_provenance_mut(addr))
    }
}

/// The local buffer of bulk accesses.
#[repr(align(64))]
struct Piece([u8; PIECE_BYTES]);

impl Piece {
    const fn new() -> Self {
        Self([0; PIECE_BYTES])
    }

    /// As many values as it holds.
    fn values<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.0[..piece_len::<T>() * size_of::<T>()])
    }
}

/// Values in a piece.
const fn piece_len<T>() -> usize {
    const {
        assert!(size_of::<T>() > 0, "a value without bytes is nowhere in memory");
        assert!(
            size_of::<T>() <= PIECE_BYTES && align_of::<T>() <= align_of::<Piece>(),
            "a value must fit a piece"
        );
        PIECE_BYTES / size_of::<T>()
    }
}

/// Cuts `count` values from `offset` on into pieces: the offset and the number of values of each.
fn pieces<T>(offset: usize, count: usize) -> impl Iterator<Item = (usize, usize)> {
    let most = piece_len::<T>();
    (0..count)
        .step_by(most)
        .map(move |first| (offset + first * size_of::<T>(), most.min(count - first)))
}
