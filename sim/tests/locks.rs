//! The lock-order checker under the scheduler: the same stories, in schedules that deadlock and in those that get away with it.
#![cfg(feature = "shuttle")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex as StdMutex};

use isomem_sim::checker::{Checker, Verdict, all, all_with_lock_order};
use isomem_sim::journal::{self, Journal, Record};
use isomem_sim::sync::{Condvar, Mutex, RwLock};
use shuttle::scheduler::RandomScheduler;
use shuttle::{Config, Runner};

/// What became of the schedules: one record each.
fn explore(schedules: usize, checkers: fn() -> Vec<Box<dyn Checker>>, story: fn(&Journal)) -> Vec<Record> {
    (0..schedules).map(|seed| one(seed as u64, checkers, story)).collect()
}

fn one(seed: u64, checkers: fn() -> Vec<Box<dyn Checker>>, story: fn(&Journal)) -> Record {
    let current: Arc<StdMutex<Option<Journal>>> = Arc::default();
    let shared = current.clone();
    let runner = Runner::new(RandomScheduler::new_from_seed(seed, 1), quiet());
    let ran = catch_unwind(AssertUnwindSafe(|| {
        runner.run(move || {
            let journal = Journal::new(checkers(), false);
            *shared.lock().unwrap() = Some(journal.clone());
            journal::watch_locks(&journal);
            story(&journal);
        });
    }));
    journal::unwatch_locks();
    let journal = current.lock().unwrap().take().expect("the story began");
    if ran.is_err() {
        journal.deadlocked()
    } else {
        journal.finish()
    }
}

fn quiet() -> Config {
    let mut config = Config::new();
    config.failure_persistence = shuttle::FailurePersistence::None;
    config
}

fn verdict(record: &Record) -> Option<Verdict> {
    record.finding.as_ref().map(|finding| finding.verdict)
}

fn sentence(record: &Record) -> &str {
    record.finding.as_ref().map_or("", |finding| finding.sentence.as_str())
}

/// Two threads, two locks, two orders.
fn crossed(journal: &Journal) {
    let locks = Arc::new((Mutex::new("a", ()), Mutex::new("b", ())));
    let other = locks.clone();
    let one = journal::spawn(journal, "one", move || {
        let _a = locks.0.lock();
        let _b = locks.1.lock();
    });
    let other = journal::spawn(journal, "other", move || {
        let _b = other.1.lock();
        let _a = other.0.lock();
    });
    one.join().unwrap();
    other.join().unwrap();
}

#[test]
fn chk_11_two_orders_deadlock_in_some_schedules_and_are_found_in_all() {
    let watched = explore(100, all, crossed);
    let deadlocks: Vec<&Record> = watched.iter().filter(|record| record.finding.is_some()).collect();
    assert!(!deadlocks.is_empty() && deadlocks.len() < watched.len());
    for record in deadlocks {
        assert_eq!(verdict(record), Some(Verdict::Deadlock));
        assert_eq!(record.threads.len(), 2);
        let chains = |first: &str, then: &str, has: &str, lacks: &str| {
            format!(
                "thread {first} holds `{has}` and waits for `{lacks}`, which thread {then} holds; thread {then} holds `{lacks}` and waits for `{has}`, which thread {first} holds"
            )
        };
        let either = [chains("one", "other", "a", "b"), chains("other", "one", "b", "a")];
        assert!(
            either.iter().any(|told| told == sentence(record)),
            "{}",
            sentence(record)
        );
    }
    for record in explore(100, all_with_lock_order, crossed) {
        assert_eq!(verdict(&record), Some(Verdict::LockOrder));
        let links = [
            "thread one holds `a` and wants `b`",
            "thread other holds `b` and wants `a`",
        ];
        assert!(
            links.iter().all(|link| sentence(&record).contains(link)),
            "{}",
            sentence(&record)
        );
    }
}

/// Who faults reads under a semaphore and reclaims; reclaim takes the file's lock; who unmaps a file takes the semaphore to write.
fn three_classes(journal: &Journal) {
    struct Locks {
        semaphore: RwLock<()>,
        reclaim: Mutex<()>,
        mapping: Mutex<()>,
    }
    let locks = Arc::new(Locks {
        semaphore: RwLock::new("semaphore", ()),
        reclaim: Mutex::new("reclaim", ()),
        mapping: Mutex::new("file mapping", ()),
    });
    let fault = locks.clone();
    let fault = journal::spawn(journal, "fault", move || {
        let _reads = fault.semaphore.read();
        let _reclaims = fault.reclaim.lock();
    });
    let shrinker = locks.clone();
    let shrinker = journal::spawn(journal, "shrinker", move || {
        let _reclaims = shrinker.reclaim.lock();
        let _unmaps = shrinker.mapping.lock();
    });
    let truncate = journal::spawn(journal, "truncate", move || {
        let _unmaps = locks.mapping.lock();
        let _starts = locks.semaphore.write();
    });
    for thread in [fault, shrinker, truncate] {
        thread.join().unwrap();
    }
}

#[test]
fn chk_11_three_classes_and_a_reader_are_found_in_all_schedules() {
    for record in explore(100, all_with_lock_order, three_classes) {
        assert_eq!(verdict(&record), Some(Verdict::LockOrder));
        let links = [
            "thread fault holds `semaphore` for reading and wants `reclaim`",
            "thread shrinker holds `reclaim` and wants `file mapping`",
            "thread truncate holds `file mapping` and wants `semaphore` for writing",
        ];
        // Nobody has read the semaphore yet where the writer was first.
        let told = sentence(&record).replace("wants `semaphore`;", "wants `semaphore` for writing;");
        assert!(links.iter().all(|link| told.contains(link)), "{told}");
        assert_eq!(told.matches("; ").count(), 2, "{told}");
    }
}

/// A release callback that runs under the lock which those it waits for need.
fn waits_under_a_lock(journal: &Journal) {
    let shared = Arc::new((
        RwLock::new("mirrors", ()),
        Mutex::new("count", 1),
        Condvar::new("quiet"),
    ));
    let exit = shared.clone();
    let exit = journal::spawn(journal, "exit", move || {
        let (mirrors, count, quiet) = &*exit;
        let _writes = mirrors.write();
        let mut in_flight = count.lock();
        while *in_flight > 0 {
            in_flight = quiet.wait(in_flight);
        }
    });
    let invalidate = journal::spawn(journal, "invalidate", move || {
        let (mirrors, count, quiet) = &*shared;
        drop(mirrors.read());
        *count.lock() -= 1;
        quiet.notify_all();
    });
    exit.join().unwrap();
    invalidate.join().unwrap();
}

#[test]
fn chk_11_a_deadlock_with_a_sleeper_is_told_from_who_waits_for_it() {
    let records = explore(100, all, waits_under_a_lock);
    let deadlocks: Vec<&Record> = records.iter().filter(|record| record.finding.is_some()).collect();
    assert!(!deadlocks.is_empty() && deadlocks.len() < records.len());
    for record in deadlocks {
        assert_eq!(verdict(record), Some(Verdict::Deadlock));
        assert_eq!(
            sentence(record),
            "thread invalidate waits for `mirrors` for reading, which thread exit holds; thread exit holds `mirrors` for writing and sleeps until `quiet` is signalled, and nobody is left to do that"
        );
    }
}

/// Getting pages causes an invalidation, which takes the semaphore again.
fn again(journal: &Journal) {
    let fault = journal::spawn(journal, "fault", || {
        let semaphore = RwLock::new("semaphore", ());
        let _reads = semaphore.read();
        drop(semaphore.write());
    });
    let _ = fault.join();
}

#[test]
fn chk_11_who_waits_for_itself_is_told_in_every_schedule() {
    for checkers in [all, all_with_lock_order] {
        for record in explore(5, checkers, again) {
            assert_eq!(verdict(&record), Some(Verdict::Deadlock));
            assert_eq!(
                sentence(&record),
                "thread fault holds `semaphore` for reading and waits for `semaphore` for writing, and so for itself"
            );
        }
    }
}
