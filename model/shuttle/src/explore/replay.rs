//! Follows a schedule that was written down.

use isomem_sim::checker::Verdict;
use isomem_sim::journal::Record;
use shuttle::scheduler::TaskId;

use super::choices::{Choices, Turn};
use super::driver::{Detail, Plan, Told, run};
use super::strategy::Choice;
use crate::scenario::Design;

/// Chooses as written; where that is not possible it leaves the rest of the turn out, and after the end it does what is easiest.
#[derive(Debug)]
pub(super) struct Follow {
    choices: Choices,
    turn: usize,
    /// Steps of that turn which are done.
    done: usize,
    strayed: bool,
}

impl Follow {
    pub(super) fn new(choices: Choices) -> Self {
        Self {
            choices,
            turn: 0,
            done: 0,
            strayed: false,
        }
    }

    pub(super) fn choose(&mut self, choice: &Choice<'_>) -> TaskId {
        while let Some(&Turn { thread, steps }) = self.choices.turns().get(self.turn) {
            let mut all = choice.able.iter().chain(choice.dozing);
            let there = all.find(|task| usize::from(task.id()) == thread);
            if let Some(task) = there.filter(|_| self.done < steps) {
                self.done += 1;
                return task.id();
            }
            self.strayed |= self.done < steps;
            self.turn += 1;
            self.done = 0;
        }
        self.strayed = true;
        choice.easiest()
    }
}

/// What came of a schedule that was written down.
#[derive(Debug, Clone)]
pub struct Replayed {
    /// All steps, and the finding if there is one.
    pub record: Record,
    /// Whether the story no longer takes this schedule, so that something similar was told.
    pub strayed: bool,
    /// What was really told.
    pub choices: Choices,
}

impl Replayed {
    /// What the checkers say.
    pub fn verdict(&self) -> Verdict {
        let found = self.record.finding.as_ref();
        found.map_or(Verdict::Holds, |finding| finding.verdict)
    }
}

/// Tells the story of `design` once, with these choices, and keeps all of its steps.
pub fn replay(design: &'static Design, choices: &Choices) -> Replayed {
    let plan = Once {
        follow: Follow::new(choices.clone()),
        begun: false,
        told: None,
    };
    let Once { follow, told, .. } = run(design, plan, Detail::Steps);
    let told = told.expect("one schedule was asked for");
    Replayed {
        record: told.record,
        strayed: follow.strayed,
        choices: told.choices,
    }
}

struct Once {
    follow: Follow,
    begun: bool,
    told: Option<Told>,
}

impl Plan for Once {
    fn next(&mut self) -> bool {
        !std::mem::replace(&mut self.begun, true)
    }

    fn choose(&mut self, choice: &Choice<'_>) -> TaskId {
        self.follow.choose(choice)
    }

    fn ended(&mut self, told: Told) {
        self.told = Some(told);
    }
}
