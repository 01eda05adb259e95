//! Hands work from the leader to the helpers.
//!
//! # Invariants
//! - RING-1: each piece of work is taken once, in order; what does not fit is given back to the leader.
//!
//! # Locking
//! One leaf lock.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use isomem_core::mm::LateEvent;

use super::Fault;

/// Pieces of work that can wait.
const CAPACITY: usize = 256;

/// What a helper does.
#[derive(Debug)]
pub(super) enum Work {
    Fault(Fault),
    Late(LateEvent),
}

struct State {
    /// Work that waits, from `first`, `len` pieces.
    work: [Option<Work>; CAPACITY],
    first: usize,
    len: usize,
    idle: usize,
    closed: bool,
    /// Events given to helpers and not done.
    late: usize,
}

pub(super) struct Ring {
    state: Mutex<State>,
    changed: Condvar,
}

impl Ring {
    pub(super) fn new() -> Self {
        let work = [const { None }; CAPACITY];
        let state = State {
            work,
            first: 0,
            len: 0,
            idle: 0,
            closed: false,
            late: 0,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `work` in; gives it back when the ring is full.
    pub(super) fn put(&self, work: Work) -> Result<(), Work> {
        let mut state = self.lock();
        if state.len == CAPACITY {
            return Err(work);
        }
        state.late += usize::from(!matches!(work, Work::Fault(_)));
        let place = (state.first + state.len) % CAPACITY;
        state.work[place] = Some(work);
        state.len += 1;
        let wake = state.idle > 0;
        drop(state);
        if wake {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Waits for work; `None` when the ring is closed and empty.
    pub(super) fn next(&self) -> Option<Work> {
        let mut state = self.lock();
        while state.len == 0 {
            if state.closed {
                return None;
            }
            state.idle += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
        let first = state.first;
        state.first = (first + 1) % CAPACITY;
        state.len -= 1;
        state.work[first].take()
    }

    /// An event that a helper was given is processed.
    pub(super) fn late_done(&self) {
        self.lock().late -= 1;
    }

    /// Whether every event that was given to helpers is processed.
    pub(super) fn is_late_done(&self) -> bool {
        self.lock().late == 0
    }

    /// No more work comes.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}
