//! Starts, ends, refusals, owners.

use super::*;

#[test]
fn inv_1_subscriber_is_told_range_cause_owner_and_blocking() {
    let notifier = notifier();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let into = seen.clone();
    let subscriber = Arc::new(OnStart(move |inv: &Invalidation| into.lock().unwrap().push(*inv)));
    let _subscription = notifier.subscribe(pages(0, 8), subscriber).unwrap();
    notifier
        .invalidate(pages(1, 2), Cause::ProtectArea, Some(Owner(7)))
        .unwrap()
        .commit();
    notifier
        .try_invalidate(pages(2, 1), Cause::SoftDirty, None)
        .unwrap()
        .commit();
    let owner = Some(Owner(7));
    let first = Invalidation {
        range: pages(1, 2),
        cause: Cause::ProtectArea,
        owner,
        blocking: Blocking::May,
    };
    let second = Invalidation {
        range: pages(2, 1),
        cause: Cause::SoftDirty,
        owner: None,
        blocking: Blocking::Never,
    };
    assert_eq!(*seen.lock().unwrap(), [first, second]);
}

#[test]
fn inv_2_ends_come_in_reverse_and_say_committed_or_aborted() {
    let notifier = notifier();
    let log = Log::default();
    let subscriptions: Vec<_> = (0..3)
        .map(|n| {
            notifier
                .subscribe(pages(n, 8), Arc::new(Recorder::new(n, &log)))
                .unwrap()
        })
        .collect();
    let range = pages(4, 2);
    notifier.invalidate(range, Cause::Unmap, None).unwrap().commit();
    drop(notifier.invalidate(range, Cause::Unmap, None).unwrap());
    let pass = |outcome| {
        let starts = (0..3).map(|n| Told::Start(n, range));
        starts.chain((0..3).rev().map(move |n| Told::End(n, range, outcome)))
    };
    let expected: Vec<_> = pass(Outcome::Committed).chain(pass(Outcome::Aborted)).collect();
    assert_eq!(taken(&log), expected);
    drop(subscriptions);
}

#[test]
fn inv_2_refused_pass_ends_those_that_started() {
    let range = pages(4, 1);
    for refuser in 0..5 {
        let notifier = notifier();
        let log = Log::default();
        let subscribe = |n| {
            let answer = if n == refuser { Answer::Refused } else { Answer::Done };
            notifier
                .subscribe(
                    pages(0, 8),
                    Arc::new(Recorder {
                        answer,
                        ..Recorder::new(n, &log)
                    }),
                )
                .unwrap()
        };
        let _subscriptions: Vec<_> = (0..5).map(subscribe).collect();
        let refused = notifier.try_invalidate(range, Cause::Clear, None).unwrap_err();
        assert_eq!(refused, Refused::Subscriber(range));
        let starts = (0..refuser).map(|n| Told::Start(n, range));
        let ends = (0..refuser).rev().map(|n| Told::End(n, range, Outcome::Aborted));
        assert_eq!(taken(&log), starts.chain(ends).collect::<Vec<_>>());
        assert_eq!(notifier.stats().refused, 1);
        // Nothing of the refused pass is left: a read begins at once.
        let _ = notifier.read(range).time_limit(Duration::ZERO).begin().unwrap();
    }
}

#[test]
fn inv_3_blocking_pass_reaches_who_would_refuse() {
    let notifier = notifier();
    let log = Log::default();
    let subscriber = Arc::new(Recorder {
        answer: Answer::Refused,
        ..Recorder::new(0, &log)
    });
    let _subscription = notifier.subscribe(pages(0, 8), subscriber).unwrap();
    notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap().commit();
    assert_eq!(taken(&log).len(), 2);
}

#[test]
fn inv_5_only_intervals_that_share_a_page_are_called() {
    let notifier = notifier();
    let log = Log::default();
    let _low = notifier
        .subscribe(pages(0, 4), Arc::new(Recorder::new(0, &log)))
        .unwrap();
    let _high = notifier
        .subscribe(pages(4, 4), Arc::new(Recorder::new(1, &log)))
        .unwrap();
    let _all = notifier
        .subscribe(PageRange::ALL, Arc::new(Recorder::new(2, &log)))
        .unwrap();
    notifier.invalidate(pages(3, 1), Cause::Unmap, None).unwrap().commit();
    let called: Vec<_> = taken(&log)
        .iter()
        .filter_map(|told| if let Told::Start(n, _) = told { Some(*n) } else { None })
        .collect();
    assert_eq!(called.len(), 2);
    assert!(called.contains(&0) && called.contains(&2));
}

#[test]
fn inv_6_owner_is_left_out_of_what_it_caused() {
    let notifier = notifier();
    let log = Log::default();
    let owned = |n, owner| {
        Arc::new(Recorder {
            owner,
            ..Recorder::new(n, &log)
        })
    };
    let _a = notifier.subscribe(pages(0, 4), owned(0, Some(Owner(1)))).unwrap();
    let _b = notifier.subscribe(pages(0, 4), owned(1, None)).unwrap();
    let starts = |owner| {
        notifier
            .invalidate(pages(0, 1), Cause::Migrate, owner)
            .unwrap()
            .commit();
        taken(&log)
            .iter()
            .filter(|told| matches!(told, Told::Start(..)))
            .count()
    };
    assert_eq!(
        [starts(Some(Owner(1))), starts(Some(Owner(2))), starts(None)],
        [1, 2, 2]
    );
}

#[test]
fn inv_7_callback_cannot_invalidate_or_read() {
    let notifier = notifier();
    let inner = notifier.clone();
    let subscriber = Arc::new(OnStart(move |inv: &Invalidation| {
        assert!(in_callback());
        let range = inv.range;
        assert_eq!(
            inner.invalidate(range, Cause::Unmap, None).unwrap_err(),
            InvalidateError::InCallback(range)
        );
        assert_eq!(
            inner.try_invalidate(range, Cause::Unmap, None).unwrap_err(),
            Refused::InCallback(range)
        );
        assert_eq!(inner.read(range).begin().unwrap_err(), ReadError::InCallback(range));
        assert_eq!(inner.exit().unwrap_err(), Inside::Callback);
    }));
    let _subscription = notifier.subscribe(pages(0, 4), subscriber).unwrap();
    notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap().commit();
    assert!(!in_callback());
    assert_eq!(notifier.stats().invalidations, 1);
}

#[test]
fn inv_9_fenced_counts_as_accepted_and_is_reported() {
    let notifier = notifier();
    let log = Log::default();
    let subscriber = Arc::new(Recorder {
        answer: Answer::Fenced,
        ..Recorder::new(0, &log)
    });
    let _subscription = notifier.subscribe(pages(0, 4), subscriber).unwrap();
    let guard = notifier.try_invalidate(pages(0, 1), Cause::Migrate, None).unwrap();
    assert!(guard.fenced());
    guard.commit();
    assert_eq!(taken(&log).len(), 2);
}

#[test]
fn inv_9_pass_that_must_not_wait_is_refused_when_the_table_is_full() {
    let notifier = notifier();
    let range = pages(0, 1);
    let mut guards: Vec<_> = (0..ACTIVE_SLOTS)
        .map(|_| notifier.try_invalidate(range, Cause::Clear, None).unwrap())
        .collect();
    assert_eq!(
        notifier.try_invalidate(range, Cause::Clear, None).unwrap_err(),
        Refused::Busy(range)
    );
    assert_eq!(
        notifier.invalidate(range, Cause::Clear, None).unwrap_err(),
        InvalidateError::Exhausted(range)
    );
    // Another thread, which holds none, waits for its turn.
    let other = notifier.clone();
    let waiter = thread::spawn(move || other.invalidate(range, Cause::Clear, None).unwrap().commit());
    drop(guards.pop());
    waiter.join().unwrap();
}

#[test]
fn ntf_1_panicking_callback_leaves_no_window_open() {
    let notifier = notifier();
    let log = Log::default();
    let first = notifier
        .subscribe(pages(0, 4), Arc::new(Recorder::new(0, &log)))
        .unwrap();
    let panics = notifier
        .subscribe(pages(1, 4), Arc::new(OnStart(|_: &Invalidation| panic!("planted"))))
        .unwrap();
    let broken = notifier.clone();
    thread::spawn(move || drop(broken.invalidate(pages(2, 1), Cause::Unmap, None)))
        .join()
        .unwrap_err();
    assert_eq!(
        taken(&log),
        [Told::Start(0, pages(2, 1)), Told::End(0, pages(2, 1), Outcome::Aborted)]
    );
    panics.unsubscribe().unwrap();
    first.unsubscribe().unwrap();
    let _ = notifier.read(pages(2, 1)).time_limit(Duration::ZERO).begin().unwrap();
}
