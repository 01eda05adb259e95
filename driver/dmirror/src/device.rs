//! The four devices of an address space, made as they are opened.

use std::sync::{Arc, Mutex, PoisonError};

use isomem_core::addr::PAGE_SIZE;
use isomem_core::mirror::pin::PinnedSide;
use isomem_core::mirror::{DeviceHandle, MirrorError};
use isomem_core::mm::{MemoryConfig, MemoryKind, Mm, RegisterError};
use isomem_core::world::{Metadata, OutOfMetadata, World};

use crate::Process;
use crate::file::File;

/// How many devices there are.
pub const MINORS: usize = 4;

const NAMES: [&str; MINORS] = ["hmm_dmirror0", "hmm_dmirror1", "hmm_dmirror2", "hmm_dmirror3"];
/// From this minor on the CPU can map a device's memory.
const FIRST_COHERENT: usize = 2;
/// A device has so much of the machine's memory, as a fraction: the kernel's takes what it gets.
const SHARE: usize = 4;
/// Copies that can be under way through one open at the same time.
const COPIES: usize = 16;

/// Why a device could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There are [`MINORS`].
    #[error("there is no device {0}; there are 0 to 3")]
    NoDevice(usize),
    /// See [`RegisterError`].
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// See [`MirrorError`].
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// isomem's own memory is used up.
    #[error(transparent)]
    Metadata(#[from] OutOfMetadata),
}

/// A device as its opens share it.
pub(crate) type Shared<W> = Arc<DeviceHandle<W>>;

/// The devices of one address space.
pub struct Dmirror<W: World, P: Process> {
    mm: Mm<W>,
    process: P,
    minors: Mutex<[Option<Shared<W>>; MINORS]>,
}

impl<W: World, P: Process> core::fmt::Debug for Dmirror<W, P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Dmirror").finish_non_exhaustive()
    }
}

impl<W: World, P: Process> Dmirror<W, P> {
    /// The devices of `mm`, which is the address space of `process`.
    pub fn new(mm: Mm<W>, process: P) -> Self {
        Self {
            mm,
            process,
            minors: Mutex::new([const { None }; MINORS]),
        }
    }

    /// Opens a device, by its minor number. Each open has a device page table of its own.
    ///
    /// # Errors
    /// [`OpenError`]; nothing has changed then but that the device may be registered.
    pub fn open(&self, minor: usize) -> Result<File<W, P>, OpenError> {
        let device = self.device(minor)?;
        let side = W::Meta::share(PinnedSide::new(&self.mm, COPIES)?)?;
        let mirror = device.mirror(side)?;
        Ok(File::new(device, mirror, self.process.clone()))
    }

    fn device(&self, minor: usize) -> Result<Shared<W>, OpenError> {
        let mut minors = self.minors.lock().unwrap_or_else(PoisonError::into_inner);
        let place = minors.get_mut(minor).ok_or(OpenError::NoDevice(minor))?;
        if let Some(device) = place {
            return Ok(device.clone());
        }
        let capacity_bytes = (self.mm.world().memory_bytes() / SHARE).max(PAGE_SIZE);
        let device = Arc::new(self.mm.register(MemoryConfig {
            name: NAMES[minor],
            capacity_bytes,
            mirror_budget_bytes: None,
            kind: if minor < FIRST_COHERENT {
                MemoryKind::Private
            } else {
                MemoryKind::Coherent
            },
        })?);
        *place = Some(device.clone());
        Ok(device)
    }
}
