//! Everything at the same time: what CPU threads and devices count adds up, whatever happens to the memory meanwhile (MIG-3); system calls
//! and children reach memory that is away (MIG-2, MIG-4).
//!
//! `ISOMEM_STRESS_SECONDS` sets how long it is tried.

#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "a raw launch and the accesses in its kernel share one reason"
)]

mod common;

use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Fork, advise_raw, alone, in_child, map_at, unmap_raw};
use isomem::{
    Atomics, Mirror, Mm, PAGE_SIZE, PageRange, PageState, Part, Placement, SoftConfig, SoftDevice, ThrashPolicy, Worker,
};

const MIB: usize = 1 << 20;
const WORDS_PER_PAGE: usize = PAGE_SIZE / 8;

/// Where what is counted lies, what only one thread writes by plain stores, what comes and goes, and what system calls use.
const COUNTERS: usize = 0x30_0000_0000;
const PARTS: usize = 0x30_4000_0000;
const SCRATCH: usize = 0x30_8000_0000;
const BUFFER: usize = 0x30_c000_0000;

const COUNTER_PAGES: usize = 2100;
const PART_PAGES: usize = 700;
const SCRATCH_PAGES: usize = 1500;

/// CPU threads that count.
const COUNTING: usize = 3;
/// Words at the start of each page that a CPU thread has for itself; the others are atomics.
const OWN_WORDS: usize = 64;

fn open(memory_bytes: usize, placement: Placement) -> (Mm, SoftDevice, Mirror) {
    let mm = Mm::current().expect("these tests need userfaultfd: run them as root");
    let config = SoftConfig {
        workers: 2,
        memory_bytes,
        placement,
        // The pages are to go to and fro as fast as they can.
        thrash: ThrashPolicy::OFF,
        ..SoftConfig::default()
    };
    let device = mm.soft_device(config).unwrap();
    let mirror = device.mirror().unwrap();
    (mm, device, mirror)
}

fn range(start: usize, pages: usize) -> PageRange {
    PageRange::new(start, pages * PAGE_SIZE).unwrap()
}

/// All words of the counters, of which [`OWN_WORDS`] of each page are not touched through this.
fn atomics() -> &'static [AtomicU64] {
    // SAFETY: mapped while the tests run; what is accessed otherwise is not accessed through it.
    unsafe { std::slice::from_raw_parts(COUNTERS as *const AtomicU64, COUNTER_PAGES * WORDS_PER_PAGE) }
}

/// Held while memory is changed behind isomem's back, and while all of it comes home for a fork: see
/// `wld_2_a_late_discard_that_meets_a_migration_home_wins`.
static LATE: Mutex<()> = Mutex::new(());

struct Random(u64);

impl Random {
    fn new(seed: usize) -> Self {
        Self(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed as u64 + 1))
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }

    /// A word that is an atomic; often one of a few.
    fn atomic(&mut self) -> usize {
        let pages = if self.below(4) == 0 { 8 } else { COUNTER_PAGES };
        self.below(pages) * WORDS_PER_PAGE + OWN_WORDS + self.below(WORDS_PER_PAGE - OWN_WORDS)
    }

    fn part_of(&mut self, start: usize, pages: usize, most: usize) -> PageRange {
        let first = self.below(pages);
        let count = (1 + self.below(most)).min(pages - first);
        range(start + first * PAGE_SIZE, count)
    }
}

/// Counts by atomics and, in the words of thread `index`, by plain stores. Returns how many of each.
fn count_on_cpu(index: usize, stop: &AtomicBool) -> (u64, u64) {
    let mut random = Random::new(index);
    let (mut shared, mut own) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        atomics()[random.atomic()].fetch_add(1, Ordering::Relaxed);
        shared += 1;
        let at = random.below(COUNTER_PAGES) * WORDS_PER_PAGE
            + index * (OWN_WORDS / COUNTING)
            + random.below(OWN_WORDS / COUNTING);
        let word = (COUNTERS as *mut u64).wrapping_add(at);
        // SAFETY: the word is this thread's own.
        let value = unsafe { word.read_volatile() };
        // SAFETY: as above.
        unsafe { word.write_volatile(value + 1) };
        own += 1;
    }
    (shared, own)
}

/// Counts by a device's atomics. Returns how many.
fn count_on_device(mirror: &Mirror, seed: usize, stop: &AtomicBool) -> u64 {
    const EACH: u64 = 300;
    let mut counted = 0;
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let kernel = |worker: &mut Worker<'_>, counters: Atomics<'_, u64>| {
            let mut random = Random::new(seed * 1_000_003 + round * 17 + worker.index());
            for _ in 0..EACH {
                counters.fetch_add(worker, random.atomic(), 1)?;
            }
            Ok(EACH)
        };
        counted += mirror.launch(atomics(), kernel).unwrap().iter().sum::<u64>();
    }
    counted
}

/// Adds one to every word of the parts, by turns on a device and on the CPU. Returns how often.
fn sweep(mirror: &Mirror, stop: &AtomicBool) -> u64 {
    // SAFETY: mapped while the tests run, and used by nobody else.
    let words = unsafe { std::slice::from_raw_parts_mut(PARTS as *mut u64, PART_PAGES * WORDS_PER_PAGE) };
    let mut sweeps = 0;
    while !stop.load(Ordering::Relaxed) {
        if sweeps % 2 == 0 {
            let kernel = |worker: &mut Worker<'_>, mut part: Part<'_, u64>| {
                part.for_chunks_mut(worker, 0..part.len(), |_, piece| {
                    piece.iter_mut().for_each(|word| *word += 1);
                })
            };
            mirror.launch(&mut words[..], kernel).unwrap();
        } else {
            words.iter_mut().for_each(|word| *word += 1);
        }
        sweeps += 1;
    }
    sweeps
}

/// Sends pages there and back.
fn move_about(mirrors: &[&Mirror], stop: &AtomicBool) -> u64 {
    let mut random = Random::new(77);
    let mut moves = 0;
    while !stop.load(Ordering::Relaxed) {
        let mirror = mirrors[random.below(mirrors.len())];
        let pages = random.part_of(COUNTERS, COUNTER_PAGES, 600);
        if random.below(3) < 2 {
            mirror.migrate_to_device(pages).unwrap();
        } else {
            let report = mirror.migrate_home(pages).unwrap();
            assert_eq!(report.skipped, 0, "{report:?}");
        }
        moves += 1;
    }
    moves
}

/// Changes memory that nobody counts in, announced and not, while devices hold pages of it.
fn change(mm: &Mm, mirror: &Mirror, stop: &AtomicBool) -> u64 {
    let mut random = Random::new(99);
    let mut changes = 0;
    while !stop.load(Ordering::Relaxed) {
        let pages = random.part_of(SCRATCH, SCRATCH_PAGES, 700);
        mirror.migrate_to_device(pages).unwrap();
        let choice = random.below(5);
        let _late = (choice > 1).then(|| LATE.lock().unwrap());
        match choice {
            // SAFETY: nobody relies on the contents.
            0 => unsafe { mm.discard_pages(pages) }.unwrap(),
            1 => {
                // SAFETY: only this thread uses the memory.
                unsafe { mm.unmap(pages) }.unwrap();
                map_at(pages.start(), pages.page_count());
            }
            2 => advise_raw(pages, libc::MADV_DONTNEED).unwrap(),
            3 => {
                unmap_raw(pages);
                map_at(pages.start(), pages.page_count());
            }
            _ => map_at(pages.start(), pages.page_count()),
        }
        for at in (pages.start()..pages.end()).step_by(PAGE_SIZE) {
            let word = at as *mut u64;
            // SAFETY: only this thread uses the memory.
            assert_eq!(unsafe { word.read_volatile() }, 0, "a fresh page at {at:#x}");
            // SAFETY: as above.
            unsafe { word.write_volatile(at as u64) };
        }
        changes += 1;
    }
    changes
}

/// Makes children that look at all that is counted.
fn fork(stop: &AtomicBool) -> u64 {
    let mut forks = 0;
    while !stop.load(Ordering::Relaxed) {
        let late = LATE.lock().unwrap();
        let status = in_child(Fork::Announced, || {
            let sane = |word: &AtomicU64| word.load(Ordering::Relaxed) < 1 << 40;
            u8::from(!atomics().iter().all(sane))
        });
        drop(late);
        assert_eq!(status, 0);
        forks += 1;
        std::thread::sleep(Duration::from_millis(40));
    }
    forks
}

#[test]
fn mig_3_no_count_is_lost_whatever_happens_meanwhile() {
    let _alone = alone();
    let seconds = std::env::var("ISOMEM_STRESS_SECONDS")
        .ok()
        .and_then(|seconds| seconds.parse().ok());
    let time = Duration::from_secs_f64(seconds.unwrap_or(5.0));
    for (start, pages) in [(COUNTERS, COUNTER_PAGES), (PARTS, PART_PAGES), (SCRATCH, SCRATCH_PAGES)] {
        map_at(start, pages);
    }
    let (mm, small, first) = open(3 * MIB, Placement::OnTouch);
    let (_, large, second) = open(64 * MIB, Placement::AfterAccesses(20));
    let sweeper = large.mirror().unwrap();
    let stop = &AtomicBool::new(false);
    let before = mm.stats();
    let began = Instant::now();
    let (on_cpu, on_devices, sweeps, moves, changes, forks) = std::thread::scope(|scope| {
        let counting: Vec<_> = (0..COUNTING)
            .map(|index| scope.spawn(move || count_on_cpu(index, stop)))
            .collect();
        let devices =
            [(&first, 5), (&second, 6)].map(|(mirror, seed)| scope.spawn(move || count_on_device(mirror, seed, stop)));
        let sweeping = scope.spawn(|| sweep(&sweeper, stop));
        let moving = scope.spawn(|| move_about(&[&first, &second], stop));
        let changing = scope.spawn(|| change(&mm, &second, stop));
        let forking = scope.spawn(|| fork(stop));
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        (
            counting
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect::<Vec<_>>(),
            devices.map(|thread| thread.join().unwrap()),
            sweeping.join().unwrap(),
            moving.join().unwrap(),
            changing.join().unwrap(),
            forking.join().unwrap(),
        )
    });
    let took = began.elapsed().as_secs_f64();
    let after = mm.stats();
    println!(
        "in {took:.1} s: counted {on_cpu:?} on the CPU and {on_devices:?} on devices; {sweeps} sweeps, {moves} moves, {changes} changes, {forks} forks; \
         {:.0} pages/s to devices, {:.0} CPU faults/s, {:.0} device faults/s, {} evictions, {} recalls",
        (after.pages_to_device - before.pages_to_device) as f64 / took,
        (after.cpu_faults - before.cpu_faults) as f64 / took,
        (after.device_faults - before.device_faults) as f64 / took,
        after.evictions - before.evictions,
        after.recalls - before.recalls,
    );
    check_counts(&on_cpu, on_devices.iter().sum());
    let swept = (PARTS as *const u64, PART_PAGES * WORDS_PER_PAGE);
    // SAFETY: nobody uses the memory any more.
    let swept = unsafe { std::slice::from_raw_parts(swept.0, swept.1) };
    assert!(
        swept.iter().all(|&word| word == sweeps),
        "a word was not swept {sweeps} times"
    );
    for mirror in [first, second, sweeper] {
        mirror.unregister();
    }
    small.unregister().unwrap();
    large.unregister().unwrap();
    check_counts(&on_cpu, on_devices.iter().sum());
    for (start, pages) in [(COUNTERS, COUNTER_PAGES), (PARTS, PART_PAGES), (SCRATCH, SCRATCH_PAGES)] {
        unmap_raw(range(start, pages));
    }
}

fn check_counts(on_cpu: &[(u64, u64)], on_devices: u64) {
    let mut shared = 0;
    let mut own = [0; COUNTING];
    for (at, word) in atomics().iter().enumerate() {
        let value = word.load(Ordering::Relaxed);
        match own.get_mut(at % WORDS_PER_PAGE / (OWN_WORDS / COUNTING)) {
            Some(own) if at % WORDS_PER_PAGE < OWN_WORDS => *own += value,
            _ => shared += value,
        }
    }
    let expected: Vec<u64> = on_cpu.iter().map(|(_, own)| *own).collect();
    assert_eq!(own[..], expected[..], "words of one CPU thread each");
    assert_eq!(
        shared,
        on_cpu.iter().map(|(shared, _)| shared).sum::<u64>() + on_devices,
        "atomics"
    );
}

#[test]
fn wld_2_a_late_discard_that_meets_a_migration_home_wins() {
    const PAGES: usize = 64;
    let _alone = alone();
    map_at(SCRATCH, PAGES);
    let (_mm, device, mirror) = open(16 * MIB, Placement::OnTouch);
    let stop = &AtomicBool::new(false);
    let stale = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                mirror.migrate_home(range(SCRATCH, PAGES)).unwrap();
            }
        });
        let began = Instant::now();
        let mut stale = 0;
        while began.elapsed() < Duration::from_secs(10) {
            for at in (SCRATCH..SCRATCH + PAGES * PAGE_SIZE).step_by(PAGE_SIZE) {
                // SAFETY: only this thread uses the memory.
                unsafe { (at as *mut u64).write_volatile(at as u64) };
            }
            mirror.migrate_to_device(range(SCRATCH, PAGES)).unwrap();
            advise_raw(range(SCRATCH, PAGES), libc::MADV_DONTNEED).unwrap();
            for at in (SCRATCH..SCRATCH + PAGES * PAGE_SIZE).step_by(PAGE_SIZE) {
                // SAFETY: as above.
                stale += u32::from(unsafe { (at as *const u64).read_volatile() } != 0);
            }
        }
        stop.store(true, Ordering::Relaxed);
        stale
    });
    unmap_raw(range(SCRATCH, PAGES));
    mirror.unregister();
    device.unregister().unwrap();
    assert_eq!(stale, 0, "pages had their old contents after they were discarded");
}

#[test]
fn blk_1_a_fault_on_a_page_that_came_home_meanwhile_leaves_it_in_one_place() {
    const PAGES: usize = 3;
    let _alone = alone();
    map_at(SCRATCH, PAGES);
    let (_mm, device, mirror) = open(16 * MIB, Placement::OnTouch);
    // SAFETY: mapped while the test runs, and accessed by atomics only.
    let words = unsafe { std::slice::from_raw_parts(SCRATCH as *const AtomicU64, PAGES * WORDS_PER_PAGE) };
    let stop = &AtomicBool::new(false);
    let counted: u64 = std::thread::scope(|scope| {
        let away = || {
            while !stop.load(Ordering::Relaxed) {
                mirror.migrate_to_device(range(SCRATCH, PAGES)).unwrap();
            }
        };
        let home = || {
            while !stop.load(Ordering::Relaxed) {
                let report = mirror.migrate_home(range(SCRATCH, PAGES)).unwrap();
                assert_eq!(report.skipped, 0, "{report:?}");
            }
        };
        let count = |page: usize| {
            let mut counted = 0;
            while !stop.load(Ordering::Relaxed) {
                words[page * WORDS_PER_PAGE].fetch_add(1, Ordering::Relaxed);
                counted += 1;
            }
            counted
        };
        scope.spawn(away);
        scope.spawn(away);
        scope.spawn(home);
        let counting = [0, 1, 2, 0].map(|page| scope.spawn(move || count(page)));
        std::thread::sleep(Duration::from_secs(5));
        stop.store(true, Ordering::Relaxed);
        counting.map(|thread| thread.join().unwrap()).iter().sum()
    });
    mirror.unregister();
    device.unregister().unwrap();
    assert_eq!(
        words.iter().map(|word| word.load(Ordering::Relaxed)).sum::<u64>(),
        counted
    );
    unmap_raw(range(SCRATCH, PAGES));
}

fn pages_away(mirror: &Mirror, pages: PageRange) -> usize {
    let snapshot = mirror.snapshot(pages).unwrap();
    let away = snapshot
        .runs()
        .iter()
        .filter(|(_, state)| matches!(state, PageState::Device { .. }));
    away.map(|(run, _)| run.page_count()).sum()
}

/// A buffer on the device, filled with what its addresses say.
fn buffer(mirror: &Mirror, pages: usize) -> &'static mut [u8] {
    map_at(BUFFER, pages);
    // SAFETY: just mapped, and the test's own.
    let bytes = unsafe { std::slice::from_raw_parts_mut(BUFFER as *mut u8, pages * PAGE_SIZE) };
    (0..).zip(&mut *bytes).for_each(|(at, byte)| *byte = pattern(at));
    send(mirror, pages);
    bytes
}

fn send(mirror: &Mirror, pages: usize) {
    let report = mirror.migrate_to_device(range(BUFFER, pages)).unwrap();
    assert_eq!(report.migrated() + report.already, pages, "{report:?}");
    assert_eq!(pages_away(mirror, range(BUFFER, pages)), pages);
}

fn pattern(at: usize) -> u8 {
    (at % 251) as u8
}

#[test]
fn mig_2_system_calls_reach_migrated_memory() {
    const PAGES: usize = 600;
    let _alone = alone();
    let (_mm, device, mirror) = open(16 * MIB, Placement::OnTouch);
    let bytes = buffer(&mirror, PAGES);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes[7..]).unwrap();
    let written = std::fs::read(file.path()).unwrap();
    assert!(written.iter().enumerate().all(|(at, byte)| *byte == pattern(at + 7)));
    send(&mirror, PAGES);
    std::fs::File::open(file.path())
        .unwrap()
        .read_exact(&mut bytes[..PAGES * PAGE_SIZE - 7])
        .unwrap();
    assert!(
        bytes[..PAGES * PAGE_SIZE - 7]
            .iter()
            .enumerate()
            .all(|(at, byte)| *byte == pattern(at + 7))
    );
    send(&mirror, PAGES);
    let (from, to) = bytes.split_at_mut(PAGES / 2 * PAGE_SIZE);
    let (mut out, mut into) = std::io::pipe().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || into.write_all(from).unwrap());
        out.read_exact(to).unwrap();
    });
    assert!(
        bytes
            .iter()
            .enumerate()
            .all(|(at, byte)| *byte == pattern(at % (PAGES / 2 * PAGE_SIZE) + 7))
    );
    unmap_raw(range(BUFFER, PAGES));
    mirror.unregister();
    device.unregister().unwrap();
}

/// Where the kernel writes when the calling thread has ended.
fn own_control_block() -> usize {
    let mut at = 0_usize;
    // SAFETY: the call writes one word to `at`.
    let answer = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut at, 0, 0, 0) };
    assert_eq!(answer, 0, "PR_GET_TID_ADDRESS: {}", std::io::Error::last_os_error());
    at / PAGE_SIZE * PAGE_SIZE
}

/// The kernel's last write for a thread is one that it serves no fault for, and who joins the thread waits for it.
#[test]
fn mig_2_threads_that_end_while_their_stacks_migrate_are_joined() {
    const THREADS: usize = 4;
    let _alone = alone();
    let (_mm, device, mirror) = open(64 * MIB, Placement::InPlace);
    let blocks = [const { AtomicU64::new(0) }; THREADS];
    let (joined, running, stop) = (
        AtomicU64::new(0),
        AtomicU64::new(THREADS as u64),
        AtomicBool::new(false),
    );
    let mut sent = 0;
    std::thread::scope(|scope| {
        for block in &blocks {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let thread = std::thread::spawn(own_control_block);
                    block.store(thread.join().unwrap() as u64, Ordering::Relaxed);
                    joined.fetch_add(1, Ordering::Relaxed);
                }
                running.fetch_sub(1, Ordering::Relaxed);
            });
        }
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            for block in &blocks {
                let page = block.load(Ordering::Relaxed) as usize;
                // The page itself, and those that the thread's frames are on.
                if let Ok(around) = PageRange::new(page.saturating_sub(3 * PAGE_SIZE), 4 * PAGE_SIZE)
                    && let Ok(report) = mirror.migrate_to_device(around)
                {
                    sent += report.migrated();
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        while running.load(Ordering::Relaxed) > 0 {
            if end.elapsed() > Duration::from_secs(30) {
                eprintln!("a thread that ended is not joined");
                std::process::abort();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    assert!(sent > 0 && joined.into_inner() > 100, "hardly anything happened");
    mirror.unregister();
    device.unregister().unwrap();
}

#[test]
fn mig_4_children_by_libc_and_by_the_bare_call_have_what_is_away() {
    const PAGES: usize = 1100;
    let _alone = alone();
    let (mm, device, mirror) = open(16 * MIB, Placement::OnTouch);
    let bytes = buffer(&mirror, PAGES);
    for how in [Fork::Announced, Fork::Late, Fork::Late, Fork::Announced] {
        let late = mm.stats().late_forked;
        send(&mirror, PAGES);
        let status = in_child(how, || {
            let right = bytes.iter().enumerate().all(|(at, byte)| *byte == pattern(at));
            // What the child writes is its own.
            bytes.fill(0xee);
            u8::from(!right)
        });
        assert_eq!(status, 0, "{how:?}");
        assert_eq!(mm.stats().late_forked - late, u64::from(how == Fork::Late));
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == pattern(at)));
    }
    unmap_raw(range(BUFFER, PAGES));
    mirror.unregister();
    device.unregister().unwrap();
}
