use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{OwnThread, StackSize, is_own_thread};
use crate::sys::metadata;

fn run(size: StackSize, entry: impl FnOnce() + Send + 'static) {
    drop(OwnThread::spawn(c"isomem-test", size, entry).unwrap());
}

#[test]
fn thr_1_an_own_thread_knows_itself_and_others_do_not() {
    assert!(!is_own_thread());
    let seen = Arc::new(AtomicBool::new(false));
    let there = seen.clone();
    run(StackSize::SYSTEM, move || {
        there.store(is_own_thread(), Ordering::Relaxed);
    });
    assert!(seen.load(Ordering::Relaxed) && !is_own_thread());
    std::thread::spawn(|| assert!(!is_own_thread())).join().unwrap();
}

#[test]
fn thr_2_all_signals_are_blocked_there_and_none_newly_here() {
    fn blocked() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap()
    }
    let before = blocked();
    run(StackSize::SYSTEM, || {
        // KILL and STOP cannot be blocked, and the C library keeps 32 and 33 for itself.
        let free = 1u64 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1) | 1 << 31 | 1 << 32;
        assert_eq!(blocked() | free, u64::MAX);
    });
    assert_eq!(blocked(), before);
}

#[test]
fn thr_3_dropping_the_handle_waits_and_the_stack_serves_again() {
    let finished = Arc::new(AtomicUsize::new(0));
    for round in 1..=50 {
        let counter = finished.clone();
        run(StackSize::KERNEL, move || {
            std::thread::sleep(std::time::Duration::from_micros(100));
            counter.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(finished.load(Ordering::Relaxed), round);
    }
}

#[test]
fn the_stack_has_the_size_asked_for() {
    #[inline(never)]
    fn use_stack(left: usize) -> usize {
        let page = std::hint::black_box([left as u8; 4096]);
        if left == 0 {
            0
        } else {
            use_stack(left - 1) + usize::from(page[17] == left as u8)
        }
    }
    run(StackSize::KERNEL, || assert_eq!(use_stack(400), 400));
    run(StackSize::bytes(8 << 20), || assert_eq!(use_stack(1800), 1800));
    assert_eq!(StackSize::bytes(1), StackSize::SYSTEM);
}

#[test]
fn the_kernel_shows_the_name() {
    run(StackSize::SYSTEM, || {
        assert_eq!(
            std::fs::read_to_string("/proc/thread-self/comm").unwrap(),
            "isomem-test\n"
        );
    });
}

#[test]
fn thr_1_what_the_entry_owns_travels_and_is_dropped() {
    let owned = Arc::new([7u8; 3000]);
    let there = owned.clone();
    run(StackSize::SYSTEM, move || {
        let local = 0u8;
        assert!(metadata::contains(core::ptr::from_ref(&local).addr()));
        assert_eq!(there[2999], 7);
    });
    assert_eq!(Arc::strong_count(&owned), 1);
}

#[test]
fn a_stack_that_cannot_be_had_is_an_error() {
    assert!(OwnThread::spawn(c"isomem-test", StackSize::bytes(1 << 45), || {}).is_err());
}

#[test]
fn a_handle_dropped_by_its_own_thread_lets_it_run_on() {
    let slot = Arc::new(std::sync::Mutex::new(None::<OwnThread>));
    let done = Arc::new(AtomicBool::new(false));
    let (there, flag) = (slot.clone(), done.clone());
    let mut held = slot.lock().unwrap();
    let thread = OwnThread::spawn(c"isomem-test", StackSize::SYSTEM, move || {
        drop(there.lock().unwrap().take());
        flag.store(true, Ordering::Release);
    });
    *held = Some(thread.unwrap());
    drop(held);
    while !done.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
}

#[test]
fn thr_3_a_forks_child_drops_a_handle_without_waiting() {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    let thread = OwnThread::spawn(c"isomem-test", StackSize::SYSTEM, move || {
        while !seen.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
    });
    let thread = thread.unwrap();
    // SAFETY: the child does nothing but drop a handle, which makes no call there, and leaves by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let here = thread.is_here();
        drop(thread);
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(i32::from(here)) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above; `status` is ours.
    let waited = unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!((waited, status), (child, 0));
    stop.store(true, Ordering::Relaxed);
}
