//! A story as a picture: one column per thread, and only the steps that matter.
//!
//! What matters are the notes and events of the story. Steps with locks matter where the verdict is about locks, and then only those of locks
//! that take part in it. Who does the same again and again is shown once or twice.

mod fold;
mod locks;
mod page;
mod svg;
mod text;
mod words;
mod wrap;

use isomem_sim::checker::{Finding, Verdict};
use isomem_sim::journal::{Event, Record};

pub use locks::{Held, Wait};
pub use page::{Page, index};
pub use text::{paragraph, text};

/// How a row is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The story explains itself.
    Note,
    /// Something that checkers judge.
    Event,
    /// A step with a lock.
    Lock,
    /// A thread waits here for ever.
    Stuck,
    /// Rows are left out here.
    Gap,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Index into [`Timeline::threads`].
    pub thread: usize,
    /// What is done, in words.
    pub words: String,
    /// How it is meant.
    pub kind: Kind,
    /// Whether the finding is about this step.
    pub decides: bool,
}

/// The picture's contents.
#[derive(Debug, Clone)]
pub struct Timeline {
    /// Names of the threads that do something.
    pub threads: Vec<String>,
    /// Steps, in the order in which they happened.
    pub rows: Vec<Row>,
    /// Locks that are held over several rows.
    pub held: Vec<Held>,
    /// Threads that wait for a lock to the end.
    pub waits: Vec<Wait>,
    /// What the checkers found.
    pub finding: Option<Finding>,
}

impl Timeline {
    /// The picture of what was recorded.
    pub fn of(record: &Record) -> Self {
        let chosen = shown(record);
        let mut timeline = Self {
            threads: record.threads.clone(),
            rows: chosen.iter().map(|(row, _)| row.clone()).collect(),
            held: Vec::new(),
            waits: Vec::new(),
            finding: record.finding.clone(),
        };
        (timeline.held, timeline.waits) = locks::bars(record, &chosen);
        timeline.decide();
        timeline.say_who_has_it();
        timeline.forget_idle_threads();
        timeline
    }

    /// Marks the step that the finding is about. A deadlock is about all the waits instead.
    fn decide(&mut self) {
        let late = [Verdict::Deadlock, Verdict::Leak, Verdict::MissingEnd];
        let verdict = self.finding.as_ref().map(|finding| finding.verdict);
        if let (Some(row), Some(verdict)) = (self.rows.last_mut(), verdict) {
            row.decides = !late.contains(&verdict);
        }
    }

    /// Adds to the last words of a thread that waits for ever for whom it waits.
    fn say_who_has_it(&mut self) {
        for wait in &self.waits {
            let words = &mut self.rows[wait.row].words;
            words.push_str(&match wait.holder {
                None => String::from(", for ever"),
                Some(holder) if holder == wait.thread => String::from(", which it has itself"),
                Some(holder) => format!(", which {} has", self.threads[holder]),
            });
        }
    }

    fn forget_idle_threads(&mut self) {
        let busy: Vec<usize> = (0..self.threads.len())
            .filter(|thread| self.rows.iter().any(|row| row.thread == *thread))
            .collect();
        let place_of = |thread: usize| busy.iter().position(|known| *known == thread);
        let place = |thread: usize| place_of(thread).unwrap_or(0);
        self.threads = busy.iter().map(|thread| self.threads[*thread].clone()).collect();
        self.rows.iter_mut().for_each(|row| row.thread = place(row.thread));
        self.held.iter_mut().for_each(|held| held.thread = place(held.thread));
        for wait in &mut self.waits {
            wait.thread = place(wait.thread);
            wait.holder = wait.holder.and_then(place_of);
        }
    }
}

/// A row, and the numbers of the first and last step that it shows.
type Shown = (Row, (usize, usize));

fn shown(record: &Record) -> Vec<Shown> {
    let part = locks::Part::of(record);
    let mut rows: Vec<Shown> = Vec::new();
    for (index, step) in record.steps.iter().enumerate() {
        let kind = match &step.event {
            Event::Note(_) => Kind::Note,
            Event::Lock(..) => match part.shows(index) {
                Some(kind) => kind,
                None => continue,
            },
            _ => Kind::Event,
        };
        let words = words::of(&step.event, &part);
        match rows.last_mut() {
            // Somebody who does the same again and again has one row.
            Some((row, (_, last))) if row.thread == step.thread && row.words == words => *last = index,
            _ => rows.push((
                Row {
                    thread: step.thread,
                    words,
                    kind,
                    decides: false,
                },
                (index, index),
            )),
        }
    }
    fold::folded(&rows)
}

#[cfg(test)]
mod tests;
