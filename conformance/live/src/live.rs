//! A live process as a machine, by the C library's calls: so a preloaded object comes in between.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicUsize, Ordering};
use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use isomem_conformance::{Backing, Failure, Machine, Outcome};
use isomem_core::addr::PAGE_SIZE;
use isomem_core::world::Access;
use isomem_dmirror::Command;
use rustix::io::Errno;

/// The calling process.
pub(crate) struct Live;

/// Seconds after which a case counts as hung.
const TIME_LIMIT_S: u32 = 60;

/// A result of the C library, or the errno.
fn checked(result: isize) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| {
        let errno = std::io::Error::last_os_error().raw_os_error();
        Errno::from_raw_os_error(errno.unwrap_or(libc::EIO))
    })
}

fn protection(access: Option<Access>) -> c_int {
    match access {
        None => libc::PROT_NONE,
        Some(Access::Read) => libc::PROT_READ,
        Some(Access::Write) => libc::PROT_READ | libc::PROT_WRITE,
    }
}

fn at<T>(addr: usize) -> *mut T {
    core::ptr::with_exposed_provenance_mut(addr)
}

/// A file whose pages hold their number, without a name.
fn file(len_bytes: usize) -> Result<OwnedFd, Errno> {
    // SAFETY: plain calls with a C string.
    let fd = checked(unsafe {
        libc::open(
            c"/tmp".as_ptr(),
            libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC,
            0o600,
        )
    } as isize)?;
    // SAFETY: opened just now.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as c_int) };
    rustix::fs::ftruncate(&fd, len_bytes as u64)?;
    for page in 0..len_bytes / PAGE_SIZE {
        rustix::io::pwrite(&fd, &(page as u64).to_ne_bytes(), (page * PAGE_SIZE) as u64)?;
    }
    Ok(fd)
}

fn map(len_bytes: usize, protection: c_int, flags: c_int, fd: c_int) -> Result<usize, Errno> {
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing one.
    let mapped = unsafe { libc::mmap(core::ptr::null_mut(), len_bytes, protection, flags, fd, 0) };
    match mapped {
        libc::MAP_FAILED => Err(checked(-1).err().unwrap_or(Errno::NOMEM)),
        mapped => Ok(mapped.expose_provenance()),
    }
}

impl Machine for Live {
    type Device = c_int;

    fn open(&self, minor: usize) -> Result<c_int, Errno> {
        let path = CString::new(format!("/dev/hmm_dmirror{minor}")).map_err(|_| Errno::INVAL)?;
        // SAFETY: the path is a C string.
        let fd = checked(unsafe { libc::open(path.as_ptr(), libc::O_RDWR) } as isize)?;
        Ok(fd as c_int)
    }

    fn duplicate(&self, device: c_int) -> Result<c_int, Errno> {
        // SAFETY: a plain call.
        Ok(checked(unsafe { libc::dup(device) } as isize)? as c_int)
    }

    fn close(&self, device: c_int) -> Result<(), Errno> {
        // SAFETY: the descriptor is a case's own.
        checked(unsafe { libc::close(device) } as isize).map(|_| ())
    }

    fn foreign(&self) -> Result<Vec<(c_int, Errno)>, Errno> {
        let (pipe, _) = rustix::pipe::pipe()?;
        // SAFETY: plain calls with a C string.
        let null = checked(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) } as isize)?;
        // SAFETY: a plain call.
        let socket = checked(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0) } as isize)?;
        let open = [
            pipe.into_raw_fd(),
            null as c_int,
            socket as c_int,
            file(4096)?.into_raw_fd(),
        ];
        let none = [-1, c_int::MIN, c_int::MAX, 1 << 20].map(|fd| (fd, Errno::BADF));
        Ok(open.map(|fd| (fd, Errno::NOTTY)).into_iter().chain(none).collect())
    }

    fn command(&self, device: c_int, number: u32, command: &mut Command) -> Result<(), Errno> {
        self.command_at(device, number, core::ptr::from_mut(command).expose_provenance())
    }

    fn command_with(&self, device: c_int, number: u32, command: &mut Command, data: &mut [u8]) -> Result<(), Errno> {
        command.ptr = data.as_mut_ptr().expose_provenance() as u64;
        self.command(device, number, command)
    }

    fn command_at(&self, device: c_int, number: u32, place: usize) -> Result<(), Errno> {
        // SAFETY: the driver checks the address, and the case gave it buffers of the length that the command asks for.
        checked(unsafe { libc::ioctl(device, u64::from(number), at::<c_void>(place)) } as isize).map(|_| ())
    }

    fn map_device(&self, device: c_int, len_bytes: usize) -> Result<usize, Errno> {
        map(len_bytes, protection(Some(Access::Write)), libc::MAP_PRIVATE, device)
    }

    fn map(&self, len_bytes: usize, backing: Backing, access: Option<Access>) -> Result<usize, Errno> {
        let protection = protection(access);
        let (private, shared, anonymous) = (libc::MAP_PRIVATE, libc::MAP_SHARED, libc::MAP_ANONYMOUS);
        match backing {
            Backing::Anonymous => map(len_bytes, protection, private | anonymous, -1),
            Backing::SharedAnonymous => map(len_bytes, protection, shared | anonymous, -1),
            Backing::Hugetlb => map(len_bytes, protection, private | anonymous | libc::MAP_HUGETLB, -1),
            Backing::PrivateFile => map(len_bytes, protection, private, file(len_bytes)?.as_raw_fd()),
            Backing::SharedFile => map(len_bytes, protection, shared, file(len_bytes)?.as_raw_fd()),
        }
    }

    fn unmap(&self, addr: usize, len_bytes: usize) {
        // SAFETY: memory of the case's own.
        unsafe { libc::munmap(at(addr), len_bytes) };
    }

    fn protect(&self, addr: usize, len_bytes: usize, access: Option<Access>) {
        // SAFETY: memory of the case's own.
        unsafe { libc::mprotect(at(addr), len_bytes, protection(access)) };
    }

    fn discard(&self, addr: usize, len_bytes: usize) {
        // SAFETY: memory of the case's own.
        unsafe { libc::madvise(at(addr), len_bytes, libc::MADV_DONTNEED) };
    }

    fn remap(&self, addr: usize, len_bytes: usize) -> usize {
        let room = map(len_bytes, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1).unwrap_or(0);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: memory of the case's own, to a place that was mapped for it just now.
        let moved = unsafe { libc::mremap(at(addr), len_bytes, len_bytes, flags, at::<c_void>(room)) };
        moved.expose_provenance()
    }

    fn lock(&self, addr: usize, len_bytes: usize) {
        // SAFETY: memory of the case's own.
        unsafe { libc::mlock(at(addr), len_bytes) };
    }

    fn advise_huge(&self, addr: usize, len_bytes: usize) {
        // SAFETY: memory of the case's own.
        unsafe { libc::madvise(at(addr), len_bytes, libc::MADV_HUGEPAGE) };
    }

    fn load(&self, addr: usize) -> u64 {
        // SAFETY: the case mapped it, readable; bytes lie anywhere.
        u64::from_ne_bytes(unsafe { at::<[u8; 8]>(addr).read_volatile() })
    }

    fn store(&self, addr: usize, value: u64) {
        // SAFETY: the case mapped it, writable; bytes lie anywhere.
        unsafe { at::<[u8; 8]>(addr).write_volatile(value.to_ne_bytes()) };
    }

    fn resources(&self) -> (usize, usize) {
        let count = |path| std::fs::read_dir(path).map_or(0, Iterator::count);
        (count("/proc/self/task"), count("/proc/self/fd"))
    }

    fn pause(&self) {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }

    fn in_child(&self, body: &dyn Fn(&Self) -> Outcome) -> Outcome {
        run_apart(&|| body(self))
    }

    fn beside_child(&self, body: &dyn Fn(&Self) -> Outcome, meanwhile: &dyn Fn(&Self) -> Outcome) -> Outcome {
        let child = Child::start(&|| body(self), End::Wait)?;
        let outcome = child.outcome();
        let here = meanwhile(self);
        child.kill();
        outcome.and(here)
    }

    fn after_opener(
        &self,
        opener: &dyn Fn(&Self) -> Result<c_int, Failure>,
        heir: &dyn Fn(&Self, c_int) -> Outcome,
    ) -> Outcome {
        let (report, theirs) = rustix::pipe::pipe()?;
        let theirs = std::cell::Cell::new(Some(theirs));
        let opens = || {
            let device = opener(self)?;
            let parent = rustix::process::getpid();
            let orphan = || {
                while rustix::process::getppid() == Some(parent) {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                let outcome = heir(self, device);
                theirs.take().into_iter().for_each(|theirs| tell(theirs, &outcome));
                Ok(())
            };
            Child::start(&orphan, End::Exit).map(|_| ())
        };
        run_apart(&opens)?;
        drop(theirs.take());
        Child { pid: 0, report }.outcome()
    }

    fn in_parallel(&self, main: &dyn Fn(&Self) -> Outcome, beside: &(dyn Fn(&Self) + Sync)) -> Outcome {
        std::thread::scope(|scope| {
            scope.spawn(|| beside(&Self));
            main(self)
        })
    }
}

impl Live {
    /// From now on a SIGSEGV makes this memory readable and writable again.
    pub(crate) fn on_fault_allow(&self, addr: usize, len_bytes: usize) {
        static PLACE: AtomicUsize = AtomicUsize::new(0);
        static LEN: AtomicUsize = AtomicUsize::new(0);
        extern "C" fn allow(_: c_int) {
            let (addr, len_bytes) = (PLACE.load(Ordering::Relaxed), LEN.load(Ordering::Relaxed));
            Live.protect(addr, len_bytes, Some(Access::Write));
        }
        PLACE.store(addr, Ordering::Relaxed);
        LEN.store(len_bytes, Ordering::Relaxed);
        // SAFETY: the handler makes one system call, or what a preloaded object makes of it.
        unsafe { libc::signal(libc::SIGSEGV, allow as extern "C" fn(c_int) as libc::sighandler_t) };
    }

    /// Closes every descriptor from this number on.
    pub(crate) fn close_from(&self, first: u32) {
        // SAFETY: the caller uses none of them any more.
        unsafe { libc::close_range(first, u32::MAX, 0) };
    }

    /// Runs `body` in a child that nobody waits for.
    pub(crate) fn fork_beside(&self, body: &dyn Fn()) -> Result<(), Errno> {
        let quiet = || {
            body();
            Ok(())
        };
        match Child::start(&quiet, End::Exit) {
            Ok(_) => Ok(()),
            Err(_) => Err(Errno::AGAIN),
        }
    }
}

/// What a child does when its body is done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Exit,
    Wait,
}

struct Child {
    pid: c_int,
    report: OwnedFd,
}

/// Runs `body` in a child and waits for it.
pub(crate) fn run_apart(body: &dyn Fn() -> Outcome) -> Outcome {
    let child = Child::start(body, End::Exit)?;
    let outcome = child.outcome();
    let status = child.wait();
    match outcome {
        Ok(()) if !libc::WIFEXITED(status) => {
            Err(Failure::Wrong(format!("ended by signal {}", libc::WTERMSIG(status))))
        }
        outcome => outcome,
    }
}

impl Child {
    fn start(body: &dyn Fn() -> Outcome, end: End) -> Result<Self, Failure> {
        let (report, theirs) = rustix::pipe::pipe()?;
        std::io::stdout().flush().ok();
        // SAFETY: the process has one thread of its own at this moment; what a preloaded object has besides is its own business.
        let pid = checked(unsafe { libc::fork() } as isize)? as c_int;
        if pid > 0 {
            drop(theirs);
            return Ok(Self { pid, report });
        }
        drop(report);
        // SAFETY: a plain call; the default action ends a child that hangs.
        unsafe { libc::alarm(TIME_LIMIT_S) };
        let outcome = body();
        tell(theirs, &outcome);
        if end == End::Wait {
            loop {
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        }
        // SAFETY: ends the process at once, without what the parent has yet to do.
        unsafe { libc::_exit(0) }
    }

    /// What the child reports; a child that dies first has failed.
    fn outcome(&self) -> Outcome {
        let mut report = std::fs::File::from(rustix::io::dup(&self.report)?);
        let mut text = String::new();
        if report.read_to_string(&mut text).is_err() || text.is_empty() {
            return Err(Failure::Wrong(format!(
                "the child ended without a report ({})",
                describe(self.wait())
            )));
        }
        let (kind, rest) = text.split_at(1);
        match kind {
            "o" => Ok(()),
            "s" => Err(Failure::Skipped(rest.to_owned())),
            _ => Err(Failure::Wrong(rest.to_owned())),
        }
    }

    fn wait(&self) -> c_int {
        let mut status = 0;
        // SAFETY: the call writes the status.
        unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        status
    }

    fn kill(self) {
        // SAFETY: the child is this process's own and was not waited for.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        self.wait();
    }
}

fn describe(status: c_int) -> String {
    match libc::WIFSIGNALED(status) {
        true => format!("signal {}", libc::WTERMSIG(status)),
        false => format!("status {}", libc::WEXITSTATUS(status)),
    }
}

fn tell(to: OwnedFd, outcome: &Outcome) {
    let text = match outcome {
        Ok(()) => "o".to_owned(),
        Err(Failure::Skipped(why)) => format!("s{why}"),
        Err(Failure::Wrong(what)) => format!("w{what}"),
    };
    let _ = std::fs::File::from(to).write_all(text.as_bytes());
}
