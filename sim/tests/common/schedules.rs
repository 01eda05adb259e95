//! Under shuttle: the number of a telling decides the schedule.
//!
//! Three kinds take turns: any thread that can run, at each step; the same one for a while, then another; priorities that change at a few steps, which
//! finds what needs few but far-fetched switches.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use isomem_sim::checker::{Finding, Verdict};
use isomem_sim::journal::{self, Journal, Record};
use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use super::{Judges, Random, tell};

/// A telling that takes more steps never ends.
const MAX_STEPS: usize = 100_000;
/// After so many steps everybody gets a turn: what does not end then is not for want of one.
const FAIR_AFTER: usize = 4_000;
/// Room for the locals of a thread.
const STACK_BYTES: usize = 1 << 18;
/// Steps among which priorities change.
const CHANGES_WITHIN: usize = 1_500;

/// What the scheduler and the story share.
#[derive(Default)]
struct Desk {
    /// Of the telling under way.
    number: u64,
    journal: Option<Journal>,
    /// Once its story is over.
    record: Option<Record>,
}

type SharedDesk = Arc<Mutex<Desk>>;

fn with<R>(desk: &SharedDesk, look: impl FnOnce(&mut Desk) -> R) -> R {
    look(&mut desk.lock().unwrap_or_else(PoisonError::into_inner))
}

pub(super) fn run(judges: Judges, tellings: Range<u64>, story: impl Fn(&Journal, u64) + Send + Sync + 'static) {
    let story = Arc::new(story);
    let began = std::time::Instant::now();
    let count = tellings.end.saturating_sub(tellings.start);
    if let Some((number, record)) = first_failure(judges, tellings, &story, Keep::Nothing) {
        // The same once more, with its steps.
        let again = first_failure(judges, number..number + 1, &story, Keep::Steps);
        let record = again.map_or(record, |(_, record)| record);
        panic!(
            "{}telling {number} (ISOMEM_SEED={number} ISOMEM_SCHEDULES=1)",
            tell(&record)
        );
    }
    let took = began.elapsed().as_micros() / u128::from(count.max(1));
    eprintln!("{count} schedules, {took} us each");
}

pub(super) fn first_finding(
    judges: Judges,
    tellings: Range<u64>,
    story: impl Fn(&Journal, u64) + Send + Sync + 'static,
) -> Option<Finding> {
    first_failure(judges, tellings, &Arc::new(story), Keep::Nothing)?
        .1
        .finding
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Nothing,
    Steps,
}

/// The first telling in which something is found.
fn first_failure<S>(judges: Judges, tellings: Range<u64>, story: &Arc<S>, keep: Keep) -> Option<(u64, Record)>
where
    S: Fn(&Journal, u64) + Send + Sync + 'static,
{
    let desk = SharedDesk::default();
    let (shared, story) = (Arc::clone(&desk), Arc::clone(story));
    let runner = Runner::new(Numbered::new(tellings, &desk), config());
    let ran = catch_unwind(AssertUnwindSafe(|| {
        runner.run(move || {
            let journal = Journal::new(judges(), keep == Keep::Steps);
            journal::watch_locks(&journal);
            let number = with(&shared, |desk| {
                desk.journal = Some(journal.clone());
                desk.number
            });
            story(&journal, number);
            let record = journal.finish();
            with(&shared, |desk| desk.record = Some(record));
        });
    }));
    journal::unwatch_locks();
    let Desk {
        number,
        journal,
        record,
    } = std::mem::take(&mut *desk.lock().unwrap_or_else(PoisonError::into_inner));
    let record = match (ran, record, journal) {
        (Ok(_), Some(record), _) => record,
        (Ok(_), None, Some(journal)) => journal.finish(),
        (Err(panic), _, Some(journal)) => panicked(&journal, &*panic),
        (Err(panic), _, None) => std::panic::resume_unwind(panic),
        (Ok(_), None, None) => return None,
    };
    record.finding.is_some().then_some((number, record))
}

/// What shuttle says by a panic, or the code itself.
fn panicked(journal: &Journal, panic: &(dyn std::any::Any + Send)) -> Record {
    let said = panic.downcast_ref::<String>().map(String::as_str);
    let said = said
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic");
    if said.starts_with("deadlock") {
        return journal.deadlocked();
    }
    let endless = said.contains("exceeded max_steps");
    journal.found(
        if endless {
            Verdict::NoProgress
        } else {
            Verdict::Panicked
        },
        said,
    );
    journal.finish()
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    config.max_steps = MaxSteps::FailAfter(MAX_STEPS);
    config.failure_persistence = FailurePersistence::None;
    config.silence_warnings = true;
    config
}

/// How the next thread is chosen.
enum Kind {
    Any,
    /// Another one with a chance of one in so many.
    Sticky(usize),
    /// By priority, the highest first; at these steps the running thread falls to the lowest.
    Priorities {
        of: Vec<u64>,
        changes: Vec<usize>,
    },
}

/// Schedules by number.
struct Numbered {
    tellings: Range<u64>,
    desk: SharedDesk,
    random: Random,
    kind: Kind,
    steps: usize,
    lowest: u64,
}

impl Numbered {
    fn new(tellings: Range<u64>, desk: &SharedDesk) -> Self {
        Self {
            tellings,
            desk: Arc::clone(desk),
            random: Random::new(0),
            kind: Kind::Any,
            steps: 0,
            lowest: u64::MAX / 2,
        }
    }

    fn kind_of(&mut self, number: u64) -> Kind {
        match number % 4 {
            0 => Kind::Any,
            1 => Kind::Sticky(4 + self.random.below(30)),
            _ => {
                let count = 1 + self.random.below(6);
                let changes = (0..count).map(|_| self.random.below(CHANGES_WITHIN)).collect();
                Kind::Priorities {
                    of: Vec::new(),
                    changes,
                }
            }
        }
    }

    fn priority(&mut self, task: TaskId) -> u64 {
        let Kind::Priorities { of, .. } = &mut self.kind else {
            return 0;
        };
        let index = usize::from(task);
        while of.len() <= index {
            of.push(self.random.next() | 1 << 63);
        }
        of[index]
    }

    /// The thread waits for its turn behind all others.
    fn lower(&mut self, task: TaskId) {
        self.priority(task);
        if let Kind::Priorities { of, .. } = &mut self.kind {
            self.lowest -= 1;
            of[usize::from(task)] = self.lowest;
        }
    }

    fn choose(&mut self, able: &[TaskId], current: Option<TaskId>, is_yielding: bool) -> TaskId {
        let goes_on = current.filter(|task| able.contains(task) && !is_yielding);
        let others: Vec<TaskId> = able
            .iter()
            .copied()
            .filter(|task| !is_yielding || Some(*task) != current)
            .collect();
        let able = if others.is_empty() { able } else { &others };
        let any = able[self.random.below(able.len())];
        if self.steps > FAIR_AFTER {
            return any;
        }
        match &self.kind {
            Kind::Any => any,
            Kind::Sticky(chance) => {
                let chance = *chance;
                goes_on.filter(|_| self.random.below(chance) != 0).unwrap_or(any)
            }
            Kind::Priorities { changes, .. } => {
                if let Some(current) = current
                    && (is_yielding || changes.contains(&self.steps))
                {
                    self.lower(current);
                }
                let mut best = able[0];
                for &task in able {
                    if self.priority(task) > self.priority(best) {
                        best = task;
                    }
                }
                best
            }
        }
    }
}

impl Scheduler for Numbered {
    fn new_execution(&mut self) -> Option<Schedule> {
        let failed = with(&self.desk, |desk| {
            let found = desk.record.as_ref().is_some_and(|record| record.finding.is_some());
            found || desk.record.is_none() && desk.journal.is_some()
        });
        if failed {
            return None;
        }
        let number = self.tellings.next()?;
        with(&self.desk, |desk| {
            *desk = Desk {
                number,
                ..Desk::default()
            }
        });
        self.random = Random::new(number ^ 0x5eed);
        self.kind = self.kind_of(number);
        self.steps = 0;
        Some(Schedule::new(number))
    }

    fn next_task(&mut self, tasks: &[&Task], current: Option<TaskId>, is_yielding: bool) -> Option<TaskId> {
        let decided = with(&self.desk, |desk| {
            desk.journal.as_ref().is_some_and(Journal::is_decided) && desk.record.is_none()
        });
        if decided && !std::thread::panicking() {
            // The rest of the story is of no interest.
            return None;
        }
        self.steps += 1;
        let able: Vec<TaskId> = tasks.iter().map(|task| task.id()).collect();
        Some(self.choose(&able, current, is_yielding))
    }

    fn next_u64(&mut self) -> u64 {
        self.random.next()
    }
}
