//! Commands and data in the program's memory, which may be anywhere: what is not there, or not to be written, is EFAULT.

use std::os::fd::{AsRawFd, BorrowedFd};

use isomem_dmirror::Command;
use isomem_linux::sys::peek;
use rustix::io::Errno;

/// Bytes of a command in memory.
pub(crate) const COMMAND_BYTES: usize = size_of::<Command>();

/// The command at `at` in the program's memory.
pub(crate) fn fetch(at: usize) -> Result<Command, Errno> {
    let mut bytes = [0; COMMAND_BYTES];
    get(at, &mut bytes)?;
    Ok(command(&bytes))
}

pub(crate) fn store(at: usize, command: &Command) -> Result<(), Errno> {
    put(at, words(command).as_flattened())
}

pub(crate) fn command(bytes: &[u8; COMMAND_BYTES]) -> Command {
    let mut words = [[0; 8]; 5];
    words.as_flattened_mut().copy_from_slice(bytes);
    let [addr, ptr, npages, cpages, faults] = words.map(u64::from_ne_bytes);
    Command {
        addr,
        ptr,
        npages,
        cpages,
        faults,
    }
}

pub(crate) fn words(command: &Command) -> [[u8; 8]; 5] {
    let Command {
        addr,
        ptr,
        npages,
        cpages,
        faults,
    } = *command;
    [addr, ptr, npages, cpages, faults].map(u64::to_ne_bytes)
}

/// More data than this in one command is refused, as the kernel refuses what it cannot allocate.
pub(crate) fn most_data() -> usize {
    let info = rustix::system::sysinfo();
    usize::try_from(info.totalram)
        .unwrap_or(usize::MAX)
        .saturating_mul(info.mem_unit as usize)
        / 4
}

/// Copies `len_bytes` bytes of the program's memory to the start of `file`.
pub(crate) fn fill_file(file: BorrowedFd<'_>, addr: usize, len_bytes: usize) -> Result<(), Errno> {
    let from = core::ptr::with_exposed_provenance(addr);
    // SAFETY: the memory is only read, by the kernel, which checks it.
    let done = (len_bytes > 0).then(|| unsafe { libc::pwrite(file.as_raw_fd(), from, len_bytes, 0) });
    whole(done, len_bytes)
}

/// Copies `len_bytes` bytes from the start of `file` to the program's memory.
pub(crate) fn empty_file(file: BorrowedFd<'_>, addr: usize, len_bytes: usize) -> Result<(), Errno> {
    let to = core::ptr::with_exposed_provenance_mut(addr);
    // SAFETY: the program named this place for the answer of its call; the kernel checks that it is memory.
    let done = (len_bytes > 0).then(|| unsafe { libc::pread(file.as_raw_fd(), to, len_bytes, 0) });
    whole(done, len_bytes)
}

fn whole(done: Option<isize>, len_bytes: usize) -> Result<(), Errno> {
    match done {
        None => Ok(()),
        Some(done) if done == len_bytes as isize => Ok(()),
        Some(_) => Err(Errno::FAULT),
    }
}

pub(crate) fn get(addr: usize, out: &mut [u8]) -> Result<(), Errno> {
    match peek::read(addr, out)? {
        bytes if bytes == out.len() => Ok(()),
        _ => Err(Errno::FAULT),
    }
}

pub(crate) fn put(addr: usize, bytes: &[u8]) -> Result<(), Errno> {
    // SAFETY: the program named this place for the answer of its call.
    match unsafe { peek::write(addr, bytes) }? {
        written if written == bytes.len() => Ok(()),
        _ => Err(Errno::FAULT),
    }
}
