//! MIG-3 for all of it: CPU threads and devices add to the same words while pages are claimed, hop and are taken exclusively.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use isomem::{MemoryKind, PAGE_SIZE, PageRange};

use crate::apart::{MIB, Mapped, apart, number};
use crate::rig::{Gpu, gpu, gpu_of, open, rw, word};

const PAGES: usize = 64;

/// Words that are added to: one in each page.
fn addr(memory: &Mapped, turn: u64) -> usize {
    memory.start + (turn as usize * 7 % PAGES) * PAGE_SIZE + 64
}

/// Adds from two CPU threads and from one thread for each device while `change` runs, until it returns. Then no add may be missing.
fn adding(memory: &Mapped, gpus: &[&Gpu], change: impl FnOnce(PageRange)) {
    let stop = AtomicBool::new(false);
    let made = AtomicU64::new(0);
    let going = |turn: &u64| *turn == 0 || !stop.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let turns = (0..).take_while(going);
                let turns = turns.inspect(|turn| _ = word(addr(memory, *turn)).fetch_add(1, Ordering::SeqCst));
                made.fetch_add(turns.count() as u64, Ordering::Relaxed);
            });
        }
        for gpu in gpus {
            scope.spawn(|| {
                let mut slot = gpu.slot();
                let turns = (0..).take_while(going);
                let turns = turns.inspect(|turn| gpu.add(&mut slot, addr(memory, *turn), 1));
                made.fetch_add(turns.count() as u64, Ordering::Relaxed);
            });
        }
        change(memory.range());
        stop.store(true, Ordering::Relaxed);
    });
    let sum: u64 = (0..PAGES as u64)
        .map(|page| word(addr(memory, page)).load(Ordering::SeqCst))
        .sum();
    assert_eq!(sum, made.load(Ordering::Relaxed), "adds are missing");
}

fn rounds() -> usize {
    std::env::var("ISOMEM_ROUNDS").map_or(300, |rounds| rounds.parse().unwrap())
}

#[test]
fn mig_11_no_add_is_lost_while_pages_are_taken_exclusively_and_taken_back() {
    apart(
        "together::mig_11_no_add_is_lost_while_pages_are_taken_exclusively_and_taken_back",
        || {
            let mm = open();
            for kind in [MemoryKind::Private, MemoryKind::Coherent] {
                let device = gpu(&mm, "device", kind);
                let memory = rw(PAGES * PAGE_SIZE);
                adding(&memory, &[&device], |range| {
                    for round in 0..rounds() {
                        device.mirror.exclusive(range).unwrap();
                        if round % 3 == 0 {
                            device.mirror.end_exclusive(range).unwrap();
                        }
                        if round % 7 == 0 {
                            device.mirror.migrate_to_device(range).unwrap();
                        }
                    }
                });
                assert!(mm.stats().pages_exclusive > 0);
            }
        },
    );
}

#[test]
fn mig_3_no_add_is_lost_while_pages_hop_between_devices_and_home() {
    apart(
        "together::mig_3_no_add_is_lost_while_pages_hop_between_devices_and_home",
        || {
            let mm = open();
            let (one, two) = (
                gpu(&mm, "one", MemoryKind::Private),
                gpu(&mm, "two", MemoryKind::Private),
            );
            let coherent = gpu(&mm, "coherent", MemoryKind::Coherent);
            let memory = rw(PAGES * PAGE_SIZE);
            adding(&memory, &[&one, &two, &coherent], |range| {
                for round in 0..rounds() {
                    one.mirror.migrate_to_device(range).unwrap();
                    two.mirror.migrate_to_device(range).unwrap();
                    if round % 2 == 0 {
                        coherent.mirror.migrate_to_device(range).unwrap();
                    }
                    if round % 3 == 0 {
                        two.mirror.migrate_home(range).unwrap();
                    }
                    if round % 5 == 0 {
                        one.mirror.exclusive(range).unwrap();
                    }
                }
            });
            assert!(mm.stats().pages_between_devices > 0);
        },
    );
}

#[test]
fn mig_5_protection_and_forks_meanwhile_lose_nothing() {
    apart("together::mig_5_protection_and_forks_meanwhile_lose_nothing", || {
        let mm = open();
        let (one, coherent) = (
            gpu(&mm, "one", MemoryKind::Private),
            gpu(&mm, "coherent", MemoryKind::Coherent),
        );
        let memory = rw(PAGES * PAGE_SIZE);
        adding(&memory, &[&one, &coherent], |range| {
            for round in 0..rounds() / 4 {
                one.mirror.exclusive(range).unwrap();
                // SAFETY: what was allowed stays allowed.
                unsafe { mm.protect(range, Some(isomem::Access::Write)) }.unwrap();
                coherent.mirror.migrate_to_device(range).unwrap();
                if round % 8 == 0 {
                    // SAFETY: the child ends at once.
                    let child = unsafe { libc::fork() };
                    if child == 0 {
                        // SAFETY: ends the child without running anything of the parent's.
                        unsafe { libc::_exit(0) };
                    }
                    assert!(crate::apart::wait_forked(child).success());
                }
            }
        });
    });
}

#[test]
fn mig_7_threads_that_hop_onto_small_devices_lose_nothing_and_get_on() {
    apart(
        "together::mig_7_threads_that_hop_onto_small_devices_lose_nothing_and_get_on",
        || {
            let mm = open();
            let gpus = [
                gpu_of(&mm, "one", MemoryKind::Private, 600),
                gpu_of(&mm, "two", MemoryKind::Private, 300),
                gpu_of(&mm, "coherent", MemoryKind::Coherent, 400),
            ];
            let memory = Mapped::numbered(8 * MIB);
            std::thread::scope(|scope| {
                for (thread, gpu) in gpus.iter().enumerate() {
                    let memory = &memory;
                    scope.spawn(move || {
                        for round in 0..20 {
                            let first = (round * 311 + thread * 97) % 1500;
                            let range = memory.pages(first, 400);
                            gpu.mirror.migrate_to_device(range).unwrap();
                            if round % 4 == 0 {
                                gpu.mirror.exclusive(memory.pages(first, 100)).unwrap();
                            }
                            let at = first * 512;
                            assert_eq!(memory.words()[at], number(at));
                            let (used, room) = gpu.handle.memory_pages();
                            assert!(used <= room, "{used} of {room} pages");
                        }
                    });
                }
            });
            memory.check();
            for gpu in &gpus {
                assert_eq!((gpu.handle.evict_all().unwrap().skipped, gpu.used()), (0, 0));
            }
        },
    );
}

/// The software device's workers, on either kind of memory: they miss, and the pages that they miss on are claimed, or come.
#[test]
fn mig_10_kernels_run_on_coherent_memory_and_on_exclusive_pages() {
    apart(
        "together::mig_10_kernels_run_on_coherent_memory_and_on_exclusive_pages",
        || {
            for memory_kind in [MemoryKind::Private, MemoryKind::Coherent] {
                let (mm, device, mirror) = crate::apart::open(isomem::SoftConfig {
                    memory_kind,
                    ..crate::apart::config()
                });
                let memory = rw(4 * MIB);
                // SAFETY: the mapping lives longer than the slice, and is words; all access them by atomic operations.
                let words =
                    unsafe { core::slice::from_raw_parts(memory.start as *const AtomicU64, memory.len_bytes / 8) };
                let touched = words.len() / 64;
                for round in 0..4 {
                    mirror
                        .launch(words, |worker, words| {
                            (0..touched).try_for_each(|word| words.fetch_add(worker, word * 64, 1).map(drop))
                        })
                        .unwrap();
                    let held = device.memory_pages().0;
                    assert_eq!(held, 1024, "the device has what it touched");
                    if round == 1 {
                        let taken = mirror.exclusive(memory.range()).unwrap();
                        assert_eq!(
                            (taken.skipped, mirror.exclusive_pages(memory.range()).unwrap()),
                            (0, 1024)
                        );
                    }
                }
                let workers = mirror.workers() as u64;
                let right = |word: &AtomicU64| word.load(Ordering::Relaxed) == 4 * workers;
                assert!(words.iter().step_by(64).all(right));
                let claimed = mm.stats().pages_claimed;
                assert_eq!(claimed > 0, memory_kind == MemoryKind::Coherent);
            }
        },
    );
}
