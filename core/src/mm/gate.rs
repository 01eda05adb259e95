//! Keeps pages from leaving home while the process forks.
//!
//! Whoever sends pages to a device holds a pass. `close` waits until all passes are back and lets nobody in until `open`:
//! between the two, pages only come home, so that a fork's child finds all of them (MIG-4).

use crate::sync::{Condvar, Mutex};

struct State {
    passes: usize,
    closed: usize,
}

pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new("gate", State { passes: 0, closed: 0 }),
            changed: Condvar::new("gate"),
        }
    }

    /// Waits while the gate is closed.
    pub(crate) fn pass(&self) -> Pass<'_> {
        let mut state = self.state.lock();
        while state.closed > 0 {
            state = self.changed.wait(state);
        }
        state.passes += 1;
        Pass(self)
    }

    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed += 1;
        while state.passes > 0 {
            state = self.changed.wait(state);
        }
    }

    pub(crate) fn open(&self) {
        self.state.lock().closed -= 1;
        self.changed.notify_all();
    }
}

pub(crate) struct Pass<'a>(&'a Gate);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.passes -= 1;
        if state.passes == 0 {
            self.0.changed.notify_all();
        }
    }
}
