//! How subscriptions begin and end.

use super::*;

/// A subscriber that stays in `start` until it is let go.
fn gate() -> (Arc<dyn Subscriber>, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (entered, on_enter) = mpsc::channel();
    let (let_go, go) = mpsc::channel::<()>();
    let (entered, go) = (Mutex::new(entered), Mutex::new(go));
    let subscriber = OnStart(move |_: &Invalidation| {
        entered.lock().unwrap().send(()).unwrap();
        go.lock().unwrap().recv().unwrap();
    });
    (Arc::new(subscriber), on_enter, let_go)
}

#[test]
fn inv_8_subscription_is_effective_when_subscribe_returns() {
    let notifier = notifier();
    let log = Log::default();
    let guard = notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap();
    let _subscription = notifier
        .subscribe(pages(0, 4), Arc::new(Recorder::new(0, &log)))
        .unwrap();
    guard.commit();
    // The earlier one said nothing to it, neither start nor end.
    assert_eq!(taken(&log), []);
    notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap().commit();
    assert_eq!(taken(&log).len(), 2);
}

#[test]
fn life_2_unsubscribe_waits_for_a_callback_in_flight() {
    let notifier = notifier();
    let (subscriber, entered, let_go) = gate();
    let subscription = notifier.subscribe(pages(0, 4), subscriber).unwrap();
    let invalidator = notifier.clone();
    let pass = thread::spawn(move || {
        invalidator
            .invalidate(pages(0, 1), Cause::Unmap, None)
            .unwrap()
            .commit();
    });
    entered.recv().unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let says = done.clone();
    let unsubscriber = thread::spawn(move || {
        subscription.unsubscribe().unwrap();
        says.store(true, Ordering::SeqCst);
    });
    stays_false(&done);
    let_go.send(()).unwrap();
    pass.join().unwrap();
    unsubscriber.join().unwrap();
    // Nothing is called any more: nobody would let it go.
    notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap().commit();
}

#[test]
fn life_2_unsubscribe_waits_for_the_end_of_an_open_window() {
    let notifier = notifier();
    let log = Log::default();
    let subscription = notifier
        .subscribe(pages(0, 4), Arc::new(Recorder::new(0, &log)))
        .unwrap();
    let guard = notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let says = done.clone();
    let unsubscriber = thread::spawn(move || {
        subscription.unsubscribe().unwrap();
        says.store(true, Ordering::SeqCst);
    });
    stays_false(&done);
    // It is dying: the next pass does not start it, the open one still ends it.
    notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap().commit();
    guard.commit();
    unsubscriber.join().unwrap();
    let range = pages(0, 1);
    let expected = [
        Told::Start(0, range),
        Told::End(0, range, Outcome::Committed),
        Told::Release(0),
    ];
    assert_eq!(taken(&log), expected);
}

#[test]
fn life_3_release_runs_once_at_exit_or_unsubscribe() {
    let notifier = notifier();
    let log = Log::default();
    let mut subscriptions: Vec<_> = (0..3)
        .map(|n| {
            notifier
                .subscribe(pages(n, 1), Arc::new(Recorder::new(n, &log)))
                .unwrap()
        })
        .collect();
    subscriptions.remove(0).unsubscribe().unwrap();
    assert_eq!(taken(&log), [Told::Release(0)]);
    notifier.exit().unwrap();
    assert_eq!(taken(&log), [Told::Release(1), Told::Release(2)]);
    notifier.exit().unwrap();
    assert!(!subscriptions[0].is_live());
    subscriptions.remove(0).unsubscribe().unwrap();
    drop(subscriptions);
    drop(notifier);
    assert_eq!(taken(&log), []);
}

#[test]
fn life_3_release_may_wait_for_an_invalidation_in_flight() {
    struct Waits(TestNotifier, Arc<AtomicBool>);
    impl Subscriber for Waits {
        fn start(&self, _: &Invalidation, _: &CallbackScope<'_>) {}
        fn try_start(&self, _: &Invalidation, _: &CallbackScope<'_>) -> Answer {
            Answer::Done
        }
        fn release(&self) {
            // Waits for the invalidation that the other thread holds open elsewhere, and makes one of its own.
            drop(self.0.read(pages(100, 1)).begin().unwrap());
            self.0.invalidate(pages(0, 1), Cause::Release, None).unwrap().commit();
            self.1.store(true, Ordering::SeqCst);
        }
    }
    let notifier = notifier();
    let done = Arc::new(AtomicBool::new(false));
    let subscriber = Arc::new(Waits(notifier.clone(), done.clone()));
    let subscription = notifier.subscribe(pages(0, 4), subscriber).unwrap();
    let guard = notifier.invalidate(pages(100, 1), Cause::Unmap, None).unwrap();
    let exiting = notifier.clone();
    let exit = thread::spawn(move || exiting.exit().unwrap());
    stays_false(&done);
    guard.commit();
    exit.join().unwrap();
    assert!(done.load(Ordering::SeqCst));
    drop(subscription);
}

#[test]
fn life_3_racing_exit_and_unsubscribe_release_once_and_both_wait_for_it() {
    struct Slow(Arc<AtomicUsize>);
    impl Subscriber for Slow {
        fn start(&self, _: &Invalidation, _: &CallbackScope<'_>) {}
        fn try_start(&self, _: &Invalidation, _: &CallbackScope<'_>) -> Answer {
            Answer::Done
        }
        fn release(&self) {
            thread::sleep(Duration::from_millis(5));
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    for _ in 0..20 {
        let notifier = notifier();
        let released = Arc::new(AtomicUsize::new(0));
        let subscription = notifier
            .subscribe(pages(0, 1), Arc::new(Slow(released.clone())))
            .unwrap();
        let exiting = notifier.clone();
        let exit = thread::spawn(move || exiting.exit().unwrap());
        subscription.unsubscribe().unwrap();
        assert_eq!(released.load(Ordering::SeqCst), 1);
        exit.join().unwrap();
        assert_eq!(released.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn life_4_subscribing_after_exit_is_released_at_once() {
    let notifier = notifier();
    notifier.exit().unwrap();
    let log = Log::default();
    let subscription = notifier
        .subscribe(pages(0, 1), Arc::new(Recorder::new(0, &log)))
        .unwrap();
    assert_eq!(taken(&log), [Told::Release(0)]);
    assert!(!subscription.is_live());
    notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap().commit();
    drop(subscription);
    assert_eq!(taken(&log), []);
}

#[test]
fn life_4_handles_outlive_the_notifier() {
    let notifier = notifier();
    let log = Log::default();
    let subscription = notifier
        .subscribe(pages(0, 1), Arc::new(Recorder::new(0, &log)))
        .unwrap();
    drop(notifier);
    subscription.unsubscribe().unwrap();
    assert_eq!(taken(&log), [Told::Release(0)]);
}

#[test]
fn life_5_nothing_is_left_of_a_subscriber_when_unsubscribe_returned() {
    let notifier = notifier();
    let log = Log::default();
    let subscriber = Arc::new(Recorder::new(0, &log));
    let weak = Arc::downgrade(&subscriber);
    let subscription = notifier.subscribe(pages(0, 1), subscriber).unwrap();
    // A pass elsewhere, whose snapshot holds the entry, is no reason to keep the subscriber.
    let elsewhere = notifier;
    let (held, hold) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (holds, lets_go) = (held.clone(), hold.clone());
    let other = thread::spawn(move || {
        let guard = elsewhere.invalidate(pages(50, 1), Cause::Unmap, None).unwrap();
        holds.wait();
        lets_go.wait();
        guard.commit();
    });
    held.wait();
    subscription.unsubscribe().unwrap();
    assert!(weak.upgrade().is_none());
    hold.wait();
    other.join().unwrap();
}

#[test]
fn life_8_unsubscribing_inside_a_callback_gives_a_token() {
    let notifier = notifier();
    let own = Arc::new(Mutex::new(None::<Subscription<Global>>));
    let token = Arc::new(Mutex::new(None));
    let (taken_from, put_to) = (own.clone(), token.clone());
    let started = Arc::new(AtomicUsize::new(0));
    let count = started.clone();
    let subscriber = Arc::new(OnStart(move |_: &Invalidation| {
        count.fetch_add(1, Ordering::SeqCst);
        let Some(subscription) = taken_from.lock().unwrap().take() else {
            return;
        };
        let deferred = subscription.unsubscribe().unwrap_err();
        assert_eq!(deferred.inside(), Inside::Callback);
        // Still inside: the token comes back.
        *put_to.lock().unwrap() = Some(deferred.wait().unwrap_err());
    }));
    let weak = Arc::downgrade(&subscriber);
    *own.lock().unwrap() = Some(notifier.subscribe(pages(0, 1), subscriber).unwrap());
    notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap().commit();
    // It has not stopped, so it is told (SUB-4).
    notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap().commit();
    assert_eq!(started.load(Ordering::SeqCst), 2);
    let deferred = token.lock().unwrap().take().unwrap();
    deferred.wait().unwrap();
    notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap().commit();
    assert_eq!(started.load(Ordering::SeqCst), 2);
    assert!(weak.upgrade().is_none());
}

#[test]
fn life_8_unsubscribing_inside_ones_own_invalidation_gives_a_token() {
    let notifier = notifier();
    let log = Log::default();
    let subscription = notifier
        .subscribe(pages(0, 1), Arc::new(Recorder::new(0, &log)))
        .unwrap();
    let guard = notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap();
    assert_eq!(notifier.exit().unwrap_err(), Inside::Invalidation);
    let deferred = subscription.unsubscribe().unwrap_err();
    assert_eq!(deferred.inside(), Inside::Invalidation);
    guard.commit();
    deferred.wait().unwrap();
    assert_eq!(taken(&log).last(), Some(&Told::Release(0)));
}

#[test]
fn life_8_a_token_dropped_inside_leaves_the_release_to_exit() {
    let notifier = notifier();
    let log = Log::default();
    let subscription = notifier
        .subscribe(pages(0, 1), Arc::new(Recorder::new(0, &log)))
        .unwrap();
    let guard = notifier.invalidate(pages(5, 1), Cause::Unmap, None).unwrap();
    drop(subscription);
    guard.commit();
    // Nobody has told it to stop, so it is told of changes (SUB-4).
    notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap().commit();
    assert_eq!(taken(&log).len(), 2);
    notifier.exit().unwrap();
    assert_eq!(taken(&log), [Told::Release(0)]);
}

#[test]
fn sub_4_passes_reach_a_subscriber_until_it_has_stopped() {
    /// Says that it is in `stop`, and stays there until it is let go.
    struct Stops(mpsc::Sender<()>, Mutex<mpsc::Receiver<()>>, AtomicUsize);
    impl Subscriber for Stops {
        fn start(&self, _: &Invalidation, _: &CallbackScope<'_>) {
            self.2.fetch_add(1, Ordering::SeqCst);
        }
        fn try_start(&self, _: &Invalidation, _: &CallbackScope<'_>) -> Answer {
            Answer::Done
        }
        fn stop(&self) {
            self.0.send(()).unwrap();
            self.1.lock().unwrap().recv().unwrap();
        }
    }
    let exits: fn(&TestNotifier, Subscription<Global>) = |notifier, _subscription| notifier.exit().unwrap();
    let unsubscribes: fn(&TestNotifier, Subscription<Global>) = |_, subscription| subscription.unsubscribe().unwrap();
    for ends in [exits, unsubscribes] {
        let notifier = notifier();
        let (stopping, stops) = mpsc::channel();
        let (let_go, go) = mpsc::channel();
        let subscriber = Arc::new(Stops(stopping, Mutex::new(go), AtomicUsize::new(0)));
        let subscription = notifier.subscribe(pages(0, 1), subscriber.clone()).unwrap();
        let ending = notifier.clone();
        let end = thread::spawn(move || ends(&ending, subscription));
        stops.recv().unwrap();
        notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap().commit();
        assert_eq!(subscriber.2.load(Ordering::SeqCst), 1, "it has not stopped yet");
        let_go.send(()).unwrap();
        end.join().unwrap();
        notifier.invalidate(pages(0, 1), Cause::Unmap, None).unwrap().commit();
        assert_eq!(subscriber.2.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn life_8_unsubscribing_inside_release_does_not_hang() {
    struct DropsItself(Arc<Mutex<Option<Subscription<Global>>>>);
    impl Subscriber for DropsItself {
        fn start(&self, _: &Invalidation, _: &CallbackScope<'_>) {}
        fn try_start(&self, _: &Invalidation, _: &CallbackScope<'_>) -> Answer {
            Answer::Done
        }
        fn release(&self) {
            let subscription = self.0.lock().unwrap().take().unwrap();
            assert_eq!(subscription.unsubscribe().unwrap_err().inside(), Inside::Release);
        }
    }
    let notifier = notifier();
    let own = Arc::new(Mutex::new(None));
    let subscription = notifier
        .subscribe(pages(0, 1), Arc::new(DropsItself(own.clone())))
        .unwrap();
    *own.lock().unwrap() = Some(subscription);
    notifier.exit().unwrap();
    assert!(own.lock().unwrap().is_none());
}

#[test]
fn ntf_4_many_threads_subscribe_and_invalidate() {
    struct Checked {
        gone: AtomicBool,
        open: AtomicUsize,
    }
    impl Subscriber for Checked {
        fn start(&self, _: &Invalidation, _: &CallbackScope<'_>) {
            assert!(!self.gone.load(Ordering::SeqCst));
            self.open.fetch_add(1, Ordering::SeqCst);
        }
        fn try_start(&self, inv: &Invalidation, scope: &CallbackScope<'_>) -> Answer {
            self.start(inv, scope);
            Answer::Done
        }
        fn end(&self, _: &Invalidation, _: Outcome, _: &CallbackScope<'_>) {
            assert!(!self.gone.load(Ordering::SeqCst));
            assert!(self.open.fetch_sub(1, Ordering::SeqCst) > 0);
        }
    }
    let notifier = notifier();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for first in 0..2 {
            let (notifier, stop) = (&notifier, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    notifier
                        .invalidate(pages(first, 3), Cause::Clear, None)
                        .unwrap()
                        .commit();
                    drop(notifier.try_invalidate(pages(first + 1, 1), Cause::Migrate, None));
                }
            });
        }
        let subscribers: Vec<_> = (0..2)
            .map(|first| {
                let notifier = &notifier;
                scope.spawn(move || {
                    for _ in 0..300 {
                        let checked = Arc::new(Checked {
                            gone: AtomicBool::new(false),
                            open: AtomicUsize::new(0),
                        });
                        let subscription = notifier.subscribe(pages(first, 2), checked.clone()).unwrap();
                        thread::yield_now();
                        subscription.unsubscribe().unwrap();
                        checked.gone.store(true, Ordering::SeqCst);
                        assert_eq!(checked.open.load(Ordering::SeqCst), 0);
                    }
                })
            })
            .collect();
        subscribers
            .into_iter()
            .for_each(|subscriber| subscriber.join().unwrap());
        stop.store(true, Ordering::Relaxed);
    });
}
