use std::sync::mpsc;
use std::time::Instant;

use isomem_core::addr::{BlockId, PAGE_SIZE, VirtAddr};

use super::ThreadBlocks;

/// Where the calling thread's word is, by the kernel's own account.
fn word() -> usize {
    let mut at: usize = 0;
    // SAFETY: the call writes one word to `at`.
    let answer = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut at, 0, 0, 0) };
    assert_eq!(answer, 0, "the kernel was built with CONFIG_CHECKPOINT_RESTORE");
    at
}

fn is_reported(blocks: &ThreadBlocks, addr: usize) -> bool {
    let block = BlockId::of(VirtAddr::new(addr).unwrap());
    let epoch = Instant::now();
    // Far apart, so that every call looks.
    let now = || epoch.elapsed().as_nanos() as u64;
    let mask = blocks.in_block(block, now).unwrap();
    mask.has(addr / PAGE_SIZE - block.first_page())
}

#[test]
fn thb_1_the_word_that_the_kernel_clears_lies_in_a_reported_page() {
    let (tell, told) = mpsc::channel();
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (tell, (stop, stopped)) = (tell.clone(), mpsc::channel::<()>());
            let thread = std::thread::spawn(move || {
                tell.send(word()).unwrap();
                let _ = stopped.recv();
            });
            (stop, thread)
        })
        .collect();
    for _ in 0..3 {
        let addr = told.recv().unwrap();
        assert!(is_reported(&ThreadBlocks::open().unwrap(), addr), "{addr:#x}");
    }
    for (stop, thread) in threads {
        drop(stop);
        thread.join().unwrap();
    }
}

#[test]
fn thb_1_a_page_is_kept_for_a_while_after_its_thread_ended_and_not_longer() {
    let blocks = ThreadBlocks::open().unwrap();
    let (tell, told) = mpsc::channel();
    let (stop, stopped) = mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        tell.send(word()).unwrap();
        let _ = stopped.recv();
    });
    let addr = told.recv().unwrap();
    let block = BlockId::of(VirtAddr::new(addr).unwrap());
    let at = |now: u64| {
        let mask = blocks.in_block(block, || now).unwrap();
        mask.has(addr / PAGE_SIZE - block.first_page())
    };
    assert!(at(1_000_000));
    drop(stop);
    thread.join().unwrap();
    assert!(at(900_000_000), "the stack is used again soon");
    // The system's own list may name a thread for a moment after it was joined.
    let mut later = 2_000_000_000;
    while at(later) {
        later += 2_000_000_000;
        assert!(later < 1_000_000_000_000, "never forgotten");
    }
}
