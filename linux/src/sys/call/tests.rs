use super::*;

#[test]
fn a_call_reaches_the_kernel_with_its_six_arguments() {
    // SAFETY: asks for a number.
    let id = unsafe { make(Call::new(libc::SYS_getpid, [])) };
    assert_eq!(id as u32, std::process::id());
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let map = Call::new(libc::SYS_mmap, [0, 4096, 3, flags as usize, usize::MAX, 0]);
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let at = checked(unsafe { make(map) }).unwrap();
    // SAFETY: mapped just now; nobody else has it.
    assert_eq!(unsafe { make(Call::new(libc::SYS_munmap, [at, 4096])) }, 0);
}

#[test]
fn an_error_is_an_errno() {
    // SAFETY: refused, for its length.
    let refused = unsafe { make(Call::new(libc::SYS_munmap, [4096, 0])) };
    assert_eq!(checked(refused), Err(Errno::INVAL));
}
