//! Threads that change the address space in every way, by the C library and by bare system calls, while a device reads and writes the same
//! ranges. What a device reads is checked against the history of its place.
//!
//! Each *slot* is a range of pages at an address of its own, with a word that tells its history: a count of its changes and what is there now. A
//! change first says that it is under way, then is made, then the pages get the pattern of the new count. So a device that finds the same history
//! before and after a read knows what it must have read; and an older pattern than the history before the read is a stale one.

#![allow(unsafe_code, unreachable_pub, dead_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use isomem::{Exactness, Mirror, Mm, PAGE_SIZE, SoftConfig, Stats, ThrashPolicy, Worker};

const SLOTS: usize = 12;
/// The last ones are mappings of a file.
const FILE_SLOTS: usize = 2;
const PAGES: usize = 48;
const SLOT_BYTES: usize = PAGES * PAGE_SIZE;
/// Far below what the kernel chooses by itself, and not aligned to blocks of 2 MiB.
const BASE: usize = 0x11_0000_0000 + 13 * PAGE_SIZE;
/// From a slot to the place that it is moved to for a while.
const ASIDE: usize = 1 << 30;
const MAGIC: u64 = 0x5107 << 48;

/// What is at a slot.
const MAPPED: u64 = 0;
const CHANGING: u64 = 1;
const REFUSED: u64 = 2;
const ZERO: u64 = 3;

static HISTORY: [AtomicU64; SLOTS] = [const { AtomicU64::new(CHANGING) }; SLOTS];
static BUSY: [AtomicBool; SLOTS] = [const { AtomicBool::new(false) }; SLOTS];
static STOP: AtomicBool = AtomicBool::new(false);
static FILE: AtomicUsize = AtomicUsize::new(0);
static CHANGES: AtomicU64 = AtomicU64::new(0);
static FORKS: AtomicU64 = AtomicU64::new(0);
static READS: AtomicU64 = AtomicU64::new(0);
static SURE_READS: AtomicU64 = AtomicU64::new(0);
static STALE: AtomicU64 = AtomicU64::new(0);
static REFUSALS: AtomicU64 = AtomicU64::new(0);
static LOST: AtomicU64 = AtomicU64::new(0);

/// What came of it.
#[derive(Debug, Clone)]
pub struct Report {
    pub changes: u64,
    pub forks: u64,
    /// Reads of the device, and those between which nothing changed.
    pub reads: u64,
    pub sure_reads: u64,
    /// Reads of what was no longer there.
    pub stale: u64,
    /// Reads that were refused although memory was there the whole time.
    pub refused: u64,
    /// Pages that the CPU found without what it had written.
    pub lost: u64,
    pub late: u64,
    pub stats: Stats,
}

/// A generator that is good enough: xorshift.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % sides
    }
}

fn start_of(slot: usize) -> usize {
    BASE + slot * (SLOT_BYTES + 5 * PAGE_SIZE)
}

fn is_file(slot: usize) -> bool {
    slot >= SLOTS - FILE_SLOTS
}

fn pattern(slot: usize, count: u64) -> u64 {
    MAGIC | (slot as u64) << 40 | count
}

/// How a call is made.
#[derive(Clone, Copy)]
enum Way {
    Libc,
    Raw,
}

fn call<const N: usize>(number: libc::c_long, args: [usize; N]) -> usize {
    let mut all = [0; 6];
    all[..N].copy_from_slice(&args);
    let [a, b, c, d, e, f] = all;
    // SAFETY: the slots are the torture's own.
    let made = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    assert_ne!(made, -1, "call {number} {args:x?}: {}", std::io::Error::last_os_error());
    made as usize
}

/// What a function of the C library answers.
fn succeeded(answer: i32) {
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
}

fn unmap(way: Way, at: usize) {
    match way {
        // SAFETY: as above.
        Way::Libc => succeeded(unsafe { libc::munmap(at as *mut _, SLOT_BYTES) }),
        Way::Raw => assert_eq!(call(libc::SYS_munmap, [at, SLOT_BYTES]), 0),
    }
}

fn map(way: Way, slot: usize) {
    let (kind, fd) = if is_file(slot) {
        (libc::MAP_SHARED, FILE.load(Ordering::Relaxed) as i32)
    } else {
        (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    };
    let offset = if is_file(slot) { file_offset(slot) } else { 0 };
    let (flags, protection) = (kind | libc::MAP_FIXED, libc::PROT_READ | libc::PROT_WRITE);
    let start = start_of(slot);
    let at = match way {
        // SAFETY: as above.
        Way::Libc => unsafe { libc::mmap(start as *mut _, SLOT_BYTES, protection, flags, fd, offset as i64) }.addr(),
        Way::Raw => call(
            libc::SYS_mmap,
            [
                start,
                SLOT_BYTES,
                protection as usize,
                flags as usize,
                fd as usize,
                offset,
            ],
        ),
    };
    assert_eq!(at, start, "{}", std::io::Error::last_os_error());
}

fn file_offset(slot: usize) -> usize {
    (slot + FILE_SLOTS - SLOTS) * SLOT_BYTES
}

fn protect(way: Way, slot: usize, protection: i32) {
    let start = start_of(slot);
    match way {
        // SAFETY: as above.
        Way::Libc => succeeded(unsafe { libc::mprotect(start as *mut _, SLOT_BYTES, protection) }),
        Way::Raw => assert_eq!(call(libc::SYS_mprotect, [start, SLOT_BYTES, protection as usize]), 0),
    }
}

fn advise(way: Way, slot: usize, advice: i32) {
    let start = start_of(slot);
    match way {
        // SAFETY: as above.
        Way::Libc => succeeded(unsafe { libc::madvise(start as *mut _, SLOT_BYTES, advice) }),
        Way::Raw => assert_eq!(call(libc::SYS_madvise, [start, SLOT_BYTES, advice as usize]), 0),
    }
}

fn remap(way: Way, from: usize, to: usize) {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let at = match way {
        // SAFETY: as above.
        Way::Libc => unsafe { libc::mremap(from as *mut _, SLOT_BYTES, SLOT_BYTES, flags, to) }.addr(),
        Way::Raw => call(libc::SYS_mremap, [from, SLOT_BYTES, SLOT_BYTES, flags as usize, to]),
    };
    assert_eq!(at, to, "{}", std::io::Error::last_os_error());
}

fn word(slot: usize, page: usize) -> *mut u64 {
    (start_of(slot) + page * PAGE_SIZE) as *mut u64
}

/// What is done to a slot.
#[derive(Debug, Clone, Copy)]
enum Deed {
    Discard,
    Replace,
    Fork,
    Unmap,
    Forbid,
    ReadOnly,
    MoveAside,
    CutFile,
    Allocate,
    Run,
}

/// Those after which memory is there at every moment come first: at a level that is told late, others end in a signal.
const DEEDS: [Deed; 10] = [
    Deed::Discard,
    Deed::Replace,
    Deed::Fork,
    Deed::Unmap,
    Deed::Forbid,
    Deed::ReadOnly,
    Deed::MoveAside,
    Deed::CutFile,
    Deed::Allocate,
    Deed::Run,
];
pub const ALL_DEEDS: usize = DEEDS.len();
/// What is noticed late, is repaired, and is over before the thread that did it goes on.
pub const LATE_DEEDS: usize = 1;

/// A slot that this thread alone changes.
struct Taken {
    slot: usize,
    count: u64,
}

impl Taken {
    fn take(dice: &mut Dice) -> Self {
        loop {
            let slot = dice.below(SLOTS);
            if !BUSY[slot].swap(true, Ordering::Acquire) {
                let count = HISTORY[slot].load(Ordering::SeqCst) >> 2;
                return Self { slot, count };
            }
        }
    }

    fn say(&mut self, state: u64) {
        self.count += 1;
        HISTORY[self.slot].store(self.count << 2 | state, Ordering::SeqCst);
    }

    /// Every page still has what was written last.
    fn check(&self) {
        for page in 0..PAGES {
            // SAFETY: mapped, and only this thread changes that.
            let found = unsafe { word(self.slot, page).read_volatile() };
            if found != pattern(self.slot, self.count) && LOST.fetch_add(1, Ordering::Relaxed) < 8 {
                let expected = pattern(self.slot, self.count);
                eprintln!("slot {} page {page}: {found:#x}, not {expected:#x}", self.slot);
            }
        }
    }

    /// New contents, of the count that will be said next.
    fn fill(&mut self) {
        for page in 0..PAGES {
            // SAFETY: as above.
            unsafe { word(self.slot, page).write_volatile(pattern(self.slot, self.count + 1)) };
        }
        self.say(MAPPED);
    }

    fn linger(dice: &mut Dice) {
        if dice.below(4) == 0 {
            std::thread::sleep(Duration::from_micros(dice.below(300) as u64));
        }
    }

    fn change(&mut self, deed: Deed, way: Way, dice: &mut Dice) {
        let slot = self.slot;
        let both = libc::PROT_READ | libc::PROT_WRITE;
        self.check();
        self.say(CHANGING);
        match deed {
            Deed::Discard if !is_file(slot) => {
                advise(way, slot, libc::MADV_DONTNEED);
                self.say(ZERO);
                Self::linger(dice);
                self.say(CHANGING);
            }
            Deed::Discard => advise(way, slot, libc::MADV_DONTNEED),
            Deed::Replace => map(way, slot),
            Deed::Unmap => {
                unmap(way, start_of(slot));
                self.say(REFUSED);
                Self::linger(dice);
                self.say(CHANGING);
                map(way, slot);
            }
            Deed::Forbid => {
                protect(way, slot, libc::PROT_NONE);
                self.say(REFUSED);
                Self::linger(dice);
                self.say(CHANGING);
                protect(way, slot, both);
            }
            Deed::ReadOnly => {
                protect(way, slot, libc::PROT_READ);
                Self::linger(dice);
                protect(way, slot, both);
            }
            Deed::MoveAside => {
                let aside = start_of(slot) + ASIDE;
                remap(way, start_of(slot), aside);
                self.say(REFUSED);
                Self::linger(dice);
                self.say(CHANGING);
                remap(way, aside, start_of(slot));
            }
            Deed::CutFile if is_file(slot) => self.cut(way, dice),
            Deed::CutFile => advise(way, slot, libc::MADV_DONTNEED),
            Deed::Fork | Deed::Allocate | Deed::Run => unreachable!("changes no slot"),
        }
        self.fill();
        CHANGES.fetch_add(1, Ordering::Relaxed);
    }

    fn cut(&mut self, way: Way, dice: &mut Dice) {
        let fd = FILE.load(Ordering::Relaxed);
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (offset, len) = (file_offset(self.slot), SLOT_BYTES);
        match way {
            Way::Libc => {
                // SAFETY: the file is the torture's own.
                let cut = unsafe { libc::fallocate(fd as i32, punch, offset as i64, len as i64) };
                assert_eq!(cut, 0);
            }
            Way::Raw => assert_eq!(call(libc::SYS_fallocate, [fd, punch as usize, offset, len]), 0),
        }
        self.say(ZERO);
        Self::linger(dice);
        self.say(CHANGING);
    }

    /// A child has what this slot holds, and may change its own copy.
    fn fork(&self, way: Way) {
        let child = match way {
            // SAFETY: the child looks, makes plain calls, and ends.
            Way::Libc => unsafe { libc::fork() },
            Way::Raw => call(libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0, 0, 0]) as i32,
        };
        if child == 0 {
            let expected = pattern(self.slot, self.count);
            // SAFETY: mapped in the child as it was in the parent.
            let whole = (0..PAGES).all(|page| unsafe { word(self.slot, page).read_volatile() } == expected);
            // SAFETY: the child's own copy.
            let unmapped = unsafe { libc::syscall(libc::SYS_munmap, start_of(self.slot), SLOT_BYTES) } == 0;
            // SAFETY: ends the child.
            unsafe { libc::_exit(if whole && unmapped { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: the child is ours.
        while unsafe { libc::waitpid(child, &raw mut status, 0) } == -1 {}
        FORKS.fetch_add(1, Ordering::Relaxed);
        if status != 0 {
            eprintln!("a child found something else: status {status:#x}");
            LOST.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        BUSY[self.slot].store(false, Ordering::Release);
    }
}

/// The life of a thread that changes slots.
fn mutate(seed: u64, deeds: &[Deed]) {
    let mut dice = Dice(seed);
    while !STOP.load(Ordering::Relaxed) {
        let way = if dice.below(2) == 0 { Way::Libc } else { Way::Raw };
        let deed = deeds[dice.below(deeds.len())];
        match deed {
            // Seldom: they cost as much as hundreds of the others.
            Deed::Fork if dice.below(12) != 0 => {}
            Deed::Run if dice.below(40) != 0 => {}
            Deed::Fork => Taken::take(&mut dice).fork(way),
            Deed::Allocate => {
                let mut block = vec![0_u64; 64 << (10 + dice.below(4)) >> 3];
                for index in (0..block.len()).step_by(PAGE_SIZE / 8) {
                    block[index] = index as u64;
                }
                std::hint::black_box(&mut block);
            }
            Deed::Run => {
                let ran = std::process::Command::new("/bin/true").status();
                assert!(ran.is_ok_and(|status| status.success()), "a command does not run");
            }
            other => Taken::take(&mut dice).change(other, way, &mut dice),
        }
    }
}

/// One read of the device, checked.
fn look(worker: &mut Worker<'_>, slot: usize, page: usize) {
    let before = HISTORY[slot].load(Ordering::SeqCst);
    // SAFETY: a word that is there may be read, and is written by whole words.
    let read = unsafe { worker.peek(word(slot, page)) };
    let after = HISTORY[slot].load(Ordering::SeqCst);
    READS.fetch_add(1, Ordering::Relaxed);
    let (count, state) = (before >> 2, before & 3);
    let is_sure = before == after && state != CHANGING;
    SURE_READS.fetch_add(is_sure.into(), Ordering::Relaxed);
    // While something changes, what was there before may still be: its count is the last that had contents.
    let is_old = |value: u64| value & !((1 << 40) - 1) != pattern(slot, 0) || (value & ((1 << 40) - 1)) + 5 < count;
    let is_stale = match read {
        Err(_) if is_sure && state == MAPPED => {
            REFUSALS.fetch_add(1, Ordering::Relaxed);
            false
        }
        Err(_) => false,
        Ok(value) if is_sure => match state {
            MAPPED => value != pattern(slot, count),
            ZERO => value != 0,
            _ => true,
        },
        Ok(value) if before != after && state == MAPPED => value != 0 && value < pattern(slot, count),
        Ok(value) => value != 0 && is_old(value),
    };
    if is_stale && STALE.fetch_add(1, Ordering::Relaxed) < 8 {
        eprintln!("slot {slot} page {page}: {read:x?} with history {count} state {state}, then {after:#x}");
    }
}

fn drive(mirror: &Mirror, seed: u64) {
    let mut round = seed;
    while !STOP.load(Ordering::Relaxed) {
        round += 1;
        let kernel = |worker: &mut Worker<'_>| {
            let mut dice = Dice(round.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (worker.index() as u64 + 1));
            for _ in 0..500 {
                let (slot, page) = (dice.below(SLOTS), dice.below(PAGES));
                look(worker, slot, page);
                if dice.below(3) == 0 {
                    // The ninth word of the page.
                    let to = word(slot, page).wrapping_add(8);
                    // SAFETY: the slots' ninth words are written by nobody else, and it is refused where nothing is.
                    let _ = unsafe { worker.poke(to, round) };
                }
            }
            Ok(())
        };
        // SAFETY: the kernel reads the slots' first words, and writes their ninth, by whole words.
        let ran = unsafe { mirror.launch_raw(kernel) };
        ran.unwrap();
    }
}

/// Tortures this process's address space for so long. At most once in a process.
///
/// `deeds` is how many kinds of change are made, of [`ALL_DEEDS`].
pub fn torture(level: Exactness, deeds: usize, seconds: f64, threads: usize, seed: u64) -> Report {
    let deeds = &DEEDS[..deeds];
    // SAFETY: a new file without a name.
    let fd = unsafe { libc::memfd_create(c"torture".as_ptr(), 0) };
    FILE.store(fd as usize, Ordering::Relaxed);
    call(libc::SYS_ftruncate, [fd as usize, FILE_SLOTS * SLOT_BYTES]);
    let mm = Mm::builder().exactness(level).open().expect("the torture needs root");
    let config = SoftConfig {
        workers: 2,
        // Less than all slots need, so that pages are evicted, too.
        memory_bytes: SLOTS * SLOT_BYTES * 3 / 4,
        thrash: ThrashPolicy::OFF,
        ..SoftConfig::default()
    };
    let device = mm.soft_device(config).unwrap();
    let mirror = device.mirror().unwrap();
    for slot in 0..SLOTS {
        map(Way::Raw, slot);
        Taken { slot, count: 0 }.fill();
    }
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                mutate(
                    seed.wrapping_add(1 + thread as u64).wrapping_mul(0x2545_f491_4f6c_dd1d),
                    deeds,
                );
            });
        }
        let mirror = &mirror;
        scope.spawn(move || drive(mirror, seed));
        let began = Instant::now();
        while began.elapsed().as_secs_f64() < seconds {
            std::thread::sleep(Duration::from_millis(20));
        }
        STOP.store(true, Ordering::Relaxed);
    });
    let stats = mm.stats();
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Report {
        changes: read(&CHANGES),
        forks: read(&FORKS),
        reads: read(&READS),
        sure_reads: read(&SURE_READS),
        stale: read(&STALE),
        refused: read(&REFUSALS),
        lost: read(&LOST),
        late: stats.late_removed + stats.late_unmapped + stats.late_remapped + stats.late_forked,
        stats,
    }
}
