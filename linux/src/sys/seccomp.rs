//! Seccomp user notification: a filter that holds system calls, and the descriptor by which they are looked at and answered.
//!
//! # Invariants
//! - SEC-1: a filter holds from the moment [`install`] succeeds, for every thread of the process and for all its children, for ever.
//! - SEC-2: between the receipt of a notification and its answer only a fatal signal ends the wait of who is held
//!   (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV): else the call could be made twice, once by us and once by the thread that was interrupted.
//!
//! # Locking
//! None.
//!
//! Linux: kernel/seccomp.c.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::io::{Errno, Result};

use super::call::{Call, checked, make};

pub use libc::sock_filter as Instruction;

/// A system call that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Names it in the answer.
    pub id: u64,
    /// The thread that made it, as the reader's process namespace numbers it; 0 where it does not.
    pub thread: i32,
    /// The call.
    pub call: Call,
}

/// What becomes of a held call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The thread itself makes it.
    GoOn,
    /// It was made; this is what it returned.
    Returned(isize),
}

/// Where held calls are read.
#[derive(Debug)]
pub struct Listener(OwnedFd);

/// What threads of Linux can have in common; the numbers are kcmp's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// The address space.
    Memory = 1,
    /// The descriptors.
    Files = 2,
    /// The working directory and its like.
    Paths = 3,
}

/// Puts `program` in force for the process.
///
/// # Errors
/// EACCES without CAP_SYS_ADMIN and no_new_privs; EINVAL where the kernel has no such filters (Linux before 5.19); ESRCH when a thread has
/// filters that others have not; EBUSY when somebody reads this process's calls already.
pub fn install(program: &[Instruction]) -> Result<Listener> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::TOOBIG)?,
        filter: program.as_ptr().cast_mut(),
    };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
        | libc::SECCOMP_FILTER_FLAG_TSYNC
        | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH
        | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let call = Call::new(
        libc::SYS_seccomp,
        [
            libc::SECCOMP_SET_MODE_FILTER as usize,
            flags as usize,
            (&raw const program).expose_provenance(),
        ],
    );
    // SAFETY: the program lives during the call, which copies it; the kernel checks it.
    let fd = checked(unsafe { make(call) })?;
    // SAFETY: the call made it for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let listener = Listener(fd);
    // Linux 6.6; without it each answer costs a wake-up across processors.
    let _ = listener.control(libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS as usize, 1);
    Ok(listener)
}

/// Gives up, for the process and its children, what a program gains by being executed (set-user-ID). Without privileges the kernel asks for that.
pub fn set_no_new_privileges() -> Result<()> {
    // SAFETY: changes a flag of the process.
    let answer = unsafe {
        make(Call::new(
            libc::SYS_prctl,
            [libc::PR_SET_NO_NEW_PRIVS as usize, 1, 0, 0, 0],
        ))
    };
    checked(answer).map(drop)
}

/// Whether the kernel knows filters that hold calls. Changes nothing.
pub fn is_known() -> Result<()> {
    let action = libc::SECCOMP_RET_USER_NOTIF;
    let call = Call::new(
        libc::SYS_seccomp,
        [
            libc::SECCOMP_GET_ACTION_AVAIL as usize,
            0,
            (&raw const action).expose_provenance(),
        ],
    );
    // SAFETY: the call reads one number.
    checked(unsafe { make(call) }).map(drop)
}

impl Listener {
    fn control(&self, request: usize, argument: usize) -> Result<usize> {
        let call = Call::new(libc::SYS_ioctl, [self.0.as_raw_fd() as usize, request, argument]);
        // SAFETY: the callers pass what the request reads and writes.
        checked(unsafe { make(call) })
    }

    /// Waits for a held call.
    ///
    /// # Errors
    /// ENOENT or EINTR when the thread went away meanwhile: try again.
    pub fn receive(&self, place: &mut Notice) -> Result<Held> {
        place.0 = empty();
        self.control(
            libc::SECCOMP_IOCTL_NOTIF_RECV as usize,
            (&raw mut place.0).expose_provenance(),
        )?;
        let notice = &place.0;
        Ok(Held {
            id: notice.id,
            thread: notice.pid.cast_signed(),
            call: Call {
                number: notice.data.nr as u32 as usize,
                args: notice.data.args.map(|arg| arg as usize),
            },
        })
    }

    /// Answers a held call. That the thread is gone meanwhile is no error.
    pub fn answer(&self, id: u64, answer: Answer) {
        let mut response = libc::seccomp_notif_resp {
            id,
            val: 0,
            error: 0,
            flags: 0,
        };
        match answer {
            Answer::GoOn => response.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            Answer::Returned(value) if (-4095..0).contains(&value) => response.error = value as i32,
            Answer::Returned(value) => response.val = value as i64,
        }
        let _ = self.control(
            libc::SECCOMP_IOCTL_NOTIF_SEND as usize,
            (&raw mut response).expose_provenance(),
        );
    }

    /// The descriptor.
    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }
}

/// Where the kernel writes a notification.
#[repr(transparent)]
pub struct Notice(libc::seccomp_notif);

impl core::fmt::Debug for Notice {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Notice").field(&self.0.id).finish()
    }
}

impl Default for Notice {
    fn default() -> Self {
        Self(empty())
    }
}

fn empty() -> libc::seccomp_notif {
    libc::seccomp_notif {
        id: 0,
        pid: 0,
        flags: 0,
        data: libc::seccomp_data {
            nr: 0,
            arch: 0,
            instruction_pointer: 0,
            args: [0; 6],
        },
    }
}

/// Whether `thread` is one of process `process`, and lives.
pub fn is_thread_of(process: u32, thread: i32) -> bool {
    // SAFETY: signal 0 is no signal; the call only looks.
    unsafe { make(Call::new(libc::SYS_tgkill, [process as usize, thread as usize, 0])) == 0 }
}

/// Whether `thread` and the caller have the same of it. `None` where the kernel does not say.
pub fn shares(thread: i32, what: Shared) -> Option<bool> {
    let here = rustix::thread::gettid().as_raw_nonzero().get();
    let call = Call::new(libc::SYS_kcmp, [here as usize, thread as usize, what as usize, 0, 0]);
    // SAFETY: the call only looks.
    match checked(unsafe { make(call) }) {
        Ok(order) => Some(order == 0),
        Err(_) => None,
    }
}

/// A word of the calling process's memory at `addr`; `None` where it cannot be read. Waits where the page is away.
pub fn read_word(addr: usize) -> Option<u64> {
    let mut word = 0_u64;
    let local = libc::iovec {
        iov_base: (&raw mut word).cast(),
        iov_len: size_of::<u64>(),
    };
    let remote = libc::iovec {
        iov_base: core::ptr::with_exposed_provenance_mut(addr),
        iov_len: size_of::<u64>(),
    };
    let call = Call::new(
        libc::SYS_process_vm_readv,
        [
            std::process::id() as usize,
            (&raw const local).expose_provenance(),
            1,
            (&raw const remote).expose_provenance(),
            1,
            0,
        ],
    );
    // SAFETY: the call writes the one word that is ours; what it reads it checks.
    let read = checked(unsafe { make(call) });
    (read == Ok(size_of::<u64>())).then_some(word)
}
