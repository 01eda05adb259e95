//! A process of the simulated kernel as a program of the work list.
#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use isomem_conformance::work::{Program, Thread};
use isomem_conformance::{Failure, Outcome};
use isomem_core::addr::{PAGES_PER_BLOCK, PageRange};
use isomem_core::mm::{ChangeError, Mm};
use isomem_core::notifier::InvalidateError;
use isomem_core::world::Access;
use isomem_sim::journal;
use isomem_sim::kernel::{Process, WORDS};
use isomem_sim::rig::{PER_BLOCK, Rig};
use isomem_sim::world::{SimWindow, SimWorld};

use crate::common::rounds;
use crate::drivers::Host;

/// How long a thread waits for another on plain threads.
const PATIENCE: Duration = Duration::from_secs(60);
/// Blocks of the program's memory, and pages in each, as few as a story has.
const BLOCKS: core::ops::Range<usize> = 1..4;

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Rounds of each thread.
    pub(crate) rounds: usize,
    /// Pages of much memory.
    pub(crate) pages: usize,
}

/// As much as every schedule can be told of, or as plain threads do quickly.
pub(crate) const LOAD: Load = Load {
    rounds: rounds(3, 100),
    pages: rounds(2, 4),
};

/// See the module. In a fork's child its accesses are the child's.
#[derive(Clone)]
pub(crate) struct Simulated {
    rig: Rig,
    process: Process,
    load: Load,
    /// The number of the telling.
    seed: u64,
    /// Pages of each block that are taken.
    taken: Arc<[AtomicUsize; 4]>,
    began: Instant,
}

impl Simulated {
    pub(crate) fn new(rig: &Rig, load: Load, seed: u64) -> Self {
        Self {
            seed,
            rig: rig.clone(),
            process: rig.process().clone(),
            load,
            taken: Arc::default(),
            began: Instant::now(),
        }
    }

    /// Makes a change. The notifier of a story has few places for invalidations under way: who finds none comes again.
    fn change(&self, make: impl Fn(&Mm<SimWorld>) -> Result<(), ChangeError>) -> Outcome {
        loop {
            match make(self.mm()) {
                Ok(()) => return Ok(()),
                // Or a page is still away, because there was no place to say that it comes home.
                Err(ChangeError::Invalidate(InvalidateError::Exhausted(_)) | ChangeError::Stuck { .. }) => {
                    self.wait()?;
                }
                Err(error) => return Err(Failure::Wrong(error.to_string())),
            }
        }
    }

    fn place(addr: usize) -> (usize, usize) {
        (
            addr / isomem_core::addr::PAGE_SIZE,
            addr % isomem_core::addr::PAGE_SIZE / 8,
        )
    }
}

impl Host for Simulated {
    type World = SimWorld;

    fn mm(&self) -> &Mm<SimWorld> {
        self.rig.mm()
    }

    fn window(&self) -> SimWindow {
        SimWindow::new(0, usize::MAX, Access::Write)
    }
}

impl Program for Simulated {
    fn words(&self) -> usize {
        WORDS
    }

    fn many(&self) -> usize {
        self.load.pages
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn goes_on(&self, round: usize) -> bool {
        round < self.load.rounds && !self.rig.journal().is_decided()
    }

    fn rounds(&self) -> usize {
        self.load.rounds
    }

    fn pause(&self) {
        self.rig.kernel().pause(1);
    }

    fn wait(&self) -> Outcome {
        self.pause();
        let is_late = cfg!(not(feature = "shuttle")) && self.began.elapsed() > PATIENCE;
        if self.rig.journal().is_decided() || is_late {
            return Err(Failure::Wrong("what is waited for does not come about".into()));
        }
        Ok(())
    }

    /// In one block.
    fn map(&self, pages: usize) -> PageRange {
        let taken = |block: &usize| self.taken[*block].load(Ordering::Relaxed);
        let block = BLOCKS.clone().find(|block| taken(block) + pages <= PER_BLOCK);
        let block = block.expect("a story has few pages");
        let first = block * PAGES_PER_BLOCK + self.taken[block].fetch_add(pages, Ordering::Relaxed);
        let range = PageRange::from_pages(first, pages).expect("simulated addresses are small");
        self.process.mmap_anonymous(range);
        range
    }

    fn map_again(&self, range: PageRange) -> Outcome {
        let mapped = self.process.mmap_unless_taken(range);
        mapped.map_err(|errno| Failure::Wrong(format!("mapping {range}: {errno:?}")))
    }

    fn unmap(&self, range: PageRange) -> Outcome {
        self.change(|mm| mm.unmap(range))
    }

    fn discard(&self, range: PageRange) -> Outcome {
        self.change(|mm| mm.discard(range))
    }

    fn protect(&self, range: PageRange, access: Access) -> Outcome {
        self.change(|mm| mm.protect(range, Some(access)))
    }

    fn remap(&self, from: PageRange, to: PageRange) -> Outcome {
        self.change(|mm| mm.remap(from, to))
    }

    fn take_away(&self, range: PageRange) {
        // What it cannot have stays.
        let _ = self.rig.gpu(0).migrate(range);
    }

    fn load(&self, addr: usize) -> u64 {
        let (page, word) = Self::place(addr);
        self.process.read(page, word).unwrap_or(0)
    }

    fn store(&self, addr: usize, value: u64) {
        let (page, word) = Self::place(addr);
        let _ = self.process.write(page, word, value);
    }

    fn add(&self, addr: usize, value: u64) -> u64 {
        let (page, word) = Self::place(addr);
        self.process.add(page, word, value).unwrap_or(0)
    }

    fn fork(&self, body: &mut dyn FnMut(&Self) -> Outcome) -> Outcome {
        let child = self.rig.fork();
        child.enter();
        let outcome = body(&Self {
            process: child.clone(),
            ..self.clone()
        });
        self.process.enter();
        child.exit();
        outcome
    }

    fn exit(&self) {
        self.rig.exit();
    }

    fn in_parallel<R: Send + 'static>(&self, threads: Vec<Thread<Self, R>>) -> Vec<R> {
        let start = |(name, body): Thread<Self, R>| {
            let program = self.clone();
            journal::spawn(self.rig.journal(), name, move || body(&program))
        };
        let started: Vec<_> = threads.into_iter().map(start).collect();
        started
            .into_iter()
            .map(|thread| thread.join().expect("a thread that panics"))
            .collect()
    }
}
