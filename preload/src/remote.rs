//! Commands through a descriptor that another process opened: the opener does them, on its own address space.
//!
//! ```text
//! a process that inherited the descriptor       the opener's thread
//! packet: command, an end of a fresh socket     .
//!   pair, a file for the data                   takes it from the far end, does the command,
//! waits on the fresh pair                       puts the data into the file, answers
//! copies the data to its own memory             .
//! the pair hangs up: the opener is gone         .
//! ```

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Weak;

use isomem_dmirror::{Command, Counts, Request};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socketpair,
};

use crate::data::{self, COMMAND_BYTES, fetch, store};
use crate::process::Open;

/// The name that every program's end has, before a number: how a process knows a descriptor that it did not open.
pub(crate) const NAME: &[u8] = b"isomem-dmirror.";

const ASK_BYTES: usize = 8 + COMMAND_BYTES;
const ANSWER_BYTES: usize = 8 + COMMAND_BYTES;

/// Whether `fd` is a device that another process opened.
pub(crate) fn is_device(fd: RawFd) -> bool {
    if fd < 0 {
        return false;
    }
    // SAFETY: it is only asked for its name, by a call that says so when it is not open.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let name = rustix::net::getsockname(fd).and_then(SocketAddrUnix::try_from);
    name.is_ok_and(|name| name.abstract_name().is_some_and(|name| name.starts_with(NAME)))
}

/// What `ioctl` on such a descriptor does.
pub(crate) fn ioctl(fd: RawFd, number: u32, at: usize) -> Result<(), Errno> {
    let command = fetch(at)?;
    let target = command.target()?;
    let request = Request::from_ioctl(number).ok_or(Errno::INVAL)?;
    let (given, taken) = request.data_bytes(target.npages);
    if given.max(taken) > data::most_data() {
        return Err(Errno::NOMEM);
    }
    let file = memfd_create(c"hmm_dmirror", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, given.max(taken) as u64)?;
    data::fill_file(file.as_fd(), command.ptr as usize, given)?;
    // SAFETY: open, as its name was found just now; should it be closed meanwhile, sending says so.
    let device = unsafe { BorrowedFd::borrow_raw(fd) };
    let counts = match ask(device, number, &command, file.as_fd()) {
        Some(answer) => answer?,
        None => {
            return request
                .without_mm()
                .and_then(|counts| store(at, &command.answered(counts)));
        }
    };
    data::empty_file(file.as_fd(), command.ptr as usize, taken)?;
    store(at, &command.answered(counts))
}

/// `None` where the opener is gone.
fn ask(device: BorrowedFd<'_>, number: u32, command: &Command, data: BorrowedFd<'_>) -> Option<Result<Counts, Errno>> {
    let (mine, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).ok()?;
    let mut packet = [0; ASK_BYTES];
    packet[..4].copy_from_slice(&number.to_ne_bytes());
    packet[8..].copy_from_slice(data::words(command).as_flattened());
    let fds = [theirs.as_fd(), data];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(device, &[IoSlice::new(&packet)], &mut control, SendFlags::NOSIGNAL).ok()?;
    drop(theirs);
    let mut answer = [0; ANSWER_BYTES];
    loop {
        match recv(&mine, &mut answer, RecvFlags::empty()) {
            Ok((ANSWER_BYTES, _)) => break,
            Err(Errno::INTR) => {}
            _ => return None,
        }
    }
    let word = |at: usize| u64::from_ne_bytes(answer[at..at + 8].try_into().unwrap_or_default());
    Some(match word(0) as i32 {
        0 => Ok(Counts {
            cpages: word(8),
            faults: word(16),
        }),
        errno => Err(Errno::from_raw_os_error(errno)),
    })
}

/// Serves one packet at a far end, if there is one: an end that hangs up looks as if there were. Until there is, the open is not held, for whoever closes
/// it brings its pages home unless a command is under way.
pub(crate) fn serve(far: BorrowedFd<'_>, open: &Weak<Open>) {
    let mut packet = [0; ASK_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut pieces = [IoSliceMut::new(&mut packet)];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(far, &mut pieces, &mut control, flags).map_or(0, |message| message.bytes);
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let mut fds = fds.next().into_iter().flatten();
    let (Some(reply), Some(data), ASK_BYTES) = (fds.next(), fds.next(), got) else {
        return;
    };
    // Closed meanwhile: who asks sees that nobody answers.
    let Some(open) = open.upgrade() else { return };
    let number = u32::from_ne_bytes(packet[..4].try_into().unwrap_or_default());
    let command = data::command(packet[8..].try_into().unwrap_or(&[0; COMMAND_BYTES]));
    let mut answer = [0; ANSWER_BYTES];
    match perform(&open, number, &command, &data) {
        Ok(counts) => {
            answer[8..16].copy_from_slice(&counts.cpages.to_ne_bytes());
            answer[16..24].copy_from_slice(&counts.faults.to_ne_bytes());
        }
        Err(errno) => answer[..8].copy_from_slice(&(errno.raw_os_error() as u64).to_ne_bytes()),
    }
    // Whoever asked may be gone.
    let _ = send(&reply, &answer, SendFlags::NOSIGNAL);
}

fn perform(open: &Open, number: u32, command: &Command, data: &OwnedFd) -> Result<Counts, Errno> {
    let request = Request::from_ioctl(number).ok_or(Errno::INVAL)?;
    let give = |out: &mut [u8]| match rustix::io::pread(data, &mut *out, 0)? {
        got if got == out.len() => Ok(()),
        _ => Err(Errno::FAULT),
    };
    let take = |bytes: &[u8]| match rustix::io::pwrite(data, bytes, 0)? {
        put if put == bytes.len() => Ok(()),
        _ => Err(Errno::NOMEM),
    };
    open.file.ioctl(request, command, give, take)
}
