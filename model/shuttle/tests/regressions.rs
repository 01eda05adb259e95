//! Stories that the core did not survive when they were first told. Each must hold now.

use std::sync::atomic::{AtomicBool as Flag, Ordering as Plain};
use std::sync::{Arc, Mutex, PoisonError};

use allocator_api2::alloc::Global;
use isomem_check::explore::{Budget, explore};
use isomem_check::scenario::{Design, Run};
use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::device::Device;
use isomem_core::mirror::{DeviceHandle, Mirror};
use isomem_core::mm::{MemoryConfig, MemoryKind, Mm};
use isomem_core::notifier::{Answer, CallbackScope, Cause, Invalidation, Notifier, Outcome, Subscriber, Subscription};
use isomem_sim::checker::Verdict;
use isomem_sim::journal::{Event, Journal, Name};
use isomem_sim::kernel::{Errno, Kernel, Site};
use isomem_sim::rig::{Config, Rig, TAKING_GPU};
use isomem_sim::sync::{AtomicBool, Ordering, thread};
use isomem_sim::world::SimWorld;

fn must_hold(design: &'static Design) {
    let budget = Budget {
        iterations: 10_000,
        seed: 1,
        time: None,
    };
    let explored = explore(design, &budget).unwrap_or_else(|fickle| panic!("{fickle:?}"));
    if let Some(found) = explored.found {
        let sentence = found.record.finding.map(|finding| finding.sentence);
        panic!("{}: {}", sentence.unwrap_or_default(), found.choices);
    }
}

/// A driver that closes its mirror inside a callback, so that the end is deferred (LIFE-8).
struct Closing {
    journal: Journal,
    subscription: Mutex<Option<Subscription<Global>>>,
    closed: AtomicBool,
}

impl Subscriber for Closing {
    fn start(&self, _: &Invalidation, _: &CallbackScope<'_>) {
        let (subscriber, pass) = ("gpu", 1);
        self.journal.record(Event::Start { subscriber, pass });
        let subscription = self.subscription.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(subscription);
        self.closed.store(true, Ordering::Release);
        thread::yield_now();
    }

    fn try_start(&self, invalidation: &Invalidation, scope: &CallbackScope<'_>) -> Answer {
        self.start(invalidation, scope);
        Answer::Done
    }

    fn end(&self, _: &Invalidation, _: Outcome, _: &CallbackScope<'_>) {
        let (subscriber, pass) = ("gpu", 1);
        self.journal.record(Event::End { subscriber, pass });
    }

    fn release(&self) {
        self.journal.record(Event::Release { mirror: "gpu" });
    }
}

fn deferred_against_exit(run: &Run) {
    let notifier = Notifier::<Global>::new().expect("the heap is large");
    let gpu = Arc::new(Closing {
        journal: run.journal.clone(),
        subscription: Mutex::new(None),
        closed: AtomicBool::new(false),
    });
    let subscriber: Arc<dyn Subscriber> = gpu.clone();
    let subscription = notifier
        .subscribe(PageRange::ALL, subscriber)
        .expect("the heap is large");
    *gpu.subscription.lock().unwrap_or_else(PoisonError::into_inner) = Some(subscription);

    let passing = notifier.clone();
    let program = run.spawn("program", move || {
        let page = PageRange::new(PAGE_SIZE, PAGE_SIZE).expect("one page");
        let guard = passing
            .invalidate(page, Cause::Clear, None)
            .expect("not inside a callback");
        thread::yield_now();
        guard.commit();
    });
    let exiting = notifier.clone();
    let exit = run.spawn("exit", move || exiting.exit().expect("not inside a callback"));
    let (closed, journal) = (gpu.clone(), run.journal.clone());
    let unload = run.spawn("unload", move || {
        if closed.closed.load(Ordering::Acquire) {
            notifier.finish_deferred();
            journal.record(Event::Unregistered { mirror: "gpu" });
        }
    });
    for thread in [program, exit, unload] {
        thread.join().expect("no thread of the story panics");
    }
    drop(gpu.subscription.lock().unwrap_or_else(PoisonError::into_inner).take());
}

static DEFERRED: Design = Design {
    name: "deferred",
    about: "A mirror is closed inside its own callback.",
    expected: Verdict::Holds,
    story: deferred_against_exit,
};

#[test]
fn life_8_finish_deferred_waits_also_for_what_exit_took() {
    must_hold(&DEFERRED);
}

struct Side {
    name: Name,
    journal: Journal,
    released: Arc<Flag>,
}

impl Device for Side {
    fn invalidate(&self, _: &Invalidation, _: &CallbackScope<'_>) {}

    fn try_invalidate(&self, _: &Invalidation, _: &CallbackScope<'_>) -> Answer {
        Answer::Done
    }

    fn release(&self) {
        let mirror = self.name;
        self.journal.record(Event::Release { mirror });
        thread::yield_now();
        // Still inside.
        self.journal.record(Event::Callback { mirror });
        self.released.store(true, Plain::Relaxed);
    }
}

fn open(device: &DeviceHandle<SimWorld>, run: &Run, name: Name) -> (Mirror<SimWorld, Side>, Arc<Flag>) {
    let released = Arc::new(Flag::new(false));
    let side = Side {
        name,
        journal: run.journal.clone(),
        released: released.clone(),
    };
    (device.mirror(Arc::new(side)).expect("the device is there"), released)
}

fn register(run: &Run) -> Arc<DeviceHandle<SimWorld>> {
    let process = Kernel::new(&run.journal).process();
    let mm = Mm::new(SimWorld::new(&process)).expect("the heap is large");
    let memory = MemoryConfig {
        name: "gpu",
        capacity_bytes: PAGE_SIZE,
        mirror_budget_bytes: None,
        kind: MemoryKind::Private,
    };
    Arc::new(mm.register(memory).expect("there is room for a device"))
}

fn failure_against_close(run: &Run) {
    let device = register(run);
    let (first, _) = open(&device, run, "first");
    let (second, released) = open(&device, run, "second");
    let fail = run.spawn("unplug", move || device.fail());
    let close = run.spawn("close", move || first.unregister().expect("not inside a callback"));
    let _stuck = fail.join().expect("no thread of the story panics");
    if !released.load(Plain::Relaxed) {
        let sentence = "The device has failed, and the second mirror was never released.";
        run.journal.found(Verdict::ReleaseCount, sentence);
    }
    close.join().expect("no thread of the story panics");
    second.unregister().expect("not inside a callback");
}

static FAILURE: Design = Design {
    name: "failure",
    about: "A device fails while one of its two mirrors is closed.",
    expected: Verdict::Holds,
    story: failure_against_close,
};

#[test]
fn life_7_a_failing_device_releases_every_mirror_also_while_one_is_closed() {
    must_hold(&FAILURE);
}

fn close_inside_failure(run: &Run) {
    let device = register(run);
    let (mirror, _) = open(&device, run, "gpu");
    let fail = run.spawn("unplug", move || device.fail());
    mirror.unregister().expect("not inside a callback");
    run.journal.record(Event::Unregistered { mirror: "gpu" });
    let _stuck = fail.join().expect("no thread of the story panics");
}

static INSIDE: Design = Design {
    name: "inside",
    about: "A mirror is closed while its device fails, and so while another thread is inside its release.",
    expected: Verdict::Holds,
    story: close_inside_failure,
};

#[test]
fn life_2_unregister_waits_for_a_release_that_the_device_s_failure_called() {
    must_hold(&INSIDE);
}

/// A device thread that holds a stale pin waits in the device's memory for its page. A page that has to be copied there is there from the copy on, while the
/// program still reads its own: the device goes on at once, and the program does not see what it wrote.
fn copied_under_a_stale_pin(run: &Run) {
    let rig = Rig::with(
        &run.journal,
        Config {
            pages: 1,
            gpus: TAKING_GPU,
        },
    );
    rig.cpu_write(0, 0, 7);
    rig.gpu_write(0, 1, 11);
    // The first move is that of the CPU's fault. The way back to the device must be a copy, as where the program has locked the memory meanwhile.
    rig.kernel().fail_nth(Site::Move, 1, Errno::INVAL);
    let (program, gpu) = (rig.clone(), rig.clone());
    let cpu = run.spawn("cpu", move || program.cpu_write(0, 0, 8));
    let device = run.spawn("device", move || gpu.gpu_write(0, 1, 12));
    device.join().expect("no thread of the story panics");
    rig.cpu_read(0, 1);
    cpu.join().expect("no thread of the story panics");
    rig.shut_down();
}

static COPIED: Design = Design {
    name: "copied",
    about: "A page is called back for a device that waits for it with a stale pin, and must be copied.",
    expected: Verdict::Holds,
    story: copied_under_a_stale_pin,
};

#[test]
fn mig_3_a_page_that_is_copied_out_is_not_reached_before_its_source_is_gone() {
    must_hold(&COPIED);
}

fn exit_against_migration(run: &Run) {
    let rig = Rig::new(&run.journal, 1);
    rig.cpu_write(0, 0, 7);
    let sender = rig.clone();
    let migrate = run.spawn("migrate", move || sender.migrate(0, 1));
    rig.exit();
    migrate.join().expect("no thread of the story panics");
    if rig.process().frame_at(rig.page(0)).is_none() {
        let sentence = "The address space has exited, and a page is still on the device.";
        run.journal.found(Verdict::DeadAddressSpace, sentence);
    }
    rig.shut_down();
}

static EXIT: Design = Design {
    name: "exit",
    about: "An address space exits while a page is sent to a device.",
    expected: Verdict::Holds,
    story: exit_against_migration,
};

#[test]
fn life_3_no_page_leaves_home_once_exit_has_brought_them_there() {
    must_hold(&EXIT);
}
