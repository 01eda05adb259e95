use std::sync::Mutex;

use super::PerProcess;

static COUNTED: PerProcess<Mutex<u32>> = PerProcess::new(|| Mutex::new(0));

#[test]
fn prc_1_a_child_gets_its_own_although_the_parents_is_locked() {
    let value = COUNTED.get_or_make().unwrap();
    let locked = value.lock().unwrap();
    // SAFETY: a fork without the C library's knowledge; the child looks, and ends.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } as i32;
    if child == 0 {
        let is_fresh = COUNTED.get().is_none() && COUNTED.get_or_make().is_ok_and(|own| own.try_lock().is_ok());
        // SAFETY: ends the child.
        unsafe { libc::_exit(if is_fresh { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: the child is ours.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    drop(locked);
    assert!(core::ptr::eq(COUNTED.get().unwrap(), value));
}
