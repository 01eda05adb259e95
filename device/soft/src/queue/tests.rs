use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use isomem_core::addr::BlockId;

use super::{FaultQueue, Turn};

fn block(number: usize) -> BlockId {
    BlockId::new(number).unwrap()
}

#[test]
fn fq_1_a_block_has_one_service_at_a_time() {
    let queue = FaultQueue::new();
    let services = [const { AtomicUsize::new(0) }; 2];
    let total = AtomicUsize::new(0);
    thread::scope(|scope| {
        for worker in 0..4 {
            let (queue, services, total) = (&queue, &services, &total);
            scope.spawn(move || {
                for round in 0..2000 {
                    let number = round % 2;
                    if let Turn::Service(_entry) = queue.enter(worker, 0, block(number)) {
                        assert_eq!(services[number].fetch_add(1, SeqCst), 0);
                        total.fetch_add(1, SeqCst);
                        thread::yield_now();
                        services[number].fetch_sub(1, SeqCst);
                    }
                }
            });
        }
    });
    assert!(total.load(SeqCst) >= 2000);
}

#[test]
fn other_blocks_and_other_mirrors_do_not_wait() {
    let queue = FaultQueue::new();
    let first = queue.enter(0, 0, block(7));
    assert!(matches!(first, Turn::Service(_)));
    assert!(matches!(queue.enter(1, 0, block(8)), Turn::Service(_)));
    assert!(matches!(queue.enter(2, 1, block(7)), Turn::Service(_)));
}

#[test]
fn fq_2_a_panic_in_a_service_ends_its_entry() {
    let queue = FaultQueue::new();
    let broken = thread::scope(|scope| {
        let service = scope.spawn(|| {
            let _turn = queue.enter(0, 0, block(7));
            std::panic::resume_unwind(Box::new("a service that panics"));
        });
        service.join()
    });
    assert!(broken.is_err());
    assert!(matches!(queue.enter(1, 0, block(7)), Turn::Service(_)));
}
