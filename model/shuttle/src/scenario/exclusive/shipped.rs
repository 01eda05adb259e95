//! The core's notifier on the small machine. Exclusive access itself is not in the core yet; what it will stand on is: passes, their owners, and
//! reads that go stale. The rest of this file is a sketch of it, so what holds here is the sketch together with the notifier.
//!
//! That the device is left out of its own pass spares it a callback, no more. What keeps it from throwing itself back is that it begins to
//! read when that pass is over: to the core a read is stale by any pass, whoever caused it.
//!
//! ```text
//! device                                   cpu, protect
//! start, for all but itself                .
//! takes the page from the CPU; end         .
//! begins to look                           start: stale; waits for the device's access
//! under the update lock: stale? again      .
//! loads, stores                            the CPU has its entry back; end
//! ```

use std::sync::Arc;

use allocator_api2::alloc::Global;
use isomem_core::addr::PageRange;
use isomem_core::notifier::{Answer, CallbackScope, Cause, Invalidation, Notifier, Owner, Subscriber, Subscription};
use isomem_sim::journal::{Actor, Event};
use isomem_sim::sync::Mutex;

use super::{Counter, PAGE, WANTED, WORD, tell};
use crate::scenario::Run;
use crate::scenario::machine::{Access, DEVICE, Entry, Machine};

pub(super) fn tell_story(run: &Run) {
    tell(run, Shipped::new(run));
}

const OWNER: Owner = Owner(1);

struct Mirror {
    machine: Machine,
    /// Held while the device's entry is set and used, or erased.
    update: Mutex<()>,
}

impl Subscriber for Mirror {
    fn owner(&self) -> Option<Owner> {
        Some(OWNER)
    }

    fn start(&self, _inv: &Invalidation, _scope: &CallbackScope<'_>) {
        let _update = self.update.lock();
        self.machine.unmap_device(PAGE);
    }

    fn try_start(&self, _inv: &Invalidation, _scope: &CallbackScope<'_>) -> Answer {
        let Some(_update) = self.update.try_lock() else {
            return Answer::Refused;
        };
        self.machine.unmap_device(PAGE);
        Answer::Done
    }
}

struct Shipped {
    machine: Machine,
    notifier: Notifier<Global>,
    mirror: Arc<Mirror>,
    _subscription: Subscription<Global>,
    /// Held while the CPU's entry changes.
    mapping: Mutex<()>,
}

fn page() -> PageRange {
    PageRange::from_pages(PAGE as usize + 1, 1).expect("one page")
}

impl Shipped {
    fn new(run: &Run) -> Self {
        let machine = Machine::new(&run.journal);
        let notifier = Notifier::new().expect("the heap is large");
        let mirror = Arc::new(Mirror {
            machine: machine.clone(),
            update: Mutex::new("mirror update", ()),
        });
        let subscriber: Arc<dyn Subscriber> = mirror.clone();
        let subscription = notifier.subscribe(page(), subscriber).expect("the heap is large");
        Self {
            machine,
            notifier,
            mirror,
            _subscription: subscription,
            mapping: Mutex::new("mapping", ()),
        }
    }

    /// Changes the CPU's entry, when everybody but `owner` was told.
    fn change(&self, cause: Cause, owner: Option<Owner>, change: impl FnOnce()) {
        let _mapping = self.mapping.lock();
        let guard = self
            .notifier
            .invalidate(page(), cause, owner)
            .expect("called from no callback");
        change();
        guard.commit();
    }
}

impl Counter for Shipped {
    fn device_add(&self) {
        let machine = &self.machine;
        let mut reader = self.notifier.read(page());
        loop {
            machine.journal().record(Event::Attempt { what: WANTED });
            self.change(Cause::Exclusive, Some(OWNER), || machine.map_cpu(PAGE, None));
            // Its own change is over, so only those of others make it stale.
            let read = reader.begin().expect("the story is short");
            let taken_back = machine.cpu_entry(PAGE).is_some();
            let update = self.mirror.update.lock();
            if taken_back || read.is_stale() {
                machine.journal().note("the page was taken back: starts again");
                drop(update);
                continue;
            }
            machine.journal().record(Event::Arrived { what: WANTED });
            let _ = machine.map_device(PAGE, Entry::to(machine.frame(PAGE)));
            let before = machine.access(DEVICE, PAGE, WORD, Access::Read).unwrap_or(0);
            machine.access(DEVICE, PAGE, WORD, Access::Write(before + 1));
            return;
        }
    }

    fn cpu_add(&self) {
        let machine = &self.machine;
        while machine.access(Actor::Cpu, PAGE, WORD, Access::Add(1)).is_none() {
            self.change(Cause::Exclusive, None, || {
                machine.map_cpu(PAGE, Some(Entry::to(machine.frame(PAGE))));
            });
        }
    }

    fn protect(&self) {
        // An entry that was taken from the CPU stays so: whoever touches the page gets it back by a fault.
        self.change(Cause::ProtectArea, None, || {
            if let Some(entry) = self.machine.cpu_entry(PAGE) {
                self.machine.map_cpu(PAGE, Some(entry));
            }
        });
    }

    fn total(&self) -> u64 {
        self.machine.word(PAGE, WORD)
    }
}
