//! This process as a program of the work list.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use isomem::{Access, Mirror, Mm, PageRange, SoftConfig, SoftDevice};
use isomem_conformance::work::{Program, Thread};
use isomem_conformance::{Failure, Outcome};
use isomem_core::addr::BLOCK_SIZE;
use isomem_linux::{Linux, Window};

use crate::apart::MIB;
use crate::drivers::Host;
use crate::live::{PAGE, anywhere, in_child, load_at, map_again, word_at};

/// Rounds that every thread does at least.
const ROUNDS: usize = 25;

/// See the module.
#[derive(Clone)]
pub(crate) struct Live {
    mm: Mm,
    /// Who takes pages away.
    taker: Arc<(SoftDevice, Mirror)>,
    began: Instant,
    /// How long threads go on.
    time: Duration,
    /// How long one waits for another.
    patience: Duration,
}

impl Live {
    pub(crate) fn new(time: Duration, patience: Duration) -> Self {
        let mm = Mm::current().expect("these tests need userfaultfd: run them as root");
        let config = SoftConfig {
            workers: 1,
            memory_bytes: 4 * MIB,
            ..SoftConfig::default()
        };
        let device = mm.soft_device(config).unwrap();
        let mirror = device.mirror().unwrap();
        Self {
            mm,
            taker: Arc::new((device, mirror)),
            began: Instant::now(),
            time,
            patience,
        }
    }
}

impl Host for Live {
    type World = Linux;

    fn mm(&self) -> &isomem_core::mm::Mm<Linux> {
        self.mm.core()
    }

    fn window(&self) -> Window {
        anywhere()
    }
}

fn made<E: core::fmt::Display>(result: Result<(), E>) -> Outcome {
    result.map_err(|error| Failure::Wrong(error.to_string()))
}

impl Program for Live {
    fn words(&self) -> usize {
        PAGE / 8
    }

    fn many(&self) -> usize {
        12
    }

    fn seed(&self) -> u64 {
        std::process::id().into()
    }

    fn goes_on(&self, round: usize) -> bool {
        round < ROUNDS || self.began.elapsed() < self.time
    }

    fn rounds(&self) -> usize {
        10 * ROUNDS
    }

    fn pause(&self) {
        std::thread::yield_now();
    }

    fn wait(&self) -> Outcome {
        self.pause();
        if self.began.elapsed() > self.time + self.patience {
            return Err(Failure::Wrong("what is waited for does not come about".into()));
        }
        Ok(())
    }

    /// Across two blocks, where there is more than one page. It stays for ever: nobody else's memory comes there.
    fn map(&self, pages: usize) -> PageRange {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let at = unsafe { libc::mmap(core::ptr::null_mut(), 3 * BLOCK_SIZE, protection, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        let middle = (at.expose_provenance() + BLOCK_SIZE).next_multiple_of(BLOCK_SIZE);
        PageRange::new(middle - pages / 2 * PAGE, pages * PAGE).unwrap()
    }

    fn map_again(&self, range: PageRange) -> Outcome {
        map_again(range);
        Ok(())
    }

    fn unmap(&self, range: PageRange) -> Outcome {
        made(self.mm.core().unmap(range))
    }

    fn discard(&self, range: PageRange) -> Outcome {
        made(self.mm.core().discard(range))
    }

    fn protect(&self, range: PageRange, access: Access) -> Outcome {
        made(self.mm.core().protect(range, Some(access)))
    }

    fn remap(&self, from: PageRange, to: PageRange) -> Outcome {
        made(self.mm.core().remap(from, to))
    }

    fn take_away(&self, range: PageRange) {
        // What it cannot have stays.
        let _ = self.taker.1.migrate_to_device(range);
    }

    fn load(&self, addr: usize) -> u64 {
        load_at(addr)
    }

    fn store(&self, addr: usize, value: u64) {
        word_at(addr).store(value, SeqCst);
    }

    fn add(&self, addr: usize, value: u64) -> u64 {
        word_at(addr).fetch_add(value, SeqCst)
    }

    fn fork(&self, body: &mut dyn FnMut(&Self) -> Outcome) -> Outcome {
        let is_well = in_child(|| {
            let outcome = body(self);
            if let Err(failure) = &outcome {
                eprintln!("in the child: {failure:?}");
            }
            outcome.is_ok()
        });
        if is_well {
            return Ok(());
        }
        Err(Failure::Wrong("the child failed".into()))
    }

    fn exit(&self) {
        self.mm.core().exit();
    }

    fn in_parallel<R: Send + 'static>(&self, threads: Vec<Thread<Self, R>>) -> Vec<R> {
        // A thread that starts maps pages, and would do so in a hole that another one's work has made.
        let all_there = Arc::new(Barrier::new(threads.len()));
        let start = |(name, body): Thread<Self, R>| {
            let (program, all_there) = (self.clone(), all_there.clone());
            let thread = std::thread::Builder::new().name(name.into());
            let body = move || {
                all_there.wait();
                body(&program)
            };
            thread.spawn(body).unwrap()
        };
        let started: Vec<_> = threads.into_iter().map(start).collect();
        started.into_iter().map(|thread| thread.join().unwrap()).collect()
    }
}
