//! Access to memory of the process at addresses that nobody vouched for: the kernel does it, and says where there is nothing.
//!
//! # Invariants
//! - PEEK-1: no access faults the caller. A page that is on a device comes home as for any system call.

use rustix::io::Errno;

/// Copies the bytes at `addr` to `out`. Says how many there were before the first that may not be read.
#[doc(alias = "copy_from_user")]
pub fn read(addr: usize, out: &mut [u8]) -> Result<usize, Errno> {
    let local = libc::iovec {
        iov_base: out.as_mut_ptr().cast(),
        iov_len: out.len(),
    };
    let remote = remote(addr, out.len());
    whole(out.len(), |done| {
        let (local, remote) = (advance(local, done), advance(remote, done));
        // SAFETY: the local part is what is left of `out`, borrowed exclusively; the remote part is only read, by the kernel, which checks it.
        unsafe { libc::process_vm_readv(this_process(), &raw const local, 1, &raw const remote, 1, 0) }
    })
}

/// Copies `from` to `addr`. Says how many bytes were written before the first place that may not be.
///
/// # Safety
/// Whatever lies there may be overwritten: it is none of the caller's own objects, nor any that somebody holds a reference to.
#[doc(alias = "copy_to_user")]
pub unsafe fn write(addr: usize, from: &[u8]) -> Result<usize, Errno> {
    let local = libc::iovec {
        iov_base: from.as_ptr().cast_mut().cast(),
        iov_len: from.len(),
    };
    let remote = remote(addr, from.len());
    whole(from.len(), |done| {
        let (local, remote) = (advance(local, done), advance(remote, done));
        // SAFETY: the local part is what is left of `from` and only read; the remote part may be overwritten, by the caller, if the kernel finds
        // memory there.
        unsafe { libc::process_vm_writev(this_process(), &raw const local, 1, &raw const remote, 1, 0) }
    })
}

fn this_process() -> libc::pid_t {
    rustix::process::getpid().as_raw_nonzero().get()
}

fn remote(addr: usize, len_bytes: usize) -> libc::iovec {
    libc::iovec {
        iov_base: core::ptr::with_exposed_provenance_mut(addr),
        iov_len: len_bytes,
    }
}

fn advance(part: libc::iovec, done: usize) -> libc::iovec {
    libc::iovec {
        iov_base: part.iov_base.wrapping_byte_add(done),
        iov_len: part.iov_len - done,
    }
}

/// Calls `step` with the bytes done until all are, or no more can be.
fn whole(len_bytes: usize, mut step: impl FnMut(usize) -> isize) -> Result<usize, Errno> {
    let mut done = 0;
    while done < len_bytes {
        match usize::try_from(step(done)) {
            Ok(0) => break,
            Ok(bytes) => done += bytes,
            Err(_) => match std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) {
                libc::EINTR => {}
                libc::EFAULT => break,
                errno => return Err(Errno::from_raw_os_error(errno)),
            },
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests;
