//! Runs a story under many schedules.
//!
//! # Invariants
//! - EXP-1: the first finding ends the exploration of a design.
//! - EXP-2: a finding is only reported with a schedule that, told again, leads to the same verdict.
//!
//! Schedules are chosen in three ways (`strategy`): exhaustively up to a number of forced switches, which is what others call preemptions, at
//! random, and by priorities that change at random (PCT). The first 500 are exhaustive, then each way has a third of them; [`Tried`] has the
//! counts, and the bounds: how many threads and steps the story has, and up to how many preemptions every schedule was among them.
//!
//! Stories of different designs can be explored on several threads of the system at a time: all state is of one thread.

mod choices;
mod driver;
mod quiet;
mod random;
mod replay;
mod shorten;
mod standstill;
mod strategy;

use std::time::{Duration, Instant};

use isomem_sim::checker::{self, Checker, Verdict};
use isomem_sim::journal::Record;
use serde::Serialize;
use shuttle::scheduler::TaskId;

pub use choices::{Choices, NoSchedule, Turn};
pub use driver::MAX_STEPS;
pub use replay::{Replayed, replay};
pub(crate) use standstill::guarded;

use crate::scenario::Design;
use driver::{Detail, Plan, Told, run};
use strategy::{Choice, Mix};

/// How much is explored.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// At most so many schedules.
    pub iterations: usize,
    /// The same seed means the same schedules.
    pub seed: u64,
    /// No new schedule begins after this long.
    pub time: Option<Duration>,
}

/// What became of a design.
#[derive(Debug)]
pub struct Exploration {
    /// Schedules that were told; if there is a finding, the last of them has it.
    pub schedules: usize,
    /// How they were chosen, and their bounds.
    pub tried: Tried,
    /// The first finding.
    pub found: Option<Found>,
    /// How long it took, with what follows a finding.
    pub took: Duration,
}

/// How schedules were chosen, and how far they went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tried {
    /// Most threads that ran in one schedule, with the story's own.
    pub threads: usize,
    /// Most points in one schedule at which another thread could have run.
    pub steps: usize,
    /// Every schedule with at most so many preemptions, that is forced switches, was among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preemptions: Option<usize>,
    /// Schedules in which preemptions were placed one after another, fewest first.
    pub exhaustive: usize,
    /// Schedules of random choices.
    pub random: usize,
    /// Schedules of random priorities that change at random points.
    pub pct: usize,
}

impl Tried {
    /// All of them.
    pub fn schedules(&self) -> usize {
        self.exhaustive + self.random + self.pct
    }

    fn widen(&mut self, choices: &Choices) {
        self.threads = self.threads.max(driver::threads(choices));
        self.steps = self.steps.max(choices.steps());
    }
}

/// A finding, and how it comes about.
#[derive(Debug)]
pub struct Found {
    /// All steps up to the finding.
    pub record: Record,
    /// A short schedule that leads to it.
    pub choices: Choices,
}

/// A finding does not come again with the same schedule: something in the story depends on more than who runs when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fickle {
    /// What was found at first.
    pub first: Verdict,
    /// What was found when the same schedule was told again.
    pub then: Verdict,
    /// The schedule.
    pub choices: Choices,
    /// Schedules that were told before.
    pub schedules: usize,
}

impl Exploration {
    /// What the checkers say.
    pub fn verdict(&self) -> Verdict {
        let finding = self.found.as_ref().and_then(|found| found.record.finding.as_ref());
        finding.map_or(Verdict::Holds, |finding| finding.verdict)
    }
}

/// Explores schedules of a design until a checker finds something or the budget is used up.
///
/// # Errors
/// [`Fickle`] when a finding cannot be told again.
pub fn explore(design: &'static Design, budget: &Budget) -> Result<Exploration, Fickle> {
    let begun = Instant::now();
    let search = Search {
        mix: Mix::new(budget.seed),
        left: budget.iterations,
        until: budget.time.map(|time| begun + time),
        found: None,
    };
    let Search { mix, found, .. } = run(design, search, Detail::Verdict);
    let tried = mix.tried;
    let found = found.map(|found| settle(design, found, mix)).transpose();
    let found = found.map_err(|fickle| Fickle {
        schedules: tried.schedules(),
        ..fickle
    })?;
    Ok(Exploration {
        schedules: tried.schedules(),
        tried,
        found,
        took: begun.elapsed(),
    })
}

/// Makes the schedule short, and tells it once more for the picture.
fn settle(design: &'static Design, found: Told, mix: Mix) -> Result<Found, Fickle> {
    let first = found.verdict();
    let check = |choices: &Choices| {
        let again = replay(design, choices);
        let same = again.verdict() == first && !again.strayed;
        same.then_some(()).ok_or_else(|| Fickle {
            first,
            then: again.verdict(),
            choices: choices.clone(),
            schedules: 0,
        })?;
        Ok(again)
    };
    check(&found.choices)?;
    let Replayed { record, choices, .. } = check(&shorten::shorten(design, found, mix).choices)?;
    Ok(Found { record, choices })
}

/// Until something is found.
struct Search {
    mix: Mix,
    left: usize,
    until: Option<Instant>,
    found: Option<Told>,
}

impl Plan for Search {
    fn next(&mut self) -> bool {
        let late = self.until.is_some_and(|until| Instant::now() > until);
        if self.found.is_some() || self.left == 0 || late {
            return false;
        }
        self.left -= 1;
        self.mix.next();
        true
    }

    fn choose(&mut self, choice: &Choice<'_>) -> TaskId {
        self.mix.choose(choice)
    }

    fn ended(&mut self, told: Told) {
        self.mix.tried.widen(&told.choices);
        if told.verdict() != Verdict::Holds {
            self.found = Some(told);
        }
    }
}

/// Who judges a story of which this is expected. A failing design may well take locks in an order that could deadlock, too, and that is not what
/// it is there for.
fn checkers(expected: Verdict) -> Vec<Box<dyn Checker>> {
    match expected {
        Verdict::Holds | Verdict::LockOrder => checker::all_with_lock_order(),
        _ => checker::all(),
    }
}

#[cfg(test)]
mod tests;
