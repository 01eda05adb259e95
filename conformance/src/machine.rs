//! What a case needs of the world it runs in.

use isomem_core::world::Access;
use isomem_dmirror::Command;
use rustix::io::Errno;

use crate::bench::{Failure, Outcome};

/// What memory a case wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Private and anonymous.
    Anonymous,
    /// Shared and anonymous.
    SharedAnonymous,
    /// A private mapping of a file, whose pages hold their number.
    PrivateFile,
    /// A shared mapping of such a file.
    SharedFile,
    /// From the pool of huge pages.
    Hugetlb,
}

/// A process in some world. What the world has nothing of is EOPNOTSUPP. Addresses and lengths are in bytes; contents are words of 8 bytes.
pub trait Machine {
    /// An open descriptor. Closed by [`Machine::close`] only.
    type Device: Copy + Send + Sync;

    /// Opens device `minor`.
    fn open(&self, minor: usize) -> Result<Self::Device, Errno>;

    /// Another descriptor of the same open.
    fn duplicate(&self, device: Self::Device) -> Result<Self::Device, Errno>;

    /// Closes a descriptor.
    fn close(&self, device: Self::Device) -> Result<(), Errno>;

    /// Descriptors of something else, and what they answer to a device's command; and numbers of none.
    fn foreign(&self) -> Result<Vec<(Self::Device, Errno)>, Errno>;

    /// Gives a command by its number. `command.ptr` stays what it is.
    fn command(&self, device: Self::Device, number: u32, command: &mut Command) -> Result<(), Errno>;

    /// The same with data of the case's own behind `command.ptr`, instead of the program's.
    fn command_with(
        &self,
        device: Self::Device,
        number: u32,
        command: &mut Command,
        data: &mut [u8],
    ) -> Result<(), Errno>;

    /// Gives a command that lies at `at` in the program's memory, which may be a bad address.
    fn command_at(&self, device: Self::Device, number: u32, at: usize) -> Result<(), Errno>;

    /// Maps the device itself.
    fn map_device(&self, device: Self::Device, len_bytes: usize) -> Result<usize, Errno>;

    /// Maps memory; ENOMEM where there is none of the kind.
    fn map(&self, len_bytes: usize, backing: Backing, access: Option<Access>) -> Result<usize, Errno>;

    /// Removes a mapping.
    fn unmap(&self, addr: usize, len_bytes: usize);

    /// Sets what the program may do; `None` for nothing.
    fn protect(&self, addr: usize, len_bytes: usize, access: Option<Access>);

    /// Drops contents.
    fn discard(&self, addr: usize, len_bytes: usize);

    /// Moves a mapping to where there is room, and says where.
    fn remap(&self, addr: usize, len_bytes: usize) -> usize;

    /// Keeps pages in memory.
    fn lock(&self, addr: usize, len_bytes: usize);

    /// Asks for huge pages.
    fn advise_huge(&self, addr: usize, len_bytes: usize);

    /// The CPU reads a word.
    fn load(&self, addr: usize) -> u64;

    /// The CPU writes a word.
    fn store(&self, addr: usize, value: u64);

    /// Threads and descriptors of the process at this moment.
    fn resources(&self) -> (usize, usize);

    /// Lets some time go by.
    fn pause(&self);

    /// Runs `body` in a child made by fork, and says how it went; a child that is killed has failed.
    fn in_child(&self, body: &dyn Fn(&Self) -> Outcome) -> Outcome;

    /// Runs `body` in a child and then kills it; `meanwhile` runs here when `body` is done, before the child ends.
    fn beside_child(&self, body: &dyn Fn(&Self) -> Outcome, meanwhile: &dyn Fn(&Self) -> Outcome) -> Outcome;

    /// Runs `opener` in a child, then `heir` in a child of that one, with the descriptor that the opener answered, when the opener is gone.
    fn after_opener(
        &self,
        opener: &dyn Fn(&Self) -> Result<Self::Device, Failure>,
        heir: &dyn Fn(&Self, Self::Device) -> Outcome,
    ) -> Outcome;

    /// Runs both at the same time, `beside` on another thread.
    fn in_parallel(&self, main: &dyn Fn(&Self) -> Outcome, beside: &(dyn Fn(&Self) + Sync)) -> Outcome;
}
