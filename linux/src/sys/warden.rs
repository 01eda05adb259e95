//! Lets children go on when the process that held their calls is gone.
//!
//! A filter is inherited by children, and by what they execute; also by what the process itself executes. When nobody reads the notifications any more,
//! the kernel refuses the calls that would be held (ENOSYS), and no program can live with that. So a small process, the *warden*, has the
//! listener as well. It waits until the process that serves it has ended or has executed another program; from then on it lets every held call go on, and it
//! ends when no process is under the filter any more.
//!
//! The warden is a program of some hundred bytes, without memory of the process that it was made by: a fork would keep copies of its pages.
//!
//! # Invariants
//! - WRD-1: the warden is no child of the process (one that waits for all its children must not wait for this one), is not under the
//!   filter, holds no descriptor of the process but the listener, and is in a session of its own.
//! - WRD-2: it begins when a lock on a file ends that the process holds: the kernel ends it with the process, and, because the descriptor is closed then, when
//!   another program is executed. Children do not have the lock.
//! - WRD-3: a call that was received but not answered when the process ended is let go on, too: notifications are received in memory that the warden shares.
//!
//! # Locking
//! A record lock on the file of the notices, by this process for as long as it runs.
//!
//! ```text
//! process                      warden                           child
//! holds the lock               waits for the lock               .
//! serves                       .                                held: answered by the process
//! ends                         has the lock: lets go on         held: answered by the warden
//! .                            nobody left: ends                ends
//! ```

use std::os::fd::OwnedFd;

use rustix::io::Result;

use super::seccomp::Notice;

/// Supervisors that receive in shared memory.
const PLACES: usize = 8;

#[cfg(target_arch = "x86_64")]
mod program;

/// Where notifications are received: memory that the warden shares (WRD-3).
#[derive(Debug)]
#[repr(C)]
pub struct Notices {
    places: [core::cell::UnsafeCell<Notice>; PLACES],
    taken: [core::sync::atomic::AtomicBool; PLACES],
}

// SAFETY: each place is handed out once (`place`), and the flags are atomics.
unsafe impl Sync for Notices {}

impl Notices {
    /// Where supervisor number `index` receives. `None` where it was handed out before, or there are not so many.
    #[allow(clippy::mut_from_ref, reason = "each place is handed out once")]
    pub fn place(&self, index: usize) -> Option<&mut Notice> {
        let taken = self.taken.get(index)?;
        if taken.swap(true, core::sync::atomic::Ordering::Relaxed) {
            return None;
        }
        // SAFETY: nobody else has this place, by the flag; the warden reads it when this process is gone.
        Some(unsafe { &mut *self.places[index].get() })
    }
}

/// The warden, as its process has it.
#[derive(Debug)]
pub struct Warden {
    #[cfg(target_arch = "x86_64")]
    channel: OwnedFd,
    notices: &'static Notices,
}

impl Warden {
    /// Starts it. To be called before the filter is in force (WRD-1).
    ///
    /// # Errors
    /// Where programs cannot be executed from memory (vm.memfd_noexec), or for want of descriptors.
    pub fn start() -> Result<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            let (channel, notices) = program::start()?;
            Ok(Self { channel, notices })
        }
        #[cfg(not(target_arch = "x86_64"))]
        Err(rustix::io::Errno::NOSYS)
    }

    /// Where supervisors are to receive.
    pub fn notices(&self) -> &'static Notices {
        self.notices
    }

    /// Gives it the listener. Allocates nothing.
    ///
    /// # Errors
    /// EPIPE when it is not there.
    pub fn watch(&self, listener: &OwnedFd) -> Result<()> {
        #[cfg(target_arch = "x86_64")]
        {
            program::send(&self.channel, listener)
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = listener;
            Err(rustix::io::Errno::NOSYS)
        }
    }
}
