use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use super::JobSlot;
use crate::error::PanicNote;

type Work = Arc<dyn Fn(usize) + Send + Sync>;

fn start(slot: &Arc<JobSlot<Work>>, workers: usize) -> Vec<thread::JoinHandle<()>> {
    let start_one = |index| {
        let slot = slot.clone();
        thread::spawn(move || {
            let mut seen = 0;
            while let Some(job) = slot.next(&mut seen) {
                job(index);
                drop(job);
                slot.finish(None);
            }
        })
    };
    (0..workers).map(start_one).collect()
}

#[test]
fn lnc_1_after_run_nobody_holds_the_job() {
    let slot = Arc::new(JobSlot::new(3));
    let threads = start(&slot, 3);
    for _ in 0..200 {
        let job: Work = Arc::new(|_| {});
        assert!(slot.run(job.clone()).is_none());
        assert_eq!(Arc::strong_count(&job), 1);
    }
    slot.stop();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn lnc_2_each_worker_runs_each_job_once_also_with_many_launchers() {
    let slot = Arc::new(JobSlot::new(4));
    let threads = start(&slot, 4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let runs: Arc<[AtomicUsize; 4]> = Arc::default();
                    let counted = runs.clone();
                    let panic = slot.run(Arc::new(move |index: usize| {
                        counted[index].fetch_add(1, SeqCst);
                    }));
                    assert!(panic.is_none());
                    assert!(runs.iter().all(|count| count.load(SeqCst) == 1));
                }
            });
        }
    });
    slot.stop();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn the_first_panic_is_told_and_the_slot_goes_on() {
    let slot = Arc::new(JobSlot::<Work>::new(1));
    let worker = {
        let slot = slot.clone();
        thread::spawn(move || {
            let mut seen = 0;
            while slot.next(&mut seen).is_some() {
                slot.finish((seen == 1).then(|| PanicNote::new(0, "boom")));
            }
        })
    };
    assert_eq!(slot.run(Arc::new(|_| {})).unwrap().message(), "boom");
    assert!(slot.run(Arc::new(|_| {})).is_none());
    slot.stop();
    worker.join().unwrap();
}
