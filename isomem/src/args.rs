//! What can be handed to a kernel: borrowed slices, and tuples of them.
//!
//! The borrow is what makes a launch safe: a slice that is being read by the device is borrowed shared, one that is written is
//! borrowed exclusively, for as long as the launch runs. In the kernel it is a handle whose lifetime `'k` ends with the
//! kernel, so that it cannot be kept.
//!
//! # Invariants
//! - ARG-1: a handle's window is the borrowed slice (or the worker's part of it), with write access only where the borrow permits it.
//! - ARG-2: the parts of one `&mut` slice are disjoint and cover it.

use core::sync::atomic::{AtomicU32, AtomicU64};

use bytemuck::Pod;
use isomem_core::world::Access;

use crate::handle::{Atomics, Part, Shared};
use crate::raw::RawSlice;
use crate::worker::share;

mod sealed {
    pub trait Sealed {}
}
use sealed::Sealed;

/// Arguments of a launch: borrowed slices, and tuples of up to four of them.
///
/// | argument | handle | what a worker may do |
/// |---|---|---|
/// | `&[T]` | [`Shared`] | read any element |
/// | `&mut [T]` | [`Part`] | read and write its own part: the slice is split evenly among the workers |
/// | `&[AtomicU32]`, `&[AtomicU64]` | [`Atomics`] | atomic operations on any element, also against CPU threads |
pub trait Args: Sealed {
    /// What the kernel gets for them.
    type Handle<'k>;

    /// The arguments without their lifetime; whoever uses them keeps the borrow alive (ARG-1).
    #[doc(hidden)]
    type Raw: Copy + Send + Sync + 'static;

    #[doc(hidden)]
    fn raw(&mut self) -> Self::Raw;

    /// The handle of worker `index` of `count`.
    #[doc(hidden)]
    fn handle<'k>(raw: Self::Raw, index: usize, count: usize) -> Self::Handle<'k>;
}

/// Elements of slices that all workers may share.
///
/// Implemented for numbers, arrays of numbers, and 32- and 64-bit atomics. For a type of your own that is [`Pod`]:
///
/// ```
/// #[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
/// #[repr(C)]
/// struct Edge { from: u32, to: u32 }
///
/// impl isomem::Shareable for Edge {
///     type Kind = isomem::Plain;
/// }
/// ```
pub trait Shareable: Sync + Sized + 'static {
    /// [`Plain`] or [`Atomic`].
    type Kind: Kind<Self>;
}

/// How workers share elements of type `T`.
pub trait Kind<T>: Sealed {
    /// What the kernel gets for a `&[T]`.
    type Handle<'k>;

    /// What a shared borrow permits.
    #[doc(hidden)]
    const ACCESS: Access;

    #[doc(hidden)]
    fn handle<'k>(raw: RawSlice) -> Self::Handle<'k>;
}

/// Plain data: read only while it is shared.
#[derive(Debug, Clone, Copy)]
pub struct Plain;

/// Atomic cells.
#[derive(Debug, Clone, Copy)]
pub struct Atomic;

impl Sealed for Plain {}
impl Sealed for Atomic {}

impl<T: Pod> Kind<T> for Plain {
    type Handle<'k> = Shared<'k, T>;
    const ACCESS: Access = Access::Read;

    fn handle<'k>(raw: RawSlice) -> Shared<'k, T> {
        Shared::new(raw)
    }
}

impl Kind<AtomicU32> for Atomic {
    type Handle<'k> = Atomics<'k, u32>;
    const ACCESS: Access = Access::Write;

    fn handle<'k>(raw: RawSlice) -> Atomics<'k, u32> {
        Atomics::new(raw)
    }
}

impl Kind<AtomicU64> for Atomic {
    type Handle<'k> = Atomics<'k, u64>;
    const ACCESS: Access = Access::Write;

    fn handle<'k>(raw: RawSlice) -> Atomics<'k, u64> {
        Atomics::new(raw)
    }
}

macro_rules! plain {
    ($($number:ty)*) => {
        $(impl Shareable for $number {
            type Kind = Plain;
        }

        impl<const N: usize> Shareable for [$number; N] {
            type Kind = Plain;
        })*
    };
}

plain!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64);

impl Shareable for AtomicU32 {
    type Kind = Atomic;
}

impl Shareable for AtomicU64 {
    type Kind = Atomic;
}

impl<T: Shareable> Sealed for &[T] {}

impl<T: Shareable> Args for &[T] {
    type Handle<'k> = <T::Kind as Kind<T>>::Handle<'k>;
    type Raw = RawSlice;

    fn raw(&mut self) -> RawSlice {
        RawSlice::of(self)
    }

    fn handle<'k>(raw: RawSlice, _index: usize, _count: usize) -> Self::Handle<'k> {
        <T::Kind as Kind<T>>::handle(raw)
    }
}

impl<T: Pod + Send> Sealed for &mut [T] {}

impl<T: Pod + Send> Args for &mut [T] {
    type Handle<'k> = Part<'k, T>;
    type Raw = RawSlice;

    fn raw(&mut self) -> RawSlice {
        RawSlice::of_mut(self)
    }

    fn handle<'k>(raw: RawSlice, index: usize, count: usize) -> Part<'k, T> {
        let mine = share(raw.len(), index, count);
        Part::new(raw.part::<T>(mine.clone()), mine.start)
    }
}

macro_rules! tuple {
    ($($arg:ident $raw:ident),*) => {
        impl<$($arg: Args),*> Sealed for ($($arg,)*) {}

        impl<$($arg: Args),*> Args for ($($arg,)*) {
            type Handle<'k> = ($($arg::Handle<'k>,)*);
            type Raw = ($($arg::Raw,)*);

            #[allow(non_snake_case, reason = "type and value of each member share a name")]
            fn raw(&mut self) -> Self::Raw {
                let ($($arg,)*) = self;
                ($($arg.raw(),)*)
            }

            fn handle<'k>(($($raw,)*): Self::Raw, index: usize, count: usize) -> Self::Handle<'k> {
                ($($arg::handle($raw, index, count),)*)
            }
        }
    };
}

impl Sealed for () {}

impl Args for () {
    type Handle<'k> = ();
    type Raw = ();

    fn raw(&mut self) {}

    fn handle<'k>((): (), _index: usize, _count: usize) -> Self::Handle<'k> {}
}

tuple!(A a);
tuple!(A a, B b);
tuple!(A a, B b, C c);
tuple!(A a, B b, C c, D d);
