//! Queues of a network card. What is read is copied to words of the worker's own, and what is written comes from there.

use std::sync::atomic::{AtomicUsize, Ordering};

use isomem_conformance::Outcome;
use isomem_conformance::work::{Done, Driver, Op, Step, Stop, Worker};
use isomem_core::addr::PageRange;
use isomem_core::bus::AtomicOp;
use isomem_core::world::Access;
use isomem_drivers::odp::{DEPTH, Key, Nic, OdpError, Queue, Segment, Work};

use super::{Host, Opened, wrong};

/// Workers that have words at the same time.
const WORKERS: usize = 4;

struct Card<H: Host> {
    program: H,
    nic: Nic<H::World>,
    key: Key,
    /// For the workers: what they read comes here, and what they write is taken from here.
    pages: [PageRange; 2],
    workers: AtomicUsize,
}

struct Poster<H: Host> {
    program: H,
    queue: Queue<H::World>,
    key: Key,
    /// A word for each request that is posted at a time.
    words: Vec<usize>,
}

pub(crate) fn open<H: Host>(program: &H, _: &[PageRange]) -> Opened {
    let nic = Nic::open(program.mm()).map_err(wrong)?;
    let key = nic.register(program.window(), None, Access::Write).map_err(wrong)?;
    Ok(Box::new(Card {
        program: program.clone(),
        nic,
        key,
        pages: [program.map(1), program.map(1)],
        workers: AtomicUsize::new(0),
    }))
}

impl<H: Host> Driver for Card<H> {
    fn worker(&self) -> Result<Box<dyn Worker>, Stop> {
        let number = self.workers.fetch_add(1, Ordering::Relaxed) % WORKERS;
        let count = (self.program.words() / WORKERS).min(DEPTH / 2);
        let words = |page: PageRange| (0..count).map(move |word| page.start() + (number * count + word) * 8);
        Ok(Box::new(Poster {
            program: self.program.clone(),
            queue: self.nic.queue().map_err(stop)?,
            key: self.key,
            words: self.pages.into_iter().flat_map(words).collect(),
        }))
    }

    fn close(self: Box<Self>) -> Outcome {
        self.nic.close().map_err(wrong)
    }
}

fn stop(error: OdpError) -> Stop {
    match error {
        OdpError::Entry(error) => error.into(),
        OdpError::Reach(error) => error.into(),
        OdpError::Fault(error) => error.into(),
        other => Stop::failed(other),
    }
}

impl<H: Host> Poster<H> {
    fn segment(&self, addr: usize) -> Segment {
        Segment {
            key: self.key,
            addr,
            len_bytes: 8,
        }
    }

    fn request(&self, number: usize, step: &Step) -> Work {
        let (there, here) = (self.segment(step.addr), self.segment(self.words[number]));
        match step.op {
            Op::Load => Work::Copy { from: there, to: here },
            Op::Store(value) => {
                self.program.store(here.addr, value);
                Work::Copy { from: here, to: there }
            }
            Op::Add(value) => Work::Atomic {
                at: there,
                op: AtomicOp::Add(value),
            },
        }
    }

    /// Posts these, and collects what became of each.
    fn post(&self, steps: &[Step]) -> Result<Vec<Result<u64, OdpError>>, OdpError> {
        for (number, step) in steps.iter().enumerate() {
            self.queue.post(number as u64, self.request(number, step))?;
        }
        let collect = |_| Ok(self.queue.wait()?.map(|completion| completion.result));
        let found = steps.iter().map(collect).collect::<Result<Vec<_>, OdpError>>()?;
        self.queue.reset()?;
        Ok(found.into_iter().flatten().collect())
    }

    fn some(&self, steps: &[Step], seen: &mut Vec<u64>) -> Result<(), OdpError> {
        for (number, (step, found)) in steps.iter().zip(self.post(steps)?).enumerate() {
            let found = found?;
            seen.push(match step.op {
                Op::Load => self.program.load(self.words[number]),
                _ => found,
            });
        }
        Ok(())
    }
}

impl<H: Host> Worker for Poster<H> {
    fn attempt(&mut self, steps: &[Step]) -> Done {
        let mut seen = Vec::new();
        let mut parts = steps.chunks(self.words.len());
        let stop = parts.try_for_each(|part| self.some(part, &mut seen)).err().map(stop);
        Done { seen, stop }
    }
}
