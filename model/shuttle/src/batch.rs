//! Explores many designs, several at a time.
//!
//! # Locking
//! One lock of std for the results, a leaf; a story's threads all run on the thread of the system that explores it and never see it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use isomem_sim::checker::Verdict;
use isomem_sim::journal::Record;

use crate::explore::{Budget, Exploration, Fickle, explore};
use crate::report::Row;
use crate::scenario::{Design, Scenario};

/// A design in its scenario.
pub type Pair = (&'static Scenario, &'static Design);

/// What became of a design, and how it fails if it does.
pub struct Checked {
    /// The design.
    pub pair: Pair,
    /// For the table.
    pub row: Row,
    /// For the picture.
    pub record: Option<Record>,
}

/// Explores each of `pairs` within its budget, `jobs` at a time, and calls `done` after each. The results are in the order of `pairs`.
pub fn check(
    pairs: &[Pair],
    jobs: usize,
    budget: impl Fn(&Design) -> Budget + Sync,
    done: impl Fn(&Checked) + Sync,
) -> Vec<Checked> {
    // What holds takes longest, so it comes first: then no thread is left with a long one at the end.
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.sort_by_key(|index| pairs[*index].1.expected != Verdict::Holds);
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<Checked>>> = Mutex::new(pairs.iter().map(|_| None).collect());
    let work = || {
        // Relaxed: the count only hands out numbers, and the lock carries the results.
        while let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            let checked = apart(pairs[index], &budget(pairs[index].1));
            done(&checked);
            results.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(checked);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, pairs.len().max(1)) {
            scope.spawn(work);
        }
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.into_iter().flatten().collect()
}

/// On a thread of the system of its own: a panic that could not unwind to its end leaves its mark on the thread for good.
fn apart(pair: Pair, budget: &Budget) -> Checked {
    let checked = std::thread::scope(|scope| scope.spawn(|| one(pair, budget)).join());
    checked.unwrap_or_else(|payload| std::panic::resume_unwind(payload))
}

fn one(pair: Pair, budget: &Budget) -> Checked {
    let begun = Instant::now();
    match explore(pair.1, budget) {
        Ok(exploration) => explored(pair, exploration),
        Err(fickle) => Checked {
            pair,
            row: Row {
                trouble: Some(trouble(&fickle)),
                schedule: Some(fickle.choices),
                seconds: begun.elapsed().as_secs_f64(),
                ..Row::new(pair, fickle.schedules, fickle.first)
            },
            record: None,
        },
    }
}

fn explored(pair: Pair, exploration: Exploration) -> Checked {
    let row = Row {
        seconds: exploration.took.as_secs_f64(),
        tried: Some(exploration.tried),
        ..Row::new(pair, exploration.schedules, exploration.verdict())
    };
    let Some(found) = exploration.found else {
        return Checked {
            pair,
            row,
            record: None,
        };
    };
    Checked {
        pair,
        row: Row {
            sentence: found.record.finding.as_ref().map(|finding| finding.sentence.clone()),
            schedule: Some(found.choices),
            ..row
        },
        record: Some(found.record),
    }
}

fn trouble(fickle: &Fickle) -> String {
    format!(
        "the schedule that led to \u{201c}{}\u{201d} leads to \u{201c}{}\u{201d} when it is told again: something in the story depends on \
         more than who runs when",
        fickle.first, fickle.then
    )
}
