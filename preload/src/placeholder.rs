//! The descriptors that stand for open devices.
//!
//! The program holds one end of a socket pair, this object the other. The program's end has a number like any descriptor, can be
//! duplicated, passed on and inherited, and when its last duplicate is closed, in whatever way and process, the other end is told.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socketpair};

use crate::remote::NAME;

/// What the kernel knows the program's end by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// Of whatever `fd` is; `None` where it is not open.
    pub(crate) fn of(fd: RawFd) -> Option<Self> {
        if fd < 0 {
            return None;
        }
        // SAFETY: it is only looked at, by a call that says so when it is not open.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let stat = rustix::fs::fstat(fd).ok()?;
        Some(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }
}

/// The end that stays here.
#[derive(Debug)]
pub(crate) struct Far {
    /// Of the program's end.
    pub(crate) identity: Identity,
    own: Identity,
    fd: Arc<OwnedFd>,
}

impl Far {
    /// Whether the program's last duplicate is closed.
    pub(crate) fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&*self.fd, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
    }

    /// For a thread that waits on it.
    pub(crate) fn fd(&self) -> Arc<OwnedFd> {
        self.fd.clone()
    }

    /// Closes a copy that a fork's child inherited, so that it does not pass for the opener's.
    pub(crate) fn close_copy(&self) {
        if Identity::of(self.fd.as_raw_fd()) == Some(self.own) {
            // SAFETY: it is what this object had open in the parent, whose table the child never uses again.
            drop(unsafe { OwnedFd::from_raw_fd(self.fd.as_raw_fd()) });
        }
    }
}

/// The program's end, close-on-exec or not, and ours.
pub(crate) fn pair(near: SocketFlags) -> Result<(OwnedFd, Far), Errno> {
    let (program, fd) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    if !near.contains(SocketFlags::CLOEXEC) {
        rustix::io::fcntl_setfd(&program, rustix::io::FdFlags::empty())?;
    }
    name(&program)?;
    let of = |fd: &OwnedFd| Identity::of(fd.as_raw_fd()).ok_or(Errno::BADF);
    let (identity, own) = (of(&program)?, of(&fd)?);
    let fd = Arc::new(fd);
    Ok((program, Far { identity, own, fd }))
}

/// So that other processes know it for a device.
fn name(program: &OwnedFd) -> Result<(), Errno> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    loop {
        // Relaxed: only the numbers must differ.
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut text = NAME.to_vec();
        text.extend_from_slice(format!("{}.{number}", std::process::id()).as_bytes());
        match rustix::net::bind(program, &SocketAddrUnix::new_abstract_name(&text)?) {
            // A process of this number opened devices before, and they are still open somewhere.
            Err(Errno::ADDRINUSE) => {}
            other => return other,
        }
    }
}
