//! What advice does to where real memory lies (MIG-13): preferred places are honoured when a device misses, when the CPU does, and when room is
//! made; what was asked for by name wins; and advice goes with the memory it was given for.

mod apart;
mod common;

use std::thread;
use std::time::{Duration, Instant};

use apart::{MIB, Mapped, apart, config, device_sum, number, open, pages_on_device, wait_forked};
use common::{Barrier, remap_raw, unmap_raw};
use isomem::{Advice, Advised, Mm, PAGE_SIZE, PageRange, Placement, Preferred, SoftConfig, Usage, VirtAddr};

fn advised(mm: &Mm, range: PageRange) -> Advised {
    mm.advised(VirtAddr::new(range.start()).unwrap())
}

fn sum_of(words: &[u64]) -> u64 {
    (0..words.len()).map(number).sum()
}

#[test]
fn mig_13_what_is_best_at_home_is_mapped_there_and_its_neighbours_migrate() {
    apart(
        "mig_13_what_is_best_at_home_is_mapped_there_and_its_neighbours_migrate",
        || {
            let (mm, _device, mirror) = open(config());
            let memory = Mapped::numbered(4 * MIB);
            let kept = memory.pages(100, 50);
            mirror.advise_pages(kept, Advice::PreferHome).unwrap();
            assert_eq!(device_sum(&mirror, memory.words()), sum_of(memory.words()));
            assert_eq!(pages_on_device(&mirror, kept), 0);
            assert_eq!(pages_on_device(&mirror, memory.range()), 1024 - 50);
            let misses = mm.stats().device_faults;
            assert_eq!(device_sum(&mirror, memory.words()), sum_of(memory.words()));
            assert_eq!(mm.stats().device_faults, misses, "what stays is mapped");
            // Asked for by name it goes.
            mirror.migrate_to_device(kept).unwrap();
            assert_eq!(pages_on_device(&mirror, kept), 50);
            memory.check();
        },
    );
}

#[test]
fn mig_13_what_is_best_on_the_device_goes_there_and_comes_home_alone() {
    apart(
        "mig_13_what_is_best_on_the_device_goes_there_and_comes_home_alone",
        || {
            let (mm, _device, mirror) = open(SoftConfig {
                placement: Placement::InPlace,
                ..config()
            });
            let memory = Mapped::numbered(2 * MIB);
            let best = memory.pages(0, 128);
            mirror.advise_pages(best, Advice::PreferDevice).unwrap();
            assert_eq!(device_sum(&mirror, memory.words()), sum_of(memory.words()));
            assert_eq!(pages_on_device(&mirror, memory.range()), 128);
            // Again where the kernel has a page in use for a moment.
            while pages_on_device(&mirror, memory.range()) < 512 {
                mirror.migrate_to_device(memory.range()).unwrap();
            }
            let touch = |first: usize, count: usize| {
                let before = mm.stats();
                for page in first..first + count {
                    assert_eq!(memory.words()[page * 512], number(page * 512));
                }
                // A page is counted just after its thread goes on.
                let began = Instant::now();
                let came = || mm.stats().pages_home_by_fault - before.pages_home_by_fault;
                while came() < count as u64 && began.elapsed() < Duration::from_secs(10) {
                    thread::yield_now();
                }
                thread::sleep(Duration::from_millis(20));
                (mm.stats().cpu_faults - before.cpu_faults, came())
            };
            assert_eq!(touch(0, 64), (64, 64), "each is touched, and comes alone");
            let (faults, came) = touch(128, 64);
            assert!(
                faults < 16 && came >= 64,
                "the others come in windows: {faults} faults, {came} pages"
            );
            assert_eq!(mirror.bring_home(memory.words()).unwrap().skipped, 0);
            assert_eq!(
                pages_on_device(&mirror, memory.range()),
                0,
                "asked for by name it comes"
            );
            memory.check();
        },
    );
}

/// Pages of a region that are left on a small device after another, larger one passed through it.
fn left_after_a_stream(advice: Option<Advice>) -> usize {
    // One worker: with several, nothing but this region may be free to go at some moment.
    let (mm, _device, mirror) = open(SoftConfig {
        workers: 1,
        memory_bytes: 8 * MIB,
        ..config()
    });
    let (kept, stream) = (Mapped::numbered(MIB), Mapped::numbered(24 * MIB));
    if let Some(advice) = advice {
        mirror.advise(kept.words(), advice).unwrap();
    }
    mirror.prefetch(kept.words()).unwrap();
    assert_eq!(pages_on_device(&mirror, kept.range()), 256);
    assert_eq!(device_sum(&mirror, stream.words()), sum_of(stream.words()));
    assert!(mm.stats().evictions > 0);
    pages_on_device(&mirror, kept.range())
}

#[test]
fn mig_7_mig_13_what_is_best_on_the_device_is_evicted_last() {
    apart("mig_7_mig_13_what_is_best_on_the_device_is_evicted_last", || {
        assert_eq!(left_after_a_stream(None), 0, "it is the least recently used");
        assert_eq!(left_after_a_stream(Some(Advice::PreferHome)), 0);
        assert_eq!(left_after_a_stream(Some(Advice::PreferDevice)), 256);
    });
}

#[test]
fn mig_7_mig_13_a_device_full_of_what_is_best_there_still_makes_room() {
    apart(
        "mig_7_mig_13_a_device_full_of_what_is_best_there_still_makes_room",
        || {
            let (mm, _device, mirror) = open(SoftConfig {
                memory_bytes: 2 * MIB,
                ..config()
            });
            let memory = Mapped::numbered(8 * MIB);
            mirror.advise(memory.words(), Advice::PreferDevice).unwrap();
            assert_eq!(device_sum(&mirror, memory.words()), sum_of(memory.words()));
            assert!(mm.stats().evictions > 0 && pages_on_device(&mirror, memory.range()) > 0);
            memory.check();
        },
    );
}

#[test]
fn mig_13_advice_is_forgotten_with_the_memory_and_not_before() {
    apart("mig_13_advice_is_forgotten_with_the_memory_and_not_before", || {
        let (mm, _device, mirror) = open(config());
        let barrier = Barrier::new(0x10_0000_0000);
        let memory = Mapped::numbered(2 * MIB);
        let nothing = Advised::default();
        let said = Advised {
            usage: Usage::ReadMostly,
            preferred: Preferred::Home,
        };
        let advise = |first| {
            mirror.advise_pages(memory.pages(first, 8), Advice::ReadMostly).unwrap();
            mirror.advise_pages(memory.pages(first, 8), Advice::PreferHome).unwrap();
        };
        let of = |first| {
            (
                advised(&mm, memory.pages(first, 1)),
                advised(&mm, memory.pages(first + 7, 1)),
            )
        };
        (0..96).step_by(8).for_each(advise);
        // SAFETY: the memory is the test's own, here and below, and nothing that is unmapped is used any more.
        unsafe { mm.protect(memory.pages(0, 8), Some(isomem::Access::Read)) }.unwrap();
        // SAFETY: as above.
        unsafe { mm.discard_pages(memory.pages(8, 8)) }.unwrap();
        assert_eq!((of(0), of(8)), ((said, said), (said, said)));
        // SAFETY: as above.
        unsafe { mm.unmap(memory.pages(16, 4)) }.unwrap();
        assert_eq!(of(16), (nothing, said));
        // SAFETY: as above.
        unsafe { mm.remap(memory.pages(24, 8), memory.pages(32, 8)) }.unwrap();
        assert_eq!((of(24), of(32)), ((nothing, nothing), (nothing, nothing)));
        // Behind isomem's back, where the kernel tells.
        mirror.migrate_to_device(memory.range()).unwrap();
        unmap_raw(memory.pages(40, 4));
        remap_raw(memory.pages(48, 8), memory.pages(56, 8));
        barrier.wait(&mirror);
        assert_eq!(
            (of(40), of(48), of(56)),
            ((nothing, said), (nothing, nothing), (nothing, nothing))
        );
        assert_eq!((of(64), of(88)), ((said, said), (said, said)));
    });
}

#[test]
fn mig_13_a_forks_child_and_a_new_device_begin_without_advice() {
    apart("mig_13_a_forks_child_and_a_new_device_begin_without_advice", || {
        let (mm, device, mirror) = open(config());
        let memory = Mapped::numbered(64 * PAGE_SIZE);
        mirror.advise(memory.words(), Advice::ReadMostly).unwrap();
        mirror.advise(memory.words(), Advice::PreferDevice).unwrap();
        // SAFETY: the child goes on alone with what it has; the C library makes its allocator usable there.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let as_it_should = mirror.advise(memory.words(), Advice::PreferHome).is_err()
                && Mm::current().is_ok_and(|mm| advised(&mm, memory.range()) == Advised::default());
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(i32::from(!as_it_should)) };
        }
        assert!(wait_forked(child).success());
        let preferred = advised(&mm, memory.range()).preferred;
        assert!(matches!(preferred, Preferred::Device(_)), "{preferred:?}");
        mirror.unregister();
        device.unregister().unwrap();
        let left = advised(&mm, memory.range());
        assert_eq!((left.usage, left.preferred), (Usage::ReadMostly, Preferred::Anywhere));
    });
}
