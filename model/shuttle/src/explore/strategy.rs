//! Who runs next: three ways to choose, each good at failures that the others meet late.
//!
//! - [`Sweep`] goes through every schedule with at most so many forced switches, fewest first. Most failures need one or two, so it finds
//!   them soon, whatever the seed, and with a schedule that is easy to follow. When it gets through, that is a proof within the bound.
//! - [`Walk`] chooses at random; how readily it switches differs from schedule to schedule.
//! - shuttle's PCT gives threads random priorities that change at a few random points (Burckhardt et al., ASPLOS 2010).

use shuttle::scheduler::{PctScheduler, Scheduler, Task, TaskId};

use super::Tried;
use super::random::Random;

/// What there is to choose from at one step.
pub(super) struct Choice<'a> {
    /// Threads that can go on; not empty, in ascending order.
    pub(super) able: &'a [&'a Task],
    /// Threads that wait for a condition and may wake without a signal.
    pub(super) dozing: &'a [&'a Task],
    /// Who ran last.
    pub(super) current: Option<TaskId>,
    /// Whether it asked that others run first.
    pub(super) yielding: bool,
}

impl Choice<'_> {
    /// Where the thread that ran last is in `able`.
    fn current(&self) -> Option<usize> {
        let current = self.current?;
        self.able.iter().position(|task| task.id() == current)
    }

    /// Whom a scheduler without preferences takes: who ran last, if it can go on and does not ask for a rest.
    pub(super) fn easiest(&self) -> TaskId {
        let current = self.current();
        let other = || (0..self.able.len()).find(|index| Some(*index) != current);
        let index = if self.yielding {
            other().or(current)
        } else {
            current.or_else(other)
        };
        self.able[index.unwrap_or(0)].id()
    }
}

/// At most this many forced switches are tried exhaustively.
const MAX_FORCED: usize = 3;

/// Depth-first through all schedules with at most `forced` forced switches, then with one more.
///
/// A switch is forced when the thread that ran last could have gone on and did not ask for a rest. Nobody wakes without a signal here: that
/// is left to the walk.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// For each step with a choice: which was taken, of how many.
    path: Vec<(usize, usize)>,
    depth: usize,
    forced: usize,
    used: usize,
    begun: bool,
    /// All schedules with at most so many forced switches were seen.
    pub(super) complete: Option<usize>,
}

impl Sweep {
    /// Goes to the next schedule; false when there is none.
    pub(super) fn next(&mut self) -> bool {
        self.depth = 0;
        self.used = 0;
        if !self.begun {
            self.begun = true;
            return true;
        }
        while let Some((taken, of)) = self.path.pop() {
            if taken + 1 < of {
                self.path.push((taken + 1, of));
                return true;
            }
        }
        self.complete = Some(self.forced);
        self.forced += 1;
        self.forced <= MAX_FORCED
    }

    pub(super) fn choose(&mut self, choice: &Choice<'_>) -> TaskId {
        let easiest = choice.easiest();
        let goes_on = choice.current == Some(easiest);
        let able = choice.able.iter().map(|task| task.id());
        // A thread that asks for a rest gets one: else a loop that waits would be a schedule of its own for each round.
        let rests = choice.current.filter(|_| choice.yielding && !goes_on);
        let others = || able.clone().filter(|id| *id != easiest && Some(*id) != rests);
        if goes_on && self.used >= self.forced {
            return easiest;
        }
        let of = 1 + others().count();
        let taken = self.step(of);
        match taken.checked_sub(1).and_then(|index| others().nth(index)) {
            None => easiest,
            Some(other) => {
                self.used += usize::from(goes_on && !choice.yielding);
                other
            }
        }
    }

    /// Which of so many choices it is this time.
    fn step(&mut self, of: usize) -> usize {
        if of == 1 {
            return 0;
        }
        if self.depth == self.path.len() {
            self.path.push((0, of));
        }
        self.depth += 1;
        self.path[self.depth - 1].0
    }
}

/// Random choices.
#[derive(Debug)]
pub(super) struct Walk {
    random: Random,
    /// The thread that ran last goes on unless a coin with so many sides falls on one of them.
    sides: usize,
}

/// A thread that waits for a condition wakes without a signal once in so many steps.
const WAKES_ONCE_IN: usize = 24;

impl Walk {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            sides: 1,
        }
    }

    pub(super) fn next(&mut self) {
        self.sides = [1, 1, 2, 4, 8, 16][self.random.below(6)];
    }

    pub(super) fn choose(&mut self, choice: &Choice<'_>) -> TaskId {
        if !choice.dozing.is_empty() && self.random.once_in(WAKES_ONCE_IN) {
            return choice.dozing[self.random.below(choice.dozing.len())].id();
        }
        if !choice.yielding && !self.random.once_in(self.sides) {
            return choice.easiest();
        }
        choice.able[self.random.below(choice.able.len())].id()
    }
}

/// shuttle's PCT.
#[derive(Debug)]
pub(super) struct Pct {
    scheduler: PctScheduler,
    /// Whether there was anything to choose: PCT refuses stories of one thread.
    chose: bool,
    begun: bool,
}

impl Pct {
    pub(super) fn new(seed: u64, depth: usize) -> Self {
        Self {
            scheduler: PctScheduler::new_from_seed(seed, depth, usize::MAX),
            chose: false,
            begun: false,
        }
    }

    /// Goes to the next schedule; false if the story is not for PCT.
    pub(super) fn next(&mut self) -> bool {
        if self.begun && !self.chose {
            return false;
        }
        self.begun = true;
        self.scheduler.new_execution().is_some()
    }

    pub(super) fn choose(&mut self, choice: &Choice<'_>) -> TaskId {
        self.chose |= choice.able.len() > 1;
        self.scheduler
            .next_task(choice.able, choice.current, choice.yielding)
            .unwrap_or_else(|| choice.easiest())
    }
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Sweep,
    Walk,
    Pct(usize),
}

/// So many schedules of the sweep come first: most failures are among them, and what it finds is easy to follow.
const SWEEPS_FIRST: usize = 500;

/// All of them: the sweep first, then by turns a third each of the sweep, of the walk and of PCT.
#[derive(Debug)]
pub(super) struct Mix {
    way: Way,
    sweep: Sweep,
    /// The sweep has seen everything that it is for.
    swept: bool,
    walk: Walk,
    pct: [Pct; 2],
    pub(super) tried: Tried,
}

impl Mix {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            way: Way::Sweep,
            sweep: Sweep::default(),
            swept: false,
            walk: Walk::new(seed),
            pct: [Pct::new(seed, 2), Pct::new(seed, 3)],
            tried: Tried::default(),
        }
    }

    /// Goes to the next schedule.
    pub(super) fn next(&mut self) {
        self.way = self.next_way();
        self.tried.preemptions = self.sweep.complete;
        match self.way {
            Way::Sweep => self.tried.exhaustive += 1,
            Way::Walk => self.tried.random += 1,
            Way::Pct(_) => self.tried.pct += 1,
        }
    }

    fn next_way(&mut self) -> Way {
        let turn = self.tried.schedules();
        if !self.swept && (turn < SWEEPS_FIRST || turn.is_multiple_of(3)) {
            if self.sweep.next() {
                return Way::Sweep;
            }
            self.swept = true;
        }
        match self.tried.random + self.tried.pct {
            others if others % 4 == 1 && self.pct[0].next() => Way::Pct(0),
            others if others % 4 == 3 && self.pct[1].next() => Way::Pct(1),
            _ => {
                self.walk.next();
                Way::Walk
            }
        }
    }

    pub(super) fn choose(&mut self, choice: &Choice<'_>) -> TaskId {
        match self.way {
            Way::Sweep => self.sweep.choose(choice),
            Way::Walk => self.walk.choose(choice),
            Way::Pct(which) => self.pct[which].choose(choice),
        }
    }
}
