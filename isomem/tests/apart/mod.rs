//! Tests that need a process of their own: the address space, the failures made on purpose and the counts of threads and descriptors
//! are the process's. Each runs in a child, which is the same test again, and which must end in time.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use isomem::{Mirror, Mm, PAGE_SIZE, PageRange, PageState, SoftConfig, SoftDevice, ThrashPolicy};

pub const MIB: usize = 1 << 20;

/// Tells a test that it is the child, and what the parent wants of it.
const ROLE: &str = "ISOMEM_TEST_APART";

/// Runs `body` in a process of its own, which must succeed within a minute.
#[track_caller]
pub fn apart(test: &str, body: impl FnOnce()) {
    if role().is_some() {
        return body();
    }
    let status = run_again(test, "body");
    assert!(status.success(), "{test}: {status}");
}

/// What the parent wants of this process; `None` in the parent.
pub fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// Runs `test` again in a process of its own, and waits for it.
#[track_caller]
pub fn run_again(test: &str, role: &str) -> ExitStatus {
    wait(start_again(test, role), Duration::from_secs(60))
}

/// Starts `test` again in a process of its own.
pub fn start_again(test: &str, role: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, role);
    let with_parent = || {
        // SAFETY: a plain system call.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        Ok(())
    };
    // SAFETY: between fork and exec only that system call is made.
    unsafe { command.pre_exec(with_parent) };
    command.spawn().unwrap()
}

/// Waits for a child, which must end in time.
#[track_caller]
pub fn wait(mut child: Child, at_most: Duration) -> ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if began.elapsed() > at_most {
            let stacks = stacks(child.id());
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the child hangs:\n{stacks}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Where the threads of process `id` wait.
fn stacks(id: u32) -> String {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{id}/task")) else {
        return String::new();
    };
    let of = |path: std::path::PathBuf| {
        let read = |file| std::fs::read_to_string(path.join(file)).unwrap_or_default();
        format!("{}: {}", read("comm").trim(), read("wchan"))
    };
    tasks.flatten().map(|task| of(task.path()) + "\n").collect()
}

/// How a forked child ended: its exit status, or the signal. It must end in time.
#[track_caller]
pub fn wait_forked(child: i32) -> ExitStatus {
    let began = Instant::now();
    let mut status = 0;
    loop {
        // SAFETY: `status` is there for the call.
        if unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == child {
            return ExitStatus::from_raw(status);
        }
        if began.elapsed() > Duration::from_secs(20) {
            // SAFETY: the child is ours and was not waited for.
            unsafe { libc::kill(child, libc::SIGKILL) };
            panic!("the forked child hangs:\n{}", stacks(child as u32));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Pages may go to and fro: that is what most tests are about.
pub fn config() -> SoftConfig {
    SoftConfig {
        workers: 2,
        memory_bytes: 64 * MIB,
        thrash: ThrashPolicy::OFF,
        ..SoftConfig::default()
    }
}

pub fn open(config: SoftConfig) -> (Mm, SoftDevice, Mirror) {
    let mm = Mm::current().expect("these tests need userfaultfd: run them as root");
    let device = mm.soft_device(config).unwrap();
    let mirror = device.mirror().unwrap();
    (mm, device, mirror)
}

/// A mapping of its own, so that nothing else of the process lies in it.
pub struct Mapped {
    pub start: usize,
    pub len_bytes: usize,
}

impl Mapped {
    pub fn new(len_bytes: usize, protection: i32) -> Self {
        Self::with(len_bytes, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    pub fn with(len_bytes: usize, protection: i32, flags: i32, fd: i32) -> Self {
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe { libc::mmap(core::ptr::null_mut(), len_bytes, protection, flags, fd, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        let start = start.expose_provenance();
        Self { start, len_bytes }
    }

    /// Readable and writable, with a different number in each word.
    pub fn numbered(len_bytes: usize) -> Self {
        let mut memory = Self::new(len_bytes, libc::PROT_READ | libc::PROT_WRITE);
        memory.number();
        memory
    }

    /// Puts a different number into each word.
    pub fn number(&mut self) {
        let words = self.words_mut().iter_mut().enumerate();
        words.for_each(|(index, word)| *word = number(index));
    }

    pub fn range(&self) -> PageRange {
        PageRange::new(self.start, self.len_bytes).unwrap()
    }

    /// Pages `first..first + count`.
    pub fn pages(&self, first: usize, count: usize) -> PageRange {
        PageRange::new(self.start + first * PAGE_SIZE, count * PAGE_SIZE).unwrap()
    }

    pub fn words(&self) -> &[u64] {
        // SAFETY: mapped for as long as `self` lives, and any bytes are words.
        unsafe { core::slice::from_raw_parts(self.start as *const u64, self.len_bytes / 8) }
    }

    pub fn words_mut(&mut self) -> &mut [u64] {
        // SAFETY: as in `words`, and borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.start as *mut u64, self.len_bytes / 8) }
    }

    #[track_caller]
    pub fn check(&self) {
        let wrong = self
            .words()
            .iter()
            .enumerate()
            .find(|(index, word)| **word != number(*index));
        assert_eq!(wrong, None, "a word has changed");
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: nobody else knows the mapping.
        unsafe { libc::munmap(self.start as *mut _, self.len_bytes) };
    }
}

/// What [`Mapped::numbered`] puts into word `index`.
pub fn number(index: usize) -> u64 {
    index as u64 * 3 + 1
}

/// The sum of `words`, by the device.
pub fn device_sum(mirror: &Mirror, words: &[u64]) -> u64 {
    let sums = mirror.launch(words, |worker, words| {
        let mut sum = 0u64;
        let share = worker.share(words.len());
        words.for_chunks(worker, share, |_, piece| {
            sum = piece.iter().fold(sum, |sum, word| sum.wrapping_add(*word));
        })?;
        Ok(sum)
    });
    sums.unwrap().into_iter().fold(0, u64::wrapping_add)
}

pub fn pages_on_device(mirror: &Mirror, range: PageRange) -> usize {
    let snapshot = mirror.snapshot(range).unwrap();
    let on_device = |state: &PageState| matches!(state, PageState::Device { .. });
    let runs = snapshot.runs().iter().filter(|(_, state)| on_device(state));
    runs.map(|(run, _)| run.page_count()).sum()
}

/// Threads of the process. One that was joined is listed for a moment longer, so this waits a little for more than `expected` to go.
pub fn threads(expected: usize) -> usize {
    let count = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let began = Instant::now();
    while count() > expected && began.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(1));
    }
    count()
}
