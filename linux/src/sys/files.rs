//! Which file is behind a descriptor or a path of the program, and how large a shared memory is.

use core::mem::MaybeUninit;

use super::call::{Call, checked, make};

/// The number of the file that descriptor `fd` stands for; `None` where there is none.
pub fn number_of(fd: usize) -> Option<u64> {
    stat(libc::SYS_fstat, fd)
}

/// The number of the file whose path is at `path` in the program's memory.
pub fn number_at(path: usize) -> Option<u64> {
    // A call by pointer: the kernel finds out whether there is a path.
    #[cfg(target_arch = "x86_64")]
    return stat(libc::SYS_stat, path);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = path;
        None
    }
}

fn stat(number: libc::c_long, argument: usize) -> Option<u64> {
    let mut stat = MaybeUninit::<libc::stat>::zeroed();
    let call = Call::new(number, [argument, stat.as_mut_ptr().expose_provenance()]);
    // SAFETY: the call writes one such structure, which is ours.
    checked(unsafe { make(call) }).ok()?;
    // SAFETY: zeroes are a valid value, and the kernel wrote another.
    Some(unsafe { stat.assume_init() }.st_ino)
}

/// The size of shared memory number `id`.
pub fn shared_memory_bytes(id: usize) -> Option<usize> {
    let mut info = MaybeUninit::<libc::shmid_ds>::zeroed();
    let call = Call::new(
        libc::SYS_shmctl,
        [id, libc::IPC_STAT as usize, info.as_mut_ptr().expose_provenance()],
    );
    // SAFETY: the call writes one such structure, which is ours.
    checked(unsafe { make(call) }).ok()?;
    // SAFETY: zeroes are a valid value, and the kernel wrote another.
    Some(unsafe { info.assume_init() }.shm_segsz)
}
