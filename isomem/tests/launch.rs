//! Kernels on real memory of this process: where pages go, what comes back, and what goes wrong cleanly.

#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "a raw launch and the accesses in its kernel share one reason"
)]

mod apart;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use isomem::{
    Access, DeviceFault, LaunchError, Mirror, Mm, PAGE_SIZE, PageRange, PageState, Part, Placement, Shared, SoftConfig,
    SoftDevice, Worker,
};

const MIB: usize = 1 << 20;

fn config(placement: Placement) -> SoftConfig {
    SoftConfig {
        workers: 2,
        memory_bytes: 64 * MIB,
        placement,
        ..SoftConfig::default()
    }
}

fn open(config: SoftConfig) -> (Mm, SoftDevice, Mirror) {
    let mm = Mm::current().expect("these tests need userfaultfd: run them as root");
    let device = mm.soft_device(config).unwrap();
    let mirror = device.mirror().unwrap();
    (mm, device, mirror)
}

fn close(device: SoftDevice, mirror: Mirror) {
    mirror.unregister();
    device.unregister().unwrap();
}

/// Memory of its own areas, so that what one test does is not seen by another.
struct Mapped {
    start: usize,
    len_bytes: usize,
}

impl Mapped {
    fn new(len_bytes: usize, protection: i32) -> Self {
        Self::with(len_bytes, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    fn file(file: &File, len_bytes: usize) -> Self {
        Self::with(
            len_bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
        )
    }

    fn with(len_bytes: usize, protection: i32, flags: i32, fd: i32) -> Self {
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe { libc::mmap(core::ptr::null_mut(), len_bytes, protection, flags, fd, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        Self {
            start: start.expose_provenance(),
            len_bytes,
        }
    }

    /// Takes the memory away and puts new memory in its place, behind isomem's back. There is none where another thread took the place.
    fn renewed(self) -> Option<Self> {
        let (start, len_bytes) = (self.start, self.len_bytes);
        drop(self);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: a new mapping, where nothing is.
        let new = unsafe {
            libc::mmap(
                start as *mut _,
                len_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            )
        };
        (new.expose_provenance() == start).then_some(Self { start, len_bytes })
    }

    fn range(&self) -> PageRange {
        PageRange::new(self.start, self.len_bytes).unwrap()
    }

    fn words(&self) -> &[u64] {
        // SAFETY: mapped for as long as `self` lives, and any bytes are words.
        unsafe { core::slice::from_raw_parts(self.start as *const u64, self.len_bytes / 8) }
    }

    fn words_mut(&mut self) -> &mut [u64] {
        // SAFETY: as in `words`, and borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.start as *mut u64, self.len_bytes / 8) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: nobody else knows the mapping.
        unsafe { libc::munmap(self.start as *mut _, self.len_bytes) };
    }
}

fn numbered(len_bytes: usize) -> Mapped {
    let mut memory = Mapped::new(len_bytes, libc::PROT_READ | libc::PROT_WRITE);
    memory
        .words_mut()
        .iter_mut()
        .enumerate()
        .for_each(|(index, word)| *word = index as u64 * 3 + 1);
    memory
}

fn sum(mirror: &Mirror, words: &[u64]) -> u64 {
    let sums = mirror.launch(words, |worker, words| {
        let mut sum = 0u64;
        let share = worker.share(words.len());
        words.for_chunks(worker, share, |_, piece| {
            sum = piece.iter().fold(sum, |sum, word| sum.wrapping_add(*word));
        })?;
        Ok(sum)
    });
    sums.unwrap().into_iter().fold(0, u64::wrapping_add)
}

fn pages_on_device(mirror: &Mirror, range: PageRange) -> usize {
    let snapshot = mirror.snapshot(range).unwrap();
    let on_device = snapshot
        .runs()
        .iter()
        .filter(|(_, state)| matches!(state, PageState::Device { .. }));
    on_device.map(|(run, _)| run.page_count()).sum()
}

#[test]
fn on_touch_pages_go_to_the_device_and_come_back_by_cpu_touch() {
    let (mm, device, mirror) = open(config(Placement::OnTouch));
    let memory = numbered(8 * MIB);
    let expected = memory.words().iter().sum::<u64>();
    assert_eq!(sum(&mirror, memory.words()), expected);
    assert_eq!(pages_on_device(&mirror, memory.range()), 8 * MIB / PAGE_SIZE);
    let before = mm.stats();
    assert_eq!(memory.words().iter().sum::<u64>(), expected);
    assert!(mm.stats().pages_home_by_fault > before.pages_home_by_fault);
    assert_eq!(pages_on_device(&mirror, memory.range()), 0);
    close(device, mirror);
}

#[test]
fn in_place_pages_stay_where_they_are() {
    let (_mm, device, mirror) = open(config(Placement::InPlace));
    let memory = numbered(4 * MIB);
    assert_eq!(sum(&mirror, memory.words()), memory.words().iter().sum());
    assert_eq!(pages_on_device(&mirror, memory.range()), 0);
    assert_eq!(device.memory_pages().0, 0);
    close(device, mirror);
}

#[test]
fn after_accesses_pages_migrate_once_they_are_hot() {
    let (_mm, device, mirror) = open(config(Placement::AfterAccesses(50)));
    let memory = numbered(2 * MIB);
    let expected = memory.words().iter().sum::<u64>();
    let touch = |times: usize| {
        mirror.launch(memory.words(), |worker, words| {
            (0..if worker.index() == 0 { times } else { 0 }).try_for_each(|index| words.get(worker, index).map(drop))
        })
    };
    touch(10).unwrap();
    assert_eq!(pages_on_device(&mirror, memory.range()), 0);
    touch(200).unwrap();
    assert!(pages_on_device(&mirror, memory.range()) > 0);
    assert_eq!(memory.words().iter().sum::<u64>(), expected);
    close(device, mirror);
}

#[test]
fn what_the_device_writes_the_cpu_reads() {
    for placement in [Placement::OnTouch, Placement::InPlace, Placement::AfterAccesses(3)] {
        let (_mm, device, mirror) = open(config(placement));
        let mut out = vec![0u64; 300_001];
        mirror
            .launch(&mut out[..], |worker, mut part: Part<'_, u64>| {
                let offset = part.offset();
                part.for_chunks_mut(worker, 0..part.len(), |first, piece| {
                    (first..)
                        .zip(piece)
                        .for_each(|(index, word)| *word = (offset + index) as u64 * 7);
                })
            })
            .unwrap();
        assert!(out.iter().enumerate().all(|(index, word)| *word == index as u64 * 7));
        close(device, mirror);
    }
}

#[test]
fn single_elements_are_read_and_written_in_any_order() {
    let (_mm, device, mirror) = open(config(Placement::OnTouch));
    let index: Vec<u32> = (0..10_000u32).map(|at| at.wrapping_mul(7919) % 10_000).collect();
    let data: Vec<[u32; 3]> = (0..10_000).map(|at| [at, at + 1, at + 2]).collect();
    let mut out = vec![0u64; 10_000];
    mirror
        .launch(
            (&index[..], &data[..], &mut out[..]),
            |worker, (index, data, mut out)| {
                for at in 0..out.len() {
                    let from = index.get(worker, out.offset() + at)?;
                    let [a, b, c] = data.get(worker, from as usize)?;
                    out.set(worker, at, u64::from(a) + u64::from(b) + u64::from(c))?;
                }
                let mut gathered = [[0; 3]; 2];
                data.gather(worker, &[9, 4], &mut gathered)?;
                assert_eq!(gathered, [[9, 10, 11], [4, 5, 6]]);
                Ok(())
            },
        )
        .unwrap();
    assert!(
        out.iter()
            .zip(&index)
            .all(|(sum, from)| *sum == u64::from(*from) * 3 + 3)
    );
    close(device, mirror);
}

#[test]
fn atomics_count_right_when_workers_and_cpu_threads_count_together() {
    const EACH: u64 = 3_000;
    let (_mm, device, mirror) = open(config(Placement::OnTouch));
    let counters: Vec<AtomicU64> = (0..8).map(|_| AtomicU64::new(0)).collect();
    let small: Vec<AtomicU32> = (0..8).map(|_| AtomicU32::new(0)).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for count in 0..EACH as usize {
                counters[count % 8].fetch_add(1, Ordering::Relaxed);
                small[count % 8].fetch_add(1, Ordering::Relaxed);
            }
        });
        let kernel = |worker: &mut Worker<'_>,
                      (counters, small): (isomem::Atomics<'_, u64>, isomem::Atomics<'_, u32>)| {
            for count in 0..EACH as usize {
                counters.fetch_add(worker, count % 8, 1)?;
                small.fetch_add(worker, count % 8, 1)?;
            }
            Ok(())
        };
        mirror.launch((&counters[..], &small[..]), kernel).unwrap();
    });
    assert_eq!(
        counters.iter().map(|count| count.load(Ordering::Relaxed)).sum::<u64>(),
        3 * EACH
    );
    assert_eq!(
        small
            .iter()
            .map(|count| u64::from(count.load(Ordering::Relaxed)))
            .sum::<u64>(),
        3 * EACH
    );
    close(device, mirror);
}

#[test]
fn every_atomic_operation_does_what_the_cpus_does() {
    let (_mm, device, mirror) = open(SoftConfig {
        workers: 1,
        ..config(Placement::OnTouch)
    });
    let word = [AtomicU64::new(10)];
    let seen = mirror.launch(&word[..], |worker, word| {
        Ok([
            word.fetch_add(worker, 0, 5)?,
            word.fetch_min(worker, 0, 12)?,
            word.fetch_max(worker, 0, 20)?,
            word.fetch_and(worker, 0, 0b10110)?,
            word.fetch_or(worker, 0, 1)?,
            word.fetch_xor(worker, 0, 0b11)?,
            word.swap(worker, 0, 40)?,
            word.compare_exchange(worker, 0, 40, 41)?.unwrap(),
            word.compare_exchange(worker, 0, 40, 42)?.unwrap_err(),
            word.store(worker, 0, 7).and_then(|()| word.load(worker, 0))?,
        ])
    });
    assert_eq!(seen.unwrap(), [[10, 15, 12, 20, 20, 21, 22, 40, 41, 7]]);
    close(device, mirror);
}

struct Tree {
    value: u64,
    children: [Option<Box<Tree>>; 2],
}

fn tree(depth: u32, value: u64) -> Option<Box<Tree>> {
    let child = |value| tree(depth - 1, value);
    (depth > 0).then(|| {
        Box::new(Tree {
            value,
            children: [child(value * 2), child(value * 2 + 1)],
        })
    })
}

#[test]
fn a_tree_of_boxes_is_walked_by_its_own_pointers() {
    let (_mm, device, mirror) = open(config(Placement::OnTouch));
    let root = tree(12, 1).unwrap();
    let start = &raw const *root as usize;
    // SAFETY: the tree outlives the launch and nobody changes it.
    let sums = unsafe {
        mirror.launch_raw(|worker| {
            let mut sum = 0;
            let mut open = vec![start as *const Tree];
            while let Some(node) = open.pop() {
                sum += worker.peek(&raw const (*node).value)?;
                for side in 0..2 {
                    let child = worker.peek((&raw const (*node).children[side]).cast::<*const Tree>())?;
                    open.extend((!child.is_null()).then_some(child));
                }
            }
            Ok(sum)
        })
    };
    let expected: u64 = (1..1 << 12).sum();
    assert_eq!(sums.unwrap(), [expected, expected]);
    fn walk(node: &Tree) -> u64 {
        node.value + node.children.iter().flatten().map(|child| walk(child)).sum::<u64>()
    }
    assert_eq!(walk(&root), expected);
    close(device, mirror);
}

#[test]
fn a_mapped_file_is_read_and_written_in_place() {
    let (_mm, device, mirror) = open(config(Placement::OnTouch));
    let mut file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = (0..MIB as u64 / 8).flat_map(u64::to_ne_bytes).collect();
    file.write_all(&bytes).unwrap();
    let mut memory = Mapped::file(&file, MIB);
    assert_eq!(sum(&mirror, memory.words()), (0..MIB as u64 / 8).sum());
    assert_eq!(pages_on_device(&mirror, memory.range()), 0);
    mirror
        .launch(memory.words_mut(), |worker, mut words| {
            (0..words.len())
                .step_by(512)
                .try_for_each(|index| words.set(worker, index, 5))
        })
        .unwrap();
    assert_eq!(memory.words()[512], 5);
    close(device, mirror);
}

#[test]
fn a_device_with_less_memory_than_the_data_evicts_and_goes_on() {
    let (mm, device, mirror) = open(SoftConfig {
        memory_bytes: 4 * MIB,
        ..config(Placement::OnTouch)
    });
    let mut memory = numbered(16 * MIB);
    let expected = memory.words().iter().sum::<u64>();
    let before = mm.stats();
    for _ in 0..2 {
        assert_eq!(sum(&mirror, memory.words()), expected);
        assert!(device.memory_pages().0 <= device.memory_pages().1);
    }
    assert!(mm.stats().pages_home_by_eviction > before.pages_home_by_eviction);
    mirror
        .launch(memory.words_mut(), |worker, mut words| {
            words.for_chunks_mut(worker, 0..words.len(), |_, piece| {
                piece.iter_mut().for_each(|word| *word += 1);
            })
        })
        .unwrap();
    assert_eq!(
        memory.words().iter().sum::<u64>(),
        expected + memory.words().len() as u64
    );
    close(device, mirror);
}

/// Raises the flag, also when the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn wld_2_a_launch_waits_until_the_device_is_told_of_memory_that_was_unmapped_before() {
    // Another test's new memory could take the place before the event is read, and lose what is written to it (docs/testing.md).
    apart::apart(
        "wld_2_a_launch_waits_until_the_device_is_told_of_memory_that_was_unmapped_before",
        || {
            let (mm, device, mirror) = open(config(Placement::OnTouch));
            let before = mm.stats();
            let mut memory = numbered(4 * MIB);
            let half = memory.words().len() / 2;
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let _over = Over(&over);
                // More threads than processors: who tells the device is sometimes held up on the way.
                for _ in 0..=std::thread::available_parallelism().map_or(2, usize::from) {
                    scope.spawn(|| {
                        while !over.load(Ordering::Relaxed) {
                            std::hint::spin_loop();
                        }
                    });
                }
                for round in 1..=200 {
                    let words = memory.words_mut();
                    (words[0], words[half]) = (round, round);
                    mirror
                        .launch(words, |worker, mut part| {
                            let first = part.get(worker, 0)?;
                            part.set(worker, 0, first + 1)
                        })
                        .unwrap();
                    // Every other time the pages are still on the device when the memory goes: it could take them for the new memory's.
                    if round % 2 == 0 {
                        let words = memory.words();
                        assert_eq!((words[0], words[half]), (round + 1, round + 1));
                    }
                    memory = memory.renewed().unwrap_or_else(|| numbered(4 * MIB));
                }
            });
            assert!(mm.stats().late_unmapped > before.late_unmapped);
            close(device, mirror);
        },
    );
}

#[test]
fn a_hole_is_a_fault_with_its_address_and_what_came_before_is_done() {
    // What is unmapped stays so: here no other test maps anything.
    apart::apart(
        "a_hole_is_a_fault_with_its_address_and_what_came_before_is_done",
        || {
            let (_mm, device, mirror) = open(config(Placement::OnTouch));
            let memory = numbered(8 * PAGE_SIZE);
            let hole = memory.start + 4 * PAGE_SIZE;
            // SAFETY: these pages are touched by nobody from here on.
            assert_eq!(unsafe { libc::munmap(hole as *mut _, PAGE_SIZE) }, 0);
            let start = memory.start;
            // SAFETY: the words that are mapped are written by nobody.
            let failed = unsafe {
                mirror.launch_raw(|worker| {
                    (start..start + 8 * PAGE_SIZE).step_by(8).try_for_each(|at| {
                        worker
                            .peek(at as *const u64)
                            .map(|word| assert_eq!(word, (at - start) as u64 / 8 * 3 + 1))
                    })
                })
            };
            let fault = failed.unwrap_err().fault().unwrap();
            assert!(
                matches!(fault, DeviceFault::Hole { addr } if addr.get() == hole),
                "{fault}"
            );
            // SAFETY: nobody accesses it.
            let failed = unsafe { mirror.launch_raw(|worker| worker.peek(std::ptr::dangling::<u64>())) };
            assert!(matches!(failed.unwrap_err().fault(), Some(DeviceFault::Hole { addr }) if addr.get() == 8));
            close(device, mirror);
        },
    );
}

#[test]
fn read_only_and_forbidden_memory_refuse_with_the_address() {
    let (_mm, device, mirror) = open(config(Placement::OnTouch));
    let read_only = Mapped::new(4 * PAGE_SIZE, libc::PROT_READ);
    let at = read_only.start + PAGE_SIZE;
    // SAFETY: nobody else accesses it.
    let failed =
        unsafe { mirror.launch_raw(|worker| worker.peek(at as *const u64).and(worker.poke(at as *mut u64, 1))) };
    assert!(matches!(failed.unwrap_err().fault(), Some(DeviceFault::ReadOnly { addr }) if addr.get() == at));
    let none = Mapped::new(4 * PAGE_SIZE, libc::PROT_NONE);
    let at = none.start;
    // SAFETY: nobody else accesses it.
    let failed = unsafe { mirror.launch_raw(|worker| worker.peek(at as *const u64)) };
    assert!(matches!(failed.unwrap_err().fault(), Some(DeviceFault::NoAccess { addr }) if addr.get() == at));
    close(device, mirror);
}

#[test]
fn arg_1_a_slices_end_is_an_error_and_not_the_neighbours_memory() {
    let (_mm, device, mirror) = open(config(Placement::InPlace));
    let data = [1u32, 2, 3, 4];
    let failed = mirror.launch(&data[..2], |worker, data: Shared<'_, u32>| data.get(worker, 2));
    assert_eq!(
        failed.unwrap_err().fault(),
        Some(DeviceFault::OutOfBounds { index: 2, len: 2 })
    );
    let failed = mirror.launch(&data[..2], |worker, data| data.for_chunks(worker, 1..3, |_, _| ()));
    assert_eq!(
        failed.unwrap_err().fault(),
        Some(DeviceFault::OutOfBounds { index: 3, len: 2 })
    );
    close(device, mirror);
}

#[test]
fn empty_slices_and_short_ones_are_fine() {
    let (_mm, device, mirror) = open(config(Placement::OnTouch));
    let mut one = [0u8];
    let lens = mirror.launch((&[0u64; 0][..], &mut one[..]), |worker, (none, mut part)| {
        none.for_chunks(worker, 0..0, |_, _| unreachable!())?;
        part.for_chunks_mut(worker, 0..part.len(), |_, piece| piece.fill(9))?;
        Ok((none.len(), part.len()))
    });
    let lens = lens.unwrap();
    assert_eq!(lens.iter().map(|(_, part)| part).sum::<usize>(), 1);
    assert!(lens.iter().all(|(none, _)| *none == 0));
    assert_eq!(one, [9]);
    close(device, mirror);
}

#[test]
fn a_kernels_error_is_the_first_workers() {
    let (_mm, device, mirror) = open(config(Placement::InPlace));
    let failed = mirror.launch((), |worker, ()| -> Result<(), DeviceFault> {
        Err(DeviceFault::OutOfBounds {
            index: worker.index(),
            len: 0,
        })
    });
    assert!(matches!(
        failed,
        Err(LaunchError::Kernel {
            worker: 0,
            fault: DeviceFault::OutOfBounds { index: 0, len: 0 }
        })
    ));
    close(device, mirror);
}

#[test]
fn a_panic_is_told_and_the_device_goes_on() {
    let (_mm, device, mirror) = open(config(Placement::OnTouch));
    let others = AtomicU32::new(0);
    let failed = mirror.launch((), |worker, ()| {
        if worker.index() == 1 {
            panic!("worker {} has had enough", worker.index());
        }
        others.fetch_add(1, Ordering::Relaxed);
        Ok(())
    });
    let note = *failed.unwrap_err().panic().unwrap();
    assert_eq!((note.worker(), note.message()), (1, "worker 1 has had enough"));
    assert_eq!(others.load(Ordering::Relaxed), 1);
    let memory = numbered(MIB);
    assert_eq!(sum(&mirror, memory.words()), memory.words().iter().sum());
    close(device, mirror);
}

#[test]
fn a_launch_from_inside_a_kernel_is_refused_and_does_not_hang() {
    let (_mm, device, mirror) = open(config(Placement::OnTouch));
    let nested = mirror
        .launch((), |_, ()| Ok(mirror.launch((), |_, ()| Ok(())).is_err()))
        .unwrap();
    assert_eq!(nested, [true, true]);
    close(device, mirror);
}

#[test]
fn lnc_3_launches_of_several_threads_take_turns() {
    let (_mm, device, mirror) = open(config(Placement::OnTouch));
    let memory = numbered(MIB);
    let expected = memory.words().iter().sum::<u64>();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..5).for_each(|_| assert_eq!(sum(&mirror, memory.words()), expected)));
        }
    });
    assert_eq!(device.stats().launches, 20);
    close(device, mirror);
}

#[test]
fn life_7_a_device_that_fails_stops_its_kernels_and_loses_nothing() {
    let (_mm, device, mirror) = open(config(Placement::OnTouch));
    let memory = numbered(2 * MIB);
    let started = AtomicBool::new(false);
    let failed = std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            mirror.launch(memory.words(), |worker, words| -> Result<(), DeviceFault> {
                loop {
                    words.get(worker, 0)?;
                    started.store(true, Ordering::Relaxed);
                }
            })
        });
        while !started.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        assert_eq!(device.fail(), 0);
        running.join().unwrap()
    });
    assert_eq!(failed.unwrap_err().fault(), Some(DeviceFault::Released));
    assert!(mirror.launch((), |_, ()| Ok(())).is_err());
    assert!(
        memory
            .words()
            .iter()
            .enumerate()
            .all(|(index, word)| *word == index as u64 * 3 + 1)
    );
    close(device, mirror);
}

#[test]
fn life_1_a_device_with_mirrors_is_busy_and_says_how_many() {
    let (_mm, device, mirror) = open(config(Placement::OnTouch));
    let second = device.mirror().unwrap();
    let busy = device.unregister().unwrap_err();
    assert_eq!(busy.mirrors, 2);
    drop(second);
    close(busy.device, mirror);
}

#[test]
fn two_devices_and_two_mirrors_hand_pages_to_each_other() {
    let (mm, first, mirror) = open(config(Placement::OnTouch));
    let second = mm.soft_device(config(Placement::OnTouch)).unwrap();
    let other = second.mirror().unwrap();
    let third = second.mirror().unwrap();
    let mut memory = numbered(2 * MIB);
    let expected = memory.words().iter().sum::<u64>();
    for round in 0..3 {
        for mirror in [&mirror, &other, &third] {
            assert_eq!(sum(mirror, memory.words()), expected, "round {round}");
        }
    }
    memory.words_mut()[5] += 1;
    assert_eq!(sum(&other, memory.words()), expected + 1);
    third.unregister();
    close(second, other);
    close(first, mirror);
}

#[test]
fn mig_13_the_verbs_move_pages_ahead_of_time() {
    let (mm, device, mirror) = open(config(Placement::OnTouch));
    let mut memory = numbered(4 * MIB);
    let pages = 4 * MIB / PAGE_SIZE;
    let report = mirror.prefetch(memory.words()).unwrap();
    assert_eq!((report.migrated(), report.skipped), (pages, 0));
    assert_eq!(mirror.prefetch(memory.words()).unwrap().already, pages);
    let faults = mm.stats().cpu_faults;
    assert_eq!(mirror.bring_home(memory.words()).unwrap().migrated(), pages);
    assert_eq!(memory.words()[512], 512 * 3 + 1);
    assert!(
        mm.stats().cpu_faults <= faults + 64,
        "another test may fault, this one need not"
    );
    mirror.prefetch(memory.words()).unwrap();
    mirror.discard(&mut memory.words_mut()[3..5000]).unwrap();
    let words = memory.words();
    assert!(words[3..5000].iter().all(|word| *word == 0));
    assert_eq!((words[2], words[5000]), (2 * 3 + 1, 5000 * 3 + 1));
    assert!(mirror.prefetch::<u64>(&[]).is_err());
    close(device, mirror);
}

#[test]
fn inv_the_device_sees_protection_and_unmapping_at_once() {
    // What is unmapped stays so: here no other test maps anything.
    apart::apart("inv_the_device_sees_protection_and_unmapping_at_once", || {
        let (mm, device, mirror) = open(config(Placement::OnTouch));
        let memory = numbered(4 * PAGE_SIZE);
        let at = memory.start;
        let poke = || {
            // SAFETY: nobody else accesses the word meanwhile.
            let done = unsafe { mirror.launch_raw(|worker| worker.poke(at as *mut u64, 77)) };
            done.map_err(|error| error.fault().unwrap()).map(drop)
        };
        poke().unwrap();
        // SAFETY: nobody writes it meanwhile.
        unsafe { mm.protect(memory.range(), Some(Access::Read)) }.unwrap();
        assert!(matches!(poke(), Err(DeviceFault::ReadOnly { .. })));
        assert_eq!(memory.words()[0], 77);
        // SAFETY: nobody uses it any more; unmapping it again later does no harm.
        unsafe { mm.unmap(memory.range()) }.unwrap();
        assert!(matches!(poke(), Err(DeviceFault::Hole { .. })));
        core::mem::forget(memory);
        close(device, mirror);
    });
}

#[test]
fn the_programs_constants_are_read_in_place_and_not_written() {
    static CONSTANTS: [u64; 1024] = [11; 1024];
    let (_mm, device, mirror) = open(config(Placement::OnTouch));
    assert_eq!(sum(&mirror, &CONSTANTS), 11 * 1024);
    let at = CONSTANTS.as_ptr() as usize;
    // SAFETY: it is refused.
    let failed = unsafe { mirror.launch_raw(|worker| worker.poke(at as *mut u64, 1)) };
    assert!(matches!(failed.unwrap_err().fault(), Some(DeviceFault::ReadOnly { addr }) if addr.get() == at));
    close(device, mirror);
}

#[test]
fn life_6_a_forks_child_is_refused_and_its_parent_goes_on() {
    let (_mm, device, mirror) = open(config(Placement::OnTouch));
    let memory = numbered(MIB);
    let expected = memory.words().iter().sum::<u64>();
    assert_eq!(sum(&mirror, memory.words()), expected);
    // SAFETY: the child does nothing but compute and exit; an alarm ends it should it hang.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above.
        unsafe { libc::alarm(10) };
        let refused = matches!(mirror.launch((), |_, ()| Ok(())), Err(LaunchError::Device(error)) if error.to_string().contains("fork"));
        let same = memory.words().iter().sum::<u64>() == expected;
        drop(mirror);
        drop(device);
        // SAFETY: as above.
        unsafe { libc::_exit(if refused && same { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: it waits for the child above.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child was not refused, saw other data, or hung");
    assert_eq!(sum(&mirror, memory.words()), expected);
    close(device, mirror);
}
