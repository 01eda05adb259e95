//! What cases share: buffers with known contents, and commands on them.

use isomem_core::addr::PAGE_SIZE;
use isomem_core::world::Access;
use isomem_dmirror::{Command, Counts, Request};
use rustix::io::Errno;

use crate::machine::{Backing, Machine};

/// How a case went.
pub type Outcome = Result<(), Failure>;

/// Why a case did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It cannot be run here.
    Skipped(String),
    /// The world did something else.
    Wrong(String),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::OPNOTSUPP => Self::Skipped("this world has nothing of the kind".into()),
            errno => Self::Wrong(format!("failed: {errno:?}")),
        }
    }
}

/// Fails the case unless both are the same.
#[track_caller]
pub(crate) fn same<T: PartialEq + core::fmt::Debug>(what: &str, found: T, expected: T) -> Outcome {
    if found == expected {
        return Ok(());
    }
    let place = core::panic::Location::caller();
    Err(Failure::Wrong(format!(
        "{what} is {found:x?}, expected {expected:x?} ({}:{})",
        place.file(),
        place.line()
    )))
}

/// A machine with buffers.
pub(crate) struct Bench<'m, M: Machine> {
    pub(crate) machine: &'m M,
}

/// Memory of the program, of whole pages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffer {
    pub(crate) addr: usize,
    pub(crate) pages: usize,
}

impl Buffer {
    pub(crate) fn len_bytes(self) -> usize {
        self.pages * PAGE_SIZE
    }

    /// Pages `first..first + pages`.
    pub(crate) fn part(self, first: usize, pages: usize) -> Self {
        Self {
            addr: self.addr + first * PAGE_SIZE,
            pages,
        }
    }

    pub(crate) fn page(self, index: usize) -> usize {
        self.addr + index * PAGE_SIZE
    }
}

/// What a command did, with what it gave the program.
#[derive(Debug, Clone)]
pub(crate) struct Done {
    pub(crate) counts: Counts,
    data: Vec<u8>,
}

impl Done {
    /// The first word of each page.
    pub(crate) fn words(&self) -> Vec<u64> {
        let first = |page: &[u8]| u64::from_ne_bytes(page[..8].try_into().unwrap_or_default());
        self.data.chunks(PAGE_SIZE).map(first).collect()
    }

    /// A snapshot's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.data
    }
}

/// Contents that tell a page from the others: `from + index`.
pub(crate) fn numbers(from: u64, pages: usize) -> Vec<u64> {
    (0..pages as u64).map(|index| from + index).collect()
}

impl<'m, M: Machine> Bench<'m, M> {
    pub(crate) fn new(machine: &'m M) -> Self {
        Self { machine }
    }

    pub(crate) fn open(&self, minor: usize) -> Result<M::Device, Failure> {
        Ok(self.machine.open(minor)?)
    }

    pub(crate) fn map(&self, pages: usize, backing: Backing, access: Option<Access>) -> Result<Buffer, Failure> {
        let addr = self.machine.map(pages * PAGE_SIZE, backing, access)?;
        Ok(Buffer { addr, pages })
    }

    /// Anonymous memory, readable and writable, untouched.
    pub(crate) fn untouched(&self, pages: usize) -> Result<Buffer, Failure> {
        self.map(pages, Backing::Anonymous, Some(Access::Write))
    }

    /// The same with a number in each page, from `from` on.
    pub(crate) fn filled(&self, pages: usize, from: u64) -> Result<Buffer, Failure> {
        let buffer = self.untouched(pages)?;
        self.fill(buffer, from);
        Ok(buffer)
    }

    pub(crate) fn fill(&self, buffer: Buffer, from: u64) {
        for index in 0..buffer.pages {
            self.machine.store(buffer.page(index), from + index as u64);
        }
    }

    #[track_caller]
    pub(crate) fn holds(&self, buffer: Buffer, from: u64) -> Outcome {
        let found: Vec<u64> = (0..buffer.pages)
            .map(|index| self.machine.load(buffer.page(index)))
            .collect();
        same("what the CPU reads", found, numbers(from, buffer.pages))
    }

    pub(crate) fn unmap(&self, buffer: Buffer) {
        self.machine.unmap(buffer.addr, buffer.len_bytes());
    }

    pub(crate) fn protect(&self, buffer: Buffer, access: Option<Access>) {
        self.machine.protect(buffer.addr, buffer.len_bytes(), access);
    }

    /// Gives a command with room for its data.
    pub(crate) fn ask(&self, device: M::Device, request: Request, buffer: Buffer) -> Result<Done, Errno> {
        let (given, taken) = request.data_bytes(buffer.pages);
        self.give(device, request, buffer, vec![0xa5; given.max(taken)])
    }

    /// The device writes numbers from `from` on.
    pub(crate) fn write(&self, device: M::Device, buffer: Buffer, from: u64) -> Result<Done, Errno> {
        let mut data = vec![0; buffer.len_bytes()];
        for (page, number) in data.chunks_mut(PAGE_SIZE).zip(from..) {
            page[..8].copy_from_slice(&number.to_ne_bytes());
        }
        self.give(device, Request::Write, buffer, data)
    }

    fn give(&self, device: M::Device, request: Request, buffer: Buffer, mut data: Vec<u8>) -> Result<Done, Errno> {
        let mut command = Command {
            addr: buffer.addr as u64,
            npages: buffer.pages as u64,
            ..Command::default()
        };
        let number = request.ioctl();
        self.machine.command_with(device, number, &mut command, &mut data)?;
        let counts = Counts {
            cpages: command.cpages,
            faults: command.faults,
        };
        Ok(Done { counts, data })
    }

    /// The device reads, and finds numbers from `from` on.
    #[track_caller]
    pub(crate) fn reads(&self, device: M::Device, buffer: Buffer, from: u64) -> Outcome {
        let done = self
            .ask(device, Request::Read, buffer)
            .map_err(|errno| wrong("READ", errno))?;
        same("pages read", done.counts.cpages, buffer.pages as u64)?;
        same("what the device read", done.words(), numbers(from, buffer.pages))
    }

    /// All pages go to the device, and it finds numbers from `from` on.
    #[track_caller]
    pub(crate) fn sends(&self, device: M::Device, buffer: Buffer, from: u64) -> Outcome {
        let sent = self.ask(device, Request::MigrateToDevice, buffer);
        let done = sent.map_err(|errno| wrong("MIGRATE_TO_DEV", errno))?;
        let expected = Counts {
            cpages: buffer.pages as u64,
            faults: 0,
        };
        same("the counts", done.counts, expected)?;
        same("what the device has", done.words(), numbers(from, buffer.pages))
    }

    #[track_caller]
    pub(crate) fn takes(&self, device: M::Device, buffer: Buffer, from: u64) -> Outcome {
        let taken = self.ask(device, Request::Exclusive, buffer);
        let done = taken.map_err(|errno| wrong("EXCLUSIVE", errno))?;
        same("pages taken", done.counts.cpages, buffer.pages as u64)?;
        same("what the device has", done.words(), numbers(from, buffer.pages))
    }

    #[track_caller]
    pub(crate) fn looks(&self, device: M::Device, buffer: Buffer, expected: &[u8]) -> Outcome {
        let done = self
            .ask(device, Request::Snapshot, buffer)
            .map_err(|errno| wrong("SNAPSHOT", errno))?;
        same("pages looked at", done.counts.cpages, buffer.pages as u64)?;
        same("the snapshot", done.bytes(), expected)
    }

    /// A command fails with this errno.
    #[track_caller]
    pub(crate) fn fails(&self, device: M::Device, request: Request, buffer: Buffer, errno: Errno) -> Outcome {
        same(
            "the error",
            self.ask(device, request, buffer).map(|done| done.counts),
            Err(errno),
        )
    }
}

#[track_caller]
fn wrong(what: &str, errno: Errno) -> Failure {
    let place = core::panic::Location::caller();
    Failure::Wrong(format!("{what} failed: {errno:?} ({}:{})", place.file(), place.line()))
}
