//! Under every schedule and memory order: one dropper is told that it was the last, and all that others did happens before it drops.
//!
//! What is dropped is a cell of the checker's for each holder: the last one's access to another's cell is reported as a race where it is not
//! ordered after that other's own. The planted counts get one step wrong each, and the checker must catch them.
//!
//! Bounds: 3 threads, at most 6 changes of the count, a limit of 3 holders; preemptions without bound.

// loom runs the threads of a model on one thread of the system, and its cell is what checks the sharing.
#![allow(clippy::arc_with_non_send_sync)]

use std::sync::Arc;

use isomem_core::count::{RefCount, Remaining};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicUsize, Ordering, fence};
use loom::thread;

/// Holders at the start of a race.
const HOLDERS: usize = 3;
/// The limit of [`RefCount`] under the checker.
const MOST: usize = 3;

fn check(model: impl Fn() + Send + Sync + 'static) {
    loom::model::Builder::new().check(model);
}

/// A count under test: the one that ships, or a planted one.
trait Count: 'static {
    /// One holder.
    fn new() -> Self;
    /// One holder more, unless there are too many.
    fn hold(&self) -> bool;
    fn leave(&self) -> Remaining;
}

impl Count for RefCount {
    fn new() -> Self {
        Self::new()
    }

    fn hold(&self) -> bool {
        self.hold().is_ok()
    }

    fn leave(&self) -> Remaining {
        self.leave()
    }
}

/// A counted value: what each holder does with it, and how often it was dropped.
struct Counted<C> {
    count: C,
    work: [UnsafeCell<()>; HOLDERS],
    drops: AtomicUsize,
}

impl<C: Count> Counted<C> {
    /// Held by all holders.
    fn new() -> Arc<Self> {
        let count = C::new();
        (1..HOLDERS).for_each(|_| assert!(count.hold()));
        Arc::new(Self {
            count,
            work: [(); HOLDERS].map(UnsafeCell::new),
            drops: AtomicUsize::new(0),
        })
    }

    /// The end of one hold.
    fn leave(&self) {
        if self.count.leave() == Remaining::Nobody {
            // No closure uses its pointer: the checker looks at the access as such.
            self.work.iter().for_each(|work| work.with_mut(|_| ()));
            self.drops.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn work_and_leave(&self, holder: usize) {
        self.work[holder].with_mut(|_| ());
        self.leave();
    }
}

/// All holders use the value and leave at the same time.
fn all_leave<C: Count>() {
    check(|| {
        let counted = Counted::<C>::new();
        let others = [1, 2].map(|holder| {
            let counted = counted.clone();
            thread::spawn(move || counted.work_and_leave(holder))
        });
        counted.work_and_leave(0);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(counted.drops.load(Ordering::Relaxed), 1, "CNT-1: dropped once");
    });
}

#[test]
fn cnt_1_and_2_one_of_three_drops_after_all_others_have_left() {
    all_leave::<RefCount>();
}

#[test]
fn cnt_1_a_hold_made_while_others_leave_counts() {
    check(|| {
        let counted = Counted::<RefCount>::new();
        let first = counted.clone();
        let handing_on = thread::spawn(move || {
            first.leave();
            // One of its two holds is left, and gets a copy that comes and goes.
            first.count.hold().unwrap();
            first.leave();
            first.work_and_leave(1);
        });
        counted.work_and_leave(0);
        handing_on.join().unwrap();
        assert_eq!(counted.drops.load(Ordering::Relaxed), 1, "CNT-1: dropped once");
    });
}

/// Two threads that hold the value want two holds more each: more than there can be.
fn too_many<C: Count>() {
    check(|| {
        let counted = Arc::new(C::new());
        assert!(counted.hold());
        let other = counted.clone();
        let want = |count: &C| (0..2).filter(|_| count.hold()).count();
        let asking = thread::spawn(move || want(&other));
        let granted = want(&counted) + asking.join().unwrap();
        assert!(2 + granted <= MOST, "CNT-3: more holders than can be counted");
        let leaves = (0..2 + granted).map(|_| counted.leave());
        assert_eq!(
            leaves.filter(|left| *left == Remaining::Nobody).count(),
            1,
            "CNT-3: a refusal changes nothing"
        );
    });
}

#[test]
fn cnt_3_two_who_ask_for_too_many_are_refused() {
    too_many::<RefCount>();
}

/// Leaves without ordering what the holder did before.
struct RelaxedLeave(AtomicUsize);

impl Count for RelaxedLeave {
    fn new() -> Self {
        Self(AtomicUsize::new(1))
    }

    fn hold(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) < MOST
    }

    fn leave(&self) -> Remaining {
        if self.0.fetch_sub(1, Ordering::Relaxed) != 1 {
            return Remaining::Others;
        }
        fence(Ordering::Acquire);
        Remaining::Nobody
    }
}

#[test]
#[should_panic(expected = "Causality violation")]
fn planted_leaving_without_release_is_caught() {
    all_leave::<RelaxedLeave>();
}

/// The last does not look at what the others did.
struct NoFence(AtomicUsize);

impl Count for NoFence {
    fn new() -> Self {
        Self(AtomicUsize::new(1))
    }

    fn hold(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) < MOST
    }

    fn leave(&self) -> Remaining {
        if self.0.fetch_sub(1, Ordering::Release) != 1 {
            return Remaining::Others;
        }
        Remaining::Nobody
    }
}

#[test]
#[should_panic(expected = "Causality violation")]
fn planted_last_without_acquire_is_caught() {
    all_leave::<NoFence>();
}

/// Looks whether it is the last, and only then leaves; the same for the limit.
struct LooksThenActs(AtomicUsize);

impl Count for LooksThenActs {
    fn new() -> Self {
        Self(AtomicUsize::new(1))
    }

    fn hold(&self) -> bool {
        let fits = self.0.load(Ordering::SeqCst) < MOST;
        if fits {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        fits
    }

    fn leave(&self) -> Remaining {
        let last = self.0.load(Ordering::SeqCst) == 1;
        self.0.fetch_sub(1, Ordering::SeqCst);
        if last { Remaining::Nobody } else { Remaining::Others }
    }
}

#[test]
#[should_panic(expected = "CNT-1")]
fn planted_looking_before_leaving_is_caught() {
    all_leave::<LooksThenActs>();
}

#[test]
#[should_panic(expected = "CNT-3")]
fn planted_looking_before_holding_is_caught() {
    too_many::<LooksThenActs>();
}
