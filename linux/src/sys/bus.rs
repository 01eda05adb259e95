//! Device access to pinned memory of the process: windows that somebody vouched for, and the accesses through them.
//!
//! # Invariants
//! - LBUS-1: a [`Window`] is made by an unsafe function only; its maker vouches for the memory.
//! - LBUS-2: an access lies in a span, hence in a window and in a pin: the memory is mapped, or the MMU makes the access wait.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use isomem_core::bus::{AtomicOp, Bus, BusError, Span};
use isomem_core::world::Access;

use crate::sys::span::RawSpan;
use crate::world::Linux;

/// Memory of the process that a device may access because somebody vouched for it.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    start: usize,
    len_bytes: usize,
    access: Access,
}

impl Window {
    /// The `len_bytes` bytes from `start`, for `access`.
    ///
    /// # Safety
    /// Whenever a device accesses the window: if memory is there, its provenance was exposed and it may be accessed so, by a thread of its
    /// own. For reading, nobody writes it at the same time; for writing, nobody accesses it; where both sides use atomic operations on the same
    /// words, or volatile accesses of single words, they may do so at the same time. Addresses where nothing is mapped are allowed.
    pub const unsafe fn new(start: usize, len_bytes: usize, access: Access) -> Self {
        Self {
            start,
            len_bytes,
            access,
        }
    }

    /// What the window permits.
    pub const fn access(&self) -> Access {
        self.access
    }
}

impl isomem_core::bus::Window for Window {
    #[inline]
    fn allows(&self, addr: usize, len_bytes: usize, access: Access) -> bool {
        let offset = addr.wrapping_sub(self.start);
        offset <= self.len_bytes && len_bytes <= self.len_bytes - offset && access <= self.access
    }
}

/// The pinned bytes of an access, which [`Span::locate`] has checked.
#[inline]
fn locate(span: &Span<'_>, offset: usize, len_bytes: usize, align: usize, access: Access) -> Result<RawSpan, BusError> {
    Ok(RawSpan::new(span.locate(offset, len_bytes, align, access)?, len_bytes))
}

/// Reads a word in one access, if it is aligned for that.
macro_rules! load_word {
    ($raw:expr, $out:expr, $word:ty) => {
        // SAFETY: the span is vouched for and pinned (LBUS-2).
        if let Ok(word) = unsafe { $raw.read::<$word>(0) } {
            $out.copy_from_slice(&word.to_ne_bytes());
            return Ok(());
        }
    };
}

/// Writes a word in one access, if it is aligned for that.
macro_rules! store_word {
    ($raw:expr, $from:expr, $word:ty) => {
        if let Ok(bytes) = $from.try_into() {
            // SAFETY: the span is vouched for and pinned (LBUS-2).
            if let Ok(()) = unsafe { $raw.write(0, <$word>::from_ne_bytes(bytes)) } {
                return Ok(());
            }
        }
    };
}

macro_rules! operate {
    ($atomic:expr, $op:expr) => {{
        let atomic = $atomic;
        match $op {
            AtomicOp::Load => atomic.load(SeqCst),
            AtomicOp::Swap(value) => atomic.swap(value, SeqCst),
            AtomicOp::Add(value) => atomic.fetch_add(value, SeqCst),
            AtomicOp::And(value) => atomic.fetch_and(value, SeqCst),
            AtomicOp::Or(value) => atomic.fetch_or(value, SeqCst),
            AtomicOp::Xor(value) => atomic.fetch_xor(value, SeqCst),
            AtomicOp::Min(value) => atomic.fetch_min(value, SeqCst),
            AtomicOp::Max(value) => atomic.fetch_max(value, SeqCst),
            AtomicOp::CompareExchange { expected, new } => atomic
                .compare_exchange(expected, new, SeqCst, SeqCst)
                .unwrap_or_else(|other| other),
        }
    }};
}

impl Bus for Linux {
    type Window = Window;

    #[inline]
    fn load(&self, span: &Span<'_>, offset: usize, out: &mut [u8]) -> Result<(), BusError> {
        let raw = locate(span, offset, out.len(), 1, Access::Read)?;
        match out.len() {
            1 => load_word!(raw, out, u8),
            2 => load_word!(raw, out, u16),
            4 => load_word!(raw, out, u32),
            8 => load_word!(raw, out, u64),
            _ => {}
        }
        // SAFETY: the span is vouched for and pinned (LBUS-2); `out` is borrowed exclusively, so it is none of it.
        let copied = unsafe { raw.copy_to_slice(0, out) };
        debug_assert_eq!(copied, Ok(()), "it is as long as `out`");
        Ok(())
    }

    #[inline]
    fn store(&self, span: &Span<'_>, offset: usize, from: &[u8]) -> Result<(), BusError> {
        let raw = locate(span, offset, from.len(), 1, Access::Write)?;
        match from.len() {
            1 => store_word!(raw, from, u8),
            2 => store_word!(raw, from, u16),
            4 => store_word!(raw, from, u32),
            8 => store_word!(raw, from, u64),
            _ => {}
        }
        // SAFETY: the span is vouched for, for writing, and pinned (LBUS-2); `from` is borrowed, so nobody else may write it.
        let copied = unsafe { raw.copy_from_slice(0, from) };
        debug_assert_eq!(copied, Ok(()), "it is as long as `from`");
        Ok(())
    }

    #[inline]
    fn atomic_u32(&self, span: &Span<'_>, offset: usize, op: AtomicOp<u32>) -> Result<u32, BusError> {
        let raw = locate(span, offset, 4, 4, op.access())?;
        let word = core::ptr::with_exposed_provenance_mut::<u32>(raw.addr());
        // SAFETY: aligned by the check above; vouched for and pinned for as long as `span` is borrowed (LBUS-2).
        Ok(operate!(unsafe { AtomicU32::from_ptr(word) }, op))
    }

    #[inline]
    fn atomic_u64(&self, span: &Span<'_>, offset: usize, op: AtomicOp<u64>) -> Result<u64, BusError> {
        let raw = locate(span, offset, 8, 8, op.access())?;
        let word = core::ptr::with_exposed_provenance_mut::<u64>(raw.addr());
        // SAFETY: as in `atomic_u32`.
        Ok(operate!(unsafe { AtomicU64::from_ptr(word) }, op))
    }
}
