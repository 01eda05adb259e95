//! A driver without isomem, as one writes it first: its table, its queues, the accesses, the misses and the program's changes, all under
//! one lock. It keeps what the others keep: entries anywhere in the address space, with what they permit and whether they were written.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use isomem_core::addr::{PAGE_SIZE, PageRange};

use super::{Buffer, DEPTH, Driver, HALF_BYTES, JOB, PAGES, Places, add_one, each_unit};
use crate::BenchError;
use crate::sys::{Memory, protect_by_kernel};

/// How work reaches the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// A unit's thread makes accesses, and brings in what it misses.
    Accesses,
    /// A thread of the device's does jobs, which begin with every page there; an invalidation cancels them.
    Jobs,
    /// Requests are posted to a queue and completed by an engine.
    Requests,
    /// The first unit brings in what it misses; the second one is evicted by an invalidation, and restored with every page.
    Engines,
}

pub(super) struct Bare<'m> {
    memory: &'m Memory,
    shape: Shape,
    state: Mutex<State>,
    posted: [Condvar; 2],
    completed: [Condvar; 2],
}

struct State {
    /// The device's table, by page number.
    entries: HashMap<usize, Entry>,
    /// Invalidations so far.
    changes: u64,
    queues: [Queue; 2],
}

struct Entry {
    writable: bool,
    dirty: bool,
}

#[derive(Default)]
struct Queue {
    asked: VecDeque<usize>,
    /// Of what is completed, how much was done.
    completed: VecDeque<usize>,
    ends: bool,
}

impl<'m> Bare<'m> {
    pub(super) fn new(memory: &'m Memory, shape: Shape) -> Self {
        let state = State {
            entries: HashMap::new(),
            changes: 0,
            queues: Default::default(),
        };
        Self {
            memory,
            shape,
            state: Mutex::new(state),
            posted: Default::default(),
            completed: Default::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry of a page, brought in if it is not there.
    fn entry<'s>(&self, state: &'s mut State, offset: usize) -> &'s mut Entry {
        let page = self.memory.range().first_page() + offset / PAGE_SIZE;
        state.entries.entry(page).or_insert_with(|| {
            self.memory.touch(offset / PAGE_SIZE);
            Entry {
                writable: true,
                dirty: false,
            }
        })
    }

    /// The device reads the page `from`, and writes what `change` makes of it to the page `to`.
    fn take(&self, state: &mut State, [from, to]: [usize; 2], change: impl FnOnce(&mut Buffer)) {
        let mut page = Buffer::new();
        self.entry(state, from);
        self.memory.load(from / PAGE_SIZE, &mut page.0);
        change(&mut page);
        let entry = self.entry(state, to);
        assert!(entry.writable, "the memory is writable");
        entry.dirty = true;
        self.memory.put(to / PAGE_SIZE, &page.0);
    }

    fn restore(&self, state: &mut State) {
        for page in 0..PAGES {
            self.entry(state, page * PAGE_SIZE);
        }
    }

    fn add(&self, state: &mut State, offset: usize) {
        self.take(state, [offset; 2], add_one);
    }

    /// One job; says how many of the pages it did before it was cancelled.
    fn job(&self, places: &mut Places, count: usize) -> usize {
        let mut state = self.lock();
        self.restore(&mut state);
        let changes = state.changes;
        drop(state);
        for done in 0..count {
            let mut state = self.lock();
            if state.changes != changes {
                return done;
            }
            self.add(&mut state, places.next());
        }
        count
    }

    /// The body of the thread that works for a unit: requests, or jobs of so many pages.
    fn engine(&self, unit: usize) {
        let mut places = Places::new(unit, 0);
        let mut state = self.lock();
        loop {
            if let Some(asked) = state.queues[unit].asked.pop_front() {
                let mut done = 1;
                if self.shape == Shape::Requests {
                    self.take(&mut state, [asked, asked + HALF_BYTES], |_| {});
                } else {
                    drop(state);
                    done = self.job(&mut places, asked);
                    state = self.lock();
                }
                state.queues[unit].completed.push_back(done);
                drop(state);
                self.completed[unit].notify_all();
                state = self.lock();
            } else if state.queues[unit].ends {
                state.queues[unit].ends = false;
                return;
            } else {
                state = self.posted[unit].wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn post(&self, unit: usize, asked: usize) {
        self.lock().queues[unit].asked.push_back(asked);
        self.posted[unit].notify_all();
    }

    /// Waits for a completion, and says how much of it was done.
    fn collect(&self, unit: usize) -> usize {
        let mut state = self.lock();
        loop {
            if let Some(done) = state.queues[unit].completed.pop_front() {
                return done;
            }
            state = self.completed[unit].wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The program's side of a queue.
    fn submit(&self, unit: usize, count: usize) {
        let mut places = Places::new(unit, 0);
        match self.shape {
            Shape::Requests => {
                for posted in 0..count {
                    if posted >= DEPTH {
                        self.collect(unit);
                    }
                    self.post(unit, places.next() % HALF_BYTES);
                }
                for _ in 0..DEPTH.min(count) {
                    self.collect(unit);
                }
            }
            _ => {
                let mut left = count;
                while left > 0 {
                    self.post(unit, left.min(JOB));
                    left -= self.collect(unit);
                }
            }
        }
        self.lock().queues[unit].ends = true;
        self.posted[unit].notify_all();
    }

    fn unit(&self, unit: usize, count: usize) {
        let mut places = Places::new(unit, 0);
        match self.shape {
            Shape::Engines if unit == 1 => {
                let mut seen = None;
                for _ in 0..count {
                    let mut state = self.lock();
                    if seen != Some(state.changes) {
                        self.restore(&mut state);
                        seen = Some(state.changes);
                    }
                    self.add(&mut state, places.next());
                }
            }
            Shape::Accesses | Shape::Engines => (0..count).for_each(|_| self.add(&mut self.lock(), places.next())),
            Shape::Jobs | Shape::Requests => std::thread::scope(|scope| {
                scope.spawn(|| self.engine(unit));
                self.submit(unit, count);
            }),
        }
    }
}

impl Driver for Bare<'_> {
    fn work(&self, units: usize, count: usize) -> Result<(), BenchError> {
        each_unit(units, |unit| {
            self.unit(unit, count);
            Ok(())
        })
    }

    fn invalidate(&self, page: PageRange) -> Result<(), BenchError> {
        let mut state = self.lock();
        state.entries.remove(&page.first_page());
        state.changes += 1;
        Ok(protect_by_kernel(page)?)
    }
}
