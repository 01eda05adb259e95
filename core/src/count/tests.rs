use super::*;

#[test]
fn cnt_1_only_the_last_to_leave_is_told_so() {
    let count = RefCount::new();
    count.hold().unwrap();
    count.hold().unwrap();
    assert_eq!(count.leave(), Remaining::Others);
    assert_eq!(count.leave(), Remaining::Others);
    assert_eq!(count.leave(), Remaining::Nobody);
}

#[test]
fn cnt_2_the_last_of_many_threads_has_seen_all_their_work() {
    const THREADS: usize = 4;
    let count = RefCount::new();
    let work = [const { std::sync::atomic::AtomicUsize::new(0) }; THREADS];
    let seen: usize = std::thread::scope(|scope| {
        let leavers: Vec<_> = (0..THREADS)
            .map(|number| {
                if number > 0 {
                    count.hold().unwrap();
                }
                let (count, work) = (&count, &work);
                move || {
                    work[number].store(1, Ordering::Relaxed);
                    match count.leave() {
                        Remaining::Others => 0,
                        Remaining::Nobody => work.iter().map(|work| work.load(Ordering::Relaxed)).sum(),
                    }
                }
            })
            .collect();
        let threads: Vec<_> = leavers.into_iter().map(|leaver| scope.spawn(leaver)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(seen, THREADS);
}

#[test]
fn cnt_3_a_holder_too_many_is_refused_and_changes_nothing() {
    let count = RefCount(AtomicUsize::new(MOST - 1));
    assert_eq!(count.hold(), Ok(()));
    assert_eq!(count.hold(), Err(TooManyHolders));
    assert_eq!(count.leave(), Remaining::Others);
    assert_eq!(count.hold(), Ok(()));
}
