//! A closure that another thread runs while its owner waits, without any memory but the owner's frame.
//!
//! # Invariants
//! - JOB-1: a [`Job`] is run or dropped exactly once, and [`lend`] returns only after that; so the frame outlives the job.
//! - JOB-2: the closure is moved off the owner's frame before it runs: while it runs, the frame may be away on a device.
//! - JOB-3: a panic of the closure is resumed in the owner.
//!
//! # Locking
//! None. `ended` is stored last by who ran the job, and is the last access to the frame.

use core::any::Any;
use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};
use std::boxed::Box;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

#[cfg(test)]
mod tests;

/// What a closure left: its result, or the payload of its panic.
type Outcome<R> = Result<R, Box<dyn Any + Send>>;

/// The owner's side: lies on the owner's stack.
struct Frame<F, R> {
    closure: UnsafeCell<Option<F>>,
    outcome: UnsafeCell<Option<Outcome<R>>>,
    ended: AtomicBool,
}

/// A closure of unknown type, to be run once.
#[derive(Debug)]
pub struct Job {
    frame: NonNull<()>,
    end: unsafe fn(NonNull<()>, End),
}

/// How a job ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Run,
    Dropped,
}

// SAFETY: `lend` asks that the closure and its result be `Send`, and nothing else of the frame is touched through a job.
unsafe impl Send for Job {}

impl Job {
    /// Runs the closure on the calling thread. Never panics: what the closure panicked with goes to the owner.
    pub fn run(self) {
        let job = core::mem::ManuallyDrop::new(self);
        // SAFETY: the frame lives until the job ended (JOB-1), and `end` is the function made for its type.
        unsafe { (job.end)(job.frame, End::Run) }
    }
}

impl Drop for Job {
    /// Ends the job without running it; its owner panics.
    fn drop(&mut self) {
        // SAFETY: as in `run`, which does not come here.
        unsafe { (self.end)(self.frame, End::Dropped) }
    }
}

/// # Safety
/// `frame` is a live `Frame<F, R>` whose job has not ended; nobody else touches it until it has.
unsafe fn end_job<R, F: FnOnce() -> R>(frame: NonNull<()>, how: End) {
    // SAFETY: by the caller, it is a live frame of this type.
    let frame = unsafe { frame.cast::<Frame<F, R>>().as_ref() };
    if how == End::Run {
        // SAFETY: the owner does not touch the cell until the job has ended.
        let closure = unsafe { (*frame.closure.get()).take() };
        let outcome = closure.map(|closure| catch_unwind(AssertUnwindSafe(closure)));
        // SAFETY: as above.
        unsafe { *frame.outcome.get() = outcome };
    }
    // Release: the outcome comes first; pairs with the acquire in `lend`. The frame may be gone after this.
    frame.ended.store(true, Ordering::Release);
}

/// Makes a job of `closure`, gives it to `post`, and returns what the closure returned on whichever thread ran it.
///
/// `post` should return when the job ended; if it returns or panics before, this waits.
///
/// # Panics
/// With the closure's panic; and when the job was dropped without being run.
pub fn lend<R: Send, F: FnOnce() -> R + Send>(closure: F, post: impl FnOnce(Job)) -> R {
    let frame = Frame {
        closure: UnsafeCell::new(Some(closure)),
        outcome: UnsafeCell::new(None),
        ended: AtomicBool::new(false),
    };
    let until_ended = UntilEnded(&frame.ended);
    post(Job {
        frame: NonNull::from(&frame).cast(),
        end: end_job::<R, F>,
    });
    drop(until_ended);
    match frame.outcome.into_inner() {
        Some(Ok(result)) => result,
        Some(Err(payload)) => resume_unwind(payload),
        None => panic!("a job was dropped before it ran"),
    }
}

/// Waits on drop, also while a panic unwinds, so that the frame cannot go first (JOB-1).
struct UntilEnded<'a>(&'a AtomicBool);

impl Drop for UntilEnded<'_> {
    fn drop(&mut self) {
        // Acquire: pairs with the release in `end_job`.
        while !self.0.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
    }
}
