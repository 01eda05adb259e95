//! The kernel's own changes of a page table, told to subscribers of the core's notifier, as an in-kernel driver lives with them.
//!
//! The driver shadows a page table: it has frames in a table of its own, without references to them, so that nothing but the protocol keeps it from
//! a frame that went back to the kernel.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use allocator_api2::alloc::Global;
use isomem_core::addr::{BlockId, PageRange};
use isomem_core::notifier::{
    Answer, Attempt, Blocking, CallbackScope, Invalidation, Notifier, Outcome, Subscriber, Subscription,
};
use isomem_core::world::Access;
use isomem_sim::journal::{self, Actor, Event, Frame, Journal, Name};
use isomem_sim::kernel::{Change, Kernel, MmuNotifier, Op, Origin, Process, Reclaimed, Refused};
use isomem_sim::sync::{AtomicBool, Mutex, Ordering, thread};

use common::{Random, Times, explore, join, rounds};

const PAGES: usize = 3;
/// Number of the first.
const FIRST: usize = 512;
const OPERATIONS: usize = rounds(4, 300);

fn all() -> PageRange {
    PageRange::from_pages(FIRST, PAGES).unwrap()
}

fn one(page: usize) -> PageRange {
    PageRange::from_pages(page, 1).unwrap()
}

/// The core's notifier where the kernel's is.
struct Told(Notifier<Global>);

impl MmuNotifier for Told {
    fn start(&self, _: &Change) -> Result<(), Refused> {
        unreachable!("an invalidation is a guard, from start to end")
    }

    fn end(&self, _: &Change) {}

    fn around(&self, change: &Change, make: &mut dyn FnMut()) -> Result<(), Refused> {
        let guard = match change.blocking {
            Blocking::May => self
                .0
                .invalidate(change.range, change.cause, None)
                .map_err(|_| Refused)?,
            Blocking::Never => self
                .0
                .try_invalidate(change.range, change.cause, None)
                .map_err(|_| Refused)?,
        };
        make();
        guard.commit();
        Ok(())
    }

    fn release(&self) {
        let _ = self.0.exit();
    }
}

#[derive(Clone, Copy)]
struct Entry {
    frame: Frame,
    writable: bool,
}

/// The driver: a shadow of the program's page table.
struct Shadow {
    name: Name,
    process: Process,
    /// Held for single looks and accesses. A callback takes it.
    table: Mutex<BTreeMap<usize, Entry>>,
    released: AtomicBool,
    /// Passes that this thread is told the end of.
    passes: std::sync::Mutex<Vec<(thread::ThreadId, u64)>>,
    allocates: Allocates,
}

/// Where memory for the table is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Allocates {
    Before,
    /// A mistake: reclaim, which an allocation may have to do, calls back, and the callback takes the lock.
    UnderTheLock,
}

impl Shadow {
    fn journal(&self) -> &Journal {
        self.process.kernel().journal()
    }

    fn actor(&self) -> Actor {
        Actor::Device(self.name)
    }

    fn started(&self) {
        let pass = self.journal().next_pass();
        let subscriber = self.name;
        self.passes.lock().unwrap().push((thread::current().id(), pass));
        self.journal().record(Event::Start { subscriber, pass });
    }

    fn zap(&self, table: &mut BTreeMap<usize, Entry>, range: PageRange) {
        let pages: Vec<usize> = table
            .range(range.first_page()..range.end_page())
            .map(|(page, _)| *page)
            .collect();
        for page in pages {
            if let Some(Entry { frame, .. }) = table.remove(&page) {
                let (actor, page) = (self.actor(), page as u64);
                self.journal().record(Event::Taken { actor, page, frame });
            }
        }
    }

    /// An access of the device; `None` where it has no right to it, or the address space is gone.
    fn access(&self, notifier: &Notifier<Global>, page: usize, op: Op) -> Option<u64> {
        let access = op.access();
        loop {
            if self.released.load(Ordering::SeqCst) || self.journal().is_decided() {
                return None;
            }
            let table = self.table.lock();
            if let Some(entry) = table
                .get(&page)
                .filter(|entry| access == Access::Read || entry.writable)
            {
                let seen = self.process.kernel().dma(self.actor(), page, entry.frame, 0, op);
                return Some(seen);
            }
            drop(table);
            self.miss(notifier, page, access)?;
        }
    }

    fn miss(&self, notifier: &Notifier<Global>, page: usize, access: Access) -> Option<()> {
        let what = "to bring a page in";
        let missed = notifier.read(one(page)).retry_loop(|read| {
            // On plain threads the core is more patient than the checker.
            if cfg!(feature = "shuttle") {
                self.journal().record(Event::Attempt { what });
            }
            if self.allocates == Allocates::Before {
                self.process.kernel().allocate_may_sleep();
            }
            if self.process.touch(page, access).is_err() {
                return Attempt::Done(None);
            }
            let Some(frame) = self.process.frame_for(page, access) else {
                return Attempt::Retry;
            };
            let mut table = self.table.lock();
            if self.allocates == Allocates::UnderTheLock {
                self.process.kernel().allocate_may_sleep();
            }
            if read.is_stale() {
                return Attempt::Retry;
            }
            if self.released.load(Ordering::SeqCst) {
                return Attempt::Done(None);
            }
            let writable = access == Access::Write;
            table.insert(page, Entry { frame, writable });
            let (actor, page) = (self.actor(), page as u64);
            self.journal().record(Event::Mapped { actor, page, frame });
            Attempt::Done(Some(()))
        });
        self.journal().record(Event::Arrived { what });
        missed.ok().flatten()
    }
}

impl Subscriber for Shadow {
    fn start(&self, invalidation: &Invalidation, _: &CallbackScope<'_>) {
        self.started();
        let mut table = self.table.lock();
        self.zap(&mut table, invalidation.range);
    }

    fn try_start(&self, invalidation: &Invalidation, _: &CallbackScope<'_>) -> Answer {
        let Some(mut table) = self.table.try_lock() else {
            let (subscriber, pass) = (self.name, self.journal().next_pass());
            self.journal().record(Event::Refused { subscriber, pass });
            return Answer::Refused;
        };
        self.started();
        self.zap(&mut table, invalidation.range);
        Answer::Done
    }

    fn end(&self, _: &Invalidation, _: Outcome, _: &CallbackScope<'_>) {
        let here = thread::current().id();
        let mut passes = self.passes.lock().unwrap();
        let last = passes.iter().rposition(|(thread, _)| *thread == here).unwrap();
        let (_, pass) = passes.remove(last);
        let subscriber = self.name;
        self.journal().record(Event::End { subscriber, pass });
    }

    fn release(&self) {
        self.journal().record(Event::Release { mirror: self.name });
        self.released.store(true, Ordering::SeqCst);
        let mut table = self.table.lock();
        self.zap(&mut table, PageRange::ALL);
    }
}

/// A process, and two drivers that shadow it.
struct Machine {
    kernel: Kernel,
    process: Process,
    notifier: Notifier<Global>,
    shadows: [Arc<Shadow>; 2],
    subscriptions: std::sync::Mutex<Vec<Subscription<Global>>>,
}

impl Machine {
    fn new(journal: &Journal, allocates: Allocates) -> Arc<Self> {
        let kernel = Kernel::new(journal);
        let notifier = Notifier::new().unwrap();
        let process = kernel.process_with(Some(Arc::new(Told(notifier.clone()))));
        process.mmap_anonymous(all());
        let shadows = ["shadow", "other shadow"].map(|name| {
            Arc::new(Shadow {
                name,
                process: process.clone(),
                table: Mutex::new("shadow table", BTreeMap::new()),
                released: AtomicBool::new(false),
                passes: std::sync::Mutex::default(),
                allocates,
            })
        });
        let subscribe = |shadow: &Arc<Shadow>| notifier.subscribe(PageRange::ALL, shadow.clone()).unwrap();
        let subscriptions = shadows.iter().map(subscribe).collect();
        Arc::new(Self {
            kernel,
            process,
            notifier,
            shadows,
            subscriptions: std::sync::Mutex::new(subscriptions),
        })
    }

    fn spawn(self: &Arc<Self>, name: &str, body: impl FnOnce(&Self) + Send + 'static) -> thread::JoinHandle<()> {
        let machine = Arc::clone(self);
        journal::spawn(self.kernel.journal(), name, move || body(&machine))
    }

    fn finish(&self) {
        for page in FIRST..FIRST + PAGES {
            let _ = self.process.read(page, 0);
        }
        self.process.exit();
        let subscriptions = std::mem::take(&mut *self.subscriptions.lock().unwrap());
        for (subscription, shadow) in subscriptions.into_iter().zip(&self.shadows) {
            subscription.unsubscribe().unwrap();
            self.kernel
                .journal()
                .record(Event::Unregistered { mirror: shadow.name });
        }
    }

    fn cpu(&self, random: &mut Random, value: u64) {
        let page = FIRST + random.below(PAGES);
        match random.below(3) {
            0 => drop(self.process.read(page, 0)),
            1 => drop(self.process.write(page, 0, value)),
            _ => drop(self.process.add(page, 0, value)),
        }
    }

    fn device(&self, random: &mut Random, value: u64) {
        let shadow = &self.shadows[random.below(2)];
        let page = FIRST + random.below(PAGES);
        let op = [Op::Load, Op::Store(value), Op::Add(value)][random.below(3)];
        let _ = shadow.access(&self.notifier, page, op);
    }

    fn change(&self, random: &mut Random, value: u64) {
        let (page, process) = (FIRST + random.below(PAGES), &self.process);
        let block = BlockId::new(FIRST / 512).unwrap();
        match random.below(10) {
            0 => drop(process.reclaim(page)),
            1 => drop(process.shrink(page)),
            2 => process.collapse(block),
            3 => process.split(block),
            4 => drop(process.discard(one(page), Origin::Program)),
            5 => {
                let _ = process.protect(one(page), Some(Access::Read));
                let _ = process.protect(one(page), Some(Access::Write));
            }
            6 => {
                process.munmap(one(page), Origin::Program);
                process.mmap_anonymous(one(page));
            }
            7 => {
                let to = FIRST + random.below(PAGES);
                if process.mremap(one(page), one(to), Origin::Program).is_ok() {
                    process.mmap_anonymous(one(page));
                }
            }
            8 => self.fork(page, value),
            _ => drop(process.oom_reap()),
        }
    }

    fn fork(&self, page: usize, value: u64) {
        let child = self.process.fork(Origin::Program);
        for page in FIRST..FIRST + PAGES {
            let _ = child.read(page, 0);
        }
        let _ = child.write(page, 0, value);
        let _ = child.read(page, 0);
        child.exit();
    }
}

type Part = fn(&Machine, &mut Random, u64);

fn tell(journal: &Journal, number: u64, allocates: Allocates, parts: &'static [(&'static str, Part)]) {
    let machine = Machine::new(journal, allocates);
    let threads = parts.iter().enumerate().map(|(index, (name, part))| {
        machine.spawn(name, move |machine| {
            let mut random = Random::new(number ^ (index as u64) << 48);
            for round in 0..OPERATIONS {
                if machine.kernel.journal().is_decided() {
                    return;
                }
                part(machine, &mut random, common::value(index as u64, round));
            }
        })
    });
    join(threads.collect());
    machine.finish();
}

const TIMES: Times = Times {
    plain: 20,
    schedules: 8_000,
};

#[test]
fn wld_3_no_change_of_the_kernel_leaves_a_device_with_a_stale_frame() {
    explore(TIMES, |journal, number| {
        tell(
            journal,
            number,
            Allocates::Before,
            &[
                ("cpu", Machine::cpu),
                ("device", Machine::device),
                ("kernel", Machine::change),
            ],
        );
    });
}

#[test]
fn inv_9_two_devices_and_passes_that_do_not_wait() {
    fn reclaim(machine: &Machine, random: &mut Random, _: u64) {
        let page = FIRST + random.below(PAGES);
        match random.below(2) {
            0 => drop(machine.process.reclaim(page)),
            _ => drop(machine.process.oom_reap()),
        }
    }
    explore(TIMES, |journal, number| {
        tell(
            journal,
            number,
            Allocates::Before,
            &[
                ("device", Machine::device),
                ("other device", Machine::device),
                ("kernel", reclaim),
            ],
        );
    });
}

/// As in earnest, where an address space exits when its last thread is gone, only devices are still at work.
#[test]
fn life_3_exit_at_any_moment_leaves_no_device_on_a_dead_address_space() {
    fn exit(machine: &Machine, random: &mut Random, value: u64) {
        if random.below(3) == 0 {
            machine.process.exit();
        } else {
            machine.change(random, value);
        }
    }
    explore(TIMES, |journal, number| {
        tell(
            journal,
            number,
            Allocates::Before,
            &[
                ("device", Machine::device),
                ("other device", Machine::device),
                ("exit", exit),
            ],
        );
    });
}

/// What each of the kernel's own changes does, seen by the program alone.
#[test]
fn wld_3_contents_outlive_swap_collapse_and_split() {
    explore(Times { plain: 1, schedules: 1 }, |journal, _| {
        let machine = Machine::new(journal, Allocates::Before);
        let (process, block) = (&machine.process, BlockId::new(FIRST / 512).unwrap());
        process.write(FIRST, 0, 7).unwrap();
        assert_eq!(process.reclaim(FIRST), Ok(Reclaimed::Yes));
        assert_eq!(process.frame_at(FIRST), None, "it is on swap");
        assert_eq!(process.reclaim(FIRST), Ok(Reclaimed::No));
        assert_eq!(process.read(FIRST, 0), Ok(7));
        let before = process.frame_at(FIRST);
        process.collapse(block);
        assert_ne!(process.frame_at(FIRST), before, "the huge page is elsewhere");
        process.split(block);
        assert_eq!(process.read(FIRST, 0), Ok(7));
        assert_eq!(process.shrink(FIRST), Reclaimed::Yes);
        let child = process.fork(Origin::Program);
        assert_eq!(child.read(FIRST, 0), Ok(7));
        child.write(FIRST, 0, 8).unwrap();
        assert_eq!(process.read(FIRST, 0), Ok(7));
        assert_eq!(machine.shadows[0].access(&machine.notifier, FIRST, Op::Load), Some(7));
        assert_eq!(process.oom_reap(), 0);
        assert_eq!(process.read(FIRST, 0), Ok(0), "the reaper took it");
        child.exit();
        machine.finish();
    });
}

/// Planted: the checkers must see it in the first telling that does it, though it does not deadlock there.
#[cfg(feature = "shuttle")]
#[test]
fn prf_3_who_allocates_under_a_lock_that_its_callback_takes_is_found() {
    use isomem_sim::checker::Verdict;

    fn shrink(machine: &Machine, random: &mut Random, _: u64) {
        machine.process.shrink(FIRST + random.below(PAGES));
    }
    let finding = common::first_finding(200, |journal, number| {
        tell(
            journal,
            number,
            Allocates::UnderTheLock,
            &[("device", Machine::device), ("shrinker", shrink)],
        );
    });
    let finding = finding.expect("an order of locks that can deadlock");
    assert!(
        matches!(finding.verdict, Verdict::LockOrder | Verdict::Deadlock),
        "{finding:?}"
    );
    assert!(finding.sentence.contains("`reclaim`"), "{finding:?}");
    assert!(finding.sentence.contains("`shadow table`"), "{finding:?}");
}

/// Planted: a driver that keeps its entries when it is told to let go, and one that writes where it may only read.
#[test]
fn prf_3_a_kept_entry_and_a_write_to_the_page_of_zeroes_are_found() {
    use isomem_sim::checker::{self, Verdict};

    fn found(kept: Access, op: Op, then: fn(&Process)) -> Option<Verdict> {
        let journal = Journal::new(checker::all(), false);
        let kernel = Kernel::new(&journal);
        let process = kernel.process();
        process.mmap_anonymous(all());
        process.touch(FIRST, kept).unwrap();
        let frame = process.frame_for(FIRST, kept).unwrap();
        let (actor, page) = (Actor::Device("shadow"), FIRST as u64);
        journal.record(Event::Mapped { actor, page, frame });
        then(&process);
        kernel.dma(actor, FIRST, frame, 0, op);
        process.exit();
        journal.finish().finding.map(|finding| finding.verdict)
    }
    fn told() -> [Option<Verdict>; 3] {
        [
            found(Access::Write, Op::Load, |process| {
                let _ = process.reclaim(FIRST);
            }),
            found(Access::Read, Op::Store(1), |_| {}),
            found(Access::Write, Op::Store(1), |_| {}),
        ]
    }
    #[cfg(not(feature = "shuttle"))]
    let told = told();
    #[cfg(feature = "shuttle")]
    let told = {
        let (send, receive) = std::sync::mpsc::channel();
        let send = std::sync::Mutex::new(send);
        shuttle::check_random(move || send.lock().unwrap().send(told()).unwrap(), 1);
        receive.recv().unwrap()
    };
    assert_eq!(told, [Some(Verdict::StaleAccess), Some(Verdict::StaleAccess), None]);
}
