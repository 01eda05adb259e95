//! Collision, retry, tickets, time limits.

use std::time::Instant;

use super::*;

#[test]
fn ntf_3_overlapping_invalidation_makes_a_read_stale_and_an_unrelated_one_does_not() {
    let notifier = notifier();
    let mut reader = notifier.read(pages(10, 10));
    for (first, count, stale) in [
        (0, 10, false),
        (20, 5, false),
        (19, 1, true),
        (0, 11, true),
        (0, 64, true),
        (12, 1, true),
    ] {
        let read = reader.begin().unwrap();
        notifier
            .invalidate(pages(first, count), Cause::Clear, None)
            .unwrap()
            .commit();
        assert_eq!(read.is_stale(), stale, "{first}+{count}");
    }
    assert_eq!(notifier.stats().collisions, 4);
    assert_eq!(notifier.stats().retries, 5);
}

#[test]
fn inv_4_staleness_needs_no_subscriber() {
    let notifier = notifier();
    let mut reader = notifier.read(pages(0, 1));
    let read = reader.begin().unwrap();
    let guard = notifier.try_invalidate(pages(0, 1), Cause::Migrate, None).unwrap();
    assert!(read.is_stale());
    drop(guard);
    assert!(read.is_stale());
    drop(read);
    assert!(!reader.begin().unwrap().is_stale());
}

#[test]
fn ntf_2_begin_waits_for_an_active_invalidation_that_overlaps() {
    let notifier = notifier();
    let guard = notifier.invalidate(pages(0, 4), Cause::Unmap, None).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let (reading, says) = (notifier.clone(), done.clone());
    let reader = thread::spawn(move || {
        assert!(!reading.read(pages(4, 4)).begin().unwrap().is_stale());
        let mut reader = reading.read(pages(3, 2));
        let read = reader.begin().unwrap();
        says.store(true, Ordering::SeqCst);
        assert!(!read.is_stale());
    });
    stays_false(&done);
    guard.commit();
    reader.join().unwrap();
    assert_eq!(notifier.stats().collisions, 1);
}

#[test]
fn flt_2_reading_inside_ones_own_invalidation_is_an_error_and_not_a_deadlock() {
    let notifier = notifier();
    let guard = notifier.invalidate(pages(0, 4), Cause::Migrate, None).unwrap();
    let error = notifier.read(pages(3, 1)).begin().unwrap_err();
    assert_eq!(
        error,
        ReadError::OwnInvalidation {
            range: pages(3, 1),
            invalidation: *guard.invalidation()
        }
    );
    // Elsewhere it may read.
    assert!(!notifier.read(pages(4, 1)).begin().unwrap().is_stale());
}

#[test]
fn flt_2_faulting_may_recurse_into_invalidation() {
    let notifier = notifier();
    let mut attempts = 0;
    let value = notifier.read(pages(0, 4)).retry_loop(|read| {
        attempts += 1;
        if attempts <= PATIENCE_AND_MORE {
            let began = Instant::now();
            notifier
                .invalidate(pages(1, 1), Cause::ProtectPage, None)
                .unwrap()
                .commit();
            // Also with a ticket it does not wait for itself. Generous: this machine may be busy.
            assert!(began.elapsed() < Duration::from_secs(1));
        }
        if read.is_stale() {
            Attempt::Retry
        } else {
            Attempt::Done(7)
        }
    });
    assert_eq!(value, Ok(7));
    assert_eq!(attempts, PATIENCE_AND_MORE + 1);
    assert_eq!(notifier.stats().turns, 0);
}

const PATIENCE_AND_MORE: u32 = super::super::read::PATIENCE + 2;

/// A reader that has collided as often as gives it a ticket.
fn with_ticket(notifier: &TestNotifier, range: PageRange) -> Reader<'_, Global> {
    let mut reader = notifier.read(range);
    for _ in 0..super::super::read::PATIENCE {
        drop(reader.begin().unwrap());
    }
    reader
}

#[test]
fn flt_3_ticket_makes_the_next_blocking_invalidation_wait_for_the_reader() {
    // The reader may be held up past its turn on a busy machine: then the invalidation rightly goes ahead, so try again.
    let got_its_turn = (0..50).any(|_| {
        let notifier = notifier();
        let mut reader = with_ticket(&notifier, pages(0, 4));
        let read = reader.begin().unwrap();
        let invalidator = notifier.clone();
        let pass = thread::spawn(move || {
            invalidator
                .invalidate(pages(3, 1), Cause::Clear, None)
                .unwrap()
                .commit();
        });
        while notifier.stats().turns == 0 {
            thread::yield_now();
        }
        let in_time = !read.is_stale() && notifier.stats().invalidations == 0;
        drop(read);
        pass.join().unwrap();
        in_time
    });
    assert!(got_its_turn);
}

#[test]
fn flt_3_stuck_reader_delays_invalidations_once_only() {
    let notifier = notifier();
    let mut reader = with_ticket(&notifier, pages(0, 4));
    let read = reader.begin().unwrap();
    let invalidate = |first| {
        thread::scope(|scope| {
            scope.spawn(|| {
                notifier
                    .invalidate(pages(first, 1), Cause::Clear, None)
                    .unwrap()
                    .commit();
            });
        });
    };
    invalidate(9);
    assert_eq!(notifier.stats().turns, 0, "no concern of an unrelated invalidation");
    invalidate(0);
    assert!(read.is_stale());
    invalidate(0);
    assert_eq!(notifier.stats().turns, 1);
}

#[test]
fn read_3_a_reader_that_waits_for_another_invalidation_is_overtaken_a_few_times() {
    // Without a ticket from failed attempts, too.
    for failed in [0, super::super::read::PATIENCE] {
        let notifier = notifier();
        let mut reader = notifier.read(pages(0, 4));
        (0..failed).for_each(|_| drop(reader.begin().unwrap()));
        thread::scope(|scope| {
            let guard = notifier.invalidate(pages(1, 1), Cause::Clear, None).unwrap();
            let waits = scope.spawn(move || drop(reader.begin().unwrap()));
            while notifier.stats().collisions == 0 {
                thread::yield_now();
            }
            let overtake = || {
                let overtaking = || notifier.invalidate(pages(3, 1), Cause::Clear, None).unwrap().commit();
                thread::scope(|scope| drop(scope.spawn(overtaking)));
            };
            (0..super::super::read::PATIENCE).for_each(|_| overtake());
            assert_eq!(notifier.stats().turns, 0, "what it waits for may wait for these");
            overtake();
            assert_eq!(notifier.stats().turns, 1, "it is its turn");
            guard.commit();
            waits.join().unwrap();
        });
    }
}

#[test]
fn flt_3_pass_that_must_not_wait_ignores_tickets() {
    let notifier = notifier();
    let mut reader = with_ticket(&notifier, pages(0, 4));
    let read = reader.begin().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            notifier
                .try_invalidate(pages(0, 1), Cause::Clear, None)
                .unwrap()
                .commit();
        });
    });
    assert!(read.is_stale());
    assert_eq!(notifier.stats().turns, 0);
}

#[test]
fn flt_3_timeout_names_the_last_collider() {
    let notifier = notifier();
    let guard = notifier.invalidate(pages(2, 2), Cause::ProtectArea, None).unwrap();
    let error = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            notifier
                .read(pages(0, 4))
                .time_limit(Duration::from_millis(5))
                .begin()
                .map(drop)
                .unwrap_err()
        });
        reader.join().unwrap()
    });
    let collider = Some(*guard.invalidation());
    assert_eq!(
        error,
        ReadError::TimedOut {
            range: pages(0, 4),
            attempts: 0,
            collider
        }
    );
    assert!(
        error.to_string().contains("protection of an area of 0x2000..0x4000"),
        "{error}"
    );
    assert_eq!(notifier.stats().timeouts, 1);
    drop(guard);
    // It left nothing behind.
    for _ in 0..READ_SLOTS * 2 {
        let _ = notifier.read(pages(0, 4)).begin().unwrap();
    }
}

#[test]
fn flt_3_retry_loop_ends_when_every_attempt_collides() {
    let notifier = notifier();
    let result = notifier
        .read(pages(0, 4))
        .time_limit(Duration::from_millis(20))
        .retry_loop(|read| {
            notifier
                .invalidate(pages(0, 1), Cause::SoftDirty, None)
                .unwrap()
                .commit();
            if read.is_stale() {
                Attempt::Retry
            } else {
                Attempt::Done(())
            }
        });
    let Err(ReadError::TimedOut {
        attempts,
        collider: Some(collider),
        ..
    }) = result
    else {
        panic!("{result:?}")
    };
    assert!(attempts > 0);
    assert_eq!(collider.cause, Cause::SoftDirty);
}

#[test]
fn flt_3_more_readers_than_slots_wait_and_say_when_it_took_too_long() {
    let notifier = notifier();
    let mut readers: Vec<_> = (0..READ_SLOTS).map(|_| notifier.read(pages(0, 1))).collect();
    let mut reads: Vec<_> = readers.iter_mut().map(|reader| reader.begin().unwrap()).collect();
    let mut late = notifier.read(pages(0, 1)).time_limit(Duration::from_millis(5));
    assert!(matches!(late.begin(), Err(ReadError::TimedOut { collider: None, .. })));
    let (done, waiting) = (AtomicBool::new(false), Barrier::new(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            waiting.wait();
            let _ = notifier
                .read(pages(0, 1))
                .time_limit(Duration::from_secs(60))
                .begin()
                .unwrap();
            done.store(true, Ordering::SeqCst);
        });
        waiting.wait();
        stays_false(&done);
        drop(reads.pop());
    });
    assert!(done.load(Ordering::SeqCst));
}

#[test]
fn flt_2_no_entry_survives_an_overlapping_invalidation_under_load() {
    const GONE: usize = usize::MAX;
    /// A device table of one entry; the callback erases it under the update lock.
    struct Table(Mutex<usize>);
    impl Subscriber for Table {
        fn start(&self, _: &Invalidation, _: &CallbackScope<'_>) {
            *self.0.lock().unwrap() = GONE;
        }
        fn try_start(&self, inv: &Invalidation, scope: &CallbackScope<'_>) -> Answer {
            self.start(inv, scope);
            Answer::Done
        }
    }
    let notifier = notifier();
    let table = Arc::new(Table(Mutex::new(GONE)));
    let _subscription = notifier.subscribe(pages(0, 4), table.clone()).unwrap();
    let mapping = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let installed = notifier
                        .read(pages(1, 1))
                        .time_limit(Duration::from_secs(60))
                        .retry_loop(|read| {
                            let seen = mapping.load(Ordering::Relaxed);
                            let mut entry = table.0.lock().unwrap();
                            if read.is_stale() {
                                return Attempt::Retry;
                            }
                            *entry = seen;
                            Attempt::Done(())
                        });
                    installed.unwrap();
                }
            });
        }
        for version in 1..2000 {
            let guard = notifier.invalidate(pages(0, 2), Cause::Unmap, None).unwrap();
            mapping.store(version, Ordering::Relaxed);
            assert_eq!(*table.0.lock().unwrap(), GONE);
            guard.commit();
            let entry = *table.0.lock().unwrap();
            assert!(entry == GONE || entry == version);
        }
        stop.store(true, Ordering::Relaxed);
    });
}
