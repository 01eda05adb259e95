//! Finds out that a thread has left a system call that it was let make itself.
//!
//! The kernel does not tell. But a thread that is blocked shows where, and one that has spent time in user space since has left.

use isomem_core::world::World;
use rustix::fs::{Mode, OFlags};
use rustix::io::Result;

use crate::sys::seccomp::{Held, is_thread_of};
use crate::world::Linux;

/// How long a thread that only ever "runs" is given.
const AT_MOST_NS: u64 = 2_000_000_000;

/// Watches one thread.
pub(super) struct Watch<'a> {
    world: &'a Linux,
    process: u32,
    thread: i32,
    number: usize,
    user_ticks: Option<u64>,
    until_ns: u64,
}

impl<'a> Watch<'a> {
    /// Begins while the thread is held.
    pub(super) fn new(world: &'a Linux, process: u32, held: &Held) -> Self {
        let mut watch = Self {
            world,
            process,
            thread: held.thread,
            number: held.call.number,
            user_ticks: None,
            until_ns: world.now_ns() + AT_MOST_NS,
        };
        watch.user_ticks = watch.ticks();
        watch
    }

    /// Whether it has surely left the call, or has had long enough.
    pub(super) fn has_left(&self) -> bool {
        if !is_thread_of(self.process, self.thread) || self.world.now_ns() > self.until_ns {
            return true;
        }
        let mut text = [0_u8; 256];
        let Ok(len) = self.read("syscall", &mut text) else {
            return false;
        };
        let first = text[..len].split(|&byte| byte == b' ' || byte == b'\n').next();
        match first.and_then(|word| core::str::from_utf8(word).ok()) {
            Some("running") | None => self.ticks() > self.user_ticks,
            Some(word) => word.parse::<usize>().ok() != Some(self.number),
        }
    }

    /// Clock ticks that the thread spent in user space.
    fn ticks(&self) -> Option<u64> {
        let mut text = [0_u8; 1024];
        let len = self.read("stat", &mut text).ok()?;
        let text = core::str::from_utf8(&text[..len]).ok()?;
        // Field 14 of proc_pid_stat(5); the first after the name is number 3.
        text.rsplit_once(')')?.1.split_whitespace().nth(14 - 3)?.parse().ok()
    }

    fn read(&self, file: &str, text: &mut [u8]) -> Result<usize> {
        let mut path = [0_u8; 64];
        let path = write_path(&mut path, self.thread, file);
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::read(&fd, text)
    }
}

/// The path of a thread's file, without the heap.
fn write_path<'a>(buffer: &'a mut [u8; 64], thread: i32, file: &str) -> &'a str {
    use std::io::Write;
    let mut rest = &mut buffer[..];
    let _ = write!(rest, "/proc/self/task/{thread}/{file}");
    let len = 64 - rest.len();
    core::str::from_utf8(&buffer[..len]).unwrap_or_default()
}
