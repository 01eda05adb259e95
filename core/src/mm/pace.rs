//! Keeps pages from going back and forth between the CPU and a device (MIG-13).
//!
//! A CPU fault is never refused or held up: what is on a device must come home. So it is the device's misses that are damped, and the evictions they
//! cause. A *turn* is a miss on a page sooner than [`ThrashPolicy::residency_ns`] after a fault, an eviction or another device took it. The first turns of a
//! block are free, for work that is handed over a few times; then a miss waits until the page has had its time at home (throttling); then the pages of the
//! block that are taken to and fro are mapped in place for a while. After that, and after a quiet time, counting begins anew.
//!
//! # Invariants
//! - PACE-1: of the pages of a block, turns send pages to devices [`ThrashPolicy::in_place_after`] - 1 times at most, and then not for
//!   [`ThrashPolicy::in_place_ns`]; a page that was at home for its residency may go again.
//! - PACE-2: a miss waits for [`ThrashPolicy::residency_ns`] at most, and then it is served.
//! - PACE-3: what is asked for by name is neither counted nor held up.
//!
//! # Locking
//! Part of what the block's lock guards. Nothing here allocates or waits; who is told to wait does so with no lock.
//!
//! ```text
//! CPU                                     device
//! touch: fault, the page comes home       .
//! .                                       miss: turn 1, 2: it goes
//! touch: fault, it comes home             miss: turn 3: waits, then it goes
//! touch: fault, it comes home             miss: turn 8: it stays, and is mapped
//! touch: no fault                         access: no miss
//! ```
//!
//! Counterpart: NVIDIA's UVM (uvm_perf_thrashing.c), by page and with other bounds. Linux has none.

use crate::addr::PageMask;
use crate::devmem::DeviceId;
use crate::migrate::home::Why;
use crate::mm::MmState;
use crate::mm::block::Block;
use crate::world::World;

/// When pages that go back and forth are left at home: the bounds of damping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThrashPolicy {
    /// How long a page that was taken from a device is left at home, once it went back and forth too often. A miss before that is a turn; 0 for no
    /// damping at all.
    pub residency_ns: u64,
    /// The number of the first turn that has to wait for that.
    pub throttle_after: u32,
    /// The number of the turn from which on pages are mapped in place.
    pub in_place_after: u32,
    /// For how long they are.
    pub in_place_ns: u64,
}

impl ThrashPolicy {
    /// No damping: each miss is served as the placement says.
    pub const OFF: Self = Self {
        residency_ns: 0,
        throttle_after: u32::MAX,
        in_place_after: u32::MAX,
        in_place_ns: 0,
    };

    /// Whether it does nothing.
    pub(crate) const fn is_off(&self) -> bool {
        self.residency_ns == 0
    }

    /// The turn at which a block is found to thrash.
    fn detected_after(&self) -> u32 {
        self.throttle_after.min(self.in_place_after)
    }
}

impl Default for ThrashPolicy {
    /// A way there and back costs some tens of microseconds. Half a millisecond at home keeps that below a tenth of the time; two hand-overs in such a
    /// time are ordinary (work is set up, started, looked at), seven are not; and the one burst of seven in a tenth of a second costs less
    /// than a hundredth.
    fn default() -> Self {
        Self {
            residency_ns: 500_000,
            throttle_after: 3,
            in_place_after: 8,
            in_place_ns: 100_000_000,
        }
    }
}

/// Residencies without a turn after which counting begins anew. More than one, because turns that wait are that far apart.
const QUIET: u64 = 8;

/// What becomes of a miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its page goes to the device.
    Go,
    /// The same, after so many nanoseconds.
    GoAfter(u64),
    /// It is mapped where it is.
    Stay,
}

/// A verdict, and whether it is the first that says that the block thrashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) verdict: Verdict,
    pub(crate) detected: bool,
}

/// How the pages of a block went to and fro of late.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Pages that were taken from a device within a residency of each other, up to `taken_ns`.
    taken: PageMask,
    taken_ns: u64,
    turns: u32,
    turned_ns: u64,
    /// When a miss sent pages last.
    sent_ns: u64,
    /// Until then the pages of `taken` stay at home.
    stay_until_ns: u64,
}

impl Pace {
    /// A CPU fault, an eviction or another device took `pages` from a device whose policy is this.
    pub(crate) fn took(&mut self, pages: PageMask, now_ns: u64, policy: &ThrashPolicy) {
        if pages.is_empty() || policy.is_off() {
            return;
        }
        if now_ns >= self.stay_until_ns && now_ns.saturating_sub(self.taken_ns) >= policy.residency_ns {
            self.taken = PageMask::NONE;
        }
        self.taken = self.taken.or(pages);
        self.taken_ns = now_ns;
    }

    /// A miss sent pages of the block.
    pub(crate) fn sent(&mut self, now_ns: u64) {
        self.sent_ns = now_ns;
    }

    /// What becomes of a miss on page `index`, which is not on the device.
    pub(crate) fn judge(&mut self, index: usize, now_ns: u64, policy: &ThrashPolicy) -> Judged {
        let judged = |verdict| Judged {
            verdict,
            detected: false,
        };
        if policy.is_off() || !self.taken.has(index) {
            return judged(Verdict::Go);
        }
        if now_ns < self.stay_until_ns {
            return judged(Verdict::Stay);
        }
        let since_taken = now_ns.saturating_sub(self.taken_ns);
        if since_taken >= policy.residency_ns {
            return judged(Verdict::Go);
        }
        if now_ns.saturating_sub(self.turned_ns) >= QUIET * policy.residency_ns {
            self.turns = 0;
        }
        self.turns += 1;
        self.turned_ns = now_ns;
        let detected = self.turns == policy.detected_after();
        let verdict = if self.turns >= policy.in_place_after {
            self.turns = 0;
            self.stay_until_ns = now_ns + policy.in_place_ns;
            Verdict::Stay
        } else if self.turns >= policy.throttle_after {
            Verdict::GoAfter(policy.residency_ns - since_taken)
        } else {
            Verdict::Go
        };
        Judged { verdict, detected }
    }

    /// Pages that stay at home for now.
    pub(crate) fn staying(&self, now_ns: u64) -> PageMask {
        if now_ns < self.stay_until_ns {
            self.taken
        } else {
            PageMask::NONE
        }
    }

    /// Pages that misses on their neighbours do not take along: the block thrashes, and they were taken from a device just now.
    pub(crate) fn held_back(&self, now_ns: u64, policy: &ThrashPolicy) -> PageMask {
        if self.turns >= policy.detected_after() && now_ns.saturating_sub(self.taken_ns) < policy.residency_ns {
            self.taken
        } else {
            PageMask::NONE
        }
    }

    /// Whether a miss on other memory should not make room here: the block thrashes, and its pages have just come.
    fn has_just_come(&self, now_ns: u64, policy: &ThrashPolicy) -> bool {
        self.turns >= policy.detected_after() && now_ns.saturating_sub(self.sent_ns) < policy.residency_ns
    }
}

impl<W: World> MmState<W> {
    /// See [`Pace::has_just_come`].
    pub(crate) fn has_just_come(&self, block: &Block<W::Meta>, policy: &ThrashPolicy) -> bool {
        if policy.is_off() {
            return false;
        }
        let now_ns = self.world().now_ns();
        block.lock().pace.has_just_come(now_ns, policy)
    }

    /// Notes that pages in transit were taken from a device, before they settle: a miss that waits for them is to find it noted.
    pub(crate) fn note_taken(&self, block: &Block<W::Meta>, device: DeviceId, why: Why, pages: PageMask) {
        if why == Why::Request || pages.is_empty() {
            return;
        }
        if let Some(memory) = self.memory(device).filter(|memory| !memory.thrash.is_off()) {
            let now_ns = self.world().now_ns();
            block.lock().pace.took(pages, now_ns, &memory.thrash);
        }
    }
}

#[cfg(test)]
mod tests;
