//! Under every schedule: what a reader installs is what the CPU maps, whatever invalidation it meets.
//!
//! The planted readers get one step wrong each, and the checker must catch them.
//!
//! Bounds: 2 threads (once 3) with up to 3 preemptions, one subscription, at most 2 invalidations against one read.

use std::sync::Arc;

use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::notifier::{Answer, Attempt, CallbackScope, Cause, Invalidation, Notifier, Read, Subscriber};
use isomem_loom::ModelHeap;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

fn pages(first: usize, count: usize) -> PageRange {
    PageRange::new(first * PAGE_SIZE, count * PAGE_SIZE).unwrap()
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// A device table of one entry, under its update lock, and the CPU's mapping that it mirrors.
struct Mirror {
    entry: Mutex<Option<usize>>,
    mapping: AtomicUsize,
}

impl Subscriber for Mirror {
    fn start(&self, _: &Invalidation, _: &CallbackScope<'_>) {
        *self.entry.lock().unwrap() = None;
    }

    fn try_start(&self, inv: &Invalidation, scope: &CallbackScope<'_>) -> Answer {
        self.start(inv, scope);
        Answer::Done
    }
}

type Step = fn(&Mirror, &Read<'_, ModelHeap>) -> Attempt<()>;

/// As a driver has to do it.
fn right(mirror: &Mirror, read: &Read<'_, ModelHeap>) -> Attempt<()> {
    let seen = mirror.mapping.load(Ordering::Relaxed);
    let mut entry = mirror.entry.lock().unwrap();
    if read.is_stale() {
        return Attempt::Retry;
    }
    *entry = Some(seen);
    Attempt::Done(())
}

/// Asks before it takes the update lock.
fn asks_too_early(mirror: &Mirror, read: &Read<'_, ModelHeap>) -> Attempt<()> {
    let seen = mirror.mapping.load(Ordering::Relaxed);
    if read.is_stale() {
        return Attempt::Retry;
    }
    *mirror.entry.lock().unwrap() = Some(seen);
    Attempt::Done(())
}

/// Does not ask.
fn never_asks(mirror: &Mirror, _: &Read<'_, ModelHeap>) -> Attempt<()> {
    let seen = mirror.mapping.load(Ordering::Relaxed);
    *mirror.entry.lock().unwrap() = Some(seen);
    Attempt::Done(())
}

/// The checker: during an invalidation that overlaps there is no entry, and any entry is what the CPU maps.
fn race(step: Step, changes: usize) {
    check(move || {
        let notifier = Notifier::<ModelHeap>::new().unwrap();
        let mirror = Arc::new(Mirror {
            entry: Mutex::new(None),
            mapping: AtomicUsize::new(0),
        });
        let subscription = notifier.subscribe(pages(0, 4), mirror.clone()).unwrap();
        let (reading, mirrored) = (notifier.clone(), mirror.clone());
        let reader = thread::spawn(move || {
            reading
                .read(pages(1, 1))
                .retry_loop(|read| step(&mirrored, read))
                .unwrap();
        });
        for version in 1..=changes {
            let guard = notifier.invalidate(pages(0, 2), Cause::Unmap, None).unwrap();
            mirror.mapping.store(version, Ordering::Relaxed);
            assert_eq!(
                *mirror.entry.lock().unwrap(),
                None,
                "FLT-2: an entry during an invalidation"
            );
            guard.commit();
        }
        reader.join().unwrap();
        let entry = *mirror.entry.lock().unwrap();
        assert!(entry.is_none_or(|entry| entry == changes), "FLT-2: a stale entry");
        drop(subscription);
    });
}

#[test]
fn flt_2_no_entry_during_an_overlapping_invalidation() {
    race(right, 1);
}

#[test]
fn flt_3_reader_gets_its_turn_between_two_invalidations() {
    race(right, 2);
}

#[test]
#[should_panic(expected = "FLT-2")]
fn planted_asking_before_the_update_lock_is_caught() {
    race(asks_too_early, 1);
}

#[test]
#[should_panic(expected = "FLT-2")]
fn planted_never_asking_is_caught() {
    race(never_asks, 1);
}

#[test]
fn inv_5_unrelated_invalidation_never_makes_a_read_stale() {
    check(|| {
        let notifier = Notifier::<ModelHeap>::new().unwrap();
        let other = notifier.clone();
        let pass = thread::spawn(move || other.invalidate(pages(4, 1), Cause::Clear, None).unwrap().commit());
        let mut reader = notifier.read(pages(0, 4));
        let read = reader.begin().unwrap();
        assert!(!read.is_stale());
        pass.join().unwrap();
        assert!(!read.is_stale());
    });
}

#[test]
fn ntf_2_begin_waits_for_an_invalidation_older_than_the_subscription() {
    check(|| {
        let notifier = Notifier::<ModelHeap>::new().unwrap();
        let mirror = Arc::new(Mirror {
            entry: Mutex::new(None),
            mapping: AtomicUsize::new(0),
        });
        let (changing, changed) = (notifier.clone(), mirror.clone());
        let pass = thread::spawn(move || {
            let guard = changing.invalidate(pages(0, 1), Cause::Unmap, None).unwrap();
            changed.mapping.store(1, Ordering::Relaxed);
            guard.commit();
        });
        let subscription = notifier.subscribe(pages(0, 1), mirror.clone()).unwrap();
        notifier
            .read(pages(0, 1))
            .retry_loop(|read| right(&mirror, read))
            .unwrap();
        pass.join().unwrap();
        assert_ne!(
            *mirror.entry.lock().unwrap(),
            Some(0),
            "INV-8: an entry from before the invalidation"
        );
        drop(subscription);
    });
}

#[test]
fn flt_3_more_readers_than_slots_all_get_their_turn() {
    check(|| {
        let notifier = Notifier::<ModelHeap>::new().unwrap();
        let reader = |notifier: &Notifier<ModelHeap>| drop(notifier.read(pages(0, 1)).begin().unwrap());
        let others: Vec<_> = (0..2)
            .map(|_| {
                let notifier = notifier.clone();
                thread::spawn(move || reader(&notifier))
            })
            .collect();
        reader(&notifier);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}
