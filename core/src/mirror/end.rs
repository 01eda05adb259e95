//! How a mirror ends: the device is released, its entries go, and only then do invalidations pass it by.
//!
//! # Invariants
//! - MIR-1, MIR-3 and MIR-5 as stated in [`mirror`](super).
//!
//! # Locking
//! `release` for single looks and changes; nothing while the device's callback runs.
//!
//! ```text
//! thread that ends the mirror              invalidating thread
//! released = true; the device stops        start: entries go, the device flushes
//! update { zap everything }                end
//! the subscription dies                    start: passes it by, for there is nothing to erase
//! ```
//!
//! Linux: mmu_notifier_unregister, which calls `release` before it takes the subscription off the list.

use crate::addr::PageRange;
use crate::device::Device;
use crate::mirror::{Mirror, MirrorState};
use crate::mm::Shared;
use crate::notifier::{Deferred, Here, Inside, Subscription, in_callback};
use crate::sync::Ordering;
use crate::world::World;

/// Where the release of the device stands.
pub(super) enum Release {
    Pending,
    /// The device's callback runs, on this thread.
    Runs(Here),
    /// It has returned; the table is to be emptied, by whoever is first.
    Stopped,
    Empties,
    Over,
}

/// The device's callback runs. Also when it panics it is over: others may wait for it.
struct Running<'a, W: World, D: Device>(&'a MirrorState<W, D>);

impl<W: World, D: Device> Drop for Running<'_, W, D> {
    fn drop(&mut self) {
        self.0.set_release(Release::Stopped);
    }
}

impl<W: World, D: Device> MirrorState<W, D> {
    fn set_release(&self, release: Release) {
        *self.release.lock() = release;
        self.release_over.notify_all();
    }

    /// The first of exit, unregister and failure releases the device (MIR-1); the others wait until it has returned (MIR-3), but for one
    /// that is inside it and would wait for itself. Afterwards the table is empty, and stays so (MIR-5).
    ///
    /// The device's callback runs on the calling thread: what it waits for may need the threads that jobs run on. For the same reason nobody
    /// should wait here on one of those for longer than the table takes.
    pub(super) fn release_once(this: &Shared<W, Self>) -> Result<(), Inside> {
        let here = Here::now();
        let mut release = this.release.lock();
        loop {
            match *release {
                Release::Pending => break,
                Release::Runs(thread) if thread == here => return Err(Inside::Release),
                Release::Runs(_) => release = this.release_over.wait(release),
                Release::Stopped | Release::Empties | Release::Over => {
                    drop(release);
                    Self::empty(this);
                    return Ok(());
                }
            }
        }
        *release = Release::Runs(here);
        drop(release);
        let running = Running(this);
        this.released.store(true, Ordering::Release);
        this.device.release();
        drop(running);
        Self::empty(this);
        Ok(())
    }

    /// Empties the table, or waits until it is. Not on the program's stack, which may be away: who brings it home needs the same lock. Whoever
    /// waits for this is on a thread that can do it, so it need not wait for a thread to become free.
    fn empty(this: &Shared<W, Self>) {
        let state = this.clone();
        this.mm.off_stack(move || {
            let mut release = state.release.lock();
            while matches!(*release, Release::Empties) {
                release = state.release_over.wait(release);
            }
            if !matches!(*release, Release::Stopped) {
                return;
            }
            *release = Release::Empties;
            drop(release);
            let update = state.lock_update();
            state.zap(PageRange::ALL);
            drop(update);
            state.set_release(Release::Over);
        });
    }
}

impl<W: World, D: Device> Mirror<W, D> {
    /// Ends the mirror (LIFE-2). After it returned no callback runs and none will; `release` has been called once. From inside a
    /// callback it is deferred, and the token says when it is done (LIFE-8); until then the device is told of changes as before.
    #[doc(alias = "hmm_mirror_unregister")]
    #[doc(alias = "mmu_interval_notifier_remove")]
    pub fn unregister(mut self) -> Result<(), Deferred<W::Meta>> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Deferred<W::Meta>> {
        let Some(subscription) = self.subscription.take() else {
            return Ok(());
        };
        if !self.state.mm.world().is_current() {
            // A fork's child: the threads that callbacks run on are not here, so there is nothing to wait for (LIFE-6).
            core::mem::forget(subscription);
            self.state.memory.mirrors.fetch_sub(1, Ordering::AcqRel);
            return Ok(());
        }
        let ended = self.end_subscription(subscription);
        self.state.memory.unlisten(&self.subscriber);
        // AcqRel pairs with the Acquire in `DeviceHandle::unregister`: who sees the count at 0 sees the callbacks returned.
        self.state.memory.mirrors.fetch_sub(1, Ordering::AcqRel);
        ended
    }

    /// The device stops first, while it is still told of changes (MIR-5). Where that cannot be waited for, nothing ends yet.
    fn end_subscription(&self, subscription: Subscription<W::Meta>) -> Result<(), Deferred<W::Meta>> {
        if in_callback() {
            return Err(subscription.defer(Inside::Callback));
        }
        let mm = &self.state.mm;
        let (asked, here) = (mm.clone(), Here::now());
        if let Err(inside) = mm.off_stack(move || asked.notifier.outside(here)) {
            return Err(subscription.defer(inside));
        }
        if let Err(inside) = MirrorState::<W, D>::release_once(&self.state) {
            return Err(subscription.defer(inside));
        }
        mm.off_stack(move || subscription.unsubscribe())
    }
}

impl<W: World, D: Device> Drop for Mirror<W, D> {
    fn drop(&mut self) {
        // A deferred end completes when the device is unregistered or the address space exits, whichever is first.
        let _ = self.end();
    }
}
