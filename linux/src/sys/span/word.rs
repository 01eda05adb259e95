//! The words that can be accessed atomically.

use core::sync::atomic::Ordering;
use core::sync::atomic::{AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize};
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize};

use bytemuck::Pod;

/// What an atomic change makes of a word and its operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// The operand.
    Swap,
    /// The sum, wrapping around.
    Add,
    /// The difference, wrapping around.
    Sub,
    /// Bits in both.
    And,
    /// Bits in either.
    Or,
    /// Bits in one.
    Xor,
    /// The smaller.
    Min,
    /// The larger.
    Max,
}

mod sealed {
    pub trait Sealed {}
}

/// An integer of 1 to 8 bytes. Not for others to implement.
pub trait Word: Pod + sealed::Sealed {
    /// Its atomic.
    type Atomic: Sync + 'static;

    /// The atomic at an address.
    ///
    /// # Safety
    /// As for `AtomicU64::from_ptr`: aligned, valid for 'a, and no concurrent access that is not atomic.
    unsafe fn from_ptr<'a>(ptr: *mut Self) -> &'a Self::Atomic;

    /// `load` of the atomic.
    fn load(atomic: &Self::Atomic, order: Ordering) -> Self;

    /// `store` of the atomic.
    fn store(atomic: &Self::Atomic, value: Self, order: Ordering);

    /// `compare_exchange` of the atomic.
    fn compare_exchange(
        atomic: &Self::Atomic,
        current: Self,
        new: Self,
        orders: (Ordering, Ordering),
    ) -> Result<Self, Self>;

    /// `swap`, or the `fetch_` method of that name.
    fn update(atomic: &Self::Atomic, update: Update, operand: Self, order: Ordering) -> Self;
}

macro_rules! word {
    ($($word:ty => $atomic:ty),* $(,)?) => {$(
        impl sealed::Sealed for $word {}

        impl Word for $word {
            type Atomic = $atomic;

            #[inline]
            unsafe fn from_ptr<'a>(ptr: *mut Self) -> &'a $atomic {
                // SAFETY: passed on.
                unsafe { <$atomic>::from_ptr(ptr) }
            }

            #[inline]
            fn load(atomic: &$atomic, order: Ordering) -> Self {
                atomic.load(order)
            }

            #[inline]
            fn store(atomic: &$atomic, value: Self, order: Ordering) {
                atomic.store(value, order);
            }

            #[inline]
            fn compare_exchange(
                atomic: &$atomic,
                current: Self,
                new: Self,
                (success, failure): (Ordering, Ordering),
            ) -> Result<Self, Self> {
                atomic.compare_exchange(current, new, success, failure)
            }

            #[inline]
            fn update(atomic: &$atomic, update: Update, operand: Self, order: Ordering) -> Self {
                match update {
                    Update::Swap => atomic.swap(operand, order),
                    Update::Add => atomic.fetch_add(operand, order),
                    Update::Sub => atomic.fetch_sub(operand, order),
                    Update::And => atomic.fetch_and(operand, order),
                    Update::Or => atomic.fetch_or(operand, order),
                    Update::Xor => atomic.fetch_xor(operand, order),
                    Update::Min => atomic.fetch_min(operand, order),
                    Update::Max => atomic.fetch_max(operand, order),
                }
            }
        }
    )*};
}

word! {
    u8 => AtomicU8, u16 => AtomicU16, u32 => AtomicU32, u64 => AtomicU64, usize => AtomicUsize,
    i8 => AtomicI8, i16 => AtomicI16, i32 => AtomicI32, i64 => AtomicI64, isize => AtomicIsize,
}
