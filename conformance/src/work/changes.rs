//! Work on memory that the program changes meanwhile: it goes and comes again, moves, is copied to a child, or ends.
//!
//! ```text
//! worker                                   program
//! says which number it stores next         .
//! stores it in the memory that moves       reads which number was stored last
//! says that it was stored                  unmaps, maps again: no number up to that one may be there (WORK-2)
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use isomem_core::addr::PageRange;
use isomem_core::world::Access;

use super::model::{Cpu, Flat, Report, whole, word};
use super::quiet::{Told, actor};
use super::{Done, Driver, Op, Open, Program, Step, Stop, Thread, Worker};
use crate::bench::{Failure, Outcome, same};

/// What a worker stores is its own: above these bits is who it is.
const NUMBER_BITS: u32 = 40;

/// What one worker has stored in memory that comes and goes, as the others may know it.
#[derive(Debug, Default)]
struct Numbers {
    /// The last that it began to store.
    begun: AtomicU64,
    /// The last that was stored.
    stored: AtomicU64,
    /// The last that was stored in the guarded part.
    kept: AtomicU64,
}

/// Parts of the yard.
const PARTS: usize = 4;

/// Pages that different things are done to, with a word in each for every worker.
#[derive(Debug, Clone)]
pub(super) struct Yard {
    /// Nothing is done to it. It has a word to which all add, and one of the program's.
    stays: PageRange,
    /// It is unmapped and mapped, dropped, and moved.
    moves: PageRange,
    /// Where it moves to. Nothing is there otherwise.
    aside: PageRange,
    /// It is made read-only for a while.
    guarded: PageRange,
    numbers: Arc<[Numbers]>,
}

impl Yard {
    /// A new one, and the memory that it takes.
    pub(super) fn new(program: &impl Program, workers: usize) -> Result<(Self, PageRange), Failure> {
        let memory = program.map(PARTS);
        let part = |number: usize| memory.skip(number).map_or(memory, |rest| rest.take(1));
        let yard = Self {
            stays: part(0),
            moves: part(1),
            aside: part(2),
            guarded: part(3),
            numbers: (0..workers.min(program.words())).map(|_| Numbers::default()).collect(),
        };
        program.unmap(yard.aside)?;
        Ok((yard, memory))
    }

    /// Whether there is room for worker `who`.
    pub(super) fn has(&self, who: usize) -> bool {
        who < self.numbers.len()
    }

    /// The word to which all add.
    fn sum(&self) -> usize {
        word(self.stays, 0, 0)
    }

    /// The word that a worker writes alone, and that stays.
    pub(super) fn guarded(&self, who: usize) -> Flat {
        Flat::of(self.has(who).then(|| word(self.guarded, 0, who)))
    }

    /// One round of worker `who`.
    pub(super) fn work(&self, worker: &mut dyn Worker, who: usize, report: &mut Report) -> Outcome {
        whole(report.adds.add(worker, [self.sum()])?)?;
        let numbers = &self.numbers[who];
        let number = numbers.begun.fetch_add(1, SeqCst) + 1;
        let said = (who as u64 + 1) << NUMBER_BITS | number;
        let step = |part, op| Step {
            addr: word(part, 0, who),
            op,
        };
        let Done { seen, stop } = worker.perform(&[step(self.moves, Op::Store(said))]);
        if seen.len() == 1 {
            numbers.stored.store(number, SeqCst);
        }
        permitted(stop)?;
        let Done { seen, stop } = worker.perform(&[step(self.moves, Op::Load)]);
        for seen in seen {
            same(
                "whether a number is none that was not stored",
                self.number(seen, who)? <= number,
                true,
            )?;
        }
        permitted(stop)?;
        // To read it is always permitted: what was denied in the round before has changed nothing.
        report.guarded.check(worker)?;
        let stop = report.guarded.drive(worker, &[step(self.guarded, Op::Store(said))])?;
        if stop.is_none() {
            numbers.kept.store(number, SeqCst);
        }
        permitted(stop)
    }

    /// The number that `who` stored there; 0 where nobody did.
    fn number(&self, seen: u64, who: usize) -> Result<u64, Failure> {
        let by = if seen == 0 { who as u64 + 1 } else { seen >> NUMBER_BITS };
        same("whose number it is", by, who as u64 + 1)?;
        Ok(seen & ((1 << NUMBER_BITS) - 1))
    }

    /// One of the numbers of everybody.
    fn all(&self, which: impl Fn(&Numbers) -> &AtomicU64) -> Vec<u64> {
        self.numbers.iter().map(|numbers| which(numbers).load(SeqCst)).collect()
    }

    fn stored(&self) -> Vec<u64> {
        self.all(|numbers| &numbers.stored)
    }

    /// The program looks at what everybody stored in `part`: `right` says which numbers may be there.
    fn look(&self, program: &impl Program, part: PageRange, right: impl Fn(usize, u64) -> bool, what: &str) -> Outcome {
        (0..self.numbers.len()).try_for_each(|who| {
            let number = self.number(program.load(word(part, 0, who)), who)?;
            let told = format!("whether number {number} may be there {what}");
            same(&told, right(who, number), true)
        })
    }

    /// Nothing from before: `before` was stored when it went (WORK-2).
    fn is_fresh(&self, program: &impl Program, part: PageRange, before: &[u64]) -> Outcome {
        let right = |who: usize, number| number == 0 || number > before[who];
        self.look(program, part, right, "after the memory went")
    }

    /// One of five things is done to the parts.
    pub(super) fn change(&self, program: &impl Program, which: u64) -> Outcome {
        let before = self.stored();
        match which % 5 {
            0 => {
                program.unmap(self.moves)?;
                program.map_again(self.moves)?;
                self.is_fresh(program, self.moves, &before)
            }
            1 => {
                program.discard(self.moves)?;
                self.is_fresh(program, self.moves, &before)
            }
            2 => self.step_aside(program),
            3 => self.guard(program),
            _ => {
                program.take_away(self.stays.hull(self.moves));
                Ok(())
            }
        }
    }

    /// The memory moves away with what was stored in it, and new memory takes its place.
    fn step_aside(&self, program: &impl Program) -> Outcome {
        program.discard(self.moves)?;
        let fresh_since = self.all(|numbers| &numbers.begun);
        program.pause();
        let before = self.stored();
        program.remap(self.moves, self.aside)?;
        // What was begun and over between is there, if nothing came later.
        let right = |who: usize, number| before[who] <= fresh_since[who] || number >= before[who];
        self.look(program, self.aside, right, "where the memory moved")?;
        let before = self.stored();
        program.map_again(self.moves)?;
        self.is_fresh(program, self.moves, &before)?;
        program.unmap(self.aside)
    }

    /// Nobody writes to read-only memory.
    fn guard(&self, program: &impl Program) -> Outcome {
        program.protect(self.guarded, Access::Read)?;
        let before = self.contents(program, self.guarded);
        program.pause();
        same("memory that is read-only", self.contents(program, self.guarded), before)?;
        program.protect(self.guarded, Access::Write)
    }

    fn contents(&self, program: &impl Program, part: PageRange) -> Vec<u64> {
        let load = |who| program.load(word(part, 0, who));
        (0..self.numbers.len()).map(load).collect()
    }

    /// Forks once. The child has what was there at that moment, and is alone with it; workers of the parent's refuse to work for it.
    pub(super) fn fork<P: Program>(&self, program: &P, round: usize, idle: &mut [Box<dyn Worker>]) -> Outcome {
        let own = word(self.stays, 0, 1);
        program.store(own, round as u64);
        let kept = self.all(|numbers| &numbers.kept);
        program.fork(&mut |child| {
            same("the program's word in the child", child.load(own), round as u64)?;
            for worker in &mut *idle {
                let op = Op::Store(u64::MAX);
                let Done { seen, stop } = worker.perform(&[Step { addr: own, op }]);
                same(
                    "what a device says to the child",
                    (seen.len(), stop),
                    (0, Some(Stop::Foreign)),
                )?;
            }
            let right = |who: usize, number| number >= kept[who];
            self.look(child, self.guarded, right, "in the child")?;
            let copied = (self.contents(child, self.guarded), child.add(self.sum(), 1));
            child.store(own, u64::MAX);
            child.pause();
            same("the child's copy", self.contents(child, self.guarded), copied.0)?;
            same("the child's count", child.load(self.sum()), copied.1 + 1)
        })?;
        same("the program's word after a fork", program.load(own), round as u64)
    }
}

/// Memory may be gone, or read-only.
fn permitted(stop: Option<Stop>) -> Outcome {
    whole(stop.filter(|stop| *stop != Stop::Denied))
}

/// A yard with two workers that go on and on.
fn with_yard<P: Program>(
    program: &P,
    open: Open<P>,
    changer: impl FnOnce(&Yard, &dyn Driver) -> Result<Thread<P, Told>, Stop>,
) -> Outcome {
    const WORKERS: usize = 2;
    let (yard, memory) = Yard::new(program, WORKERS)?;
    let driver = open(program, &[memory])?;
    let mut threads = vec![changer(&yard, driver.as_ref())?];
    for who in 0..WORKERS {
        let (yard, mut worker) = (yard.clone(), driver.worker()?);
        let report = Report::of(Flat::default(), yard.guarded(who));
        threads.push(actor("device", report, move |_, report, _| {
            yard.work(worker.as_mut(), who, report)
        }));
    }
    let reports = program.in_parallel(threads);
    let mut late = [driver.worker()?];
    Report::merge(reports)?.check(program, &mut late)?;
    drop(late);
    driver.close()
}

/// Memory that a device works on is unmapped, mapped, dropped, moved and made read-only.
pub(super) fn unmap_and_remap<P: Program>(program: &P, open: Open<P>) -> Outcome {
    with_yard(program, open, |yard, _| {
        let yard = yard.clone();
        Ok(actor("changes", Report::default(), move |program: &P, _, round| {
            yard.change(program, round as u64 + program.seed())
        }))
    })
}

/// The program forks while a device works on its memory.
pub(super) fn forks<P: Program>(program: &P, open: Open<P>) -> Outcome {
    with_yard(program, open, |yard, driver| {
        let (yard, mut idle) = (yard.clone(), [driver.worker()?]);
        Ok(actor("forks", Report::default(), move |program: &P, _, round| {
            yard.fork(program, round, &mut idle)
        }))
    })
}

/// The address space ends while a device works on it: nothing is done afterwards, and what was done before stays.
pub(super) fn exit<P: Program>(program: &P, open: Open<P>) -> Outcome {
    let memory = program.map(1);
    let driver = open(program, &[memory])?;
    let mut threads: Vec<Thread<P, Told>> = Vec::new();
    let (begun, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    for _ in 0..2 {
        let (mut worker, begun, ended) = (driver.worker()?, begun.clone(), ended.clone());
        let body = move |_: &P| {
            let mut report = Report::default();
            loop {
                let was_over = ended.load(SeqCst);
                let stop = report.adds.add(worker.as_mut(), [word(memory, 0, 0)])?;
                if stop == Some(Stop::Over) {
                    return Ok(report);
                }
                whole(stop)?;
                same("whether a device works after the end", was_over, false)?;
                begun.fetch_add(1, SeqCst);
            }
        };
        threads.push(("device", Box::new(body)));
    }
    let mut late = driver.worker()?;
    let end = move |program: &P| {
        let mut waited = Ok(());
        while begun.load(SeqCst) < 4 && waited.is_ok() {
            waited = program.wait();
        }
        program.exit();
        ended.store(true, SeqCst);
        waited?;
        let load = Step {
            addr: word(memory, 0, 0),
            op: Op::Load,
        };
        let cpu = &mut Cpu(program.clone());
        let counted = cpu.perform(&[load]).seen;
        same(
            "what a device says after the end",
            late.perform(&[load]).stop,
            Some(Stop::Over),
        )?;
        program.pause();
        same("the count after the end", cpu.perform(&[load]).seen, counted)?;
        Ok(Report::default())
    };
    threads.push(("exit", Box::new(end)));
    Report::merge(program.in_parallel(threads))?.check(program, &mut [])?;
    driver.close()
}
