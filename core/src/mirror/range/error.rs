//! Why a range could not be brought in, and from where on.

use crate::addr::VirtAddr;
use crate::device::DmaError;
use crate::mm::EntryError;
use crate::notifier::ReadError;
use crate::world::{OutOfMetadata, WorldError};

/// Why a range could not be brought in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultError {
    /// No area there.
    #[error("nothing is mapped at {addr}")]
    Hole {
        /// The first such address.
        addr: VirtAddr,
    },
    /// PROT_NONE, or isomem's own memory.
    #[error("no access is allowed at {addr}")]
    NoAccess {
        /// The first such address.
        addr: VirtAddr,
    },
    /// A write to a read-only area.
    #[error("{addr} is read-only")]
    ReadOnly {
        /// The first such address.
        addr: VirtAddr,
    },
    /// Invalidations kept colliding (FLT-3).
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The mirror was released: its address space, its device or itself is gone.
    #[error("the mirror was released")]
    Released,
    /// See [`EntryError`].
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// A system call failed.
    #[error(transparent)]
    World(#[from] WorldError),
    /// The device cannot reach the page.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// isomem's own memory is used up.
    #[error(transparent)]
    Metadata(#[from] OutOfMetadata),
}

impl FaultError {
    /// The first address that may not be accessed so, where that is the reason. Pages before it kept what they got (FLT-4).
    pub fn addr(&self) -> Option<VirtAddr> {
        match self {
            Self::Hole { addr } | Self::NoAccess { addr } | Self::ReadOnly { addr } => Some(*addr),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
