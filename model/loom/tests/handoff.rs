//! Under every schedule: who meets a page in transit goes on when it has settled, and sees what the mover did.
//!
//! The first half runs the core as it ships, from the fault down to the block's lock, in a small world; the second half is the protocol by hand,
//! with the planted bugs that the checker must catch. A thread that nobody wakes is a deadlock to loom.
//!
//! Bounds: 2 threads with up to 4 preemptions, or 3 threads with up to 2, on 3 pages of one block; the protocol by hand has 3 threads and no bound.

use std::sync::Arc;

use isomem_core::addr::PageRange;
use isomem_core::mirror::{DeviceHandle, Mirror};
use isomem_core::mm::{MemoryConfig, MemoryKind, Mm};
use isomem_core::world::Metadata;
use isomem_loom::ModelHeap;
use isomem_loom::world::{ModelDevice, ModelWorld, PAGES, Place, Trouble};
use loom::sync::{Condvar, Mutex, MutexGuard};
use loom::thread;

/// Most preemptions in a story of two threads.
const TWO_THREADS: usize = 4;
/// The same of three.
const THREE_THREADS: usize = 2;

fn check(preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 100_000;
    builder.check(model);
}

/// An address space with one device.
struct Machine {
    world: ModelWorld,
    mm: Mm<ModelWorld>,
    mirror: Mirror<ModelWorld, ModelDevice>,
    handle: DeviceHandle<ModelWorld>,
}

/// A step of a story's thread.
type Step = fn(&Machine);

fn pages() -> PageRange {
    PageRange::from_pages(0, PAGES).unwrap()
}

impl Machine {
    fn new(trouble: Trouble, device: ModelDevice) -> Self {
        let world = ModelWorld::new(trouble);
        let mm = Mm::new(world.clone()).unwrap();
        let config = MemoryConfig {
            name: "model",
            capacity_bytes: 1 << 21,
            mirror_budget_bytes: None,
            kind: MemoryKind::Private,
        };
        let handle = mm.register(config).unwrap();
        let mirror = handle.mirror(ModelHeap::share(device).unwrap()).unwrap();
        Self {
            world,
            mm,
            mirror,
            handle,
        }
    }

    /// All pages are on the device.
    fn away(trouble: Trouble, device: ModelDevice) -> Self {
        let machine = Self::new(trouble, device);
        machine.send();
        assert_eq!(machine.handle.memory_pages().0, PAGES);
        machine
    }

    fn send(&self) {
        self.mirror.migrate_to_device(pages()).unwrap();
    }

    fn call_home(&self) {
        self.mirror.migrate_home(pages()).unwrap();
    }

    fn touch(&self, page: usize) {
        self.world.touch(&self.mm, page);
    }
}

/// `steps` at the same time, the first on the model's own thread, on what `machine` makes; then `look`.
fn race(preemptions: usize, machine: fn() -> Machine, steps: &'static [Step], look: Step) {
    check(Some(preemptions), move || {
        let machine = Arc::new(machine());
        let others: Vec<_> = steps[1..]
            .iter()
            .map(|step| {
                let machine = machine.clone();
                thread::spawn(move || step(&machine))
            })
            .collect();
        steps[0](&machine);
        others.into_iter().for_each(|other| other.join().unwrap());
        look(&machine);
    });
}

fn all_home(machine: &Machine) {
    assert!((0..PAGES).all(|page| machine.world.is_home(page)), "BLK-2: not settled");
}

/// What holds when nothing is on its way any more.
fn at_rest(machine: &Machine) {
    all_home(machine);
    assert_eq!(machine.handle.memory_pages().0, 0, "MEM-1: nothing is on the device");
}

fn anything(_: &Machine) {}

#[test]
fn blk_4_a_fault_that_meets_its_page_on_the_way_home_goes_on() {
    race(
        TWO_THREADS,
        || Machine::away(Trouble::None, ModelDevice::Idle),
        &[Machine::call_home, |machine| machine.touch(1)],
        at_rest,
    );
}

#[test]
fn blk_4_a_fault_goes_on_where_the_mover_gives_up() {
    race(
        TWO_THREADS,
        || Machine::away(Trouble::RefusesHome(PAGES), ModelDevice::Idle),
        &[Machine::call_home, |machine| machine.touch(1)],
        |machine| assert!(machine.world.is_home(1)),
    );
}

#[test]
fn blk_4_a_fault_that_meets_its_page_on_the_way_out_goes_on() {
    race(
        TWO_THREADS,
        || Machine::new(Trouble::None, ModelDevice::Idle),
        &[Machine::send, |machine| machine.touch(1)],
        anything,
    );
}

#[test]
fn blk_4_of_two_faults_on_a_page_one_serves_both() {
    race(
        THREE_THREADS,
        || Machine::away(Trouble::None, ModelDevice::Idle),
        &[
            |machine| machine.touch(0),
            |machine| machine.touch(0),
            |machine| machine.touch(1),
        ],
        |machine| assert!(machine.world.is_home(0) && machine.world.is_home(1)),
    );
}

#[test]
fn blk_2_a_fault_leaves_a_neighbour_alone_that_is_on_its_way() {
    race(
        TWO_THREADS,
        || {
            let machine = Machine::away(Trouble::None, ModelDevice::Idle);
            // The fault on page 1 continues a stream, and so wants page 2 as well.
            machine.touch(0);
            machine
        },
        &[|machine| machine.touch(1), |machine| machine.touch(2)],
        at_rest,
    );
}

#[test]
fn blk_2_who_waited_for_pages_on_the_way_home_finds_them_there() {
    race(
        TWO_THREADS,
        || Machine::away(Trouble::None, ModelDevice::Idle),
        &[Machine::call_home, |machine| {
            machine.call_home();
            all_home(machine);
        }],
        at_rest,
    );
}

#[test]
fn blk_2_who_waited_for_pages_on_the_way_home_may_send_them_out() {
    race(
        TWO_THREADS,
        || Machine::away(Trouble::None, ModelDevice::Idle),
        &[Machine::call_home, Machine::send],
        anything,
    );
}

#[test]
fn blk_2_a_sender_and_two_who_call_home_take_turns() {
    race(
        THREE_THREADS,
        || Machine::away(Trouble::None, ModelDevice::Idle),
        &[Machine::call_home, Machine::send, Machine::call_home],
        anything,
    );
}

#[test]
fn blk_4_a_device_that_meets_a_page_in_transit_goes_on() {
    race(
        TWO_THREADS,
        || Machine::away(Trouble::None, ModelDevice::Stuck),
        &[Machine::call_home, |machine| machine.world.touch_arena(&machine.mm, 0)],
        anything,
    );
}

#[test]
#[should_panic(expected = "deadlock")]
fn planted_kernel_that_forgets_wakes_is_caught() {
    race(
        TWO_THREADS,
        || Machine::new(Trouble::ForgetsWakes, ModelDevice::Idle),
        &[Machine::send, |machine| machine.touch(1)],
        anything,
    );
}

/// The protocol by hand, with one page.
#[derive(Default)]
struct Bare {
    block: Mutex<Transit>,
    settled: Condvar,
    /// Times that the kernel was asked to wake who waits for the page.
    wakes: Mutex<usize>,
    woken: Condvar,
    /// What only one at a time may use: the mover, then each who waited for it.
    page: Place,
    /// The second one who waits.
    turns: Mutex<()>,
}

struct Transit {
    transit: bool,
    waiters: bool,
    sleepers: usize,
}

impl Default for Transit {
    fn default() -> Self {
        Self {
            transit: true,
            waiters: false,
            sleepers: 0,
        }
    }
}

impl Bare {
    fn lock(&self) -> MutexGuard<'_, Transit> {
        self.block.lock().unwrap()
    }

    /// Who waits at the block's lock.
    fn wait_settled(&self) {
        let mut state = self.lock();
        while state.transit {
            state.sleepers += 1;
            state = self.settled.wait(state).unwrap();
            state.sleepers -= 1;
        }
    }

    /// Who leaves word and waits in the kernel.
    fn fault(&self) {
        let queued = *self.wakes.lock().unwrap();
        let mut state = self.lock();
        if !state.transit {
            return;
        }
        state.waiters = true;
        drop(state);
        let mut wakes = self.wakes.lock().unwrap();
        while *wakes == queued {
            wakes = self.woken.wait(wakes).unwrap();
        }
    }

    fn wake(&self) {
        *self.wakes.lock().unwrap() += 1;
        self.woken.notify_all();
    }

    fn use_page(&self) {
        let _turn = self.turns.lock().unwrap();
        self.page.use_alone();
    }
}

/// A mover settles while one waits at the lock and one leaves word.
fn bare_race(settle: fn(&Bare)) {
    check(None, move || {
        let bare = Arc::new(Bare::default());
        let waits: [fn(&Bare); 2] = [Bare::wait_settled, Bare::fault];
        let others = waits.map(|wait| {
            let bare = bare.clone();
            thread::spawn(move || {
                wait(&bare);
                bare.use_page();
            })
        });
        bare.page.use_alone();
        settle(&bare);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

#[test]
fn blk_4_the_bare_protocol_holds() {
    bare_race(|bare| {
        let mut state = bare.lock();
        state.transit = false;
        let waiting = core::mem::take(&mut state.waiters);
        if state.sleepers > 0 {
            bare.settled.notify_all();
        }
        drop(state);
        if waiting {
            bare.wake();
        }
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn planted_settling_without_a_notification_is_caught() {
    bare_race(|bare| {
        let mut state = bare.lock();
        state.transit = false;
        let waiting = core::mem::take(&mut state.waiters);
        drop(state);
        if waiting {
            bare.wake();
        }
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn planted_looking_for_sleepers_before_settling_is_caught() {
    bare_race(|bare| {
        let sleepers = bare.lock().sleepers;
        let mut state = bare.lock();
        state.transit = false;
        let waiting = core::mem::take(&mut state.waiters);
        drop(state);
        if sleepers > 0 {
            bare.settled.notify_all();
        }
        if waiting {
            bare.wake();
        }
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn planted_reading_the_waiters_before_settling_is_caught() {
    bare_race(|bare| {
        let waiting = core::mem::take(&mut bare.lock().waiters);
        let mut state = bare.lock();
        state.transit = false;
        if state.sleepers > 0 {
            bare.settled.notify_all();
        }
        drop(state);
        if waiting {
            bare.wake();
        }
    });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn planted_settling_before_the_last_write_is_caught() {
    bare_race(|bare| {
        let mut state = bare.lock();
        state.transit = false;
        let waiting = core::mem::take(&mut state.waiters);
        if state.sleepers > 0 {
            bare.settled.notify_all();
        }
        drop(state);
        // What is still to be done to the page.
        bare.page.use_alone();
        if waiting {
            bare.wake();
        }
    });
}

#[test]
fn life_1_unregister_against_a_fault_in_its_last_steps() {
    check(Some(TWO_THREADS), || {
        let Machine {
            world,
            mm,
            mirror,
            handle,
        } = Machine::away(Trouble::None, ModelDevice::Idle);
        mirror.unregister().unwrap();
        let id = handle.id();
        let (touching, touched) = (world, mm.clone());
        let toucher = thread::spawn(move || touching.touch(&touched, 1));
        handle.unregister().unwrap();
        toucher.join().unwrap();
        let config = MemoryConfig {
            name: "next",
            capacity_bytes: 1 << 21,
            mirror_budget_bytes: None,
            kind: MemoryKind::Private,
        };
        assert_eq!(mm.register(config).unwrap().id(), id, "LIFE-1: still registered");
    });
}
