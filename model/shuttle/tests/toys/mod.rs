//! Toy scenarios: small, so that what the explorer does with them is plain.

use std::sync::Arc;

use isomem_check::scenario::{Design, Run, Scenario};
use isomem_sim::checker::Verdict;
use isomem_sim::journal::Event;
use isomem_sim::sync::{AtomicU64, Condvar, Mutex, Ordering, thread};

/// Two threads take two locks, each in its own order.
fn crossed(run: &Run) {
    two_locks(run, |a, b| (b, a));
}

fn straight(run: &Run) {
    two_locks(run, |a, b| (a, b));
}

type Lock = Arc<Mutex<u64>>;

fn two_locks(run: &Run, order: fn(Lock, Lock) -> (Lock, Lock)) {
    let (a, b): (Lock, Lock) = (Arc::new(Mutex::new("a", 0)), Arc::new(Mutex::new("b", 0)));
    let both = |run: &Run, name, (first, second): (Lock, Lock)| {
        let journal = run.journal.clone();
        run.spawn(name, move || {
            let mut first = first.lock();
            journal.note("It has one lock and asks for the other.");
            *first += *second.lock();
        })
    };
    let one = both(run, "left", (Arc::clone(&a), Arc::clone(&b)));
    let two = both(run, "right", order(a, b));
    one.join().unwrap();
    two.join().unwrap();
}

/// Takes a lock that it has.
fn twice(run: &Run) {
    let lock: Lock = Arc::new(Mutex::new("a", 0));
    let thread = run.spawn("greedy", move || {
        let first = lock.lock();
        let second = lock.lock();
        drop((first, second));
    });
    thread.join().unwrap();
}

/// Adds one, three times on each of two threads, and looks at the sum.
fn count(run: &Run, add: fn(&AtomicU64)) {
    let sum = Arc::new(AtomicU64::new(0));
    let threads = ["left", "right"].map(|name| {
        let (sum, journal) = (Arc::clone(&sum), run.journal.clone());
        run.spawn(name, move || {
            for _ in 0..3 {
                add(&sum);
                journal.note("It added one & went on: <b>quickly</b>.");
            }
        })
    });
    for thread in threads {
        thread.join().unwrap();
    }
    if sum.load(Ordering::SeqCst) != 6 {
        run.journal.found(Verdict::LostWrite, "An addition is gone.");
    }
}

fn in_two_steps(sum: &AtomicU64) {
    let seen = sum.load(Ordering::SeqCst);
    sum.store(seen + 1, Ordering::SeqCst);
}

fn at_once(sum: &AtomicU64) {
    sum.fetch_add(1, Ordering::SeqCst);
}

fn panics(run: &Run) {
    let flag = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&flag);
    let thread = run.spawn("looks", move || {
        assert_eq!(seen.load(Ordering::SeqCst), 0, "the flag is up");
    });
    flag.store(1, Ordering::SeqCst);
    thread.join().unwrap();
}

/// Waits for what nobody does.
fn spins(run: &Run) {
    let flag = Arc::new(AtomicU64::new(0));
    let thread = run.spawn("waits", move || {
        while flag.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
    });
    thread.join().unwrap();
}

/// Sleeps although it was signalled already: the flag is looked at before the lock is taken.
fn sleeps_late(run: &Run) {
    waits(run, |flag| {
        if flag.up.load(Ordering::SeqCst) == 0 {
            let held = flag.lock.lock();
            drop(flag.raised.wait(held));
        }
    });
}

fn sleeps_in_time(run: &Run) {
    waits(run, |flag| {
        let mut held = flag.lock.lock();
        while flag.up.load(Ordering::SeqCst) == 0 {
            held = flag.raised.wait(held);
        }
    });
}

struct Flag {
    up: AtomicU64,
    lock: Mutex<()>,
    raised: Condvar,
}

fn waits(run: &Run, wait: fn(&Flag)) {
    let flag = Arc::new(Flag {
        up: AtomicU64::new(0),
        lock: Mutex::new("flag", ()),
        raised: Condvar::new("raised"),
    });
    let seen = Arc::clone(&flag);
    let thread = run.spawn("waits", move || wait(&seen));
    let held = flag.lock.lock();
    flag.up.store(1, Ordering::SeqCst);
    drop(held);
    flag.raised.notify_all();
    thread.join().unwrap();
}

/// Nothing runs beside anything, and the finding comes in the middle of a loop that only ends then.
fn alone(run: &Run) {
    let mut round = 0;
    while !run.journal.is_decided() {
        round += 1;
        run.journal.record(Event::Note(format!("Round {round}.")));
        if round == 3 {
            run.journal.found(Verdict::ObjectLost, "It is gone after three rounds.");
        }
    }
}

const fn design(name: &'static str, expected: Verdict, story: fn(&Run)) -> Design {
    Design {
        name,
        about: "It does <what> its name says.",
        expected,
        story,
    }
}

/// Two locks.
pub(crate) static LOCKS: Scenario = Scenario {
    name: "two-locks",
    about: "Two threads need the same two locks.",
    source: "toy",
    designs: &[
        design("crossed", Verdict::Deadlock, crossed),
        design("shipped", Verdict::Holds, straight),
        design("twice", Verdict::Deadlock, twice),
    ],
};

/// A counter.
pub(crate) static COUNTER: Scenario = Scenario {
    name: "counter",
    about: "Two threads count in one place.",
    source: "toy",
    designs: &[
        design("two-steps", Verdict::LostWrite, |run| count(run, in_two_steps)),
        design("shipped", Verdict::Holds, |run| count(run, at_once)),
    ],
};

/// A flag and a condition.
pub(crate) static SLEEPER: Scenario = Scenario {
    name: "sleeper",
    about: "A thread sleeps until a flag is up.",
    source: "toy",
    designs: &[
        design("looks-too-early", Verdict::Deadlock, sleeps_late),
        design("shipped", Verdict::Holds, sleeps_in_time),
    ],
};

/// Ends that are no checker's.
pub(crate) static ENDS: Scenario = Scenario {
    name: "ends",
    about: "Stories that end in other ways.",
    source: "toy",
    designs: &[
        design("panics", Verdict::Panicked, panics),
        design("spins", Verdict::NoProgress, spins),
        design("alone", Verdict::ObjectLost, alone),
    ],
};

/// One that is not as expected.
pub(crate) static WRONG: Scenario = Scenario {
    name: "wrong",
    about: "Its shipped design loses an addition.",
    source: "toy",
    designs: &[design("shipped", Verdict::Holds, |run| count(run, in_two_steps))],
};
