//! A device that a driver registers and links to one address space, and what ends with it.
//!
//! # Locking
//! None.

use isomem_core::addr::PAGE_SIZE;
use isomem_core::device::Device;
use isomem_core::mirror::{DeviceHandle, Mirror, MirrorError, MirrorState};
use isomem_core::mm::{MemoryConfig, MemoryKind, Mm, RegisterError};
use isomem_core::world::{Metadata, OutOfMetadata, World, WorldError};

/// A counted pointer into isomem's own memory.
pub(crate) type Shared<W, T> = <<W as World>::Meta as Metadata>::Shared<T>;

/// Why there is no device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The address space did not take it.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// It could not be linked to it.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// A thread could not be started.
    #[error("a thread could not be started: {0}")]
    Thread(#[from] WorldError),
    /// isomem's own memory is used up.
    #[error(transparent)]
    Metadata(#[from] OutOfMetadata),
}

/// A device that has no memory that pages could go to; the least that the core registers is a page.
pub(crate) fn without_memory(name: &'static str) -> MemoryConfig {
    MemoryConfig {
        name,
        capacity_bytes: PAGE_SIZE,
        mirror_budget_bytes: Some(0),
        kind: MemoryKind::Private,
    }
}

/// A device without memory of its own, and its mirror. Dropping it ends both: no access is in flight then, and none comes.
pub(crate) struct Link<W: World, D: Device> {
    mirror: Option<Mirror<W, D>>,
    handle: Option<DeviceHandle<W>>,
    state: Shared<W, MirrorState<W, D>>,
}

impl<W: World, D: Device> core::fmt::Debug for Link<W, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Link")
            .field("mirror", &self.mirror)
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}

impl<W: World, D: Device> Link<W, D> {
    /// Registers a device called `name`, whose side of the mirror is `side`. Effective on return (INV-8).
    pub(crate) fn open(mm: &Mm<W>, name: &'static str, side: D) -> Result<Self, OpenError> {
        let handle = mm.register(without_memory(name))?;
        let mirror = handle.mirror(W::Meta::share(side)?)?;
        let state = mirror.state().clone();
        Ok(Self {
            mirror: Some(mirror),
            handle: Some(handle),
            state,
        })
    }

    pub(crate) fn state(&self) -> &Shared<W, MirrorState<W, D>> {
        &self.state
    }

    /// What dropping it does. Who holds the state is refused from then on.
    pub(crate) fn end(&mut self) {
        drop(self.mirror.take());
        // Nobody else can have made a mirror of this handle.
        let _ = self.handle.take().map(DeviceHandle::unregister);
    }
}

impl<W: World, D: Device> Drop for Link<W, D> {
    fn drop(&mut self) {
        self.end();
    }
}
