//! Tells a story once per schedule, under shuttle, and says what became of each.
//!
//! # Invariants
//! - DRV-1: what decides about a schedule is the story, the choices, and nothing else; so the same choices tell the same story again.
//! - DRV-2: a schedule ends when a checker has found something, when nobody can go on, or after [`MAX_STEPS`]; none of this is a panic, so one
//!   runner tells thousands of schedules.
//!
//! shuttle calls a deadlock a panic. To see it first there is one more thread, the *watchdog*: it can always run and is never chosen, so when
//! it is the only one left, either the story is over or every thread of it waits.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isomem_sim::checker::Verdict;
use isomem_sim::journal::{self, Journal, Record};
use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use super::choices::Choices;
use super::quiet::{self, Quiet};
use super::random::Random;
use super::standstill;
use super::strategy::Choice;
use crate::scenario::{Design, Run};

/// A story that takes more steps than this never ends.
pub const MAX_STEPS: usize = 20_000;
/// After so many steps everybody gets a turn, whatever the plan: what does not end then is not for want of a turn.
const FAIR_AFTER: usize = 4_000;
/// Room for the locals of one thread; core keeps arrays of 64 entries there.
const STACK_BYTES: usize = 256 << 10;
/// The watchdog is the first thread that is started, before the story.
const WATCHDOG: usize = 1;

/// How many threads of the story take part.
pub(super) fn threads(choices: &Choices) -> usize {
    let last = choices.turns().iter().map(|turn| turn.thread).max().unwrap_or(0);
    last + 1 - usize::from(last > WATCHDOG)
}

/// Whether the steps of a story are kept for a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    /// Only the verdict.
    Verdict,
    /// All steps.
    Steps,
}

/// One schedule, and what became of it.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) choices: Choices,
    pub(super) record: Record,
}

impl Told {
    /// What the checkers say.
    pub(super) fn verdict(&self) -> Verdict {
        let found = self.record.finding.as_ref();
        found.map_or(Verdict::Holds, |finding| finding.verdict)
    }
}

/// Who decides which schedules there are.
pub(super) trait Plan {
    /// Another schedule begins; false: there is none.
    fn next(&mut self) -> bool;
    /// Who runs next.
    fn choose(&mut self, choice: &Choice<'_>) -> TaskId;
    /// The schedule ended.
    fn ended(&mut self, told: Told);
}

/// How a schedule ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// The story returned.
    Over,
    /// A checker found something in the middle of it.
    Decided,
    Deadlock,
    Endless,
    Panicked(String),
}

/// What the threads of the story leave for the driver.
#[derive(Debug, Default)]
struct Desk {
    journal: Option<Journal>,
    /// Somebody waits for what it has itself.
    stands_still: bool,
    /// Once the story is over.
    record: Option<Record>,
}

type SharedDesk = Arc<Mutex<Desk>>;

fn lock(desk: &SharedDesk) -> MutexGuard<'_, Desk> {
    desk.lock().unwrap_or_else(PoisonError::into_inner)
}

struct State<P> {
    plan: P,
    desk: SharedDesk,
    choices: Choices,
    steps: usize,
    /// None while no schedule is under way.
    end: Option<End>,
    fair: Random,
}

impl<P: Plan> State<P> {
    /// Takes stock of the schedule that was under way, if one was.
    fn conclude(&mut self) {
        let Some(end) = self.end.take() else { return };
        let Desk { journal, record, .. } = std::mem::take(&mut *lock(&self.desk));
        let choices = std::mem::take(&mut self.choices);
        let record = record.or_else(|| journal.map(|journal| account(&journal, end)));
        self.plan.ended(Told {
            choices,
            record: record.unwrap_or_default(),
        });
    }

    fn begin(&mut self) -> Option<Schedule> {
        self.conclude();
        if !self.plan.next() {
            return None;
        }
        self.steps = 0;
        self.end = Some(End::Over);
        self.fair = Random::new(0);
        Some(Schedule::new(0))
    }

    fn choose(&mut self, runnable: &[&Task], current: Option<TaskId>, yielding: bool) -> Option<TaskId> {
        let others = || runnable.iter().filter(|task| usize::from(task.id()) != WATCHDOG);
        let able: Vec<&Task> = others().filter(|task| task.runnable()).copied().collect();
        if std::thread::panicking()
            && let Some(unwinds) = able.iter().find(|task| Some(task.id()) == current)
        {
            // Nobody else shall panic meanwhile, which would end the program.
            return Some(unwinds.id());
        }
        if let Some(end) = self.stop(able.is_empty()) {
            let watchdog = runnable.iter().find(|task| usize::from(task.id()) == WATCHDOG);
            let last = watchdog.filter(|_| end == End::Over);
            self.end = Some(end);
            return last.map(|task| task.id());
        }
        let dozing: Vec<&Task> = others().filter(|task| !task.runnable()).copied().collect();
        let choice = Choice {
            able: &able,
            dozing: &dozing,
            current,
            yielding,
        };
        let chosen = self.ask(&choice);
        self.steps += 1;
        self.choices.push(usize::from(chosen));
        Some(chosen)
    }

    fn ask(&mut self, choice: &Choice<'_>) -> TaskId {
        if self.steps >= FAIR_AFTER {
            return choice.able[self.fair.below(choice.able.len())].id();
        }
        self.plan.choose(choice)
    }

    /// How the schedule ends, if it does so here.
    fn stop(&self, nobody: bool) -> Option<End> {
        let desk = lock(&self.desk);
        let is_late = self.steps >= MAX_STEPS;
        if desk.record.is_some() {
            return (nobody || is_late).then_some(End::Over);
        }
        match desk.journal.as_ref().is_some_and(Journal::is_decided) {
            true => Some(End::Decided),
            false if nobody || desk.stands_still => Some(End::Deadlock),
            false => is_late.then_some(End::Endless),
        }
    }
}

/// The checkers' last word on a story that did not come to its own end.
fn account(journal: &Journal, end: End) -> Record {
    match end {
        End::Over | End::Decided => {}
        End::Deadlock => return journal.deadlocked(),
        End::Endless => {
            let sentence = format!("The story does not end: after {MAX_STEPS} steps somebody still tries.");
            journal.found(Verdict::NoProgress, sentence);
        }
        End::Panicked(said) => journal.found(Verdict::Panicked, said),
    }
    journal.finish()
}

/// shuttle's view of the state.
struct Driver<P>(Rc<RefCell<State<P>>>);

impl<P: Plan> Scheduler for Driver<P> {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.0.borrow_mut().begin()
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, yielding: bool) -> Option<TaskId> {
        self.0.borrow_mut().choose(runnable, current, yielding)
    }

    fn next_u64(&mut self) -> u64 {
        // Stories draw no random numbers: they would be choices that are not written down.
        0
    }
}

/// Tells the story of `design` once per schedule of `plan`, and gives the plan back.
pub(super) fn run<P: Plan + 'static>(design: &'static Design, plan: P, detail: Detail) -> P {
    let quiet = Quiet::begin();
    let desk = SharedDesk::default();
    let state = Rc::new(RefCell::new(State {
        plan,
        desk: Arc::clone(&desk),
        choices: Choices::default(),
        steps: 0,
        end: None,
        fair: Random::new(0),
    }));
    // Usually one round: only a panic ends a runner early.
    loop {
        let runner = Runner::new(Driver(Rc::clone(&state)), config());
        let desk = Arc::clone(&desk);
        let ran = catch_unwind(AssertUnwindSafe(|| runner.run(move || tell(design, &desk, detail))));
        let Err(payload) = ran else { break };
        let mut state = state.borrow_mut();
        if state.end.is_none() {
            // Not the story's: ours.
            resume_unwind(payload);
        }
        state.end = Some(panicked());
        state.conclude();
    }
    journal::unwatch_locks();
    drop(quiet);
    let state = Rc::into_inner(state).expect("the runner is gone, and its scheduler with it");
    state.into_inner().plan
}

/// A panic that no [`guarded`](super::guarded) caught: of a thread that the story did not start by itself.
fn panicked() -> End {
    let said = quiet::said();
    // A thread that the story did not join waits for ever.
    if said.starts_with("deadlock!") {
        End::Deadlock
    } else {
        End::Panicked(format!("A thread panics: {said}"))
    }
}

/// The body of shuttle's main thread.
fn tell(design: &'static Design, desk: &SharedDesk, detail: Detail) {
    shuttle::thread::spawn(|| {});
    let checkers = super::checkers(design.expected);
    let journal = Journal::new(checkers, detail == Detail::Steps);
    let shared = Arc::clone(desk);
    standstill::watch_locks(&journal, move || lock(&shared).stands_still = true);
    lock(desk).journal = Some(journal.clone());
    let run = Run { journal };
    standstill::guarded(&run.journal, || (design.story)(&run));
    let record = run.journal.finish();
    lock(desk).record = Some(record);
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    config.failure_persistence = FailurePersistence::None;
    // Ours comes first.
    config.max_steps = MaxSteps::FailAfter(2 * MAX_STEPS);
    config.silence_warnings = true;
    config
}
