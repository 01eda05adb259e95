//! The filter by a machine of our own that runs it.

use super::*;
use crate::sys::call::Call;

const OWN: u64 = 0x5555_0000_1234;

/// What the kernel would do with a call from `place`.
fn run(program: &[Instruction], call: &Call, place: u64) -> u32 {
    let mut data = [0_u8; 64];
    data[0..4].copy_from_slice(&(call.number as u32).to_le_bytes());
    data[4..8].copy_from_slice(&ARCH.to_le_bytes());
    data[8..16].copy_from_slice(&place.to_le_bytes());
    for (index, value) in call.args.iter().enumerate() {
        data[arg(index)..arg(index) + 8].copy_from_slice(&(*value as u64).to_le_bytes());
    }
    let word = |at: u32| u32::from_le_bytes(data[at as usize..at as usize + 4].try_into().unwrap());
    let (mut a, mut x, mut memory, mut at) = (0_u32, 0_u32, [0_u32; 16], 0_usize);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let code = u32::from(code);
        let jump = |taken: bool| usize::from(if taken { jt } else { jf });
        match code {
            _ if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => a = word(k),
            _ if code == libc::BPF_LD | libc::BPF_IMM => a = k,
            _ if code == libc::BPF_LD | libc::BPF_MEM => a = memory[k as usize],
            _ if code == libc::BPF_LDX | libc::BPF_MEM => x = memory[k as usize],
            _ if code == libc::BPF_ST => memory[k as usize] = a,
            _ if code == libc::BPF_ALU | libc::BPF_AND | libc::BPF_K => a &= k,
            _ if code == libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X => a = a.wrapping_add(x),
            _ if code == libc::BPF_JMP | libc::BPF_JA => at += k as usize,
            _ if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => at += jump(a == k),
            _ if code == libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K => at += jump(a > k),
            _ if code == libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K => at += jump(a & k != 0),
            _ if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_X => at += jump(a >= x),
            _ if code == libc::BPF_RET | libc::BPF_K => return k,
            _ => panic!("instruction {code:#x}"),
        }
    }
}

fn program(windows: &[PageRange]) -> Vec<Instruction> {
    assemble(Plan {
        windows,
        own_place: OWN,
        heap_start: 0x5600_0000_0000,
    })
    .unwrap()
}

fn is_held(program: &[Instruction], call: Call) -> bool {
    match run(program, &call, 0x7f00_0000_0000) {
        libc::SECCOMP_RET_USER_NOTIF => true,
        libc::SECCOMP_RET_ALLOW => false,
        other => panic!("{other:#x}"),
    }
}

#[test]
fn wld_2_isomems_own_calls_pass() {
    let program = program(&[]);
    let call = Call::new(libc::SYS_munmap, [0x1000, 0x1000]);
    assert_eq!(run(&program, &call, OWN), libc::SECCOMP_RET_ALLOW);
    assert_eq!(run(&program, &call, OWN + (1 << 32)), libc::SECCOMP_RET_USER_NOTIF);
    assert_eq!(run(&program, &call, OWN - 1), libc::SECCOMP_RET_USER_NOTIF);
}

#[test]
fn wld_2_everything_is_held_where_there_is_no_window() {
    let program = program(&[]);
    assert!(is_held(&program, Call::new(libc::SYS_munmap, [0x1000, 0x1000])));
    assert!(is_held(&program, Call::new(libc::SYS_brk, [0x1000])));
    assert!(!is_held(&program, Call::new(libc::SYS_brk, [0])));
    assert!(!is_held(&program, Call::new(libc::SYS_getpid, [])));
    assert!(!is_held(&program, Call::new(libc::SYS_vfork, [])));
    assert!(is_held(&program, Call::new(libc::SYS_fork, [])));
    assert!(is_held(&program, Call::new(libc::SYS_clone, [libc::SIGCHLD as usize])));
    assert!(!is_held(
        &program,
        Call::new(libc::SYS_clone, [libc::CLONE_VM as usize])
    ));
    let advise = |advice: i32| Call::new(libc::SYS_madvise, [0x1000, 0x1000, advice as usize]);
    assert!(is_held(&program, advise(libc::MADV_FREE)));
    assert!(!is_held(&program, advise(libc::MADV_HUGEPAGE)));
}

#[test]
fn inv_5_calls_outside_the_windows_pass_and_those_that_touch_one_are_held() {
    let window = |start: usize, len: usize| PageRange::new(start, len).unwrap();
    // Across the border of the low half of an address, and up to one.
    for (start, len) in [
        (0x10_0000_0000, 0x1000_0000),
        (0x1f_ffff_f000, 0x2000),
        (0x30_0000_0000, 0x1_0000_0000),
    ] {
        let program = program(&[window(start, len), window(0x7000_0000_0000, 0x1000)]);
        let unmap = |from: usize, bytes: usize| is_held(&program, Call::new(libc::SYS_munmap, [from, bytes]));
        let end = start + len;
        assert!(unmap(start, len) && unmap(start, 1) && unmap(end - 0x1000, 0x1000));
        assert!(unmap(start - 0x1000, 0x1001) && unmap(start - 0x1000, 0x2000) && unmap(0x1000, 0x6000_0000_0000));
        assert!(!unmap(start - 0x1000, 0x1000) && !unmap(end, 0x1000) && !unmap(0x1000, start - 0x1000));
        assert!(unmap(0x7000_0000_0000, 0x1000) && !unmap(0x7000_0000_1000, 0x1000));
    }
}

#[test]
fn wld_2_a_move_into_a_window_is_held() {
    let program = program(&[PageRange::new(0x10_0000_0000, 0x1000_0000).unwrap()]);
    let remap = |from: usize, flags: i32, to: usize| {
        is_held(
            &program,
            Call::new(libc::SYS_mremap, [from, 0x1000, 0x1000, flags as usize, to]),
        )
    };
    assert!(remap(0x10_0000_0000, 0, 0));
    assert!(remap(
        0x20_0000_0000,
        libc::MREMAP_FIXED | libc::MREMAP_MAYMOVE,
        0x10_0000_1000
    ));
    assert!(!remap(0x20_0000_0000, libc::MREMAP_MAYMOVE, 0x10_0000_1000));
}

#[test]
fn inv_5_the_heap_is_held_only_where_a_window_meets_it() {
    let brk = |program: &[Instruction], to: usize| is_held(program, Call::new(libc::SYS_brk, [to]));
    let below = program(&[PageRange::new(0x10_0000_0000, 0x1000_0000).unwrap()]);
    assert!(!brk(&below, 0x5600_0010_0000));
    let heap = program(&[PageRange::new(0x5600_0000_0000, 0x1000_0000).unwrap()]);
    assert!(brk(&heap, 0x5600_0010_0000) && !brk(&heap, 0x5600_1000_0000));
}

#[test]
fn fil_2_other_calls_are_let_pass_by_their_number_alone() {
    let program = program(&[]);
    // As the kernel does it: what looks at anything but number and architecture is not remembered.
    let looks = |number: usize| {
        let mut at = 0;
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            match u32::from(code) {
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS && k > 4 => return true,
                code if code == libc::BPF_JMP | libc::BPF_JA => at += k as usize,
                code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => {
                    let value = if at < 4 { ARCH } else { number as u32 };
                    at += usize::from(if value == k { jt } else { jf });
                }
                code if code == libc::BPF_RET | libc::BPF_K => return false,
                _ => {}
            }
        }
    };
    assert!(!looks(libc::SYS_read as usize));
    assert!(looks(libc::SYS_munmap as usize));
}
