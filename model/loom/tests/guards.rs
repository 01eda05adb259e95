//! The code that ships (PRF-1), under every schedule: nothing after unsubscribe, starts and ends pair, one release; and an empty heap is no hang.
//!
//! Each checker has a planted bug that it must catch: a small notifier that gets the same thing wrong.
//!
//! Bounds: 2 threads with up to 3 preemptions, at most 2 subscriptions and one invalidation of each thread.

use std::sync::Arc as StdArc;

use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::notifier::{Answer, CallbackScope, Cause, Inside, Invalidation, Notifier, Outcome, Subscriber};
use isomem_core::world::Metadata;
use isomem_loom::ModelHeap;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

fn pages(first: usize, count: usize) -> PageRange {
    PageRange::new(first * PAGE_SIZE, count * PAGE_SIZE).unwrap()
}

/// Explores schedules with up to three forced switches: enough for every race of two steps against one.
fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// The checker: pairing, nothing after unsubscribe, release once and last.
#[derive(Default)]
struct Checker {
    open: AtomicUsize,
    starts: AtomicUsize,
    released: AtomicUsize,
    gone: AtomicBool,
}

impl Checker {
    fn start(&self) {
        assert!(
            !self.gone.load(Ordering::SeqCst),
            "LIFE-2: a start after unsubscribe returned"
        );
        assert_eq!(self.released.load(Ordering::SeqCst), 0, "LIFE-3: a start after release");
        self.open.fetch_add(1, Ordering::SeqCst);
        self.starts.fetch_add(1, Ordering::SeqCst);
    }

    fn end(&self) {
        assert!(
            !self.gone.load(Ordering::SeqCst),
            "LIFE-2: an end after unsubscribe returned"
        );
        assert_ne!(self.open.load(Ordering::SeqCst), 0, "INV-2: an end without a start");
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    fn release(&self) {
        assert_eq!(
            self.open.load(Ordering::SeqCst),
            0,
            "LIFE-3: released in the middle of an invalidation"
        );
        assert_eq!(
            self.released.fetch_add(1, Ordering::SeqCst),
            0,
            "LIFE-3: released twice"
        );
    }

    /// What holds once unsubscribe or exit returned.
    fn over(&self) {
        assert_eq!(self.open.load(Ordering::SeqCst), 0, "INV-2: a start without an end");
        assert_eq!(self.released.load(Ordering::SeqCst), 1, "LIFE-3: not released");
        self.gone.store(true, Ordering::SeqCst);
    }
}

struct Checked {
    checker: StdArc<Checker>,
    answer: Answer,
}

impl Subscriber for Checked {
    fn start(&self, _: &Invalidation, _: &CallbackScope<'_>) {
        self.checker.start();
    }

    fn try_start(&self, _: &Invalidation, _: &CallbackScope<'_>) -> Answer {
        if self.answer != Answer::Refused {
            self.checker.start();
        }
        self.answer
    }

    fn end(&self, _: &Invalidation, _: Outcome, _: &CallbackScope<'_>) {
        self.checker.end();
    }

    fn release(&self) {
        self.checker.release();
    }
}

fn checked(answer: Answer) -> (StdArc<Checker>, StdArc<dyn Subscriber>) {
    let checker = StdArc::new(Checker::default());
    let subscriber = ModelHeap::share_subscriber(Checked {
        checker: checker.clone(),
        answer,
    })
    .unwrap();
    (checker, subscriber)
}

fn notifier() -> Notifier<ModelHeap> {
    Notifier::new().unwrap()
}

#[test]
fn life_2_no_callback_once_unsubscribe_returned() {
    check(|| {
        let notifier = notifier();
        let (checker, subscriber) = checked(Answer::Done);
        let subscription = notifier.subscribe(pages(0, 4), subscriber).unwrap();
        let invalidator = notifier;
        let pass = thread::spawn(move || {
            invalidator
                .invalidate(pages(0, 1), Cause::Unmap, None)
                .unwrap()
                .commit();
        });
        subscription.unsubscribe().unwrap();
        checker.over();
        pass.join().unwrap();
    });
}

#[test]
fn inv_2_pairing_is_exact_with_a_refusal_and_an_unsubscribe() {
    check(|| {
        let notifier = notifier();
        let (first, accepts) = checked(Answer::Done);
        let (second, refuses) = checked(Answer::Refused);
        let going = notifier.subscribe(pages(0, 4), accepts).unwrap();
        let staying = notifier.subscribe(pages(1, 4), refuses).unwrap();
        let invalidator = notifier;
        let pass = thread::spawn(move || {
            invalidator
                .try_invalidate(pages(1, 1), Cause::Unmap, None)
                .map(drop)
                .unwrap_err();
        });
        going.unsubscribe().unwrap();
        first.over();
        pass.join().unwrap();
        assert_eq!(second.starts.load(Ordering::SeqCst), 0);
        staying.unsubscribe().unwrap();
        second.over();
    });
}

#[test]
fn inv_8_subscriber_is_told_of_what_starts_after_subscribe_returned() {
    check(|| {
        let notifier = notifier();
        let other = notifier.clone();
        let (elsewhere, neighbour) = checked(Answer::Done);
        // Two subscribe at once: neither list may get lost.
        let beside = thread::spawn(move || other.subscribe(pages(0, 1), neighbour).unwrap());
        let (checker, subscriber) = checked(Answer::Done);
        let subscription = notifier.subscribe(pages(0, 4), subscriber).unwrap();
        notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap().commit();
        assert_eq!(checker.starts.load(Ordering::SeqCst), 1);
        let neighbour = beside.join().unwrap();
        notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap().commit();
        assert_eq!(checker.starts.load(Ordering::SeqCst), 2);
        assert_ne!(elsewhere.starts.load(Ordering::SeqCst), 0);
        drop((subscription, neighbour));
    });
}

#[test]
fn life_3_release_once_when_exit_meets_unsubscribe() {
    check(|| {
        let notifier = notifier();
        let (checker, subscriber) = checked(Answer::Done);
        let subscription = notifier.subscribe(pages(0, 4), subscriber).unwrap();
        let exiting = notifier;
        let exit = thread::spawn(move || exiting.exit().unwrap());
        subscription.unsubscribe().unwrap();
        checker.over();
        exit.join().unwrap();
    });
}

#[test]
fn life_3_exit_waits_for_an_invalidation_in_flight() {
    check(|| {
        let notifier = notifier();
        let (checker, subscriber) = checked(Answer::Done);
        let subscription = notifier.subscribe(pages(0, 4), subscriber).unwrap();
        let invalidator = notifier.clone();
        let pass = thread::spawn(move || drop(invalidator.invalidate(pages(0, 1), Cause::Unmap, None).unwrap()));
        notifier.exit().unwrap();
        checker.over();
        pass.join().unwrap();
        drop(subscription);
    });
}

#[test]
fn life_4_exit_meets_subscribe() {
    check(|| {
        let notifier = notifier();
        let (checker, subscriber) = checked(Answer::Done);
        let exiting = notifier.clone();
        let exit = thread::spawn(move || exiting.exit().unwrap());
        let subscription = notifier.subscribe(pages(0, 4), subscriber).unwrap();
        exit.join().unwrap();
        checker.over();
        drop(subscription);
    });
}

#[test]
fn life_8_two_threads_unsubscribe_inside_their_invalidations_without_deadlock() {
    check(|| {
        let notifier = notifier();
        let (first, a) = checked(Answer::Done);
        let (second, b) = checked(Answer::Done);
        let of_a = notifier.subscribe(pages(0, 1), a).unwrap();
        let of_b = notifier.subscribe(pages(1, 1), b).unwrap();
        let other = notifier.clone();
        let thread = thread::spawn(move || {
            let guard = other.invalidate(pages(1, 1), Cause::Unmap, None).unwrap();
            let deferred = of_a.unsubscribe().unwrap_err();
            assert_eq!(deferred.inside(), Inside::Invalidation);
            guard.commit();
            deferred.wait().unwrap();
        });
        let guard = notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap();
        let deferred = of_b.unsubscribe().unwrap_err();
        guard.commit();
        deferred.wait().unwrap();
        second.over();
        thread.join().unwrap();
        first.over();
    });
}

#[test]
fn life_2_unsubscribe_waits_for_its_own_subscriber_only() {
    /// Its end takes a lock that the unsubscriber of another subscription may hold.
    struct Locks(StdArc<Mutex<()>>);
    impl Subscriber for Locks {
        fn start(&self, _: &Invalidation, _: &CallbackScope<'_>) {}
        fn try_start(&self, _: &Invalidation, _: &CallbackScope<'_>) -> Answer {
            Answer::Done
        }
        fn end(&self, _: &Invalidation, _: Outcome, _: &CallbackScope<'_>) {
            drop(self.0.lock().unwrap());
        }
    }
    check(|| {
        let notifier = notifier();
        let lock = StdArc::new(Mutex::new(()));
        let locks = ModelHeap::share_subscriber(Locks(lock.clone())).unwrap();
        let other = notifier.subscribe(pages(0, 1), locks).unwrap();
        // Told later, so its end comes first.
        let (checker, subscriber) = checked(Answer::Done);
        let subscription = notifier.subscribe(pages(0, 1), subscriber).unwrap();
        let pass = thread::spawn(move || {
            notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap().commit();
        });
        let held = lock.lock().unwrap();
        subscription.unsubscribe().unwrap();
        checker.over();
        drop(held);
        pass.join().unwrap();
        other.unsubscribe().unwrap();
    });
}

#[test]
fn inv_9_pass_allocates_nothing() {
    loom::model(|| {
        let notifier = notifier();
        let subscriptions = [0, 1].map(|first| notifier.subscribe(pages(first, 2), checked(Answer::Done).1).unwrap());
        let before = ModelHeap::requests();
        notifier.invalidate(pages(0, 4), Cause::Unmap, None).unwrap().commit();
        drop(notifier.try_invalidate(pages(0, 4), Cause::Migrate, None).unwrap());
        drop(notifier.read(pages(0, 4)).begin().unwrap());
        assert_eq!(ModelHeap::requests(), before);
        drop(subscriptions);
    });
}

#[test]
fn prf_4_subscribe_changes_nothing_at_each_failing_allocation() {
    loom::model(|| {
        let notifier = notifier();
        let (first, subscriber) = checked(Answer::Done);
        let subscription = notifier.subscribe(pages(0, 2), subscriber).unwrap();
        for count in 0..3 {
            let (second, subscriber) = checked(Answer::Done);
            ModelHeap::fail_after(count);
            notifier.subscribe(pages(0, 2), subscriber).unwrap_err();
            notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap().commit();
            ModelHeap::fail_after(usize::MAX);
            assert_eq!(second.starts.load(Ordering::SeqCst), 0);
            assert_eq!(first.starts.load(Ordering::SeqCst), count + 1);
        }
        // Ending a subscription needs no memory.
        ModelHeap::fail_after(0);
        subscription.unsubscribe().unwrap();
        first.over();
        notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap().commit();
        ModelHeap::fail_after(usize::MAX);
        // The dead entry goes with the next change, and its memory with it.
        let (next, subscriber) = checked(Answer::Done);
        notifier
            .subscribe(pages(0, 2), subscriber)
            .unwrap()
            .unsubscribe()
            .unwrap();
        next.over();
        assert_eq!(ModelHeap::bytes_in_use(), 0);
    });
}

/// What planted notifiers do with a checker: an invalidation on one thread, unsubscribe on the other.
trait Planted: Default + Send + Sync + 'static {
    fn invalidate(&self, checker: &Checker);
    fn unsubscribe(&self, checker: &Checker);

    fn race() {
        check(|| {
            let planted = StdArc::new(Self::default());
            let checker = StdArc::new(Checker::default());
            let (other, told) = (planted.clone(), checker.clone());
            let pass = thread::spawn(move || other.invalidate(&told));
            planted.unsubscribe(&checker);
            checker.over();
            pass.join().unwrap();
        });
    }
}

/// Looks whether the subscription is dying, and only then says that it is inside.
#[derive(Default)]
struct LooksThenEnters {
    dying: AtomicBool,
    inside: AtomicUsize,
}

impl Planted for LooksThenEnters {
    fn invalidate(&self, checker: &Checker) {
        if !self.dying.load(Ordering::SeqCst) {
            self.inside.fetch_add(1, Ordering::SeqCst);
            checker.start();
            checker.end();
            self.inside.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn unsubscribe(&self, checker: &Checker) {
        self.dying.store(true, Ordering::SeqCst);
        while self.inside.load(Ordering::SeqCst) != 0 {
            thread::yield_now();
        }
        checker.release();
    }
}

#[test]
#[should_panic(expected = "LIFE-")]
fn planted_looking_before_entering_is_caught() {
    LooksThenEnters::race();
}

/// Holds the subscription during each callback, but not from start to end.
#[derive(Default)]
struct HoldsCallbacksOnly {
    live: Mutex<Option<()>>,
}

impl Planted for HoldsCallbacksOnly {
    fn invalidate(&self, checker: &Checker) {
        let live = self.live.lock().unwrap();
        if live.is_none() {
            checker.start();
        }
        drop(live);
        let live = self.live.lock().unwrap();
        if live.is_none() {
            checker.end();
        }
    }

    fn unsubscribe(&self, checker: &Checker) {
        *self.live.lock().unwrap() = Some(());
        checker.release();
    }
}

#[test]
#[should_panic(expected = "LIFE-3: released in the middle")]
fn planted_window_left_open_is_caught() {
    HoldsCallbacksOnly::race();
}

/// Releases at unsubscribe and at exit, each of which looks first whether the other did.
#[test]
#[should_panic(expected = "LIFE-3: released twice")]
fn planted_second_release_is_caught() {
    check(|| {
        let checker = StdArc::new(Checker::default());
        let done = StdArc::new(AtomicBool::new(false));
        let release = |checker: &Checker, done: &AtomicBool| {
            if !done.load(Ordering::SeqCst) {
                done.store(true, Ordering::SeqCst);
                checker.release();
            }
        };
        let (other, told) = (checker.clone(), done.clone());
        let exit = thread::spawn(move || release(&other, &told));
        release(&checker, &done);
        exit.join().unwrap();
    });
}
