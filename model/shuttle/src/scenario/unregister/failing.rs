//! Three designs of a device's list of mirrors, in the order in which one leads to the next.

use std::sync::atomic::AtomicBool as Flag;
use std::sync::atomic::Ordering;

use isomem_sim::journal::{Event, Journal};
use isomem_sim::sync::{AtomicUsize, Condvar, Mutex};

use super::two_step_mutex::TwoStepMutex;
use super::{Busy, DEVICE, Driver, HMM, Hmm};

/// A mirror's release: the first who comes calls it, others wait until it is over.
struct Release {
    driver: Driver,
    stage: Mutex<Stage>,
    over: Condvar,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Live,
    Releasing,
    Released,
}

impl Release {
    fn new(driver: Driver) -> Self {
        Self {
            driver,
            stage: Mutex::new("mirror stage", Stage::Live),
            over: Condvar::new("mirror is released"),
        }
    }

    fn once(&self) {
        let mut stage = self.stage.lock();
        if *stage == Stage::Live {
            *stage = Stage::Releasing;
            drop(stage);
            self.driver.release();
            stage = self.stage.lock();
            *stage = Stage::Released;
            self.over.notify_all();
        }
        while *stage != Stage::Released {
            stage = self.over.wait(stage);
        }
    }
}

/// A device is idle when its list of mirrors is empty. Release is called with no lock held, as it must be, and so after the mirror was taken
/// off the list: closing the mirror waits for it, unregistering the device does not.
pub(super) struct OffTheListFirst {
    release: Release,
    /// Mirrors in the device's list.
    list: Mutex<usize>,
}

impl OffTheListFirst {
    fn kill(&self) {
        *self.list.lock() = 0;
        self.release.once();
    }
}

impl Hmm for OffTheListFirst {
    fn new(driver: Driver, _: &Journal) -> Self {
        Self {
            release: Release::new(driver),
            list: Mutex::new("device list", 1),
        }
    }

    fn exit(&self) {
        self.kill();
    }

    fn unregister_mirror(&self) {
        self.kill();
    }

    fn unregister_device(&self) -> Result<(), Busy> {
        if *self.list.lock() > 0 {
            return Err(Busy);
        }
        Ok(())
    }
}

/// So release is called first, and under the device's mutex the mirror is taken off the list only then. Whoever finds the list empty under that mutex may
/// free the device: nobody needs the mutex any more. But the thread that emptied it may not have returned from unlocking it.
pub(super) struct FreedUnderUnlock {
    journal: Journal,
    release: Release,
    /// The address space's own lock: whether the mirror is registered there.
    registered: Mutex<bool>,
    /// The device's structure: its mutex, and how many mirrors its list has.
    mutex: TwoStepMutex,
    mirrors: Mutex<usize>,
}

impl FreedUnderUnlock {
    fn kill(&self) {
        let mut registered = self.registered.lock();
        if core::mem::replace(&mut *registered, false) {
            self.mutex.with(|| {
                self.release.once();
                *self.mirrors.lock() = 0;
            });
        }
    }
}

impl Hmm for FreedUnderUnlock {
    fn new(driver: Driver, journal: &Journal) -> Self {
        journal.record(Event::Opened { what: DEVICE.into() });
        Self {
            journal: journal.clone(),
            release: Release::new(driver),
            registered: Mutex::new("mm mirrors", true),
            mutex: TwoStepMutex::new(DEVICE, journal),
            mirrors: Mutex::new("device list", 1),
        }
    }

    fn exit(&self) {
        self.kill();
    }

    fn unregister_mirror(&self) {
        self.kill();
    }

    fn unregister_device(&self) -> Result<(), Busy> {
        if self.mutex.with(|| *self.mirrors.lock() > 0) {
            return Err(Busy);
        }
        self.journal.note("The device's list is empty: the device is freed.");
        self.journal.record(Event::Closed { what: DEVICE.into() });
        Ok(())
    }
}

/// The state of an address space counts its users: the address space itself, and each mirror. Exit marks the mirror as dead and drops the
/// address space's reference; closing a live mirror drops the mirror's.
pub(super) struct ReferenceKept {
    journal: Journal,
    release: Release,
    dead: Flag,
    references: AtomicUsize,
    registered: Mutex<bool>,
}

impl ReferenceKept {
    fn put(&self) {
        if self.references.fetch_sub(1, std::sync::atomic::Ordering::AcqRel) == 1 {
            self.journal.record(Event::Closed { what: HMM.into() });
        }
    }
}

impl Hmm for ReferenceKept {
    fn new(driver: Driver, journal: &Journal) -> Self {
        journal.record(Event::Opened { what: HMM.into() });
        Self {
            journal: journal.clone(),
            release: Release::new(driver),
            dead: Flag::new(false),
            references: AtomicUsize::new(2),
            registered: Mutex::new("device list", true),
        }
    }

    fn exit(&self) {
        self.dead.store(true, Ordering::Release);
        self.release.once();
        *self.registered.lock() = false;
        self.put();
    }

    fn unregister_mirror(&self) {
        // Closing waits for a release that runs. What is dead has left its address space.
        self.release.once();
        *self.registered.lock() = false;
        if !self.dead.load(Ordering::Acquire) {
            self.put();
        }
    }

    fn unregister_device(&self) -> Result<(), Busy> {
        if *self.registered.lock() {
            return Err(Busy);
        }
        Ok(())
    }
}
