//! Mirrors *everything*: all private anonymous memory of the process (heap, stacks of all threads, the allocator's arenas) goes to the device
//! again and again, while the program allocates, locks, prints and starts threads. It must go on as if nothing happened.
//!
//! And the threads that serve faults and run invalidations must not allocate: the global allocator of this test aborts when one of
//! isomem's own threads calls it (decision 8 of the design; device workers run no kernels here that allocate).

#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "a raw launch and the accesses in its kernel share one reason"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

use isomem::{Mm, PageRange, Placement, SoftConfig};

struct Watched;

fn refuse_own_threads() {
    if isomem_linux::sys::thread::is_own_thread() {
        // Printing could allocate; the signal and the backtrace in a debugger say enough.
        std::process::abort();
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        refuse_own_threads();
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        refuse_own_threads();
        // SAFETY: the block came from `alloc` above, so from the system's allocator.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static GLOBAL: Watched = Watched;

/// How long it runs: seconds, from the environment, for longer runs by hand.
fn seconds() -> Duration {
    let text = std::env::var("ISOMEM_EVERYTHING_SECONDS").unwrap_or_default();
    Duration::from_secs(text.parse().unwrap_or(5))
}

/// All private writable areas that no file is behind.
fn areas() -> Vec<PageRange> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs is there");
    let parse = |line: &str| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let is_private = fields.next()? == "rw-p";
        let is_anonymous = fields.nth(2)? == "0";
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        // isomem's own reservations are tens of gigabytes; asking for them would only be refused page by page.
        let is_small = end - start < 4 << 30;
        (is_private && is_anonymous && is_small).then(|| PageRange::new(start, end - start).ok())?
    };
    maps.lines().filter_map(parse).collect()
}

/// Allocates and frees in many sizes, keeps a map, formats text; checks what it wrote.
fn churn(seed: u64, stop: &AtomicBool, rounds: &AtomicU64) {
    let mut kept: HashMap<u64, Vec<u8>> = HashMap::new();
    let mut state = seed | 1;
    while !stop.load(Ordering::Relaxed) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let key = state >> 40 & 0xff;
        let len = 1 + (state >> 33) as usize % 60_000;
        if let Some(old) = kept.insert(key, vec![key as u8; len]) {
            assert!(
                old.iter().all(|&byte| byte == key as u8),
                "a buffer changed while it was away"
            );
        }
        if kept.len() > 100 {
            kept.remove(&(state >> 17 & 0xff));
        }
        let mut text = String::new();
        write!(text, "{key}:{len}").expect("a string takes everything");
        assert_eq!(text.split_once(':').map(|(left, _)| left.parse()), Some(Ok(key)));
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}

/// Recurses, so that the stack grows and shrinks over many pages.
fn deep(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if depth == 0 {
        frame[0]
    } else {
        deep(depth - 1) + frame[63] - depth + 1
    }
}

/// Two threads hand a token back and forth under a lock.
fn ping_pong(stop: &AtomicBool, shared: &(Mutex<u64>, Condvar), side: u64, rounds: &AtomicU64) {
    let (turn, changed) = shared;
    while !stop.load(Ordering::Relaxed) {
        let guard = turn.lock().expect("no panic while held");
        let (mut guard, _) = changed
            .wait_timeout_while(guard, Duration::from_millis(50), |turn| *turn % 2 != side)
            .expect("no panic while held");
        if *guard % 2 == side {
            *guard += 1;
            rounds.fetch_add(1, Ordering::Relaxed);
            changed.notify_all();
        }
    }
}

/// Starts threads, each with a stack and thread-locals of its own, and has them compute.
fn start_threads(stop: &AtomicBool, rounds: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        let threads: Vec<_> = (0..3)
            .map(|depth| std::thread::spawn(move || deep(100 + depth)))
            .collect();
        for (depth, thread) in threads.into_iter().enumerate() {
            assert_eq!(thread.join().expect("it does not panic"), 100 + depth as u64);
        }
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn wld_1_mig_2_a_program_goes_on_while_all_its_memory_migrates() {
    let mm = Mm::current().expect("userfaultfd is available; see `isomem doctor`");
    let config = SoftConfig {
        workers: 1,
        memory_bytes: 512 << 20,
        placement: Placement::InPlace,
        ..SoftConfig::default()
    };
    let device = mm.soft_device(config).expect("the device starts");
    let mirror = device.mirror().expect("the mirror starts");
    let stop = AtomicBool::new(false);
    let counts: [AtomicU64; 6] = Default::default();
    let token = (Mutex::new(0), Condvar::new());
    let (sender, receiver) = mpsc::channel::<Arc<Vec<u64>>>();
    let (mut passes, mut migrated) = (0_u64, 0_u64);
    std::thread::scope(|scope| {
        let stop = &stop;
        for (seed, count) in counts[..2].iter().enumerate() {
            scope.spawn(move || churn(seed as u64 + 77, stop, count));
        }
        for side in 0..2 {
            let (token, count) = (&token, &counts[2]);
            scope.spawn(move || ping_pong(stop, token, side, count));
        }
        let count = &counts[3];
        scope.spawn(move || start_threads(stop, count));
        let count = &counts[4];
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let data = Arc::new((0..10_000).collect::<Vec<u64>>());
                sender.send(data).expect("the receiver waits for the end");
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let count = &counts[5];
        scope.spawn(move || {
            for data in receiver {
                assert_eq!(data.iter().sum::<u64>(), 49_995_000);
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        let end = Instant::now() + seconds();
        while Instant::now() < end {
            for area in areas() {
                // Areas come and go meanwhile; what could not be found is skipped, not an error.
                if let Ok(report) = mirror.migrate_to_device(area) {
                    migrated += report.migrated() as u64;
                }
            }
            passes += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    let counts = counts.map(AtomicU64::into_inner);
    let stats = mm.stats();
    println!("{passes} passes, {migrated} pages sent, rounds {counts:?}\n{stats:#?}");
    assert!(passes > 0 && migrated > 1000, "hardly anything migrated");
    assert!(
        counts.iter().all(|&count| count > 0),
        "some thread made no progress: {counts:?}"
    );
    assert!(stats.pages_home_by_fault > 0);
    drop(mirror);
    device.unregister().expect("it has no mirrors");
}
