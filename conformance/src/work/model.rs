//! The flat model: what each word must hold, and who adds to which.

use std::collections::BTreeMap;

use isomem_core::addr::{PAGE_SIZE, PageRange};

use super::{Done, Op, Program, Step, Stop, Worker};
use crate::bench::{Failure, Outcome, same};

/// The most steps that are drawn at a time.
const STEPS: usize = 4;

/// Address of a word of a page.
pub(super) fn word(memory: PageRange, page: usize, word: usize) -> usize {
    memory.start() + page * PAGE_SIZE + word * 8
}

/// The words of all pages, in order.
pub(super) fn words(program: &impl Program, memory: PageRange) -> Vec<usize> {
    let count = program.words();
    (0..memory.page_count() * count)
        .map(|index| word(memory, index / count, index % count))
        .collect()
}

/// Words that one actor writes (WORK-1), in order, with what they hold.
#[derive(Debug, Default)]
pub(super) struct Flat(Vec<(usize, u64)>);

impl Flat {
    /// Fresh memory.
    pub(super) fn of(words: impl IntoIterator<Item = usize>) -> Self {
        Self(words.into_iter().map(|addr| (addr, 0)).collect())
    }

    /// The same words dealt out to so many actors.
    pub(super) fn dealt(words: &[usize], actors: usize) -> Vec<Self> {
        let of = |actor| Self::of(words.iter().copied().skip(actor).step_by(actors));
        (0..actors).map(of).collect()
    }

    /// Has a worker do the steps, and compares each answer; those that were done are done here, too (WORK-3).
    pub(super) fn drive(&mut self, worker: &mut dyn Worker, steps: &[Step]) -> Result<Option<Stop>, Failure> {
        let Done { seen, stop } = worker.perform(steps);
        if stop.is_none() {
            same("the number of steps that were done", seen.len(), steps.len())?;
        }
        for (step, seen) in steps.iter().zip(seen) {
            let at = self.0.partition_point(|word| word.0 < step.addr);
            let known = &mut self.0[at].1;
            match step.op {
                Op::Load => same(&format!("the word at {:#x}", step.addr), seen, *known)?,
                Op::Store(value) => *known = value,
                Op::Add(value) => {
                    same(&format!("the word at {:#x} before an add", step.addr), seen, *known)?;
                    *known = known.wrapping_add(value);
                }
            }
        }
        Ok(stop)
    }

    /// Some steps on words of its own.
    pub(super) fn round(&mut self, worker: &mut dyn Worker, random: &mut Random) -> Outcome {
        let mut step = || Step {
            addr: self.0[random.below(self.0.len())].0,
            op: match random.below(3) {
                0 => Op::Load,
                1 => Op::Store(random.next()),
                _ => Op::Add(random.next()),
            },
        };
        let steps: Vec<Step> = (0..STEPS).map(|_| step()).collect();
        whole(self.drive(worker, &steps)?)
    }

    /// Stores in every word.
    pub(super) fn fill(&mut self, worker: &mut dyn Worker, random: &mut Random) -> Outcome {
        let mut store = |addr| Step {
            addr,
            op: Op::Store(random.next()),
        };
        let stores: Vec<Step> = self.0.iter().map(|word| store(word.0)).collect();
        whole(self.drive(worker, &stores)?)
    }

    /// Loads every word.
    pub(super) fn check(&mut self, worker: &mut dyn Worker) -> Outcome {
        let op = Op::Load;
        let loads: Vec<Step> = self.0.iter().map(|&(addr, _)| Step { addr, op }).collect();
        whole(self.drive(worker, &loads)?)
    }
}

/// All was done.
pub(super) fn whole(stop: Option<Stop>) -> Outcome {
    stop.map_or(Ok(()), |stop| Err(stop.into()))
}

/// Words that several add 1 to, with what each add found.
#[derive(Debug, Default)]
pub(super) struct Adds(BTreeMap<usize, Vec<u64>>);

impl Adds {
    /// Adds 1 to each of these.
    pub(super) fn add(
        &mut self,
        worker: &mut dyn Worker,
        words: impl IntoIterator<Item = usize>,
    ) -> Result<Option<Stop>, Failure> {
        let op = Op::Add(1);
        let steps: Vec<Step> = words.into_iter().map(|addr| Step { addr, op }).collect();
        let Done { seen, stop } = worker.perform(&steps);
        for (step, seen) in steps.iter().zip(seen) {
            self.0.entry(step.addr).or_default().push(seen);
        }
        Ok(stop)
    }

    /// Each value before was found by one add, and the word counts them all.
    pub(super) fn check(self, program: &impl Program) -> Outcome {
        for (addr, mut seen) in self.0 {
            let count = seen.len() as u64;
            seen.sort_unstable();
            let strange = (0..count).zip(&seen).find(|(at, seen)| at != *seen);
            same(&format!("what {count} adds found at {addr:#x}"), strange, None)?;
            same(&format!("the count at {addr:#x}"), program.load(addr), count)?;
        }
        Ok(())
    }
}

/// What a thread says at its end.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Its own words.
    pub(super) flat: Flat,
    /// One more, which it may be denied at times.
    pub(super) guarded: Flat,
    pub(super) adds: Adds,
}

impl Report {
    /// Nothing so far.
    pub(super) fn of(flat: Flat, guarded: Flat) -> Self {
        let adds = Adds::default();
        Self { flat, guarded, adds }
    }

    /// All in one; the words of each are its own.
    pub(super) fn merge(reports: Vec<Result<Self, Failure>>) -> Result<Self, Failure> {
        reports.into_iter().try_fold(Self::default(), |mut all, report| {
            let report = report?;
            all.flat.0.extend(report.flat.0.into_iter().chain(report.guarded.0));
            all.flat.0.sort_unstable();
            for (addr, seen) in report.adds.0 {
                all.adds.0.entry(addr).or_default().extend(seen);
            }
            Ok(all)
        })
    }

    /// The program finds everything, and so do these workers.
    pub(super) fn check<P: Program>(mut self, program: &P, workers: &mut [Box<dyn Worker>]) -> Outcome {
        self.flat.check(&mut Cpu(program.clone()))?;
        for worker in workers {
            self.flat.check(worker.as_mut())?;
        }
        self.adds.check(program)
    }
}

/// The program's own accesses.
pub(super) struct Cpu<P>(pub(super) P);

impl<P: Program> Worker for Cpu<P> {
    fn attempt(&mut self, steps: &[Step]) -> Done {
        let access = |step: &Step| match step.op {
            Op::Load => self.0.load(step.addr),
            Op::Store(value) => {
                self.0.store(step.addr, value);
                0
            }
            Op::Add(value) => self.0.add(step.addr, value),
        };
        Done {
            seen: steps.iter().map(access).collect(),
            stop: None,
        }
    }
}

/// Numbers that look random, the same for the same seed (splitmix64).
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    /// For actor `who` of a program.
    pub(super) fn new(program: &impl Program, who: usize) -> Self {
        let mut seed = Self(program.seed());
        Self(seed.next() ^ who as u64)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}
