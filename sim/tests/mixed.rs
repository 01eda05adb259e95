//! Everything at once: threads that draw operations at random, on a few pages, with a device that is too small for them.
//!
//! What is drawn is decided by the number of the telling, as is the schedule. `ISOMEM_SCHEDULES=1000000` makes a night of it.

mod common;
#[path = "mixed/parts.rs"]
mod parts;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use isomem_core::addr::{BlockId, PageRange};
use isomem_core::mirror::range::Placement;
use isomem_core::mm::Advice;
use isomem_core::world::Access;
use isomem_sim::checker::Verdict;
use isomem_sim::device::{Gpu, GpuConfig, GpuError, Reach};
use isomem_sim::journal::Journal;
use isomem_sim::kernel;
use isomem_sim::rig::{Config, PER_BLOCK, Rig};
use isomem_sim::sync::Mutex;

use common::{Random, Times, apart_from_contents, explore, explore_before, join, rounds, spawn};

/// Pages of the program: a whole block of the story, and half of the next.
const PAGES: usize = 6;
/// The last of them is written as a whole, and changed by nobody.
const WHOLE: usize = PAGES - 1;
/// Words that are written.
const WORDS: usize = 2;
/// What each thread does.
const OPERATIONS: usize = rounds(5, 300);

/// A device too small for all pages, which takes a page at the first touch.
const SMALL: GpuConfig = GpuConfig {
    memory_pages: 3,
    ..GpuConfig::named("gpu")
};

/// What a thread can do.
#[derive(Debug, Clone, Copy)]
enum Do {
    CpuRead,
    CpuWrite,
    CpuAdd,
    CpuReadWhole,
    CpuWriteWhole,
    GpuRead,
    GpuWrite,
    GpuAdd,
    GpuReadWhole,
    GpuWriteWhole,
    GpuFault,
    Snapshot,
    Migrate,
    Home,
    Advise,
    Discard,
    Protect,
    Remap,
    UnmapAndMap,
    Fork,
    Reclaim,
    Collapse,
    Split,
    LateDiscard,
    LateRemap,
    LateMap,
    LateFork,
    /// One of the next steps of the kernel fails.
    Fail,
    Unplug,
    Unregister,
    Exit,
}

use Do::{
    Advise, Collapse, CpuAdd, CpuRead, CpuReadWhole, CpuWrite, CpuWriteWhole, Discard, Exit, Fail, Fork, GpuAdd,
    GpuFault, GpuRead, GpuReadWhole, GpuWrite, GpuWriteWhole, Home, LateDiscard, LateFork, LateMap, LateRemap, Migrate,
    Protect, Reclaim, Remap, Snapshot, Split, UnmapAndMap, Unplug, Unregister,
};

const ACCESSES: &[Do] = &[
    GpuFault, Snapshot, CpuRead, CpuWrite, CpuAdd, GpuRead, GpuWrite, GpuAdd, Migrate, Migrate, Home, Advise,
];
const WHOLES: &[Do] = &[CpuReadWhole, CpuWriteWhole, GpuReadWhole, GpuWriteWhole];
const CPU: &[Do] = &[CpuRead, CpuWrite, CpuAdd];
const ANNOUNCED: &[Do] = &[Discard, Protect, Remap, UnmapAndMap, Fork];
const KERNEL: &[Do] = &[Reclaim, Collapse, Split];
const LATE: &[Do] = &[LateDiscard, LateRemap, LateMap, LateFork];
const ENDS: &[Do] = &[Unplug, Unregister, Exit];

/// What the threads of a story share.
struct Stage {
    mix: Mix,
    /// Who reads or writes the last page as a whole.
    whole: Mutex<()>,
    /// Discards past isomem, and migrations, where they keep out of each other's way.
    discards: Mutex<()>,
    exited: AtomicBool,
}

/// A thread of the story.
struct Actor<'a> {
    rig: &'a Rig,
    stage: &'a Stage,
    random: Random,
    /// So that no value is written twice.
    next: u64,
}

impl Actor<'_> {
    fn value(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A page that may change, and how many do from there on. Within a block: what lies between blocks is nothing but holes.
    fn pages(&mut self) -> (usize, usize) {
        let page = self.random.below(WHOLE);
        (
            page,
            1 + self.random.below((WHOLE - page).min(PER_BLOCK - page % PER_BLOCK)),
        )
    }

    fn step(&mut self, what: Do) {
        let (rig, stage) = (self.rig, self.stage);
        // A page that sets out between an event of a discard and the discard itself takes its contents along: `docs/testing.md` says so.
        let _alone = (stage.mix.apart && matches!(what, Migrate | LateDiscard)).then(|| stage.discards.lock());
        let ((page, count), word) = (self.pages(), self.random.below(WORDS));
        let gpu = self.random.below(stage.mix.gpus.len());
        let value = self.value();
        rig.journal()
            .note(format_args!("{what:?} page {page} word {word} count {count} gpu {gpu}"));
        let gpu = rig.gpu(gpu);
        match what {
            CpuRead => drop(rig.try_cpu_read(page, word)),
            CpuWrite => drop(rig.try_cpu_write(page, word, value)),
            CpuAdd => drop(rig.cpu_add(page, word, value)),
            GpuRead => self.accessed(gpu.read(rig.page(page), word).map(drop)),
            GpuWrite => self.accessed(gpu.write(rig.page(page), word, value)),
            GpuAdd => self.accessed(gpu.add(rig.page(page), word, value).map(drop)),
            CpuReadWhole | CpuWriteWhole | GpuReadWhole | GpuWriteWhole => self.whole(what, gpu, value),
            GpuFault => {
                let access = [Access::Read, Access::Write][self.random.below(2)];
                let _ = gpu.fault(rig.range(page, count), access);
            }
            Snapshot => self.snapshot(gpu, rig.range(page, count)),
            Migrate => {
                let page = self.random.below(PAGES);
                let count = 1 + self.random.below((PAGES - page).min(PER_BLOCK - page % PER_BLOCK));
                let _ = gpu.migrate(rig.range(page, count));
            }
            Home => drop(gpu.home(rig.range(page, 1 + self.random.below(PAGES - page)))),
            Advise => {
                let advice = [Advice::ReadMostly, Advice::ReadMostly, Advice::ReadWrite][self.random.below(3)];
                let _ = gpu.advise(rig.range(page, count), advice);
            }
            Discard => drop(rig.discard(page, count)),
            Protect => {
                let access = [None, Some(Access::Read)][self.random.below(2)];
                let _ = rig.protect(page, count, access);
                let _ = rig.protect(page, count, Some(Access::Write));
            }
            Remap => {
                let (to, _) = self.pages();
                if rig.remap(page, to, 1).is_ok() {
                    let _ = rig.map(page, 1);
                }
            }
            UnmapAndMap => {
                if rig.unmap(page, 1).is_ok() {
                    let _ = rig.map(page, 1);
                }
            }
            Fork => {
                let child = rig.fork();
                for page in 0..PAGES {
                    let _ = child.read(rig.page(page), word);
                }
                let _ = child.write(rig.page(page), word, value);
                let _ = child.read(rig.page(page), word);
                child.exit();
            }
            Reclaim => drop(rig.process().reclaim(rig.page(page))),
            Collapse => rig.process().collapse(BlockId::new(1).unwrap()),
            Split => rig.process().split(BlockId::new(1).unwrap()),
            LateDiscard => drop(rig.late_discard(page, count)),
            LateRemap => {
                let (to, _) = self.pages();
                if rig.late_remap(page, to, 1).is_ok() {
                    let _ = rig.map(page, 1);
                }
            }
            LateMap => rig.late_map(page, 1),
            LateFork => {
                // What is in it is said nowhere to be exact; that it ends is.
                let child = rig.late_fork();
                child.exit();
            }
            Fail => {
                let (site, errno) = parts::FAILURES[self.random.below(parts::FAILURES.len())];
                rig.kernel().fail_nth(site, self.random.below(4), errno);
            }
            Unplug => drop(gpu.fail()),
            Unregister => drop(gpu.unregister()),
            Exit => {
                if !stage.exited.swap(true, Ordering::Relaxed) {
                    rig.exit();
                }
            }
        }
    }

    /// The last page, all of it, while nobody else writes it.
    fn whole(&self, what: Do, gpu: &Gpu, value: u64) {
        let (rig, page) = (self.rig, self.rig.page(WHOLE));
        let _alone = self.stage.whole.lock();
        match what {
            CpuReadWhole => drop(rig.process().read_page(page)),
            GpuReadWhole => drop(gpu.read_page(page)),
            CpuWriteWhole => drop(rig.process().write_page(page, value)),
            _ => (0..kernel::WORDS).for_each(|word| self.accessed(gpu.write(page, word, value))),
        }
    }

    /// It tells of every page, of each once.
    fn snapshot(&self, gpu: &Gpu, range: PageRange) {
        let Ok(snapshot) = gpu.snapshot(range) else { return };
        let mut next = range.first_page();
        for (run, _) in snapshot.runs() {
            assert_eq!(run.first_page(), next, "{snapshot:?}");
            next = run.end_page();
        }
        assert_eq!(next, range.end_page(), "{snapshot:?}");
    }

    fn accessed(&self, result: Result<(), GpuError>) {
        match result {
            Err(GpuError::Thrashing) => self.rig.journal().found(
                Verdict::NoProgress,
                "a device's access was served again and again, and never got through",
            ),
            Err(GpuError::Fault(error)) => self
                .rig
                .journal()
                .note(format_args!("the device's access fails: {error}")),
            _ => {}
        }
    }
}

/// What a story is made of.
#[derive(Debug, Clone, Copy)]
struct Mix {
    gpus: &'static [GpuConfig],
    threads: usize,
    what: &'static [&'static [Do]],
    /// Whether migrations and discards past isomem keep out of each other's way.
    apart: bool,
    /// How the program says that it uses its pages.
    usage: Advice,
}

fn tell(mix: Mix, journal: &Journal, number: u64) {
    let config = Config {
        pages: PAGES,
        gpus: mix.gpus,
    };
    let rig = Rig::with(journal, config);
    for first in (0..PAGES).step_by(PER_BLOCK) {
        let pages = rig.range(first, (PAGES - first).min(PER_BLOCK));
        rig.gpu(0).advise(pages, mix.usage).expect("the heap is large");
    }
    let choices: Vec<Do> = mix.what.iter().copied().flatten().copied().collect();
    let stage = Arc::new(Stage {
        mix,
        whole: Mutex::new("whole page", ()),
        discards: Mutex::new("discard past isomem", ()),
        exited: AtomicBool::new(false),
    });
    let threads = (0..mix.threads).map(|index| {
        let (choices, stage) = (choices.clone(), Arc::clone(&stage));
        spawn(&rig, &format!("actor {index}"), move |rig| {
            let mut actor = Actor {
                rig,
                stage: &stage,
                random: Random::new(number.wrapping_mul(31) ^ (index as u64) << 48),
                next: (index as u64 + 1) * 1_000_000,
            };
            for _ in 0..OPERATIONS {
                if rig.journal().is_decided() {
                    return;
                }
                let what = choices[actor.random.below(choices.len())];
                actor.step(what);
            }
        })
    });
    join(threads.collect());
    rig.kernel().fail_no_more();
    parts::finish(&rig, PAGES, mix.gpus.len(), number);
}

fn times(schedules: u64) -> Times {
    Times { plain: 20, schedules }
}

fn mixed(schedules: u64, mix: Mix) {
    explore(times(schedules), move |journal, number| tell(mix, journal, number));
}

/// Three threads and a small device.
const fn mix(what: &'static [&'static [Do]]) -> Mix {
    Mix {
        gpus: &[SMALL],
        threads: 3,
        apart: false,
        usage: Advice::ReadWrite,
        what,
    }
}

#[test]
fn mig_3_and_7_accesses_and_migrations_on_a_small_device() {
    mixed(4_000, mix(&[ACCESSES, WHOLES]));
}

#[test]
fn mig_2_and_7_a_small_device_that_takes_pages_at_the_first_touch() {
    const TAKING: &[GpuConfig] = &[GpuConfig {
        placement: Placement::OnTouch,
        ..SMALL
    }];
    mixed(
        2_000,
        Mix {
            gpus: TAKING,
            ..mix(&[ACCESSES, WHOLES])
        },
    );
}

/// It has frames in a table of its own: nothing but the protocol keeps it from a stale access.
const STRICT: &[GpuConfig] = &[GpuConfig {
    reach: Reach::Frames,
    ..SMALL
}];

#[test]
fn flt_2_a_small_device_with_a_table_of_frames() {
    mixed(
        4_000,
        Mix {
            gpus: STRICT,
            ..mix(&[ACCESSES, WHOLES, &[Discard, Protect, UnmapAndMap]])
        },
    );
}

#[test]
fn mig_4_and_5_announced_changes_at_any_moment() {
    mixed(4_000, mix(&[ACCESSES, WHOLES, ANNOUNCED]));
}

#[test]
fn wld_3_the_kernel_swaps_collapses_and_splits_at_any_moment() {
    mixed(4_000, mix(&[ACCESSES, WHOLES, KERNEL, &[Fork]]));
}

#[test]
fn mig_10_two_small_devices_and_announced_changes() {
    const OTHER: GpuConfig = GpuConfig {
        memory_pages: 3,
        ..GpuConfig::named("other gpu")
    };
    mixed(
        2_000,
        Mix {
            gpus: &[SMALL, OTHER],
            ..mix(&[ACCESSES, ANNOUNCED, KERNEL])
        },
    );
}

#[test]
fn prf_4_steps_of_the_kernel_fail_at_any_moment() {
    mixed(4_000, mix(&[ACCESSES, ANNOUNCED, KERNEL, &[Fail, Fail, Fail]]));
}

#[test]
fn life_3_and_7_the_device_or_the_address_space_goes_at_any_moment() {
    mixed(4_000, mix(&[ACCESSES, ACCESSES, ENDS, &[Fork, Fail]]));
}

/// Nothing but the protocol keeps such a device from frames that are gone: it must have stopped before changes pass it by (MIR-5).
#[test]
fn life_2_and_3_a_device_with_a_table_of_frames_goes_while_pages_change() {
    mixed(
        4_000,
        Mix {
            gpus: STRICT,
            ..mix(&[ACCESSES, ENDS, &[Discard, UnmapAndMap]])
        },
    );
}

#[test]
fn mig_5_contents_dropped_past_isomem_stay_dropped() {
    mixed(
        4_000,
        Mix {
            apart: true,
            ..mix(&[CPU, &[Migrate, Home, LateDiscard]])
        },
    );
}

/// What a device hears of too late it gets wrong; but everything ends, and nothing is left.
#[test]
fn mig_5_changes_past_isomem_at_any_moment_leave_nothing_behind() {
    let mix = mix(&[ACCESSES, ANNOUNCED, KERNEL, LATE]);
    explore_before(apart_from_contents, times(4_000), move |journal, number| {
        tell(mix, journal, number);
    });
}

/// Reads of what both sides have, and now and then a write.
const READS: &[Do] = &[CpuRead, CpuReadWhole, GpuRead, GpuReadWhole, CpuRead, GpuRead, Migrate];

/// All pages are read mostly.
const fn shared(what: &'static [&'static [Do]]) -> Mix {
    Mix {
        usage: Advice::ReadMostly,
        ..mix(what)
    }
}

#[test]
fn mig_12_what_is_read_mostly_amid_announced_changes_and_the_kernels() {
    mixed(4_000, shared(&[READS, ACCESSES, WHOLES, ANNOUNCED, KERNEL]));
}

#[test]
fn mig_12_what_is_read_mostly_by_a_device_with_a_table_of_frames() {
    mixed(
        4_000,
        Mix {
            gpus: STRICT,
            ..shared(&[READS, ACCESSES, WHOLES, &[Discard, Protect, UnmapAndMap]])
        },
    );
}

#[test]
fn mig_12_what_is_read_mostly_by_two_small_devices_that_take_it() {
    const TAKING: GpuConfig = GpuConfig {
        placement: Placement::OnTouch,
        ..SMALL
    };
    const OTHER: GpuConfig = GpuConfig {
        name: "other gpu",
        ..TAKING
    };
    mixed(
        4_000,
        Mix {
            gpus: &[TAKING, OTHER],
            ..shared(&[READS, ACCESSES, WHOLES, ANNOUNCED])
        },
    );
}

#[test]
fn mig_12_what_is_read_mostly_while_steps_fail_and_devices_go() {
    mixed(
        4_000,
        shared(&[READS, READS, ACCESSES, ENDS, &[Fork, Fail, Fail, Fail, Fail]]),
    );
}

/// As `mig_5_changes_past_isomem_at_any_moment_leave_nothing_behind`.
#[test]
fn mig_12_what_is_read_mostly_is_changed_past_isomem_and_nothing_is_left() {
    let mix = shared(&[READS, ACCESSES, ANNOUNCED, KERNEL, LATE]);
    explore_before(apart_from_contents, times(4_000), move |journal, number| {
        tell(mix, journal, number);
    });
}
