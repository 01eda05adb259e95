//! The kernel's HMM test driver in user space: four devices, and the eight commands that programs give them by `ioctl`.
//!
//! Devices 0 and 1 have private memory, 2 and 3 coherent memory. Each open has its own device page table, a mirror of the address
//! space that it was opened in. The commands, their counters and their errors are those of `/dev/hmm_dmirrorN`; where the kernel's driver
//! has a defect, the right thing is done instead (`docs/linux-parity.md`).
//!
//! # Invariants
//! - DMR-1: where a page is, only the core knows. The driver keeps nothing but its devices and its mirrors.
//! - DMR-2: on an error the command's counters are not reported, and a command that wants data gets all of it or none.
//! - DMR-3: memory of the program is touched through [`Process`] only, which answers with an error where the CPU would fault.
//!
//! # Locking
//! `minors` is held while a device is registered. No lock is held while the core is called for a command.
//!
//! Linux: lib/test_hmm.c.
#![forbid(unsafe_code)]

mod access;
mod command;
mod device;
mod file;
mod migrate;
mod snapshot;

pub use command::{Command, Counts, Request};
pub use device::{Dmirror, MINORS, OpenError};
pub use file::{Data, File};
pub use snapshot::Protection;

use isomem_core::addr::PageRange;
use rustix::io::Errno;

/// What backs an area, as far as the commands tell it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AreaKind {
    /// Private anonymous memory.
    Anonymous,
    /// A private mapping of a file.
    PrivateFile,
    /// Memory that is shared: of a file, or anonymous.
    Shared,
    /// Pages of the huge-page pool.
    Hugetlb,
}

/// Bytes of the program as a device reaches them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Where the device's entry points: the program's own memory, or device memory.
    pub addr: usize,
    /// What address the program knows them by.
    pub known_as: usize,
}

/// What the driver asks of the process beside the core: its bytes, and what is behind an area.
///
/// The methods run on threads of isomem's own and must not allocate from the program's heap.
pub trait Process: Clone + Send + Sync + 'static {
    /// Copies the bytes there to `out`; says how many there were. Never faults the caller.
    fn read(&self, place: Place, out: &mut [u8]) -> usize;

    /// Copies `from` there; says how many bytes were. Never faults the caller.
    fn write(&self, place: Place, from: &[u8]) -> usize;

    /// Reports the areas in `range`, cut to it, in address order; what is in none of them is a hole.
    fn areas(&self, range: PageRange, each: &mut dyn FnMut(PageRange, AreaKind)) -> Result<(), Errno>;

    /// Reports the pages of `range` that are present and still those of the file behind them.
    fn file_pages(&self, range: PageRange, each: &mut dyn FnMut(PageRange)) -> Result<(), Errno>;
}
