//! All drivers at once: they mirror the same address space while the CPU uses it.

use super::changes::Yard;
use super::model::{Cpu, Flat, Random, Report, whole, word, words};
use super::quiet::{Told, actor, mover};
use super::{Open, Program, Thread, Worker};
use crate::bench::Outcome;

/// Every driver and the CPU work on the same pages: on words of their own, on words that all add to, and the devices on memory that comes and goes
/// too. Meanwhile the program changes it, and forks.
pub fn mixed<P: Program>(program: &P, drivers: &[(&'static str, Open<P>)]) -> Outcome {
    let count = drivers.len();
    // The last of its pages has the words that everybody adds to.
    let own_pages = program.many().min(3);
    let common = program.map(own_pages + 1);
    let (own, sums) = (common.take(own_pages), word(common, own_pages, 0));
    let (yard, memory) = Yard::new(program, count)?;
    let open = |(_, open): &(_, Open<P>)| open(program, &[common, memory]);
    let opened: Vec<_> = drivers.iter().map(open).collect::<Result<_, _>>()?;
    let mut flats = Flat::dealt(&words(program, own), count + 1);
    let mut threads: Vec<Thread<P, Told>> = vec![mover(own)];
    let (mut cpu, mut random) = (Cpu(program.clone()), Random::new(program, count));
    threads.push(actor(
        "cpu",
        Report::of(flats.remove(0), Flat::default()),
        move |_, report, round| {
            report.flat.round(&mut cpu, &mut random)?;
            whole(report.adds.add(&mut cpu, [sums + round % 2 * 8])?)
        },
    ));
    for (who, (driver, flat)) in opened.iter().zip(flats).enumerate() {
        let (yard, mut worker, mut random) = (yard.clone(), driver.worker()?, Random::new(program, who));
        let report = Report::of(flat, yard.guarded(who));
        threads.push(actor(drivers[who].0, report, move |_, report, round| {
            report.flat.round(worker.as_mut(), &mut random)?;
            whole(report.adds.add(worker.as_mut(), [sums + round % 2 * 8])?)?;
            if yard.has(who) {
                yard.work(worker.as_mut(), who, report)?;
            }
            Ok(())
        }));
    }
    let mut idle: Vec<Box<dyn Worker>> = opened.iter().map(|driver| driver.worker()).collect::<Result<_, _>>()?;
    threads.push(actor(
        "program",
        Report::default(),
        move |program: &P, _, round| match (round as u64 + program.seed()) % 6 {
            5 => yard.fork(program, round, &mut idle),
            which => yard.change(program, which),
        },
    ));
    let reports = program.in_parallel(threads);
    let mut late: Vec<_> = opened.iter().map(|driver| driver.worker()).collect::<Result<_, _>>()?;
    Report::merge(reports)?.check(program, &mut late)?;
    drop(late);
    opened.into_iter().try_for_each(|driver| driver.close())
}
