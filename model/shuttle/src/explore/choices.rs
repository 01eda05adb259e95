//! A schedule, written down: who ran at each step.
//!
//! The text is a list of turns such as `0*14 2*3 0`: thread 0 for fourteen steps, thread 2 for three, thread 0 for one. Threads are numbered
//! in the order in which the story starts them; 0 is the story itself, and 1 is the explorer's own and never runs in between.

use core::fmt;
use core::str::FromStr;

/// One thread's steps without a switch in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Turn {
    /// Which thread.
    pub thread: usize,
    /// How many steps, at least one.
    pub steps: usize,
}

/// Who ran, turn by turn. Neighbouring turns are of different threads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Choices(Vec<Turn>);

impl Choices {
    /// These turns; neighbours of one thread become one turn.
    pub fn of(turns: impl IntoIterator<Item = Turn>) -> Self {
        let mut choices = Self::default();
        for turn in turns {
            choices.extend(turn);
        }
        choices
    }

    /// One more step of `thread`.
    pub fn push(&mut self, thread: usize) {
        self.extend(Turn { thread, steps: 1 });
    }

    fn extend(&mut self, turn: Turn) {
        match self.0.last_mut() {
            Some(last) if last.thread == turn.thread => last.steps += turn.steps,
            _ => self.0.push(turn),
        }
    }

    /// The turns.
    pub fn turns(&self) -> &[Turn] {
        &self.0
    }

    /// How many steps there are.
    pub fn steps(&self) -> usize {
        self.0.iter().map(|turn| turn.steps).sum()
    }

    /// How hard it is to follow: first the switches from thread to thread, then the steps.
    pub fn cost(&self) -> (usize, usize) {
        (self.0.len(), self.steps())
    }

    /// Forgets everything, but keeps the memory.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl fmt::Display for Choices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, turn) in self.0.iter().enumerate() {
            let gap = if index == 0 { "" } else { " " };
            match turn.steps {
                1 => write!(f, "{gap}{}", turn.thread)?,
                steps => write!(f, "{gap}{}*{steps}", turn.thread)?,
            }
        }
        Ok(())
    }
}

/// A text that is no schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoSchedule(String);

impl fmt::Display for NoSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no turn of a schedule: write THREAD or THREAD*STEPS", self.0)
    }
}

impl std::error::Error for NoSchedule {}

impl FromStr for Choices {
    type Err = NoSchedule;

    fn from_str(text: &str) -> Result<Self, NoSchedule> {
        let turn = |word: &str| {
            let (thread, steps) = word.split_once('*').unwrap_or((word, "1"));
            let number = |text: &str| text.parse::<usize>().ok();
            match (number(thread), number(steps)) {
                (Some(thread), Some(steps)) if steps > 0 => Ok(Turn { thread, steps }),
                _ => Err(NoSchedule(word.to_owned())),
            }
        };
        let turns = text.split_whitespace().map(turn).collect::<Result<Vec<_>, _>>()?;
        Ok(Self::of(turns))
    }
}
