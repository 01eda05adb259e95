//! The commands as programs give them: numbers, the structure, and the checks that all commands share.

use isomem_core::addr::{PAGE_SIZE, PageRange, USER_END};
use rustix::io::Errno;

/// Pages that the driver brings in or moves at a time: an error leaves the chunks before it done.
pub(crate) const CHUNK: usize = 64;

/// What a program asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// The device reads, and the program gets what it read.
    Read,
    /// The device writes what the program gives.
    Write,
    /// Pages go to the device, and the program gets what is in them.
    MigrateToDevice,
    /// Pages of the device come home.
    MigrateToSystem,
    /// What the device would find, one byte a page.
    Snapshot,
    /// The CPU loses access; the program gets what is in the pages.
    Exclusive,
    /// Whether the CPU has access again.
    CheckExclusive,
    /// The device gives up its memory.
    Release,
}

impl Request {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Read,
        Self::Write,
        Self::MigrateToDevice,
        Self::MigrateToSystem,
        Self::Snapshot,
        Self::Exclusive,
        Self::CheckExclusive,
        Self::Release,
    ];

    /// By the number that `ioctl` takes: both directions, the size of [`Command`], `H`, and the number of the request.
    pub fn from_ioctl(number: u32) -> Option<Self> {
        const READ_AND_WRITE: u32 = 3;
        const KIND: u32 = READ_AND_WRITE << 30 | (size_of::<Command>() as u32) << 16 | (b'H' as u32) << 8;
        (number & !0xff == KIND)
            .then(|| Self::ALL.get((number & 0xff) as usize).copied())
            .flatten()
    }

    /// The number that `ioctl` takes.
    pub fn ioctl(self) -> u32 {
        3 << 30 | (size_of::<Command>() as u32) << 16 | u32::from(b'H') << 8 | self as u32
    }

    /// How many bytes the program gets for `npages` pages.
    pub(crate) fn bytes_out(self, npages: usize) -> usize {
        match self {
            Self::Read | Self::MigrateToDevice | Self::Exclusive => npages * PAGE_SIZE,
            Self::Snapshot => npages,
            _ => 0,
        }
    }

    /// How many bytes the program gives for `npages` pages.
    pub(crate) fn bytes_in(self, npages: usize) -> usize {
        match self {
            Self::Write => npages * PAGE_SIZE,
            _ => 0,
        }
    }

    /// How many bytes the program gives, and gets, for `npages` pages.
    pub fn data_bytes(self, npages: usize) -> (usize, usize) {
        (self.bytes_in(npages), self.bytes_out(npages))
    }

    /// The answer when the address space that the descriptor was opened in is gone.
    pub fn without_mm(self) -> Result<Counts, Errno> {
        match self {
            Self::Read | Self::Write => Err(Errno::FAULT),
            Self::MigrateToDevice | Self::MigrateToSystem | Self::Snapshot | Self::Exclusive => Err(Errno::INVAL),
            Self::CheckExclusive | Self::Release => Ok(Counts::default()),
        }
    }
}

/// The structure that programs pass, as it lies in their memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Command {
    /// Where the device is to work.
    pub addr: u64,
    /// Where the program's data is, or is to go.
    pub ptr: u64,
    /// How many pages.
    pub npages: u64,
    /// Answer: pages done.
    pub cpages: u64,
    /// Answer: times that the device had to ask for pages.
    pub faults: u64,
}

impl Command {
    /// The pages it is about.
    ///
    /// # Errors
    /// EINVAL for a misaligned, empty or wrapping range.
    pub fn target(&self) -> Result<Target, Errno> {
        let page = PAGE_SIZE as u64;
        let len = self.npages.checked_mul(page).ok_or(Errno::INVAL)?;
        let end = self.addr.checked_add(len).ok_or(Errno::INVAL)?;
        if !self.addr.is_multiple_of(page) || len == 0 {
            return Err(Errno::INVAL);
        }
        let user_end = end.min(USER_END as u64);
        let inside = user_end.saturating_sub(self.addr) / page;
        Ok(Target {
            npages: self.npages as usize,
            range: PageRange::from_pages((self.addr / page) as usize, inside as usize),
        })
    }

    /// With the answer in it.
    #[must_use]
    pub fn answered(self, counts: Counts) -> Self {
        Self {
            cpages: counts.cpages,
            faults: counts.faults,
            ..self
        }
    }
}

/// The pages of a command.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// How many.
    pub npages: usize,
    /// The part of them in user space; the rest is a hole.
    pub range: Option<PageRange>,
}

impl Target {
    /// The range, if all of it lies in user space.
    pub(crate) fn whole(self) -> Option<PageRange> {
        self.range.filter(|range| range.page_count() == self.npages)
    }
}

/// What a command reports when it worked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pages done.
    pub cpages: u64,
    /// Passes in which the device had to ask for pages.
    pub faults: u64,
}

impl Counts {
    pub(crate) fn pages(count: usize) -> Self {
        Self {
            cpages: count as u64,
            faults: 0,
        }
    }
}

/// The parts of `range` that are brought in or moved at a time.
pub(crate) fn chunks(range: PageRange) -> impl Iterator<Item = PageRange> {
    let mut rest = Some(range);
    core::iter::from_fn(move || {
        let next = rest?.take(CHUNK);
        rest = rest?.skip(next.page_count());
        Some(next)
    })
}

#[cfg(test)]
mod tests;
