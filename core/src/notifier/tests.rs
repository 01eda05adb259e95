//! What the notifier promises, with plain threads; `model/` checks the same code under every schedule.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use allocator_api2::alloc::Global;

use super::*;
use crate::addr::PAGE_SIZE;

mod flat_model;
mod passes;
mod reads;
mod subscriptions;

type TestNotifier = Notifier<Global>;

/// `count` pages from page `first`.
fn pages(first: usize, count: usize) -> PageRange {
    PageRange::new(first * PAGE_SIZE, count * PAGE_SIZE).unwrap()
}

fn notifier() -> TestNotifier {
    TestNotifier::new().unwrap()
}

/// What a subscriber was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Start(usize, PageRange),
    End(usize, PageRange, Outcome),
    Release(usize),
}

type Log = Arc<Mutex<Vec<Told>>>;

/// Writes down what it is told, under its number.
struct Recorder {
    number: usize,
    log: Log,
    owner: Option<Owner>,
    answer: Answer,
}

impl Recorder {
    fn new(number: usize, log: &Log) -> Self {
        Self {
            number,
            log: log.clone(),
            owner: None,
            answer: Answer::Done,
        }
    }

    fn tell(&self, told: Told) {
        self.log.lock().unwrap().push(told);
    }
}

impl Subscriber for Recorder {
    fn owner(&self) -> Option<Owner> {
        self.owner
    }

    fn start(&self, inv: &Invalidation, _: &CallbackScope<'_>) {
        assert_eq!(inv.blocking, Blocking::May);
        self.tell(Told::Start(self.number, inv.range));
    }

    fn try_start(&self, inv: &Invalidation, _: &CallbackScope<'_>) -> Answer {
        assert_eq!(inv.blocking, Blocking::Never);
        if self.answer != Answer::Refused {
            self.tell(Told::Start(self.number, inv.range));
        }
        self.answer
    }

    fn end(&self, inv: &Invalidation, outcome: Outcome, _: &CallbackScope<'_>) {
        self.tell(Told::End(self.number, inv.range, outcome));
    }

    fn release(&self) {
        assert!(!in_callback());
        self.tell(Told::Release(self.number));
    }
}

fn taken(log: &Log) -> Vec<Told> {
    std::mem::take(&mut log.lock().unwrap())
}

/// Runs a closure as its callback.
struct OnStart<F>(F);

impl<F: Fn(&Invalidation) + Send + Sync + 'static> Subscriber for OnStart<F> {
    fn start(&self, inv: &Invalidation, _: &CallbackScope<'_>) {
        (self.0)(inv);
    }

    fn try_start(&self, inv: &Invalidation, _: &CallbackScope<'_>) -> Answer {
        (self.0)(inv);
        Answer::Done
    }
}

/// Waits, for as long as a broken promise would take to show, that `done` stays false.
fn stays_false(done: &AtomicBool) {
    thread::sleep(Duration::from_millis(30));
    assert!(!done.load(Ordering::SeqCst));
}
