//! The software device, as a program has it.

use isomem_core::mirror::MirrorError;
use isomem_linux::Linux;
use isomem_soft::SoftStats;

use crate::mirror::Mirror;
use crate::mm::Mm;

/// A device in software: worker threads that reach the process's memory through a page table of their own, and memory that pages migrate to.
#[derive(Debug)]
pub struct SoftDevice {
    soft: isomem_soft::SoftDevice<Linux>,
    mm: Mm,
}

/// A device cannot be unregistered while it has mirrors (LIFE-1).
#[derive(Debug, thiserror::Error)]
#[error("the device still has {mirrors} mirrors: unregister or drop them first")]
pub struct Busy {
    /// Mirrors that live.
    pub mirrors: usize,
    /// The device, unchanged.
    pub device: SoftDevice,
}

impl SoftDevice {
    pub(crate) fn new(soft: isomem_soft::SoftDevice<Linux>, mm: Mm) -> Self {
        Self { soft, mm }
    }

    /// Links the device to this process's memory (LIFE-2). A device may have several mirrors.
    pub fn mirror(&self) -> Result<Mirror, MirrorError> {
        Ok(Mirror::new(self.soft.mirror()?, self.mm.clone()))
    }

    /// How the device was made.
    pub fn config(&self) -> &isomem_soft::SoftConfig {
        self.soft.config()
    }

    /// Pages of the device's memory in use, and how many it has.
    pub fn memory_pages(&self) -> (usize, usize) {
        self.soft.memory_pages()
    }

    /// What happened on the device so far; see [`Mm::stats`] for faults and migrations.
    pub fn stats(&self) -> SoftStats {
        self.soft.stats()
    }

    /// Ends the registration (LIFE-1). The pages on the device come home first. With live mirrors it is refused and says how many.
    pub fn unregister(self) -> Result<(), Busy> {
        let Self { soft, mm } = self;
        soft.unregister().map_err(|busy| Busy {
            mirrors: busy.mirrors,
            device: Self { soft: busy.device, mm },
        })
    }

    /// Unplugs the device (LIFE-7): running kernels fail at their next access, no launch starts any more, and the pages on the device come
    /// home. Returns how many could not; those keep their contents on the device.
    pub fn fail(&self) -> usize {
        self.soft.fail()
    }
}
