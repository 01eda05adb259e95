//! userfaultfd: hears of faults and changes in registered areas, and puts pages there.
//!
//! The features are negotiated at run time: what the kernel or our privileges do not grant is left out and reported
//! in [`Features`].
//!
//! # Invariants
//! - UFFD-1: a partial result never counts more than was done: a negative progress word is zero progress.
//! - UFFD-2: an fd that the kernel hands over (a fork's) is owned from the moment it is read.
//!
//! # Locking
//! None; the kernel serialises. An event that is unread makes COPY, MOVE, ZEROPAGE and WRITEPROTECT answer EAGAIN, so
//! the thread that reads must never wait for one of them.
//!
//! Linux: fs/userfaultfd.c, mm/userfaultfd.c.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use isomem_core::addr::{PageRange, VirtAddr};
use linux_raw_sys::general as raw;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Updater, ioctl, opcode};

use super::inject::{self, Site};

mod features;

pub use features::{Features, Opened};

const API: Opcode = opcode::read_write::<raw::uffdio_api>(0xAA, 0x3F);
const REGISTER: Opcode = opcode::read_write::<raw::uffdio_register>(0xAA, 0);
const UNREGISTER: Opcode = opcode::read::<raw::uffdio_range>(0xAA, 1);
const WAKE: Opcode = opcode::read::<raw::uffdio_range>(0xAA, 2);
const COPY: Opcode = opcode::read_write::<raw::uffdio_copy>(0xAA, 3);
const ZEROPAGE: Opcode = opcode::read_write::<raw::uffdio_zeropage>(0xAA, 4);
const MOVE: Opcode = opcode::read_write::<raw::uffdio_move>(0xAA, 5);
const WRITEPROTECT: Opcode = opcode::read_write::<raw::uffdio_writeprotect>(0xAA, 6);
const POISON: Opcode = opcode::read_write::<raw::uffdio_poison>(0xAA, 8);
/// USERFAULTFD_IOC_NEW, on /dev/userfaultfd.
const NEW: Opcode = opcode::none(0xAA, 0);

/// UFFDIO_COPY_MODE_DONTWAKE, which the calls that put pages share.
const DONTWAKE: u64 = 1;
const COPY_WP: u64 = 2;
const WRITEPROTECT_WP: u64 = 1;

/// What the kernel told.
#[derive(Debug)]
pub enum Msg {
    /// A thread waits for a page.
    Fault {
        /// What it touched.
        addr: VirtAddr,
        /// It wants to write.
        write: bool,
        /// The page is there but write-protected.
        wp: bool,
        /// The thread, where the kernel tells; else 0.
        tid: u32,
    },
    /// Contents are about to be dropped.
    Remove(PageRange),
    /// The mapping is gone.
    Unmap(PageRange),
    /// The mapping moved.
    Remap {
        /// From here.
        from: PageRange,
        /// To here.
        to: PageRange,
    },
    /// A child was made; this descriptor stands for its areas.
    Fork(OwnedFd),
    /// Nothing, or something this crate does not know (the event's number).
    Other(u8),
}

impl Msg {
    fn parse(bytes: &[u8; MSG_BYTES]) -> Self {
        let word = |index: usize| {
            let at = index * 8;
            bytes[at..at + 8].try_into().map_or(0, u64::from_ne_bytes) as usize
        };
        let range = |start: usize, end: usize| PageRange::new(start, end.wrapping_sub(start));
        let parsed = match u32::from(bytes[0]) {
            raw::UFFD_EVENT_PAGEFAULT => VirtAddr::new(word(2)).ok().map(|addr| Self::Fault {
                addr,
                write: word(1) & raw::UFFD_PAGEFAULT_FLAG_WRITE as usize != 0,
                wp: word(1) & raw::UFFD_PAGEFAULT_FLAG_WP as usize != 0,
                tid: word(3) as u32,
            }),
            // SAFETY: the kernel installed this descriptor for the reader of the message, and a message is parsed
            // once (UFFD-2).
            raw::UFFD_EVENT_FORK => Some(Self::Fork(unsafe { OwnedFd::from_raw_fd(word(1) as u32 as RawFd) })),
            raw::UFFD_EVENT_REMOVE => range(word(1), word(2)).ok().map(Self::Remove),
            raw::UFFD_EVENT_UNMAP => range(word(1), word(2)).ok().map(Self::Unmap),
            raw::UFFD_EVENT_REMAP => PageRange::new(word(1), word(3))
                .and_then(|from| PageRange::new(word(2), word(3)).map(|to| Self::Remap { from, to }))
                .ok(),
            _ => None,
        };
        parsed.unwrap_or(Self::Other(bytes[0]))
    }
}

const MSG_BYTES: usize = size_of::<raw::uffd_msg>();
/// Messages that one read fetches at most.
pub const BATCH: usize = 64;

/// How far a call came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes done, from the front.
    pub bytes: usize,
    /// Why not all. After partial progress the kernel says EAGAIN whatever the cause: call again for the rest to learn it.
    pub errno: Option<Errno>,
}

impl Progress {
    /// `word` is what the kernel wrote: bytes done, or a negated errno, or what it was before (0).
    fn new(result: Result<()>, word: i64) -> Self {
        Self {
            bytes: usize::try_from(word).unwrap_or(0),
            errno: result.err(),
        }
    }
}

/// Whether threads that wait for the page go on when it was put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiters {
    /// They go on.
    Wake,
    /// They stay, until [`Uffd::wake`].
    Leave,
}

impl Waiters {
    const fn bits(self) -> u64 {
        match self {
            Self::Wake => 0,
            Self::Leave => DONTWAKE,
        }
    }
}

/// Whether a page is writable or reports writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// As the area says.
    None,
    /// A write is a fault for this descriptor.
    Write,
}

/// A userfaultfd.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
    features: Features,
}

impl Uffd {
    /// Opens one with as many of the features `wanted` (UFFD_FEATURE bits) as are granted.
    ///
    /// Fails where no way of opening is permitted (EPERM), or the kernel has no userfaultfd (ENOSYS).
    pub fn open(wanted: u64) -> Result<Self> {
        // The handshake is made once per descriptor; a first one tells what the kernel has.
        let (probe, _) = open_any()?;
        let supported = handshake(&probe, 0)?;
        let (fd, opened) = open_any()?;
        let mut bits = wanted & supported;
        match handshake(&fd, bits) {
            Ok(_) => {}
            Err(Errno::PERM) => {
                bits &= !u64::from(raw::UFFD_FEATURE_EVENT_FORK);
                handshake(&fd, bits)?;
            }
            Err(errno) => return Err(errno),
        }
        Ok(Self {
            fd,
            features: Features { opened, bits },
        })
    }

    /// Which features the kernel has at all, whatever our privileges.
    pub fn supported() -> Result<Features> {
        let (fd, opened) = open_any()?;
        Ok(Features {
            opened,
            bits: handshake(&fd, 0)?,
        })
    }

    /// The descriptor of a forked child's areas, as [`Msg::Fork`] brings it. Dropping it ends the watch there; the child's threads that wait
    /// go on.
    pub const fn of_child(fd: OwnedFd, features: Features) -> Self {
        Self { fd, features }
    }

    /// What was granted.
    pub const fn features(&self) -> Features {
        self.features
    }

    /// Reports missing pages of `range` here from now on, and writes to protected pages where the kernel can.
    pub fn register(&self, range: PageRange) -> Result<()> {
        let wp = if self.features.wp() {
            raw::UFFDIO_REGISTER_MODE_WP
        } else {
            0
        };
        let mode = u64::from(raw::UFFDIO_REGISTER_MODE_MISSING | wp);
        self.call::<REGISTER, _>(
            Site::Register,
            &mut raw::uffdio_register {
                range: bytes_of(range),
                mode,
                ioctls: 0,
            },
        )
    }

    /// Ends the reports; threads that wait in `range` go on.
    pub fn unregister(&self, range: PageRange) -> Result<()> {
        self.call::<UNREGISTER, _>(Site::Unregister, &mut bytes_of(range))
    }

    /// Lets threads that wait in `range` try again.
    pub fn wake(&self, range: PageRange) -> Result<()> {
        self.call::<WAKE, _>(Site::Wake, &mut bytes_of(range))
    }

    /// Puts the zero page at holes.
    pub fn zeropage(&self, range: PageRange, waiters: Waiters) -> Progress {
        let mut arg = raw::uffdio_zeropage {
            range: bytes_of(range),
            mode: waiters.bits(),
            zeropage: 0,
        };
        let result = self.call::<ZEROPAGE, _>(Site::Zeropage, &mut arg);
        Progress::new(result, arg.zeropage)
    }

    /// Puts copies of `len_bytes` bytes from `src` at holes from `dst`.
    pub fn copy(&self, dst: PageRange, src: usize, protection: Protection, waiters: Waiters) -> Progress {
        let wp = if protection == Protection::Write { COPY_WP } else { 0 };
        let mut arg = raw::uffdio_copy {
            dst: dst.start() as u64,
            src: src as u64,
            len: dst.len_bytes() as u64,
            mode: waiters.bits() | wp,
            copy: 0,
        };
        let result = self.call::<COPY, _>(Site::Copy, &mut arg);
        Progress::new(result, arg.copy)
    }

    /// Moves pages from `src` to holes at `dst`; `src` becomes a hole.
    #[doc(alias = "UFFDIO_MOVE")]
    pub fn move_(&self, dst: PageRange, src: usize, waiters: Waiters) -> Progress {
        let mut arg = raw::uffdio_move {
            dst: dst.start() as u64,
            src: src as u64,
            len: dst.len_bytes() as u64,
            mode: waiters.bits(),
            move_: 0,
        };
        let result = self.call::<MOVE, _>(Site::Move, &mut arg);
        Progress::new(result, arg.move_)
    }

    /// Protects the present pages of `range`, or no longer (then who waits for them goes on).
    pub fn writeprotect(&self, range: PageRange, protection: Protection) -> Result<()> {
        let mode = if protection == Protection::Write {
            WRITEPROTECT_WP
        } else {
            0
        };
        self.call::<WRITEPROTECT, _>(
            Site::WriteProtect,
            &mut raw::uffdio_writeprotect {
                range: bytes_of(range),
                mode,
            },
        )
    }

    /// Makes holes of `range` an error (SIGBUS) for who touches them.
    pub fn poison(&self, range: PageRange) -> Progress {
        let mut arg = raw::uffdio_poison {
            range: bytes_of(range),
            mode: 0,
            updated: 0,
        };
        let result = self.call::<POISON, _>(Site::Poison, &mut arg);
        Progress::new(result, arg.updated)
    }

    /// Waits for messages and fetches up to [`BATCH`] of them into the front of `out`. Faults come before events. Returns how many.
    pub fn read(&self, out: &mut [Msg]) -> Result<usize> {
        let mut bytes = [[0_u8; MSG_BYTES]; BATCH];
        let room = out.len().min(BATCH);
        let read = loop {
            let mut read = || rustix::io::read(&self.fd, bytes[..room].as_flattened_mut());
            match inject::check(Site::UffdRead).and_then(|()| read()) {
                Err(Errno::INTR) => {}
                other => break other? / MSG_BYTES,
            }
        };
        for (out, bytes) in out.iter_mut().zip(&bytes[..read]) {
            *out = Msg::parse(bytes);
        }
        Ok(read)
    }

    /// Waits until there is something to read. The descriptor must be non-blocking.
    pub fn wait(&self) -> Result<()> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(Errno::INTR) | Ok(_) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Like [`Uffd::read`] of a non-blocking descriptor: 0 where nothing is there.
    pub fn try_read(&self, out: &mut [Msg]) -> Result<usize> {
        match self.read(out) {
            Err(Errno::AGAIN) => Ok(0),
            other => other,
        }
    }

    /// From now on [`Uffd::read`] fails with EAGAIN where it would wait. The descriptor can then be polled.
    pub fn set_nonblocking(&self) -> Result<()> {
        rustix::fs::fcntl_setfl(&self.fd, OFlags::NONBLOCK)
    }

    fn call<const OP: Opcode, T>(&self, site: Site, arg: &mut T) -> Result<()> {
        call::<OP, T>(&self.fd, site, arg)
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn call<const OP: Opcode, T>(fd: impl AsFd, site: Site, arg: &mut T) -> Result<()> {
    inject::check(site)?;
    // SAFETY: each opcode above is built from the size of the structure that its callers pass.
    let request = unsafe { Updater::<OP, T>::new(arg) };
    // SAFETY: the request writes only `arg`. What it does to the ranges named in it is the caller's to answer for: they are
    // the arena, or areas of the program that it put in isomem's hands; a page that moves keeps its bytes, and
    // who touches its old place waits.
    unsafe { ioctl(fd, request) }
}

fn bytes_of(range: PageRange) -> raw::uffdio_range {
    raw::uffdio_range {
        start: range.start() as u64,
        len: range.len_bytes() as u64,
    }
}

/// Agrees on the API with the features `bits`; returns what the kernel supports (for 0) or what is on.
fn handshake(fd: &OwnedFd, bits: u64) -> Result<u64> {
    let mut arg = raw::uffdio_api {
        api: u64::from(raw::UFFD_API),
        features: bits,
        ioctls: 0,
    };
    call::<API, _>(fd, Site::UffdApi, &mut arg)?;
    Ok(arg.features)
}

fn open_any() -> Result<(OwnedFd, Opened)> {
    inject::check(Site::UffdOpen)?;
    if let Ok(fd) = open_device() {
        return Ok((fd, Opened::Device));
    }
    if let Ok(fd) = open_syscall(0) {
        return Ok((fd, Opened::Syscall));
    }
    Ok((open_syscall(raw::UFFD_USER_MODE_ONLY)?, Opened::UserModeOnly))
}

fn open_device() -> Result<OwnedFd> {
    let device = rustix::fs::open("/dev/userfaultfd", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: `NewUffd` describes USERFAULTFD_IOC_NEW.
    unsafe { ioctl(device, NewUffd) }
}

fn open_syscall(flags: u32) -> Result<OwnedFd> {
    let flags = rustix::mm::UserfaultfdFlags::from_bits_retain(flags | raw::O_CLOEXEC);
    // SAFETY: the call itself has no effect on memory.
    unsafe { rustix::mm::userfaultfd(flags) }
}

/// USERFAULTFD_IOC_NEW: takes flags by value, answers a descriptor.
struct NewUffd;

// SAFETY: the request takes an integer where a pointer stands, writes no memory of ours, and answers a new descriptor.
unsafe impl Ioctl for NewUffd {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        NEW
    }

    fn as_ptr(&mut self) -> *mut core::ffi::c_void {
        core::ptr::without_provenance_mut(raw::O_CLOEXEC as usize)
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut core::ffi::c_void) -> Result<OwnedFd> {
        // SAFETY: a successful answer is a descriptor nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}

#[cfg(test)]
mod tests;
