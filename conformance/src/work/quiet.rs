//! Work on memory that stays: who else uses it, and takes it away for a while, may not be noticed.

use isomem_core::addr::PageRange;
use isomem_core::world::Access;

use super::model::{Cpu, Flat, Random, Report, whole, word, words};
use super::{Driver, Op, Open, Program, Step, Stop, Thread, Worker};
use crate::bench::{Failure, Outcome, same};

pub(super) type Told = Result<Report, Failure>;

/// An actor that goes round and round until it has done enough.
pub(super) fn actor<P: Program>(
    name: &'static str,
    mut report: Report,
    mut round: impl FnMut(&P, &mut Report, usize) -> Outcome + Send + 'static,
) -> Thread<P, Told> {
    let body = move |program: &P| {
        let mut number = 0;
        while program.goes_on(number) {
            round(program, &mut report, number)?;
            number += 1;
        }
        Ok(report)
    };
    (name, Box::new(body))
}

/// Takes `memory` away for other devices, and sets what may be done with it to what it is: changes that change nothing.
pub(super) fn mover<P: Program>(memory: PageRange) -> Thread<P, Told> {
    actor("mover", Report::default(), move |program: &P, _, round| {
        program.take_away(memory);
        if round % 2 == 0 {
            program.protect(memory.take(1), Access::Write)?;
        }
        program.pause();
        Ok(())
    })
}

type Named = (&'static str, Box<dyn Worker>);

/// The CPU, and two workers of the device.
fn crew<P: Program>(program: &P, driver: &dyn Driver) -> Result<[Named; 3], Stop> {
    Ok([
        ("cpu", Box::new(Cpu(program.clone()))),
        ("device", driver.worker()?),
        ("device too", driver.worker()?),
    ])
}

/// All that the program wrote is read by the device, and the other way round.
pub(super) fn scan<P: Program>(program: &P, open: Open<P>) -> Outcome {
    let memory = program.map(program.many());
    let driver = open(program, &[memory])?;
    let mut worker = driver.worker()?;
    let (mut flat, mut random) = (Flat::of(words(program, memory)), Random::new(program, 0));
    for _ in 0..2 {
        flat.fill(&mut Cpu(program.clone()), &mut random)?;
        flat.check(worker.as_mut())?;
        flat.fill(worker.as_mut(), &mut random)?;
        flat.check(&mut Cpu(program.clone()))?;
    }
    drop(worker);
    driver.close()
}

/// Each actor reads, writes and adds to words of its own, at random; neighbours in each page are others'.
pub(super) fn random<P: Program>(program: &P, open: Open<P>) -> Outcome {
    let memory = program.map(program.many());
    let driver = open(program, &[memory])?;
    let crew = crew(program, driver.as_ref())?;
    let flats = Flat::dealt(&words(program, memory), crew.len());
    let mut threads = vec![mover(memory)];
    for (who, ((name, mut worker), flat)) in crew.into_iter().zip(flats).enumerate() {
        let mut random = Random::new(program, who);
        threads.push(actor(name, Report::of(flat, Flat::default()), move |_, report, _| {
            report.flat.round(worker.as_mut(), &mut random)
        }));
    }
    let reports = program.in_parallel(threads);
    let mut late = [driver.worker()?];
    Report::merge(reports)?.check(program, &mut late)?;
    drop(late);
    driver.close()
}

/// Waits until a word is `value`, by a worker's eyes.
fn wait_for(program: &impl Program, worker: &mut dyn Worker, addr: usize, value: u64) -> Outcome {
    let op = Op::Load;
    loop {
        let done = worker.perform(&[Step { addr, op }]);
        whole(done.stop)?;
        if done.seen == [value] {
            return Ok(());
        }
        program.wait()?;
    }
}

/// Program and device hand numbers to each other through memory, one at a time, each in a page of its own.
pub(super) fn producer_and_consumer<P: Program>(program: &P, open: Open<P>) -> Outcome {
    let memory = program.map(2);
    let driver = open(program, &[memory])?;
    let [(_, cpu), (_, device), _] = crew(program, driver.as_ref())?;
    let hand = |name, mut worker: Box<dyn Worker>, own: usize| -> Thread<P, Told> {
        let body = move |program: &P| {
            let mut turns = (own + 1..).step_by(2).take(program.rounds());
            turns.try_for_each(|turn| hand_over(program, worker.as_mut(), memory, own, turn as u64))?;
            Ok(Report::default())
        };
        (name, Box::new(body))
    };
    let threads = vec![hand("cpu", cpu, 0), hand("device", device, 1), mover(memory)];
    Report::merge(program.in_parallel(threads))?;
    driver.close()
}

/// Takes what was said in the turn before, and says something. It lies in the first word of one's page, and whose turn it was in the second.
fn hand_over(program: &impl Program, worker: &mut dyn Worker, memory: PageRange, own: usize, turn: u64) -> Outcome {
    if turn > 1 {
        let other = 1 - own;
        wait_for(program, worker, word(memory, other, 1), turn - 1)?;
        let addr = word(memory, other, 0);
        let seen = worker.perform(&[Step { addr, op: Op::Load }]).seen;
        same("what was handed over", seen, vec![said(turn - 1)])?;
    }
    let store = |index, value| Step {
        addr: word(memory, own, index),
        op: Op::Store(value),
    };
    whole(worker.perform(&[store(0, said(turn)), store(1, turn)]).stop)
}

/// What belongs to a turn.
fn said(turn: u64) -> u64 {
    turn.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// All add to the same few words.
pub(super) fn adds<P: Program>(program: &P, open: Open<P>) -> Outcome {
    let memory = program.map(2);
    let driver = open(program, &[memory])?;
    let mut threads = vec![mover(memory)];
    for (who, (name, mut worker)) in crew(program, driver.as_ref())?.into_iter().enumerate() {
        let mut random = Random::new(program, who);
        threads.push(actor(name, Report::default(), move |_, report, _| {
            let (first, second) = (random.below(2), random.below(2));
            let words = [word(memory, first, 0), word(memory, second, 1)];
            whole(report.adds.add(worker.as_mut(), words)?)
        }));
    }
    Report::merge(program.in_parallel(threads))?.check(program, &mut [])?;
    driver.close()
}
