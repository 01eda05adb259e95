//! MIG-12 for all of it: nobody reads what was there before a write that is over, whoever wrote and whoever reads, while pages change place.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use isomem::{MemoryKind, Mm, PAGE_SIZE, PageRange};
use isomem_core::mm::Advice;

use crate::apart::{Mapped, apart, wait_forked};
use crate::rig::{Gpu, gpu, gpu_of, load, open, rw, word};
use crate::shared::peek;

const PAGES: usize = 48;
/// Of each page two words are counted, by whoever has the page's lock: both have the same value when it is let go.
const WORDS: [usize; 2] = [64, 4000];

fn seconds() -> u64 {
    std::env::var("ISOMEM_SECONDS").map_or(2, |seconds| seconds.parse().unwrap())
}

/// What was written to each page, in memory that is not the device's.
struct Model {
    latest: Vec<AtomicU64>,
    writing: Vec<Mutex<()>>,
    reads: AtomicU64,
    writes: AtomicU64,
    stop: AtomicBool,
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }
}

impl Model {
    fn new() -> Self {
        Self {
            latest: (0..PAGES).map(|_| AtomicU64::new(0)).collect(),
            writing: (0..PAGES).map(|_| Mutex::new(())).collect(),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        }
    }

    /// Reads and, one time of sixteen, writes, until it is stopped.
    fn act(&self, seed: u64, read: &mut dyn FnMut(usize, usize) -> u64, add: &mut dyn FnMut(usize, usize)) {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 * (seed + 1));
        while !self.stop.load(Ordering::Relaxed) {
            let page = random.below(PAGES);
            if random.below(16) == 0 {
                let alone = self.writing[page].lock().unwrap();
                WORDS.iter().for_each(|&at| add(page, at));
                self.latest[page].fetch_add(1, Ordering::SeqCst);
                drop(alone);
                self.writes.fetch_add(1, Ordering::Relaxed);
            } else {
                let at = WORDS[random.below(2)];
                let before = self.latest[page].load(Ordering::SeqCst);
                let seen = read(page, at);
                let after = self.latest[page].load(Ordering::SeqCst);
                assert!(
                    before <= seen && seen <= after + 1,
                    "page {page}: {seen} was read between {before} and {after}"
                );
                self.reads.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Stops the others also where a thread fails, or they would go on for ever.
struct Stops<'a>(&'a Model);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

fn address(memory: &Mapped, page: usize, at: usize) -> usize {
    memory.start + page * PAGE_SIZE + at
}

/// CPU threads and one thread for each device act on `memory` while `change` is called again and again.
fn acting(mm: &Mm, gpus: &[&Gpu], memory: &Mapped, mut change: impl FnMut(u64, PageRange)) {
    let model = Model::new();
    gpus[0].mirror.advise(memory.range(), Advice::ReadMostly).unwrap();
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let model = &model;
            scope.spawn(move || {
                let _stops = Stops(model);
                model.act(
                    seed,
                    &mut |page, at| load(address(memory, page, at)),
                    &mut |page, at| _ = word(address(memory, page, at)).fetch_add(1, Ordering::SeqCst),
                );
            });
        }
        for (seed, gpu) in (10..).zip(gpus) {
            let model = &model;
            scope.spawn(move || {
                let _stops = Stops(model);
                let (mut reading, mut writing) = (gpu.slot(), gpu.slot());
                model.act(
                    seed,
                    &mut |page, at| peek(gpu, &mut reading, address(memory, page, at)),
                    &mut |page, at| gpu.add(&mut writing, address(memory, page, at), 1),
                );
            });
        }
        let _stops = Stops(&model);
        let began = std::time::Instant::now();
        let mut round = 0;
        while began.elapsed().as_secs() < seconds() && !model.stop.load(Ordering::Relaxed) {
            change(round, memory.range());
            round += 1;
        }
    });
    for (page, latest) in model.latest.iter().enumerate() {
        let latest = latest.load(Ordering::SeqCst);
        assert!(
            WORDS.iter().all(|&at| load(address(memory, page, at)) == latest),
            "page {page}"
        );
    }
    let stats = mm.stats();
    assert!(stats.pages_duplicated > 0 && stats.duplicates_collapsed > 0);
    println!(
        "{} reads, {} writes; {} pages duplicated, {} collapsed, {} to devices, {} fenced, {} recalls",
        model.reads.load(Ordering::Relaxed),
        model.writes.load(Ordering::Relaxed),
        stats.pages_duplicated,
        stats.duplicates_collapsed,
        stats.pages_to_device,
        stats.fenced,
        stats.recalls,
    );
}

#[test]
fn mig_12_nobody_reads_old_data_while_both_sides_read_and_write() {
    apart(
        "together::mig_12_nobody_reads_old_data_while_both_sides_read_and_write",
        || {
            let mm = open();
            let device = gpu(&mm, "device", MemoryKind::Private);
            let memory = rw(PAGES * PAGE_SIZE);
            acting(&mm, &[&device], &memory, |_, range| {
                device.mirror.migrate_to_device(range).unwrap();
            });
        },
    );
}

#[test]
fn mig_12_nobody_reads_old_data_between_two_devices_of_which_one_is_small() {
    apart(
        "together::mig_12_nobody_reads_old_data_between_two_devices_of_which_one_is_small",
        || {
            let mm = open();
            let one = gpu(&mm, "one", MemoryKind::Private);
            let small = gpu_of(&mm, "small", MemoryKind::Private, 20);
            let memory = rw(PAGES * PAGE_SIZE);
            acting(&mm, &[&one, &small], &memory, |round, range| {
                let to = if round % 2 == 0 { &one } else { &small };
                to.mirror.migrate_to_device(range).unwrap();
                if round % 5 == 0 {
                    one.mirror.exclusive(range.take(8)).unwrap();
                }
                if round % 7 == 0 {
                    small.mirror.migrate_home(range).unwrap();
                }
            });
        },
    );
}

#[test]
fn mig_12_nobody_reads_old_data_while_the_address_space_changes() {
    apart(
        "together::mig_12_nobody_reads_old_data_while_the_address_space_changes",
        || {
            let mm = open();
            let device = gpu(&mm, "device", MemoryKind::Private);
            let memory = rw(PAGES * PAGE_SIZE);
            acting(&mm, &[&device], &memory, |round, range| {
                device.mirror.migrate_to_device(range).unwrap();
                let at = range.start() as *mut libc::c_void;
                match round % 4 {
                    // SAFETY: the pages stay readable and writable.
                    0 => unsafe { mm.protect(range, Some(isomem::Access::Write)) }.unwrap(),
                    // SAFETY: advice that leaves the contents.
                    1 => assert_eq!(unsafe { libc::madvise(at, range.len_bytes(), libc::MADV_COLD) }, 0),
                    2 if round % 8 == 2 => {
                        // SAFETY: the child only ends.
                        let child = unsafe { libc::fork() };
                        if child == 0 {
                            // SAFETY: as above.
                            unsafe { libc::_exit(0) };
                        }
                        assert!(wait_forked(child).success());
                    }
                    _ => std::thread::sleep(std::time::Duration::from_millis(2)),
                }
            });
        },
    );
}
