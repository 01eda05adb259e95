//! The bytes behind a pin, for drivers that reach memory through the world: by the CPU's page table, word by word.
//!
//! # Invariants
//! - SIMB-1: an access lies in its span, as on the live world, and the journal is told of each of its words, and that a device works on the address space.
//! - SIMB-2: a page has [`WORDS`] words; what lies behind them reads as zeroes, and what is written there is gone.
//!
//! # Locking
//! None.

use isomem_core::addr::PAGE_SIZE;
use isomem_core::bus::{AtomicOp, Bus, BusError, Span, Window};
use isomem_core::world::Access;

use crate::journal::{Actor, Event, Name};
use crate::kernel::{Op, WORDS};
use crate::rig::MM;
use crate::world::SimWorld;

/// Bytes of a word.
const WORD: usize = 8;
/// Who makes the accesses, as events have it.
const DEVICE: Name = "device";

/// Addresses of the simulated program that a device may access. Simulated memory needs nobody to vouch for it.
#[derive(Debug, Clone, Copy)]
pub struct SimWindow {
    start: usize,
    len_bytes: usize,
    access: Access,
}

impl SimWindow {
    /// The `len_bytes` bytes from `start`, for `access`.
    pub const fn new(start: usize, len_bytes: usize, access: Access) -> Self {
        Self {
            start,
            len_bytes,
            access,
        }
    }
}

impl Window for SimWindow {
    fn allows(&self, addr: usize, len_bytes: usize, access: Access) -> bool {
        let offset = addr.wrapping_sub(self.start);
        offset <= self.len_bytes && len_bytes <= self.len_bytes - offset && access <= self.access
    }
}

impl SimWorld {
    /// One word of the span, at `offset`.
    fn word(&self, span: &Span<'_>, offset: usize, op: Op) -> Result<u64, BusError> {
        let at = span.locate(offset, WORD, WORD, op.access())?;
        let addr = span.start() + offset;
        let (page, word) = (addr / PAGE_SIZE, addr % PAGE_SIZE / WORD);
        if word >= WORDS {
            return Ok(0);
        }
        let (process, device) = (self.process(), DEVICE);
        process.kernel().journal().record(Event::Works { device, mm: MM });
        let accessed = process.access(Actor::Device(device), at / PAGE_SIZE, page, word, op);
        // What a thread of the device would get a signal for.
        accessed.map_err(|_| BusError::Outside {
            addr,
            len_bytes: WORD,
            access: op.access(),
        })
    }
}

impl Bus for SimWorld {
    type Window = SimWindow;

    /// Whole words only.
    fn load(&self, span: &Span<'_>, offset: usize, out: &mut [u8]) -> Result<(), BusError> {
        span.locate(offset, out.len(), WORD, Access::Read)?;
        for (index, bytes) in out.chunks_mut(WORD).enumerate() {
            let word = self.word(span, offset + index * WORD, Op::Load)?.to_ne_bytes();
            bytes.copy_from_slice(&word[..bytes.len()]);
        }
        Ok(())
    }

    /// Whole words only.
    fn store(&self, span: &Span<'_>, offset: usize, from: &[u8]) -> Result<(), BusError> {
        span.locate(offset, from.len(), WORD, Access::Write)?;
        for (index, bytes) in from.chunks(WORD).enumerate() {
            let addr = span.start() + offset + index * WORD;
            let word = bytes.try_into().map_err(|_| BusError::Misaligned { addr })?;
            self.word(span, offset + index * WORD, Op::Store(u64::from_ne_bytes(word)))?;
        }
        Ok(())
    }

    /// There are words of 8 bytes only.
    fn atomic_u32(&self, span: &Span<'_>, offset: usize, _op: AtomicOp<u32>) -> Result<u32, BusError> {
        Err(BusError::Misaligned {
            addr: span.start() + offset,
        })
    }

    fn atomic_u64(&self, span: &Span<'_>, offset: usize, op: AtomicOp<u64>) -> Result<u64, BusError> {
        self.word(span, offset, Op::Atomic(op))
    }
}
