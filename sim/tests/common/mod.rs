//! Tells a story many times, before every checker: on plain threads, or under `--features shuttle` once per schedule.
//!
//! | variable | says | unless set |
//! |---|---|---|
//! | `ISOMEM_SCHEDULES` | how often a story is told | what the test says |
//! | `ISOMEM_SEED` | the number of the first telling | 0 |
//! | `ISOMEM_LOCKS` | if it is there: that steps with locks are printed, too | |
//!
//! A telling is its number: it decides who runs when (under shuttle) and what the story draws. What fails prints its number and its steps.
#![allow(dead_code, reason = "each test file uses its part")]

#[cfg(not(feature = "shuttle"))]
mod plain;
#[cfg(feature = "shuttle")]
mod schedules;

use isomem_sim::checker::{self, Checker};
use isomem_sim::journal::{self, Event, Journal, Record};
use isomem_sim::rig::Rig;
use isomem_sim::sync::thread::JoinHandle;

/// How often a story is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// On plain threads.
    pub(crate) plain: u64,
    /// Under shuttle.
    pub(crate) schedules: u64,
}

/// What judges the tellings.
pub(crate) type Judges = fn() -> Vec<Box<dyn Checker>>;

/// Tells the story so often, or as the environment says, before every checker. `story` is given the number of the telling.
pub(crate) fn explore(times: Times, story: impl Fn(&Journal, u64) + Send + Sync + 'static) {
    explore_before(checker::all_with_lock_order, times, story);
}

/// The same, before these.
pub(crate) fn explore_before(judges: Judges, times: Times, story: impl Fn(&Journal, u64) + Send + Sync + 'static) {
    let first = number("ISOMEM_SEED").unwrap_or(0);
    let usual = if cfg!(feature = "shuttle") {
        times.schedules
    } else {
        times.plain
    };
    let count = number("ISOMEM_SCHEDULES").unwrap_or(usual);
    #[cfg(feature = "shuttle")]
    schedules::run(judges, first..first + count, story);
    #[cfg(not(feature = "shuttle"))]
    plain::run(judges, first..first + count, story);
}

/// What is found first in so many tellings; for stories with a mistake in them.
#[cfg(feature = "shuttle")]
pub(crate) fn first_finding(
    schedules: u64,
    story: impl Fn(&Journal, u64) + Send + Sync + 'static,
) -> Option<checker::Finding> {
    schedules::first_finding(checker::all_with_lock_order, 0..schedules, story)
}

/// Those that do not look at what is read and written: for changes past isomem, which a device hears of too late to be right about that.
pub(crate) fn apart_from_contents() -> Vec<Box<dyn Checker>> {
    vec![
        Box::new(checker::Leaks::default()),
        Box::new(checker::ReleaseOnce::default()),
        Box::new(checker::AfterUnregister::default()),
        #[cfg(feature = "shuttle")]
        Box::new(checker::LockOrder::reporting()),
    ]
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Repetitions inside a story: few under shuttle, which tells it often.
pub(crate) const fn rounds(under_shuttle: usize, plain: usize) -> usize {
    if cfg!(feature = "shuttle") {
        under_shuttle
    } else {
        plain
    }
}

/// Starts a thread of the story.
pub(crate) fn spawn(rig: &Rig, name: &str, body: impl FnOnce(&Rig) + Send + 'static) -> JoinHandle<()> {
    let (rig, journal) = (rig.clone(), rig.journal().clone());
    journal::spawn(&journal, name, move || body(&rig))
}

/// Waits for all of them.
pub(crate) fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        thread.join().unwrap();
    }
}

/// A value that nobody else writes, nor the same thread in another round.
pub(crate) const fn value(thread: u64, round: usize) -> u64 {
    thread * 1_000_000 + round as u64 + 1
}

/// Numbers that look random, the same for the same seed.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// Those of this seed.
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one (splitmix64).
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

#[cfg(feature = "shuttle")]
fn is_lock(event: &Event) -> bool {
    matches!(event, Event::Lock(..))
}

#[cfg(not(feature = "shuttle"))]
fn is_lock(_: &Event) -> bool {
    false
}

/// The steps of a telling, with what was found last.
pub(crate) fn tell(record: &Record) -> String {
    let mut text = String::new();
    let locks = std::env::var_os("ISOMEM_LOCKS").is_some();
    for step in record.steps.iter().filter(|step| locks || !is_lock(&step.event)) {
        text += &format!("{:>14}: {:?}\n", record.threads[step.thread], step.event);
    }
    match &record.finding {
        Some(finding) => text + &format!("{}: {}\n", finding.verdict, finding.sentence),
        None => text,
    }
}
