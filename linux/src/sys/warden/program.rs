//! The warden's program, how it is started, and how it is given the listener.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use isomem_core::addr::PageRange;
use rustix::io::{Errno, Result};

use super::super::call::{Call, checked, make};
use super::super::mapping;
use super::super::thread::BlockedSignals;
use super::{Notices, PLACES};
use crate::sys::seccomp::Notice;

const PAGE: usize = 4096;
/// Descriptors of the process that the warden's are copied from lie above those that they are copied to.
const ABOVE: usize = 10;

/// Bytes of the program, filled up.
const PROGRAM_BYTES: usize = 1024;

/// The program. Descriptor 0 is the channel by which the listener comes, 1 the file of the notices. It stands alone: no data but its stack.
///
/// On the stack, from rsp: 0 a msghdr, 56 an iovec, 72 a byte, 80 a control message, 128 a seccomp_notif, 208 a seccomp_notif_resp, 232 a pollfd,
/// 240 a flock.
#[allow(clippy::too_many_lines, reason = "one instruction a line")]
#[unsafe(naked)]
extern "C" fn warden() {
    core::arch::naked_asm!(
        "20:",
        // close_range(2, all)
        "mov eax, 436",
        "mov edi, 2",
        "mov esi, -1",
        "xor edx, edx",
        "syscall",
        // setsid()
        "mov eax, 112",
        "syscall",
        // chdir("/")
        "push 0x2f",
        "mov rdi, rsp",
        "mov eax, 80",
        "syscall",
        // prctl(PR_SET_NAME, "isomem-warden")
        "mov edi, 15",
        "lea rsi, [rip + 8f]",
        "mov eax, 157",
        "syscall",
        "sub rsp, 512",
        "mov rdi, rsp",
        "mov ecx, 64",
        "xor eax, eax",
        "rep stosq",
        // recvmsg(0, msg, 0)
        "lea rax, [rsp + 72]",
        "mov [rsp + 56], rax",
        "mov qword ptr [rsp + 64], 1",
        "lea rax, [rsp + 56]",
        "mov [rsp + 16], rax",
        "mov qword ptr [rsp + 24], 1",
        "lea rax, [rsp + 80]",
        "mov [rsp + 32], rax",
        "mov qword ptr [rsp + 40], 24",
        "xor edi, edi",
        "mov rsi, rsp",
        "xor edx, edx",
        "mov eax, 47",
        "syscall",
        "test rax, rax",
        "jle 7f",
        // SCM_RIGHTS with one descriptor.
        "cmp qword ptr [rsp + 80], 20",
        "jne 7f",
        "mov r12d, [rsp + 96]",
        // close(0)
        "xor edi, edi",
        "mov eax, 3",
        "syscall",
        // fcntl(1, F_SETLKW, flock of all of it for writing)
        "mov word ptr [rsp + 240], 1",
        "2:",
        "mov edi, 1",
        "mov esi, 7",
        "lea rdx, [rsp + 240]",
        "mov eax, 72",
        "syscall",
        "cmp rax, -4",
        "je 2b",
        "test rax, rax",
        "js 7f",
        // mmap(0, 4096, PROT_READ, MAP_SHARED, 1, 0)
        "xor edi, edi",
        "mov esi, 4096",
        "mov edx, 1",
        "mov r10d, 1",
        "mov r8d, 1",
        "xor r9d, r9d",
        "mov eax, 9",
        "syscall",
        "test rax, rax",
        "js 4f",
        // What was received and not answered.
        "mov r13, rax",
        "mov r14d, {places}",
        "3:",
        "mov rax, [r13]",
        "mov [rsp + 208], rax",
        "call 6f",
        "add r13, {notice_bytes}",
        "dec r14d",
        "jnz 3b",
        "4:",
        // poll(listener, POLLIN, for ever)
        "mov [rsp + 232], r12d",
        "mov dword ptr [rsp + 236], 1",
        "lea rdi, [rsp + 232]",
        "mov esi, 1",
        "mov edx, -1",
        "mov eax, 7",
        "syscall",
        "test byte ptr [rsp + 238], 1",
        "jnz 5f",
        // Nobody is left (POLLHUP), or it is no listener.
        "test byte ptr [rsp + 238], 0x38",
        "jnz 7f",
        "jmp 4b",
        "5:",
        "lea rdi, [rsp + 128]",
        "mov ecx, 10",
        "xor eax, eax",
        "rep stosq",
        // SECCOMP_IOCTL_NOTIF_RECV
        "mov edi, r12d",
        "mov esi, 0xc0502100",
        "lea rdx, [rsp + 128]",
        "mov eax, 16",
        "syscall",
        "test rax, rax",
        "js 4b",
        "mov rax, [rsp + 128]",
        "mov [rsp + 208], rax",
        "call 6f",
        "jmp 4b",
        // SECCOMP_IOCTL_NOTIF_SEND of "go on"; the call has moved the stack by a word.
        "6:",
        "mov qword ptr [rsp + 8 + 216], 0",
        "mov dword ptr [rsp + 8 + 224], 0",
        "mov dword ptr [rsp + 8 + 228], 1",
        "mov edi, r12d",
        "mov esi, 0xc0182101",
        "lea rdx, [rsp + 8 + 208]",
        "mov eax, 16",
        "syscall",
        "ret",
        // exit_group(0)
        "7:",
        "xor edi, edi",
        "mov eax, 231",
        "syscall",
        "8:",
        ".asciz \"isomem-warden\"",
        ".org 20b + {program_bytes}, 0xcc",
        places = const PLACES,
        notice_bytes = const size_of::<Notice>(),
        program_bytes = const PROGRAM_BYTES,
    );
}

/// Has a child of a child execute the program behind `program`, with `channel` and `notices` as its descriptors 0 and 1, and returns the number of the
/// first child, which has ended; negative if there is none. Both borrow the caller's memory until then, and write none of it.
#[unsafe(naked)]
extern "C" fn spawn(program: usize, channel: usize, notices: usize, arguments: usize, path: usize) -> isize {
    core::arch::naked_asm!(
        // The arguments are kept where no call looks and no call changes anything.
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "mov rbx, rdi",
        "mov rbp, rsi",
        "mov r12, rdx",
        "mov r13, rcx",
        "mov r14, r8",
        // clone(CLONE_VM | CLONE_VFORK), with no signal when it ends
        "mov edi, 0x4100",
        "xor esi, esi",
        "xor edx, edx",
        "xor r10d, r10d",
        "xor r8d, r8d",
        "mov eax, 56",
        "syscall",
        "test rax, rax",
        "jnz 2f",
        // The child: clone(CLONE_VM | CLONE_VFORK | SIGCHLD), so that the warden is not the process's own child
        "mov edi, 0x4111",
        "xor esi, esi",
        "mov eax, 56",
        "syscall",
        "test rax, rax",
        "jnz 3f",
        // The child's child: dup2(channel, 0); dup2(notices, 1)
        "mov rdi, rbp",
        "xor esi, esi",
        "mov eax, 33",
        "syscall",
        "mov rdi, r12",
        "mov esi, 1",
        "mov eax, 33",
        "syscall",
        // execveat(program, "", arguments, no environment, AT_EMPTY_PATH)
        "mov rdi, rbx",
        "mov rsi, r14",
        "mov rdx, r13",
        "xor r10d, r10d",
        "mov r8d, 0x1000",
        "mov eax, 322",
        "syscall",
        "3:",
        "xor edi, edi",
        "mov eax, 60",
        "syscall",
        "2:",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    );
}

/// What executes: a header, one segment, the program.
fn image() -> [u8; PAGE] {
    const BASE: u64 = 0x10000;
    const HEADER_BYTES: u64 = 64 + 56;
    let mut image = [0; PAGE];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    // 64 bits, little-endian; executable; x86-64.
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(24, &(BASE + HEADER_BYTES).to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 1, 0]);
    // One segment to read and execute: all of the file.
    put(64, &[1, 0, 0, 0, 5, 0, 0, 0]);
    put(80, &BASE.to_le_bytes());
    put(88, &BASE.to_le_bytes());
    put(96, &(PAGE as u64).to_le_bytes());
    put(104, &(PAGE as u64).to_le_bytes());
    put(112, &(PAGE as u64).to_le_bytes());
    // SAFETY: the function is that long, filled up, and code can be read.
    let program = unsafe { core::slice::from_raw_parts(warden as *const () as *const u8, PROGRAM_BYTES) };
    put(HEADER_BYTES as usize, program);
    image
}

/// A file in memory that can be executed, with the program in it.
fn executable() -> Result<OwnedFd> {
    const MFD_EXEC: usize = 0x10;
    let name = c"isomem-warden".as_ptr().expose_provenance();
    let create = |flags: usize| {
        // SAFETY: a new file; the name is there for the call.
        checked(unsafe { make(Call::new(libc::SYS_memfd_create, [name, flags])) })
    };
    let close = libc::MFD_CLOEXEC as usize;
    // Kernels before 6.3 do not know the flag, and do what it says.
    let fd = create(close | MFD_EXEC).or_else(|_| create(close))?;
    // SAFETY: made for us just now.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let image = image();
    let mut rest = &image[..];
    while !rest.is_empty() {
        let written = rustix::io::write(&fd, rest)?;
        rest = &rest[written..];
    }
    Ok(fd)
}

/// Starts the warden, which waits for its listener.
pub(super) fn start() -> Result<(OwnedFd, &'static Notices)> {
    let program = executable()?;
    let (file, notices) = shared()?;
    let (mine, its) = channel()?;
    let its = above(&its)?;
    let above_file = above(&file)?;
    let arguments = [c"isomem-warden".as_ptr().expose_provenance(), 0];
    // No handler of the program runs in a child that borrows its memory, and none that it ignores disturbs the warden.
    let blocked = BlockedSignals::new();
    let child = spawn(
        program.as_raw_fd() as usize,
        its.as_raw_fd() as usize,
        above_file.as_raw_fd() as usize,
        arguments.as_ptr().expose_provenance(),
        c"".as_ptr().expose_provenance(),
    );
    drop(blocked);
    let child = checked(child)?;
    let wait = Call::new(libc::SYS_wait4, [child, 0, libc::__WCLONE as usize, 0]);
    // SAFETY: collects the child that ended; whoever else did it has done no harm.
    while unsafe { make(wait) } == -(libc::EINTR as isize) {}
    // Closing a descriptor of the file ends the lock of the process, so the copy goes before there is one.
    drop(above_file);
    lock(&file)?;
    // It holds the lock for as long as it is open: until the process ends, or executes another program.
    core::mem::forget(file);
    Ok((mine, notices))
}

/// A copy of the descriptor with a higher number.
fn above(fd: &OwnedFd) -> Result<OwnedFd> {
    let call = Call::new(
        libc::SYS_fcntl,
        [fd.as_raw_fd() as usize, libc::F_DUPFD_CLOEXEC as usize, ABOVE],
    );
    // SAFETY: makes a descriptor.
    let copy = checked(unsafe { make(call) })?;
    // SAFETY: made for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(copy as i32) })
}

/// A file of one page, and its memory, which stays mapped for ever.
fn shared() -> Result<(OwnedFd, &'static Notices)> {
    const { assert!(size_of::<Notices>() <= PAGE) };
    let name = c"isomem-notices".as_ptr().expose_provenance();
    let create = Call::new(libc::SYS_memfd_create, [name, libc::MFD_CLOEXEC as usize]);
    // SAFETY: a new file; the name is there for the call.
    let fd = checked(unsafe { make(create) })?;
    // SAFETY: made for us just now.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    rustix::fs::ftruncate(&fd, PAGE as u64)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let map = Call::new(
        libc::SYS_mmap,
        [
            0,
            PAGE,
            protection as usize,
            libc::MAP_SHARED as usize,
            fd.as_raw_fd() as usize,
            0,
        ],
    );
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = checked(unsafe { make(map) })?;
    mapping::list(PageRange::new(at, PAGE).map_err(|_| Errno::INVAL)?)?;
    // SAFETY: children have their own; ours stays.
    unsafe { make(Call::new(libc::SYS_madvise, [at, PAGE, libc::MADV_DONTFORK as usize])) };
    // SAFETY: a page of zeroes, which are a valid value; nobody unmaps it.
    let notices = unsafe { &*core::ptr::with_exposed_provenance::<Notices>(at) };
    Ok((fd, notices))
}

fn channel() -> Result<(OwnedFd, OwnedFd)> {
    let mut pair = [-1_i32; 2];
    let call = Call::new(
        libc::SYS_socketpair,
        [
            libc::AF_UNIX as usize,
            (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as usize,
            0,
            pair.as_mut_ptr().expose_provenance(),
        ],
    );
    // SAFETY: writes two descriptors.
    checked(unsafe { make(call) })?;
    // SAFETY: made for us just now.
    let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
    Ok((own(pair[0]), own(pair[1])))
}

/// Locks all of the file for this process.
fn lock(fd: &OwnedFd) -> Result<()> {
    let lock = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let call = Call::new(
        libc::SYS_fcntl,
        [
            fd.as_raw_fd() as usize,
            libc::F_SETLK as usize,
            (&raw const lock).expose_provenance(),
        ],
    );
    // SAFETY: the call reads the structure.
    checked(unsafe { make(call) }).map(drop)
}

/// Sends a descriptor. Allocates nothing.
pub(super) fn send(channel: &OwnedFd, fd: &OwnedFd) -> Result<()> {
    /// A control message with one descriptor.
    #[repr(C)]
    struct Rights {
        header: libc::cmsghdr,
        fd: i32,
    }
    let mut rights = Rights {
        header: libc::cmsghdr {
            cmsg_len: size_of::<libc::cmsghdr>() + size_of::<i32>(),
            cmsg_level: libc::SOL_SOCKET,
            cmsg_type: libc::SCM_RIGHTS,
        },
        fd: fd.as_raw_fd(),
    };
    let mut byte = 0_u8;
    let mut part = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let message = libc::msghdr {
        msg_name: core::ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: &raw mut part,
        msg_iovlen: 1,
        msg_control: (&raw mut rights).cast(),
        msg_controllen: size_of::<Rights>(),
        msg_flags: 0,
    };
    let call = Call::new(
        libc::SYS_sendmsg,
        [
            channel.as_raw_fd() as usize,
            (&raw const message).expose_provenance(),
            libc::MSG_NOSIGNAL as usize,
        ],
    );
    // SAFETY: the message and what it points to are there for the call.
    match checked(unsafe { make(call) }) {
        Ok(1) => Ok(()),
        Ok(_) => Err(Errno::IO),
        Err(errno) => Err(errno),
    }
}
