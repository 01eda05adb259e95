//! How a device's threads reach the bytes behind a pin: loads, stores and atomic operations, never a Rust reference.
//!
//! An access needs two proofs. A [`Window`] says that somebody vouched for the addresses: a borrowed slice, or the caller of an unsafe
//! function. A pin says that the device's page table maps them now, for this kind of access, and that an invalidation waits until
//! the pin is gone. [`Span::new`] takes both and hands out the only thing that a [`Bus`] accepts.
//!
//! # Invariants
//! - BUS-1: a [`Span`] lies within its window and within its pin, and asks for no more access than either permits.
//! - BUS-2: a [`Bus`] is never asked for bytes outside the span, nor for an atomic operation on a misaligned address.
//!
//! # Locking
//! None. Loads and stores order nothing; atomic operations are sequentially consistent, like a CPU's locked instructions.

use crate::mirror::pin::Pin;
use crate::mirror::table::Flags;
use crate::world::{Access, World};

/// Addresses that somebody vouched for: while the window is used, they are memory that a device may access.
///
/// Making one is the unsafe step, so the types that implement this are made by unsafe functions only.
pub trait Window: Copy + Send + Sync + 'static {
    /// Whether the window holds all of `len_bytes` bytes from `addr` and permits `access`.
    fn allows(&self, addr: usize, len_bytes: usize, access: Access) -> bool;
}

/// An operation on an atomic word. Each tells the value before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtomicOp<T> {
    /// Read.
    Load,
    /// Replace.
    Swap(T),
    /// Add, wrapping around.
    Add(T),
    /// Bitwise and.
    And(T),
    /// Bitwise or.
    Or(T),
    /// Bitwise exclusive or.
    Xor(T),
    /// Keep the smaller.
    Min(T),
    /// Keep the larger.
    Max(T),
    /// Replace `expected` by `new`; leave any other value.
    CompareExchange {
        /// The value to be replaced.
        expected: T,
        /// Its replacement.
        new: T,
    },
}

impl<T> AtomicOp<T> {
    /// What the operation needs of the page.
    pub const fn access(&self) -> Access {
        match self {
            Self::Load => Access::Read,
            _ => Access::Write,
        }
    }
}

/// An access that its span does not permit. Nothing was touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// It would leave the span, or writes to one that is for reading.
    #[error("{len_bytes} bytes at {addr:#x} are outside of what is pinned for {access:?}")]
    Outside {
        /// Program address of the first byte.
        addr: usize,
        /// Length of the access.
        len_bytes: usize,
        /// What it was.
        access: Access,
    },
    /// An atomic operation on an address that is not a multiple of its size.
    #[error("an atomic operation at {addr:#x}, which is not a multiple of its size")]
    Misaligned {
        /// Program address.
        addr: usize,
    },
}

/// Pinned bytes that may be accessed. As long as it lives, an invalidation of them waits: keep it short.
#[derive(Debug)]
pub struct Span<'p> {
    pin: Pin<'p>,
    access: Access,
}

impl<'p> Span<'p> {
    /// The bytes of `pin`, which was made for `access`. `None` where the pin or `window` does not permit it for all of them.
    #[inline]
    pub fn new(pin: Pin<'p>, window: &impl Window, access: Access) -> Option<Self> {
        let pinned = match access {
            Access::Read => true,
            Access::Write => pin.flags().has(Flags::WRITE | Flags::DIRTY),
        };
        let permitted = pinned && window.allows(pin.start().get(), pin.len_bytes(), access);
        permitted.then_some(Self { pin, access })
    }

    /// Program address of the first byte.
    #[inline]
    pub fn start(&self) -> usize {
        self.pin.start().get()
    }

    /// Number of bytes.
    #[inline]
    pub fn len_bytes(&self) -> usize {
        self.pin.len_bytes()
    }

    /// Where `len_bytes` bytes from `offset` are for the device, aligned for `align`, if the span permits `access` to them (BUS-2).
    #[inline]
    pub fn locate(&self, offset: usize, len_bytes: usize, align: usize, access: Access) -> Result<usize, BusError> {
        let addr = self.start().wrapping_add(offset);
        let inside = offset <= self.len_bytes() && len_bytes <= self.len_bytes() - offset;
        if !inside || access > self.access {
            return Err(BusError::Outside {
                addr,
                len_bytes,
                access,
            });
        }
        if !addr.is_multiple_of(align) {
            return Err(BusError::Misaligned { addr });
        }
        Ok(self.pin.addr() + offset)
    }
}

/// A world whose pinned memory the calling thread can access.
pub trait Bus: World {
    /// Vouched-for addresses of this world.
    type Window: Window;

    /// Copies out the bytes from `offset` on, as many as `out` holds. Naturally aligned words of up to 8 bytes are not torn.
    fn load(&self, span: &Span<'_>, offset: usize, out: &mut [u8]) -> Result<(), BusError>;

    /// Copies `from` to `offset`. Naturally aligned words of up to 8 bytes are not torn.
    fn store(&self, span: &Span<'_>, offset: usize, from: &[u8]) -> Result<(), BusError>;

    /// An atomic operation on the word at `offset`; returns the value before.
    fn atomic_u32(&self, span: &Span<'_>, offset: usize, op: AtomicOp<u32>) -> Result<u32, BusError>;

    /// An atomic operation on the word at `offset`; returns the value before.
    fn atomic_u64(&self, span: &Span<'_>, offset: usize, op: AtomicOp<u64>) -> Result<u64, BusError>;
}
