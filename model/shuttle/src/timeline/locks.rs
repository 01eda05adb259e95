//! Which locks a verdict is about, who holds them when, and who waits for whom.

use std::collections::HashSet;

use isomem_sim::checker::Verdict;
use isomem_sim::journal::{Event, Record};
use isomem_sim::sync::{LockId, LockStep};

use super::{Kind, Shown};

/// A lock that a thread holds over some rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Whose.
    pub thread: usize,
    /// Which.
    pub name: &'static str,
    /// The row with which it begins.
    pub from: usize,
    /// The row with which it ends; none: it never does.
    pub to: Option<usize>,
}

/// A thread that waits to the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// Who.
    pub thread: usize,
    /// The row with which it begins.
    pub row: usize,
    /// Who holds what it waits for, if somebody does.
    pub holder: Option<usize>,
}

/// A step with a lock: its number, the thread, and what is done.
type LockRow = (usize, usize, LockStep, LockId);

fn lock_steps(record: &Record) -> Vec<LockRow> {
    let of = |(index, step): (usize, &isomem_sim::journal::Step)| match step.event {
        Event::Lock(what, id) => Some((index, step.thread, what, id)),
        _ => None,
    };
    record.steps.iter().enumerate().filter_map(of).collect()
}

/// The steps with locks that are worth a row.
pub(super) struct Part {
    steps: HashSet<usize>,
    stuck: HashSet<usize>,
    /// Locks that somebody takes to read.
    read: HashSet<usize>,
}

impl Part {
    pub(super) fn of(record: &Record) -> Self {
        let steps = lock_steps(record);
        let stuck: HashSet<usize> = stuck(record, &steps).iter().map(|row| row.0).collect();
        let mut taking_part = steps.clone();
        taking_part.retain(|row| takes_part(record, &steps, &stuck, &row.3));
        let dull = dull(&taking_part);
        let worth = taking_part
            .iter()
            .map(|row| row.0)
            .filter(|index| !dull.contains(index));
        Self {
            steps: worth.collect(),
            stuck,
            read: steps.iter().filter(|row| row.3.shared).map(|row| row.3.at).collect(),
        }
    }

    /// How the lock is taken, where there is more than one way.
    pub(super) fn way(&self, id: &LockId) -> &'static str {
        match (id.shared, self.read.contains(&id.at)) {
            (true, _) => " to read",
            (false, true) => " to write",
            (false, false) => "",
        }
    }

    /// How the step with this number is shown, if it is.
    pub(super) fn shows(&self, index: usize) -> Option<Kind> {
        let kind = if self.stuck.contains(&index) {
            Kind::Stuck
        } else {
            Kind::Lock
        };
        self.steps.contains(&index).then_some(kind)
    }
}

/// The last steps of threads that wait for ever. A thread that asks for a lock which nobody has is not one of them: where somebody waits for
/// itself, others only had no turn any more.
fn stuck(record: &Record, steps: &[LockRow]) -> Vec<LockRow> {
    let deadlock = record
        .finding
        .as_ref()
        .is_some_and(|found| found.verdict == Verdict::Deadlock);
    let threads = 0..if deadlock { record.threads.len() } else { 0 };
    let last = |thread| {
        let last = record.steps.iter().rposition(|step| step.thread == thread)?;
        let row = steps.iter().rfind(|row| row.1 == thread)?;
        let waits = row.2 == LockStep::Sleeps || row.2 == LockStep::Wants && holder(steps, row).is_some();
        (waits && row.0 == last).then_some(*row)
    };
    threads.filter_map(last).collect()
}

fn takes_part(record: &Record, steps: &[LockRow], stuck: &HashSet<usize>, id: &LockId) -> bool {
    let Some(finding) = &record.finding else { return false };
    match finding.verdict {
        Verdict::Deadlock => steps.iter().any(|row| stuck.contains(&row.0) && row.3.at == id.at),
        Verdict::LockOrder => names(&finding.sentence, id.name),
        _ => false,
    }
}

/// Whether the sentence has `name` as a word.
fn names(sentence: &str, name: &str) -> bool {
    let inside = |letter: Option<char>| letter.is_some_and(|letter| letter.is_alphanumeric() || letter == '_');
    sentence.match_indices(name).any(|(at, _)| {
        let (before, after) = (&sentence[..at], &sentence[at + name.len()..]);
        !inside(before.chars().next_back()) && !inside(after.chars().next())
    })
}

/// Requests that are granted before anybody else comes to the lock: "has" says it all.
fn dull(steps: &[LockRow]) -> HashSet<usize> {
    let wants = steps.iter().enumerate().filter(|(_, row)| row.2 == LockStep::Wants);
    let granted = wants.filter(|(place, row)| {
        let next = steps[place + 1..].iter().find(|later| later.3.at == row.3.at);
        next.is_some_and(|later| later.1 == row.1 && later.2 == LockStep::Has)
    });
    granted.map(|(_, row)| row.0).collect()
}

/// What is held over the rows, and who waits to the end.
pub(super) fn bars(record: &Record, rows: &[Shown]) -> (Vec<Held>, Vec<Wait>) {
    let part = Part::of(record);
    let steps = lock_steps(record);
    let shown = |index: usize| {
        rows.iter()
            .position(|(_, (first, last))| (*first..=*last).contains(&index))
    };
    let visible = |row: &&LockRow| part.shows(row.0).is_some();
    let has = steps.iter().filter(visible).filter(|row| row.2 == LockStep::Has);
    let held = has.filter_map(|row| {
        Some(Held {
            thread: row.1,
            name: row.3.name,
            from: shown(row.0)?,
            to: left(&steps, row).and_then(&shown),
        })
    });
    let waits = stuck(record, &steps);
    let waits = waits.iter().filter_map(|row| {
        Some(Wait {
            thread: row.1,
            row: shown(row.0)?,
            holder: holder(&steps, row),
        })
    });
    (held.collect(), waits.collect())
}

/// The step with which the holder leaves what it has since `row`.
fn left(steps: &[LockRow], row: &LockRow) -> Option<usize> {
    let mut later = steps.iter().filter(|later| later.0 > row.0 && later.1 == row.1);
    let left = later.find(|later| later.3.at == row.3.at && later.2 == LockStep::Left);
    left.map(|left| left.0)
}

/// Who still has what the thread of `row` wants at the end.
fn holder(steps: &[LockRow], row: &LockRow) -> Option<usize> {
    let mut has = steps
        .iter()
        .filter(|other| other.2 == LockStep::Has && other.3.at == row.3.at);
    has.find(|other| left(steps, other).is_none()).map(|other| other.1)
}
