//! The baselines that use the kernel alone: bulk UFFDIO_MOVE, and a one-page userfault served by a thread in poll.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_linux::sys::uffd::{Msg, Uffd, Waiters};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result};

use crate::row::time;
use crate::sys::{Memory, Pages};

/// Two mappings and a userfaultfd over both.
pub(crate) struct Bare {
    pub(crate) home: Memory,
    pub(crate) away: Memory,
    uffd: Uffd,
}

impl Bare {
    pub(crate) fn new(len_bytes: usize, pages: Pages) -> Result<Self> {
        let mut home = Memory::new(len_bytes, pages)?;
        let away = Memory::new(len_bytes, pages)?;
        home.fill();
        let uffd = Uffd::open(0)?;
        uffd.register(home.range())?;
        uffd.register(away.range())?;
        Ok(Self { home, away, uffd })
    }

    /// Moves all there, `step_bytes` a call; nanoseconds for each step.
    pub(crate) fn move_out(&self, step_bytes: usize) -> Result<f64> {
        self.move_all(self.home.range(), self.away.range(), step_bytes)
    }

    /// Moves all back.
    pub(crate) fn move_home(&self, step_bytes: usize) -> Result<f64> {
        self.move_all(self.away.range(), self.home.range(), step_bytes)
    }

    fn move_all(&self, from: PageRange, to: PageRange, step_bytes: usize) -> Result<f64> {
        let steps = from.len_bytes() / step_bytes;
        let step_pages = step_bytes / PAGE_SIZE;
        let (ns, moved) = time(|| {
            (0..steps).try_for_each(|step| {
                let at = |range: PageRange| PageRange::from_pages(range.first_page() + step * step_pages, step_pages);
                let (from, to) = (at(from).expect("inside"), at(to).expect("inside"));
                let mut done = 0;
                while done < step_bytes {
                    let rest = to.skip(done / PAGE_SIZE).expect("inside");
                    let progress = self.uffd.move_(rest, from.start() + done, Waiters::Wake);
                    if progress.bytes == 0
                        && let Some(errno) = progress.errno
                    {
                        return Err(errno);
                    }
                    done += progress.bytes;
                }
                Ok(())
            })
        });
        moved.map(|()| ns / steps as f64)
    }

    /// Serves faults on `home` from `away` until dropped: poll, read, move one page.
    pub(crate) fn serve(self) -> Served {
        let stop = Arc::new(AtomicBool::new(false));
        let bare = Arc::new(self);
        let (server, stopping) = (bare.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            // Who touches a page would wait for ever, so a failure here must be loud.
            server.serve_until(&stopping).expect("the baseline's fault server runs");
        });
        Served {
            bare,
            stop,
            thread: Some(thread),
        }
    }

    fn serve_until(&self, stop: &AtomicBool) -> Result<()> {
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: 50_000_000,
        };
        self.uffd.set_nonblocking()?;
        let mut messages = [Msg::Other(0); 1];
        while !stop.load(Ordering::Relaxed) {
            let mut fds = [PollFd::from_borrowed_fd(self.uffd.as_fd(), PollFlags::IN)];
            if poll(&mut fds, Some(&tick))? == 0 {
                continue;
            }
            match self.uffd.read(&mut messages) {
                Err(Errno::AGAIN) => continue,
                read => read?,
            };
            if let Msg::Fault { addr, .. } = messages[0] {
                let to = addr.page();
                let offset = to.start() - self.home.range().start();
                self.uffd.move_(to, self.away.range().start() + offset, Waiters::Wake);
            }
        }
        Ok(())
    }
}

/// A [`Bare`] whose faults are served.
pub(crate) struct Served {
    pub(crate) bare: Arc<Bare>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
