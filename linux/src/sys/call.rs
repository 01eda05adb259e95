//! System calls by number, made at one place whose address is known.
//!
//! At the exact level a seccomp filter holds every call that changes the address space, but for those that come from this place: isomem's own
//! (`exact/filter.rs`). So whatever isomem's threads do to the address space they do through [`make`].
//!
//! # Invariants
//! - STUB-1: [`place`] is what the kernel sees as the instruction pointer of a call that [`make`] makes, and of no other.
//!
//! # Locking
//! None.
//!
//! Linux: seccomp_data.instruction_pointer is the address after the instruction.

use rustix::io::{Errno, Result};

/// A system call as the kernel gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub number: usize,
    /// Its arguments, used or not.
    pub args: [usize; 6],
}

impl Call {
    /// A call with those arguments; the rest are zero.
    pub fn new<const N: usize>(number: libc::c_long, args: [usize; N]) -> Self {
        const { assert!(N <= 6) };
        let mut all = [0; 6];
        all[..N].copy_from_slice(&args);
        Self {
            number: number as usize,
            args: all,
        }
    }
}

/// Nothing but the instruction. Its first two bytes are `syscall`.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
extern "C" fn instruction() {
    core::arch::naked_asm!("syscall", "ret")
}

/// Makes the call. Returns what the kernel returned, errors as negative numbers.
///
/// # Safety
/// As for the call itself.
#[cfg(target_arch = "x86_64")]
pub unsafe fn make(call: Call) -> isize {
    let [a, b, c, d, e, f] = call.args;
    let mut result = call.number;
    // SAFETY: the kernel reads these registers and changes these only; what the call does is the caller's business. The `call`
    // instruction needs the stack, which is why `nostack` is not said.
    unsafe {
        core::arch::asm!(
            "call {instruction}",
            instruction = sym instruction,
            inlateout("rax") result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            in("r9") f,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result.cast_signed()
}

/// Makes the call. Returns what the kernel returned, errors as negative numbers.
///
/// # Safety
/// As for the call itself.
#[cfg(not(target_arch = "x86_64"))]
pub unsafe fn make(call: Call) -> isize {
    let [a, b, c, d, e, f] = call.args;
    // SAFETY: the caller's business.
    let result = unsafe { libc::syscall(call.number as libc::c_long, a, b, c, d, e, f) };
    if result == -1 {
        return -(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) as isize);
    }
    result as isize
}

/// The instruction pointer of a call that [`make`] makes (STUB-1). `None` where there is no such place.
pub fn place() -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    {
        const INSTRUCTION_BYTES: u64 = 2;
        Some(instruction as *const () as u64 + INSTRUCTION_BYTES)
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// The answer of the kernel as a result.
pub fn checked(answer: isize) -> Result<usize> {
    match usize::try_from(answer) {
        Ok(value) => Ok(value),
        // An address above the middle is no answer to any call here; errors are the last page.
        Err(_) => Err(Errno::from_raw_os_error(-answer as i32)),
    }
}

#[cfg(test)]
mod tests;
