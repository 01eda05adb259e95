use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use super::{Services, TICKETS};
use crate::sys::thread::is_own_thread;

#[test]
fn srv_1_a_job_runs_on_a_thread_of_isomems_own() {
    let services = Services::start(Services::default_threads()).unwrap();
    assert!(!is_own_thread());
    assert!(services.run(is_own_thread));
    let text = String::from("moved there");
    assert_eq!(services.run(move || text + " and back"), "moved there and back");
}

#[test]
fn srv_1_each_caller_gets_its_own_result() {
    let services = Services::start(2).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..6usize {
            let services = &services;
            scope.spawn(move || {
                for round in 0..5000 {
                    let mine = [thread, round];
                    assert_eq!(services.run(move || mine.map(|part| part + 1)), [thread + 1, round + 1]);
                }
            });
        }
    });
}

#[test]
fn srv_1_a_panic_reaches_its_caller_and_the_thread_serves_on() {
    let services = Services::start(1).unwrap();
    for _ in 0..3 {
        let outcome = catch_unwind(AssertUnwindSafe(|| services.run(|| -> u8 { panic!("by the job") })));
        assert_eq!(outcome.unwrap_err().downcast_ref::<&str>(), Some(&"by the job"));
        assert_eq!(services.run(|| 7), 7);
    }
}

#[test]
fn srv_2_a_job_after_a_pause_is_taken() {
    let services = Services::start(2).unwrap();
    for pause_us in (0..200).chain([1000, 5000]) {
        std::thread::sleep(Duration::from_micros(pause_us));
        assert_eq!(services.run(|| 7), 7);
    }
}

#[test]
fn srv_2_as_many_jobs_as_threads_run_at_a_time() {
    let services = Services::start(2).unwrap();
    for _ in 0..200 {
        let both = Arc::new(Barrier::new(2));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let (services, both) = (&services, both.clone());
                scope.spawn(move || services.run(move || both.wait()));
            }
        });
    }
}

#[test]
fn srv_2_more_jobs_than_tickets_wait_their_turn() {
    let services = Services::start(2).unwrap();
    let open = Arc::new(AtomicBool::new(false));
    let ran = Arc::new(AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..TICKETS + 20 {
            let (services, open, ran) = (&services, open.clone(), ran.clone());
            scope.spawn(move || {
                services.run(move || {
                    while !open.load(Ordering::Relaxed) {
                        std::thread::yield_now();
                    }
                    ran.fetch_add(1, Ordering::Relaxed);
                });
            });
        }
        std::thread::sleep(Duration::from_millis(20));
        open.store(true, Ordering::Relaxed);
    });
    assert_eq!(ran.load(Ordering::Relaxed), TICKETS + 20);
}

#[test]
fn srv_3_a_job_within_a_job_runs_in_place() {
    let services = Arc::new(Services::start(1).unwrap());
    let inner = services.clone();
    assert_eq!(services.run(move || inner.run(|| 7)), 7);
}

#[test]
fn srv_3_a_forks_child_runs_in_place() {
    let services = Services::start(1).unwrap();
    // SAFETY: the child runs a closure that makes no calls, and leaves by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let code = services.run(|| 7);
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above; `status` is ours.
    let waited = unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!((waited, libc::WEXITSTATUS(status)), (child, 7));
}

#[test]
fn threads_stop_when_the_services_are_dropped() {
    for _ in 0..50 {
        let services = Services::start(3).unwrap();
        services.run(|| ());
    }
}

/// `cargo test --release -p isomem-linux service -- --ignored --nocapture` prints what posting a job costs.
#[test]
#[ignore = "measures; asserts nothing"]
fn latency_of_an_empty_job() {
    const COLD: Duration = Duration::from_micros(200);
    let services = Services::start(Services::default_threads()).unwrap();
    let pauses: [(&str, usize, fn()); 3] = [
        ("hot", 200_000, || ()),
        ("after a sleep", 3000, || std::thread::sleep(COLD)),
        ("after other work", 3000, || {
            let start = Instant::now();
            while start.elapsed() < COLD {}
        }),
    ];
    for (name, rounds, pause) in pauses {
        let mut times: Vec<_> = (0..rounds)
            .map(|_| {
                pause();
                let start = Instant::now();
                services.run(|| ());
                start.elapsed().as_nanos()
            })
            .collect();
        times.sort_unstable();
        println!(
            "{name}: p50 {} ns, p99 {} ns",
            times[rounds / 2],
            times[rounds * 99 / 100]
        );
    }
}
