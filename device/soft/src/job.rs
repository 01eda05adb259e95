//! The one job slot: a launch puts a job in, every worker runs it once, the launcher waits for all of them.
//!
//! # Invariants
//! - LNC-1: when [`JobSlot::run`] returns, no worker uses the job any more and the slot does not hold it. A launcher may therefore
//!   lend the job what lives on its own stack.
//! - LNC-2: each worker runs each job exactly once.
//! - LNC-3: launches are run in the order in which they came.
//!
//! # Locking
//! `state` only, a leaf; a job is run without it. The slot lies in memory that is never mirrored, so who waits here cannot fault.
//!
//! ```text
//! launcher                         worker
//! takes a ticket, waits its turn   waits for a job it has not seen
//! puts the job in, wakes           takes a copy, runs it
//! waits for running = 0            running -= 1, the last one wakes
//! takes the job out, next ticket   .
//! ```

use crate::error::PanicNote;
use crate::sync::{Condvar, Mutex};

struct State<J> {
    job: Option<J>,
    /// Number of the job that is or was in the slot.
    number: u64,
    /// Workers that have not finished it.
    running: usize,
    /// The first panic of the job.
    panic: Option<PanicNote>,
    next_ticket: u64,
    serving: u64,
    stopping: bool,
}

/// See the [module's documentation](self).
pub(crate) struct JobSlot<J> {
    workers: usize,
    state: Mutex<State<J>>,
    work: Condvar,
    progress: Condvar,
}

impl<J: Clone> JobSlot<J> {
    pub(crate) fn new(workers: usize) -> Self {
        let state = State {
            job: None,
            number: 0,
            running: 0,
            panic: None,
            next_ticket: 0,
            serving: 0,
            stopping: false,
        };
        Self {
            workers,
            state: Mutex::new(state),
            work: Condvar::new(),
            progress: Condvar::new(),
        }
    }

    /// Has every worker run `job`, after the jobs that came earlier, and waits until all have (LNC-1). Tells the first panic.
    pub(crate) fn run(&self, job: J) -> Option<PanicNote> {
        let mut state = self.state.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        while state.serving != ticket {
            state = self.progress.wait(state);
        }
        state.job = Some(job);
        state.number += 1;
        state.running = self.workers;
        self.work.notify_all();
        while state.running > 0 {
            state = self.progress.wait(state);
        }
        let job = state.job.take();
        let panic = state.panic.take();
        state.serving += 1;
        drop(state);
        self.progress.notify_all();
        drop(job);
        panic
    }

    /// The next job for a worker that has run those up to number `seen`; `None` when the device stops. Waits.
    pub(crate) fn next(&self, seen: &mut u64) -> Option<J> {
        let mut state = self.state.lock();
        loop {
            if state.stopping {
                return None;
            }
            if state.number > *seen
                && let Some(job) = &state.job
            {
                *seen = state.number;
                return Some(job.clone());
            }
            state = self.work.wait(state);
        }
    }

    /// A worker is done with the job, and has dropped it.
    pub(crate) fn finish(&self, panic: Option<PanicNote>) {
        let mut state = self.state.lock();
        state.panic = state.panic.take().or(panic);
        state.running -= 1;
        if state.running == 0 {
            self.progress.notify_all();
        }
    }

    /// Has the workers end. No launch may be under way.
    pub(crate) fn stop(&self) {
        self.state.lock().stopping = true;
        self.work.notify_all();
    }
}

#[cfg(test)]
mod tests;
