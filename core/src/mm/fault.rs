//! Serving faults: the CPU touched a page that is away, or a device touched one that went home.
//!
//! These run on the world's pager threads. They allocate nothing, wait for nobody but (briefly) the holder of a block's lock, and touch no
//! memory of the program.
//!
//! ```text
//! pager A                                  pager B, same page
//! lock: resident; transit = 1              .
//! zap, without waiting for pins            lock: in transit; waiters = 1
//! move home (wakes who waits)              .
//! lock: transit = 0                        .
//! wake what did not come                   .
//! ```
//!
//! Linux: do_swap_page on a device-private entry, dev_pagemap_ops.migrate_to_ram.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::addr::{BlockId, PAGE_SIZE, PAGES_PER_BLOCK, PageMask, VirtAddr};
use crate::devmem::{DeviceMemory, MemoryKind};
use crate::migrate::SkipReason;
use crate::migrate::duplicate::COPIES_MOST;
use crate::migrate::home::Why;
use crate::migrate::homeward::{Homeward, Which};
use crate::migrate::out::{Goal, Occasion, OutError, Sender};
use crate::mm::block::{Residency, arena_pages};
use crate::mm::{MmState, Preferred, Usage};
use crate::notifier::Cause;
use crate::stats::add;
use crate::world::{Access, Metadata, Stop, World};

/// What the CPU ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuFault {
    /// No page there.
    Missing(Access),
    /// A write to a page that is write-protected: while it is copied, or because a device has it, too.
    WriteProtected,
}

/// What became of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// The page is there; who waited goes on.
    Done,
    /// Somebody has the page in transit, and will wake who waits.
    InTransit,
    /// The page is at home. Only the thread that reads events may fill it, where it is a hole: [`MmState::fill_hole`].
    Hole,
    /// Not now: let the thread run into the fault again, after events were read.
    Again,
}

/// Attempts before a fault is given back for another try.
const ATTEMPTS: usize = 3;
/// Pause after a page could not be called back to a device for a reason that lasts: the access runs into the hole again at once.
const RECALL_PAUSE_NS: u64 = 50_000;

impl<W: World> MmState<W> {
    /// Serves a CPU fault at `addr`: brings the page home, and pages around it while access is sequential. Where the program advised so a read gets a copy,
    /// and the first write to that ends it (MIG-12).
    pub fn cpu_fault(&self, addr: VirtAddr, fault: CpuFault) -> Served {
        let began = self.world().now_ns();
        let id = BlockId::of(addr);
        let index = addr.get() / PAGE_SIZE - id.first_page();
        let Some(block) = self.blocks.get(id) else {
            return Served::Hole;
        };
        let said = self.said_of(id);
        let mut state = block.lock();
        if state.transit.has(index) {
            state.waiters.insert(index);
            add(&self.counters.cpu_faults_in_transit, 1);
            return Served::InTransit;
        }
        let Some(residency) = state.holding(index) else {
            return Served::Hole;
        };
        let device = residency.device;
        let Some(which) = answer_to(fault, residency, index, &said) else {
            drop(state);
            // It came while the fault was on its way here.
            self.world().wake(addr.page());
            return Served::Done;
        };
        let run = which.run_from(residency, index).expect("the page is resident");
        let window = self.streams.window(addr.get() / PAGE_SIZE);
        let want = said.around(which, fault, index..run.end.min(index + window));
        let Some(mut homeward) = Homeward::<W>::collect(block, &mut state, device, want, which) else {
            return Served::Again;
        };
        drop(state);
        self.streams.note(addr.get() / PAGE_SIZE, homeward.all().count());
        // First: the thread goes on as soon as its page is there, and finds its fault counted.
        add(&self.counters.cpu_faults, 1);
        let served = self.serve_home(&mut homeward, index);
        self.counters.cpu_fault_ns.record(self.world().now_ns() - began);
        served
    }

    fn said_of(&self, id: BlockId) -> Said {
        Said {
            shared: self.advice.pages_of(id, |said| said.usage == Usage::ReadMostly),
            alone: self
                .advice
                .pages_of(id, |said| matches!(said.preferred, Preferred::Device(_))),
        }
    }

    fn serve_home(&self, homeward: &mut Homeward<'_, W>, index: usize) -> Served {
        for _ in 0..ATTEMPTS {
            // Without waiting: a device that holds a pin may itself wait for this very thread.
            let Ok(guard) = self.notifier.try_invalidate(homeward.range(), Cause::Migrate, None) else {
                self.world().pause(1_000);
                continue;
            };
            if guard.fenced() {
                self.note_fenced(homeward);
            }
            let arrived = self.carry_home(homeward, PageMask::NONE, Why::Fault);
            guard.commit();
            return if arrived.serves(index) {
                Served::Done
            } else {
                Served::Again
            };
        }
        self.give_up(homeward);
        Served::Again
    }

    /// Serves a fault on a page that is at home: the program touched it for the first time, or it came home since. Only for the thread that
    /// reads the world's events, between two reads: then a change of the address space that it has not seen makes the kernel refuse.
    ///
    /// A block with nothing on a device is no longer tracked, so that its other pages fault natively; else the page gets zeroes.
    pub fn fill_hole(&self, addr: VirtAddr, fault: CpuFault) -> Served {
        // While this is held no page begins to leave, so what is found at home is still there when it is filled or unprotected. Without it the
        // page could have come home since it faulted, and leave again just before: then it would be in two places (BLK-1), or be written
        // while it is copied (MIG-3).
        let areas = self.lock_areas();
        let id = BlockId::of(addr);
        let (at_home, claims) = self.blocks.get(id).map_or((PageMask::FULL, false), |block| {
            let state = block.lock();
            (state.at_home(), state.has_claims())
        });
        if !at_home.has(addr.get() / PAGE_SIZE - id.first_page()) {
            drop(areas);
            return self.cpu_fault(addr, fault);
        }
        if fault == CpuFault::WriteProtected {
            // Left from a copy that ended; nobody else protects pages.
            return match self.world().write_protect(addr.page(), false) {
                Ok(()) => Served::Done,
                Err(_) => Served::Again,
            };
        }
        add(&self.counters.cpu_faults_untouched, 1);
        // Filling first: while an event is unread the kernel refuses to fill, but it would not refuse to stop tracking.
        let filled = self.world().fill_zero(addr.page());
        match filled.stop {
            None => {}
            Some(Stop::Exists) => self.world().wake(addr.page()),
            Some(_) => return Served::Again,
        }
        // What is claimed stays tracked, so that the kernel tells when the claim is void.
        if at_home.is_full() && !claims {
            // Left tracked where that fails: other pages then get their zeroes here, too.
            let _ = self.world().untrack(id.range());
        }
        Served::Done
    }

    /// Serves a device's access to an arena page that is not there: its page went home while the device held a pin on it. The page is
    /// called back; if it no longer exists anywhere, the access becomes an error.
    pub fn arena_fault(&self, addr: VirtAddr) -> Served {
        let arena_page = addr.get() / PAGE_SIZE;
        let Some(memory) = self.memory_at(arena_page) else {
            return Served::Again;
        };
        let Some(id) = memory.owner_of(arena_page) else {
            return self.lost(addr);
        };
        let index = (arena_page - memory.arena.first_page()) % PAGES_PER_BLOCK;
        let Some(block) = self.blocks.get(id) else {
            return self.lost(addr);
        };
        let mut state = block.lock();
        if state.transit.has(index) {
            state.arena_waiters = true;
            return Served::InTransit;
        }
        let Some(residency) = state.on(memory.id) else {
            drop(state);
            return self.lost(addr);
        };
        if residency.pages.has(index) {
            drop(state);
            // Not only woken: it may have waited for a copy to be opened, which could have failed before.
            self.world().open_copies(addr.page());
            return Served::Done;
        }
        let budget = residency.charge.clone();
        drop(state);
        let goal = match memory.kind {
            MemoryKind::Private => Goal::Memory,
            // The arena has only what was taken exclusively; so the access that came too late is an exclusive one.
            MemoryKind::Coherent => Goal::Exclusive,
        };
        let sender = Sender {
            goal,
            occasion: Occasion::Recall,
            ..Sender::new(&memory, &budget)
        };
        self.recall(&memory, &sender, id, index)
    }

    fn recall(&self, memory: &DeviceMemory<W::Meta>, sender: &Sender<'_, W>, id: BlockId, index: usize) -> Served {
        let page = id.pages(index..index + 1);
        match self.send(sender, page) {
            Ok(report) if report.migrated() + report.already > 0 => {
                add(&self.counters.recalls, 1);
                let Some(block) = self.blocks.get(id) else {
                    return Served::Again;
                };
                let Some(base) = block.lock().on(memory.id).map(|residency| residency.base_page) else {
                    return Served::Again;
                };
                self.world().wake_arena(arena_pages(base, index..index + 1));
                Served::Done
            }
            Ok(report) => match report.skips().first() {
                // Never again: the page is no more, or the device must not have it.
                Some((
                    _,
                    SkipReason::Hole
                    | SkipReason::NoAccess
                    | SkipReason::NotAnonymous
                    | SkipReason::Excluded
                    | SkipReason::ReadOnly
                    | SkipReason::DeviceFailed
                    | SkipReason::Exited,
                )) => {
                    let Some(block) = self.blocks.get(id) else {
                        return Served::Again;
                    };
                    let Some(base) = block.lock().on(memory.id).map(|residency| residency.base_page) else {
                        return Served::Again;
                    };
                    self.world().poison_arena(arena_pages(base, index..index + 1));
                    Served::Done
                }
                // Pinned for I/O, or it holds a thread's control block: that ends, but it can take long.
                Some((_, SkipReason::Pinned | SkipReason::ThreadBlock)) => {
                    self.world().pause(RECALL_PAUSE_NS);
                    Served::Again
                }
                _ => Served::Again,
            },
            Err(OutError::World(_) | OutError::Metadata(_)) => Served::Again,
        }
    }

    fn lost(&self, addr: VirtAddr) -> Served {
        self.world().poison_arena(addr.page());
        Served::Done
    }
}

/// What was said of the pages of a block, as far as it matters to a CPU's fault.
struct Said {
    /// They are read mostly: a read shares them.
    shared: PageMask,
    /// They are best on a device: they come home when they are touched themselves, and nothing comes with them.
    alone: PageMask,
}

impl Said {
    /// Which pages of `most` are served together with a fault on the first of them.
    fn around(&self, which: Which, fault: CpuFault, most: Range<usize>) -> PageMask {
        let all = PageMask::of(most.start, most.end);
        let only = PageMask::of(most.start, most.start + 1);
        let want = match (which, fault) {
            (Which::Copies, _) => all
                .and(self.shared)
                .and(PageMask::of(0, PAGES_PER_BLOCK.min(most.start + COPIES_MOST))),
            _ if self.alone.has(most.start) => only,
            // What is to be shared does not come along.
            (_, CpuFault::Missing(Access::Read)) => all.without(self.alone).without(self.shared),
            _ => all.without(self.alone),
        };
        let run = want.next_run(most.start).filter(|run| run.start == most.start);
        run.map_or(only, |run| PageMask::of(run.start, run.end))
    }
}

/// What a fault on page `index` of `residency` asks for; `None` where the page can be had already.
fn answer_to<M: Metadata>(fault: CpuFault, residency: &Residency<M>, index: usize, said: &Said) -> Option<Which> {
    let is_duplicate = residency.duplicates.has(index);
    let can_share = said.shared.has(index) && !residency.exclusive.has(index);
    match fault {
        CpuFault::WriteProtected if is_duplicate => Some(Which::Duplicates),
        CpuFault::Missing(_) if is_duplicate => None,
        CpuFault::Missing(Access::Read) if can_share => Some(Which::Copies),
        _ => Some(Which::Away),
    }
}

/// Sequential streams that are followed at the same time.
const STREAMS: usize = 8;

/// Finds sequential access, to bring in more than was asked for: a window that doubles with each fault that continues a stream, up to
/// a block, and is one page when access is random.
pub(crate) struct Streams {
    /// Page expected next, and the window in the low bits.
    slots: [AtomicU64; STREAMS],
    victim: AtomicU64,
}

const WINDOW_BITS: u32 = 10;
const WINDOW_MASK: u64 = (1 << WINDOW_BITS) - 1;

impl Streams {
    pub(crate) fn new() -> Self {
        Self {
            slots: [const { AtomicU64::new(0) }; STREAMS],
            victim: AtomicU64::new(0),
        }
    }

    fn slot(&self, page: usize) -> Option<&AtomicU64> {
        self.slots
            .iter()
            .find(|slot| slot.load(Relaxed) >> WINDOW_BITS == page as u64)
    }

    /// Pages to bring in at a fault on `page`.
    pub(crate) fn window(&self, page: usize) -> usize {
        let Some(slot) = self.slot(page) else { return 1 };
        (2 * (slot.load(Relaxed) & WINDOW_MASK) as usize).clamp(1, PAGES_PER_BLOCK)
    }

    /// Notes that `count` pages from `page` were brought in.
    pub(crate) fn note(&self, page: usize, count: usize) {
        let window = (count as u64).min(PAGES_PER_BLOCK as u64);
        let entry = ((page + count) as u64) << WINDOW_BITS | window;
        let slot = self.slot(page).unwrap_or_else(|| {
            let victim = self.victim.fetch_add(1, Relaxed) as usize % STREAMS;
            &self.slots[victim]
        });
        slot.store(entry, Relaxed);
    }
}

#[cfg(test)]
mod tests;
