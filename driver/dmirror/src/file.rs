//! One open of a device: a mirror, and the commands that go through it.

use allocator_api2::vec::Vec;
use isomem_core::mirror::Mirror;
use isomem_core::mirror::pin::PinnedSide;
use isomem_core::mirror::range::FaultError;
use isomem_core::world::{Access, World};
use rustix::io::Errno;

use crate::Process;
use crate::command::{Command, Counts, Request, Target};
use crate::device::Shared;

/// The program's data on its way in or out, in memory that is never mirrored.
pub type Data<W> = Vec<u8, <W as World>::Meta>;

/// An open device. Dropping it brings every page on the device home, as closing a descriptor of the kernel's driver does.
pub struct File<W: World, P: Process> {
    device: Shared<W>,
    pub(crate) mirror: Mirror<W, PinnedSide<W>>,
    pub(crate) process: P,
}

impl<W: World, P: Process> core::fmt::Debug for File<W, P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("File")
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl<W: World, P: Process> File<W, P> {
    pub(crate) fn new(device: Shared<W>, mirror: Mirror<W, PinnedSide<W>>, process: P) -> Self {
        Self {
            device,
            mirror,
            process,
        }
    }

    /// Does what `ioctl` with this request and structure does. `give` fills a buffer with the program's data (at [`Command::ptr`]), and
    /// `take` stores the answer's there; each says with EFAULT that the program may not access it. Neither is called on a thread of
    /// isomem's own.
    ///
    /// Blocks; the caller may hold no lock that serving a CPU fault needs.
    ///
    /// # Errors
    /// The kernel's; nothing is reported then, though pages may have moved (DMR-2).
    pub fn ioctl(
        &self,
        request: Request,
        command: &Command,
        give: impl FnOnce(&mut [u8]) -> Result<(), Errno>,
        take: impl FnOnce(&[u8]) -> Result<(), Errno>,
    ) -> Result<Counts, Errno> {
        let target = command.target()?;
        let mut data = self.data(request.bytes_in(target.npages))?;
        if !data.is_empty() {
            give(&mut data)?;
        }
        let (counts, data) = self.perform(request, target, data)?;
        if request.bytes_out(target.npages) > 0 {
            take(&data)?;
        }
        Ok(counts)
    }

    /// A buffer of `len_bytes` zeroes.
    pub(crate) fn data(&self, len_bytes: usize) -> Result<Data<W>, Errno> {
        let mut data = Vec::new_in(W::Meta::default());
        if len_bytes > self.mirror.state().mm().world().memory_bytes() / 4 {
            return Err(Errno::NOMEM);
        }
        data.try_reserve_exact(len_bytes).map_err(|_| Errno::NOMEM)?;
        data.resize(len_bytes, 0);
        Ok(data)
    }

    fn perform(&self, request: Request, target: Target, data: Data<W>) -> Result<(Counts, Data<W>), Errno> {
        match request {
            Request::Read => self.access(target, Access::Read, self.data(request.bytes_out(target.npages))?),
            Request::Write => self.access(target, Access::Write, data),
            Request::MigrateToDevice => self.migrate_to_device(target),
            Request::MigrateToSystem => Ok((self.migrate_to_system(target)?, data)),
            Request::Snapshot => self.snapshot(target),
            Request::Exclusive => self.exclusive(target),
            Request::CheckExclusive => Ok((self.check_exclusive(target)?, data)),
            Request::Release => {
                self.evict();
                Ok((Counts::default(), data))
            }
        }
    }

    /// Everything on the device comes home.
    fn evict(&self) {
        // What cannot come home now does when it is touched.
        let _ = self.device.evict_all();
    }
}

impl<W: World, P: Process> Drop for File<W, P> {
    fn drop(&mut self) {
        self.evict();
    }
}

/// What the kernel answers to a failed fault.
pub(crate) fn errno_of(error: &FaultError) -> Errno {
    match error {
        FaultError::ReadOnly { .. } => Errno::PERM,
        FaultError::Read(_) => Errno::BUSY,
        FaultError::Metadata(_) => Errno::NOMEM,
        _ => Errno::FAULT,
    }
}
