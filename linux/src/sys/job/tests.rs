use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::channel;

use super::lend;

#[test]
fn job_1_the_owner_gets_the_result_of_the_other_thread() {
    let here = std::thread::current().id();
    let owned = vec![1u64; 1000];
    let (sum, there) = lend(
        move || (owned.iter().sum::<u64>(), std::thread::current().id()),
        |job| std::thread::spawn(move || job.run()).join().unwrap(),
    );
    assert_eq!(sum, 1000);
    assert_ne!(here, there);
}

#[test]
fn job_1_the_owner_waits_even_if_post_returns_or_panics_first() {
    let late = |job: super::Job| {
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            job.run();
        });
    };
    assert_eq!(lend(|| 7, late), 7);
    let (sender, receiver) = channel();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        lend(
            move || sender.send(7).unwrap(),
            |job| {
                late(job);
                panic!("post");
            },
        );
    }));
    assert!(panicked.is_err());
    assert_eq!(receiver.try_recv(), Ok(7));
}

#[test]
fn job_1_a_dropped_job_drops_its_closure_and_panics_in_the_owner() {
    let owned = Arc::new(());
    let inside = owned.clone();
    let outcome = catch_unwind(AssertUnwindSafe(|| lend(move || drop(inside), drop)));
    assert!(outcome.is_err());
    assert_eq!(Arc::strong_count(&owned), 1);
}

#[test]
fn job_3_a_panic_is_resumed_in_the_owner() {
    let outcome = catch_unwind(|| lend(|| panic!("by the job"), super::Job::run));
    let outcome: Result<(), _> = outcome;
    assert_eq!(outcome.unwrap_err().downcast_ref::<&str>(), Some(&"by the job"));
}
