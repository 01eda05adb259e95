//! Pages that the CPU and a device pull to and fro (MIG-13): the way they go is counted, with damping and without, and is bounded with it. Nothing is
//! timed: where a test needs turns to count, or a time not to end, the bounds are so large that no machine is too slow.

mod apart;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use apart::{MIB, Mapped, apart, config, device_sum, number, open, pages_on_device};
use isomem::{Mirror, SoftConfig, Stats, ThrashPolicy};

/// Any two touches are close together, none waits, and what stays stays for good.
const STRICT: ThrashPolicy = ThrashPolicy {
    residency_ns: 3_600_000_000_000,
    throttle_after: 6,
    in_place_after: 6,
    in_place_ns: 3_600_000_000_000,
};

fn with(thrash: ThrashPolicy) -> SoftConfig {
    SoftConfig { thrash, ..config() }
}

fn add_on_device(mirror: &Mirror, word: &[AtomicU64]) {
    let added = mirror.launch(word, |worker, word| {
        if worker.index() == 0 {
            word.fetch_add(worker, 0, 1)?;
        }
        Ok(())
    });
    added.unwrap();
}

/// The word at the start of a mapping.
fn word(memory: &Mapped) -> &[AtomicU64] {
    // SAFETY: mapped for as long as the borrow lives, aligned, and used by atomic operations only.
    unsafe { core::slice::from_raw_parts(memory.start as *const AtomicU64, 1) }
}

/// CPU and device add to a word in turn, so often.
fn take_turns(thrash: ThrashPolicy, rounds: u64) -> Stats {
    let (mm, _device, mirror) = open(with(thrash));
    let memory = Mapped::new(2 * MIB, libc::PROT_READ | libc::PROT_WRITE);
    let word = word(&memory);
    for round in 0..rounds {
        add_on_device(&mirror, word);
        assert_eq!(word[0].fetch_add(1, Relaxed), 2 * round + 1);
    }
    assert_eq!(word[0].load(Relaxed), 2 * rounds);
    mm.stats()
}

#[test]
fn mig_13_a_page_that_both_sides_use_in_turn_goes_to_and_fro_a_bounded_number_of_times() {
    apart(
        "mig_13_a_page_that_both_sides_use_in_turn_goes_to_and_fro_a_bounded_number_of_times",
        || {
            let free = take_turns(ThrashPolicy::OFF, 100);
            assert_eq!(free.cpu_faults, 100, "each time: {free:?}");
            assert_eq!(free.thrash_detected, 0);
            let damped = take_turns(STRICT, 100);
            // The first way out is no turn, and the sixth turn stays.
            assert_eq!(damped.cpu_faults, 6, "{damped:?}");
            assert_eq!((damped.thrash_detected, damped.thrash_throttled), (1, 0));
            assert_eq!(damped.thrash_mapped_in_place, 1, "once, and then it is mapped");
        },
    );
}

#[test]
fn mig_13_both_sides_at_once_make_progress_and_lose_nothing() {
    apart("mig_13_both_sides_at_once_make_progress_and_lose_nothing", || {
        const EACH: u64 = 20_000;
        for thrash in [STRICT, ThrashPolicy::default(), ThrashPolicy::OFF] {
            let (mm, _device, mirror) = open(with(thrash));
            let memory = Mapped::new(2 * MIB, libc::PROT_READ | libc::PROT_WRITE);
            let (word, stop) = (word(&memory), AtomicBool::new(false));
            let mut by_cpu = 0;
            std::thread::scope(|scope| {
                let cpu = scope.spawn(|| {
                    let mut added = 0;
                    while !stop.load(Relaxed) {
                        word[0].fetch_add(1, Relaxed);
                        added += 1;
                        std::thread::yield_now();
                    }
                    added
                });
                let by_device = mirror.launch(word, |worker, word| {
                    for _ in 0..EACH {
                        word.fetch_add(worker, 0, 1)?;
                    }
                    Ok(())
                });
                stop.store(true, Relaxed);
                by_device.unwrap();
                by_cpu = cpu.join().unwrap();
            });
            assert_eq!(word[0].load(Relaxed), by_cpu + EACH * mirror.workers() as u64);
            let stats = mm.stats();
            println!(
                "{thrash:?}: {} CPU faults, {} device faults",
                stats.cpu_faults, stats.device_faults
            );
            if thrash == STRICT {
                // The first way out is no turn.
                assert!(stats.cpu_faults <= u64::from(STRICT.in_place_after), "{stats:?}");
            }
        }
    });
}

#[test]
fn mig_13_what_is_asked_for_by_name_is_not_damped() {
    apart("mig_13_what_is_asked_for_by_name_is_not_damped", || {
        let (mm, _device, mirror) = open(with(STRICT));
        let memory = Mapped::numbered(2 * MIB);
        for _ in 0..20 {
            mirror.prefetch(memory.words()).unwrap();
            assert_eq!(pages_on_device(&mirror, memory.range()), 512);
            mirror.bring_home(memory.words()).unwrap();
            assert_eq!(pages_on_device(&mirror, memory.range()), 0);
        }
        assert_eq!(mm.stats().thrash_detected, 0);
        memory.check();
    });
}

/// Two regions, each as large as the device's memory, used in turn. Gives what was evicted.
fn alternate(thrash: ThrashPolicy) -> (u64, Stats) {
    let (mm, _device, mirror) = open(SoftConfig {
        memory_bytes: MIB,
        workers: 1,
        ..with(thrash)
    });
    let regions = [Mapped::numbered(MIB), Mapped::numbered(MIB)];
    let sum = (0..MIB / 8).map(number).fold(0, u64::wrapping_add);
    for _ in 0..30 {
        for region in &regions {
            assert_eq!(device_sum(&mirror, region.words()), sum);
        }
    }
    (mm.stats().pages_home_by_eviction, mm.stats())
}

#[test]
fn mig_7_mig_13_two_regions_that_push_each_other_out_come_to_rest() {
    apart("mig_7_mig_13_two_regions_that_push_each_other_out_come_to_rest", || {
        let (free, _) = alternate(ThrashPolicy::OFF);
        let (damped, stats) = alternate(STRICT);
        assert!(
            damped * 2 < free,
            "{damped} pages were evicted, and {free} without damping: {stats:?}"
        );
        assert!(stats.thrash_mapped_in_place > 0);
    });
}
