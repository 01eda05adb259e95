//! What can go wrong on the device, and what a launcher is told.

use core::fmt;

use isomem_core::addr::VirtAddr;
use isomem_core::mirror::range::FaultError;
use isomem_core::mm::EntryError;
use isomem_core::world::Access;

/// Bytes of a panic's message that are kept.
const NOTE_BYTES: usize = 232;

/// Why a device access failed. The access had no effect, or where it says so, only on the bytes before the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceFault {
    /// No area there.
    #[error("device fault at {addr}: nothing is mapped there")]
    Hole {
        /// The address.
        addr: VirtAddr,
    },
    /// PROT_NONE, or isomem's own memory.
    #[error("device fault at {addr}: no access is allowed there")]
    NoAccess {
        /// The address.
        addr: VirtAddr,
    },
    /// A write to a read-only area.
    #[error("device fault at {addr}: a write to read-only memory")]
    ReadOnly {
        /// The address.
        addr: VirtAddr,
    },
    /// The kernel left the memory it was given, or wrote to what it was given for reading.
    #[error("{len_bytes} bytes at {addr:#x} are not given to the kernel for {access:?}")]
    NotGiven {
        /// First address of the access.
        addr: usize,
        /// Its length.
        len_bytes: usize,
        /// What it was.
        access: Access,
    },
    /// An index beyond the end of a slice.
    #[error("index {index} is out of bounds of a slice of {len} elements")]
    OutOfBounds {
        /// The index, or the end of the range.
        index: usize,
        /// Elements of the slice.
        len: usize,
    },
    /// An atomic operation on an address that is not a multiple of its size.
    #[error("an atomic operation at {addr:#x}, which is not a multiple of its size")]
    Misaligned {
        /// The address.
        addr: usize,
    },
    /// The page was taken away again and again before the access could be made.
    #[error("device fault at {addr}: the page was taken away {tries} times in a row")]
    Thrashing {
        /// The address.
        addr: VirtAddr,
        /// Services that did not last.
        tries: u32,
    },
    /// The mirror was released: its address space, its device or itself is gone.
    #[error("the mirror was released")]
    Released,
    /// The driver could not service the miss.
    #[error("device fault at {addr}: {error}")]
    Driver {
        /// The address.
        addr: VirtAddr,
        /// What the driver said.
        error: FaultError,
    },
}

impl DeviceFault {
    /// What a driver's refusal to service a miss at `addr` means for the kernel.
    pub(crate) fn from_driver(addr: VirtAddr, error: FaultError) -> Self {
        match error {
            FaultError::Hole { .. } => Self::Hole { addr },
            FaultError::NoAccess { .. } => Self::NoAccess { addr },
            FaultError::ReadOnly { .. } => Self::ReadOnly { addr },
            FaultError::Released => Self::Released,
            error => Self::Driver { addr, error },
        }
    }
}

/// Why a launch did not happen, or did not end well.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// See [`EntryError`]. Nothing ran.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// A kernel cannot launch: it would wait for the worker it occupies. Nothing ran.
    #[error("a launch from inside a kernel: it would wait for itself")]
    Nested,
    /// The mirror was released: its address space, its device or itself is gone. Nothing ran.
    #[error("the mirror was released")]
    Released,
    /// The kernel panicked on a worker; the others ran to their end.
    #[error("the kernel panicked on worker {}: {}", .0.worker(), .0.message())]
    Panicked(Box<PanicNote>),
}

/// The first panic of a launch. It holds its text itself: it lies in memory that is never mirrored.
#[derive(Clone, Copy)]
pub struct PanicNote {
    worker: usize,
    len: usize,
    text: [u8; NOTE_BYTES],
}

impl PanicNote {
    pub(crate) fn new(worker: usize, message: &str) -> Self {
        let len = (0..=NOTE_BYTES.min(message.len()))
            .rev()
            .find(|&at| message.is_char_boundary(at))
            .unwrap_or(0);
        let mut text = [0; NOTE_BYTES];
        text[..len].copy_from_slice(&message.as_bytes()[..len]);
        Self { worker, len, text }
    }

    /// Which worker panicked.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// What it said, cut after some 230 bytes.
    pub fn message(&self) -> &str {
        core::str::from_utf8(&self.text[..self.len]).unwrap_or("")
    }
}

impl fmt::Debug for PanicNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PanicNote")
            .field("worker", &self.worker)
            .field("message", &self.message())
            .finish()
    }
}

#[cfg(test)]
mod tests;
