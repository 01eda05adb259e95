//! Makes a failing schedule easy to follow: the same verdict, with fewer switches from thread to thread and fewer steps.

use std::time::{Duration, Instant};

use isomem_sim::checker::Verdict;
use shuttle::scheduler::TaskId;

use super::choices::{Choices, Turn};
use super::driver::{Detail, MAX_STEPS, Plan, Told, run};
use super::replay::Follow;
use super::strategy::{Choice, Mix};
use crate::scenario::Design;

/// Further schedules of the exploration that are looked at.
const MORE: usize = 1_500;
/// Changed schedules that are tried.
const TRIES: usize = 1_500;
/// A picture is not worth waiting longer for.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// The shortest schedule with the verdict of `told` that is found with little effort; `mix` is where the exploration has got to.
pub(super) fn shorten(design: &'static Design, told: Told, mix: Mix) -> Told {
    // Where nobody guards the thread that panics, shuttle prints a line each time; and a story without end has no short schedule.
    if told.verdict() == Verdict::Panicked || told.choices.steps() >= MAX_STEPS {
        return told;
    }
    let plan = Shorten {
        verdict: told.verdict(),
        untried: changed(&told.choices),
        best: told,
        mix,
        more: MORE,
        tries: TRIES,
        follow: None,
        until: Instant::now() + PATIENCE,
    };
    run(design, plan, Detail::Verdict).best
}

struct Shorten {
    verdict: Verdict,
    best: Told,
    mix: Mix,
    more: usize,
    tries: usize,
    /// Changes of `best` that are still to be tried, the next last.
    untried: Vec<Choices>,
    /// The change under way, if it is not the mix's turn.
    follow: Option<Follow>,
    until: Instant,
}

impl Plan for Shorten {
    fn next(&mut self) -> bool {
        self.follow = None;
        if Instant::now() > self.until {
            return false;
        }
        if self.more > 0 {
            self.more -= 1;
            self.mix.next();
            return true;
        }
        let Some(changed) = self.untried.pop().filter(|_| self.tries > 0) else {
            return false;
        };
        self.tries -= 1;
        self.follow = Some(Follow::new(changed));
        true
    }

    fn choose(&mut self, choice: &Choice<'_>) -> TaskId {
        match &mut self.follow {
            Some(follow) => follow.choose(choice),
            None => self.mix.choose(choice),
        }
    }

    fn ended(&mut self, told: Told) {
        if told.verdict() == self.verdict && told.choices.cost() < self.best.choices.cost() {
            self.untried = changed(&told.choices);
            self.best = told;
        }
    }
}

/// Schedules with fewer switches, made by letting a thread do at once what it does in two turns, or by leaving a turn out. Not all are possible:
/// whoever follows them leaves out what is not.
fn changed(choices: &Choices) -> Vec<Choices> {
    let turns = choices.turns();
    let mut all = Vec::new();
    for first in 0..turns.len() {
        all.push(Choices::of(without(turns, first)));
        let again = (first + 1..turns.len()).find(|later| turns[*later].thread == turns[first].thread);
        if let Some(later) = again {
            all.push(Choices::of(moved(turns, later, first + 1)));
            all.push(Choices::of(moved(turns, first, later)));
        }
    }
    all.reverse();
    all
}

fn without(turns: &[Turn], index: usize) -> impl Iterator<Item = Turn> {
    turns[..index].iter().chain(&turns[index + 1..]).copied()
}

/// With the turn at `from` where the one at `to` is now.
fn moved(turns: &[Turn], from: usize, to: usize) -> Vec<Turn> {
    let mut turns = turns.to_vec();
    let turn = turns.remove(from);
    turns.insert(to.min(turns.len()), turn);
    turns
}
