//! Drivers with a mistake: what stands between a real one and its work, so that each item of the list can be seen to fail.

use isomem_conformance::work::{Done, Driver, Op, Open, Step, Stop, Worker};
use isomem_conformance::{Failure, Outcome};
use isomem_core::addr::PageRange;

use crate::drivers::{Host, svm};

/// The mistakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// What it has read it reads no more: it does not hear that the memory changed.
    Remembers,
    /// What it stores it says is stored, and stores it with what comes next.
    StoresLater,
    /// It adds in two steps.
    AddsInTwo,
    /// It does the work of whoever asks, and says so.
    ServesAnybody,
    /// It does not hear of the end.
    Outlives,
    /// What it was denied it says was done.
    HidesDenial,
}

struct Broken {
    driver: Box<dyn Driver>,
    mistake: Mistake,
}

struct Clumsy {
    worker: Box<dyn Worker>,
    mistake: Mistake,
    remembered: std::collections::BTreeMap<usize, u64>,
    later: Vec<Step>,
}

/// The GPU with a mistake.
fn open<H: Host>(program: &H, memory: &[PageRange], mistake: Mistake) -> Result<Box<dyn Driver>, Failure> {
    let driver = svm::open(program, memory)?;
    Ok(Box::new(Broken { driver, mistake }))
}

/// Each item of the list, with a mistake that it must find.
pub(crate) fn all<H: Host>() -> Vec<(&'static str, Open<H>)> {
    vec![
        ("scan", |program, memory| open(program, memory, Mistake::Remembers)),
        ("scan", |program, memory| open(program, memory, Mistake::StoresLater)),
        ("random", |program, memory| open(program, memory, Mistake::StoresLater)),
        ("producer_and_consumer", |program, memory| {
            open(program, memory, Mistake::Remembers)
        }),
        ("adds", |program, memory| open(program, memory, Mistake::AddsInTwo)),
        ("unmap_and_remap", |program, memory| {
            open(program, memory, Mistake::HidesDenial)
        }),
        ("unmap_and_remap", |program, memory| {
            open(program, memory, Mistake::StoresLater)
        }),
        ("forks", |program, memory| open(program, memory, Mistake::ServesAnybody)),
        ("forks", |program, memory| open(program, memory, Mistake::StoresLater)),
        ("exit", |program, memory| open(program, memory, Mistake::Outlives)),
    ]
}

impl Driver for Broken {
    fn worker(&self) -> Result<Box<dyn Worker>, Stop> {
        Ok(Box::new(Clumsy {
            worker: self.driver.worker()?,
            mistake: self.mistake,
            remembered: Default::default(),
            later: Vec::new(),
        }))
    }

    fn close(self: Box<Self>) -> Outcome {
        self.driver.close()
    }
}

impl Clumsy {
    /// One step at a time.
    fn one(&mut self, step: Step) -> Result<u64, Stop> {
        let addr = step.addr;
        match (self.mistake, step.op) {
            (Mistake::Remembers, Op::Load) => {
                if let Some(seen) = self.remembered.get(&addr) {
                    return Ok(*seen);
                }
                let seen = self.really(step)?;
                self.remembered.insert(addr, seen);
                Ok(seen)
            }
            (Mistake::StoresLater, Op::Store(_)) => {
                let before = core::mem::replace(&mut self.later, vec![step]);
                before.into_iter().try_fold(0, |_, step| self.really(step))
            }
            (Mistake::AddsInTwo, Op::Add(value)) => {
                let seen = self.really(Step { addr, op: Op::Load })?;
                let op = Op::Store(seen.wrapping_add(value));
                self.really(Step { addr, op }).map(|_| seen)
            }
            (Mistake::ServesAnybody, _) => self.but_for(step, Stop::Foreign),
            (Mistake::Outlives, _) => self.but_for(step, Stop::Over),
            (Mistake::HidesDenial, _) => self.but_for(step, Stop::Denied),
            _ => self.really(step),
        }
    }

    fn really(&mut self, step: Step) -> Result<u64, Stop> {
        let Done { seen, stop } = self.worker.perform(&[step]);
        stop.map_or_else(|| Ok(seen[0]), Err)
    }

    /// Passes for done if this is what it was stopped by.
    fn but_for(&mut self, step: Step, hidden: Stop) -> Result<u64, Stop> {
        self.really(step)
            .or_else(|stop| if stop == hidden { Ok(0) } else { Err(stop) })
    }
}

impl Worker for Clumsy {
    fn attempt(&mut self, steps: &[Step]) -> Done {
        let mut done = Done::default();
        for step in steps {
            match self.one(*step) {
                Ok(seen) => done.seen.push(seen),
                Err(stop) => {
                    done.stop = Some(stop);
                    break;
                }
            }
        }
        done
    }
}
