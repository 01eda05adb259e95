//! A device missed on a page: where the page is to be, and how much is brought in with it.
//!
//! # Locking
//! None across a migration or a range fault: the caller holds no pin.
//!
//! Linux: handle_mm_fault for the CPU's side; a GPU driver's fault worker (nouveau_svm_fault) for the device's.

use crate::addr::{BlockId, PAGE_SIZE, PAGES_PER_BLOCK, PageMask, VirtAddr};
use crate::device::Device;
use crate::devmem::DeviceId;
use crate::migrate::out::{Occasion, Sender};
use crate::mirror::MirrorState;
use crate::mirror::range::{Around, FaultError, Faulted};
use crate::mm::block::{BlockState, Residency};
use crate::mm::{Preferred, Verdict};
use crate::stats::add;
use crate::world::{Access, World};

/// Where pages are to be when a device misses on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// On the device, from the first touch.
    #[default]
    OnTouch,
    /// Where they are: system pages are mapped in place.
    InPlace,
    /// In place until the device accessed the block so many times, then on the device.
    AfterAccesses(u32),
    /// Where they are, whatever was advised: for an access that misses again and again because its page does not stay on the device.
    Stay,
}

impl Placement {
    /// Whether a page of which nothing was said stays where it is.
    const fn stays(self) -> bool {
        match self {
            Self::OnTouch => false,
            Self::InPlace | Self::Stay => true,
            // The accesses themselves are counted where they happen, see `count_access`.
            Self::AfterAccesses(accesses) => accesses > 0,
        }
    }
}

impl<W: World, D: Device> MirrorState<W, D> {
    /// Services a device miss at `addr`: migrates or maps by `placement`, and enters the page with what is around it. After it returned
    /// the access is to be tried again; it may miss again when the page was taken meanwhile.
    ///
    /// Runs on the calling thread, which must be one of isomem's own and hold no pin.
    pub fn service_miss(&self, addr: VirtAddr, access: Access, placement: Placement) -> Result<Faulted, FaultError> {
        self.mm.check_entry()?;
        add(&self.mm.counters.device_faults, 1);
        let page = addr.get() / PAGE_SIZE;
        let id = BlockId::of(addr);
        let index = page - id.first_page();
        let mut stays = self.staying(id, placement);
        if !stays.has(index) && !self.shares_duplicate(page, id, access) {
            stays = self.take_in(page, id, stays);
        }
        self.enter(id.range(), access, Around::Page(page, stays))
    }

    /// Whether the CPU and another device share the page for reading, and this one is to join them. Before a write duplicates end: then the page comes as
    /// any other.
    fn shares_duplicate(&self, page: usize, id: BlockId, access: Access) -> bool {
        let index = page - id.first_page();
        let is_duplicate = |of: &dyn Fn(DeviceId) -> bool| {
            let block = self.mm.blocks.get(id);
            block.is_some_and(|block| block.lock().duplicates(of).has(index))
        };
        match access {
            Access::Read => is_duplicate(&|device| device != self.memory.id),
            Access::Write if is_duplicate(&|_| true) => {
                self.mm.collapse_those(id.pages(index..index + 1), |_| true);
                false
            }
            Access::Write => false,
        }
    }

    /// The pages of a block that a miss of this device maps where they are, by placement and by what was advised.
    fn staying(&self, id: BlockId, placement: Placement) -> PageMask {
        if self.has_failed() || placement == Placement::Stay {
            return PageMask::FULL;
        }
        self.mm.advice.pages_of(id, |said| match said.preferred {
            Preferred::Anywhere => placement.stays(),
            Preferred::Home => true,
            Preferred::Device(device) => device != self.memory.id,
        })
    }

    /// Sends the page, which does not stay, unless it is here already or goes back and forth (PACE-1): then it may have to wait for its time at home, or
    /// be mapped there. Says what stays now.
    fn take_in(&self, page: usize, id: BlockId, stays: PageMask) -> PageMask {
        let index = page - id.first_page();
        let Some(block) = self.mm.blocks.get(id) else {
            self.send_around(page, id, stays);
            return stays;
        };
        // What is on its way home is judged when it has arrived.
        let mut state = block.wait_settled(PageMask::of(index, index + 1));
        let here = state.on(self.memory.id).map_or(PageMask::NONE, Residency::held);
        if here.has(index) {
            return stays;
        }
        let (verdict, stays) = self.judge(&mut state, index, stays);
        drop(state);
        match verdict {
            Verdict::Stay => return stays,
            Verdict::GoAfter(ns) => self.mm.world().pause(ns),
            Verdict::Go => {}
        }
        self.send_around(page, id, stays);
        stays
    }

    /// What becomes of a miss on page `index` of a block, and what stays now.
    fn judge(&self, state: &mut BlockState<W::Meta>, index: usize, stays: PageMask) -> (Verdict, PageMask) {
        if self.memory.thrash.is_off() {
            return (Verdict::Go, stays);
        }
        let now_ns = self.mm.world().now_ns();
        let judged = state.pace.judge(index, now_ns, &self.memory.thrash);
        let counters = &self.mm.counters;
        add(&counters.thrash_detected, judged.detected.into());
        match judged.verdict {
            Verdict::Stay => add(&counters.thrash_mapped_in_place, 1),
            Verdict::GoAfter(_) => add(&counters.thrash_throttled, 1),
            Verdict::Go => {}
        }
        (judged.verdict, stays.or(state.pace.staying(now_ns)))
    }

    /// Pages of a block that are on devices, and those that only go when they are missed themselves.
    fn look_around(&self, id: BlockId) -> (PageMask, PageMask) {
        let policy = &self.memory.thrash;
        let Some(block) = self.mm.blocks.get(id).filter(|_| !policy.is_off()) else {
            return (PageMask::NONE, PageMask::NONE);
        };
        let now_ns = self.mm.world().now_ns();
        let state = block.lock();
        (state.away(), state.pace.held_back(now_ns, policy))
    }

    /// Notes that misses sent pages of a block: those of `pages` that were `elsewhere` were taken from another device.
    fn note_sent(&self, id: BlockId, pages: PageMask, elsewhere: PageMask) {
        if let Some(block) = self.mm.blocks.get(id).filter(|_| !self.memory.thrash.is_off()) {
            let now_ns = self.mm.world().now_ns();
            let mut state = block.lock();
            let here = state.on(self.memory.id).map_or(PageMask::NONE, |here| here.pages);
            state.pace.sent(now_ns);
            state
                .pace
                .took(elsewhere.and(pages).and(here), now_ns, &self.memory.thrash);
        }
    }

    fn sender_of_miss(&self) -> Sender<'_, W> {
        Sender {
            occasion: Occasion::Miss,
            ..self.sender()
        }
    }

    /// Sends the page and, while misses are sequential, a growing part of its block after it, as far as that does not stay. What cannot go is mapped
    /// in place instead, so failures here are not errors.
    fn send_around(&self, page: usize, id: BlockId, stays: PageMask) {
        let index = page - id.first_page();
        let (elsewhere, held_back) = self.look_around(id);
        let pages = clip(self.around(index, page), index, stays.or(held_back));
        let _ = self.mm.send(&self.sender_of_miss(), id.pages(pages.clone()));
        self.note_sent(id, PageMask::of(pages.start, pages.end), elsewhere);
        self.streams.note(id.first_page() + pages.start, pages.len());
    }

    /// Which pages of the block to send when page `index` of it, number `page`, was missed.
    fn around(&self, index: usize, page: usize) -> core::ops::Range<usize> {
        /// Pages that are sent at the least: single pages cost a system call each.
        const LEAST: usize = 16;
        if !self.mm.world().takes_neighbours() {
            return index..index + 1;
        }
        let most = self.memory.capacity_pages.div_ceil(4);
        let window = self.streams.window(page).max(LEAST).min(most);
        let first = if window >= LEAST { index / LEAST * LEAST } else { index };
        first..(first + window).max(index + 1).min(PAGES_PER_BLOCK)
    }

    /// Counts an access to pages mapped in place; true when the block is to migrate now.
    pub fn count_access(&self, addr: VirtAddr, placement: Placement) -> bool {
        match placement {
            Placement::AfterAccesses(accesses) => self.table.count_access(BlockId::of(addr)) == accesses,
            _ => false,
        }
    }

    /// Migrates the block of `addr`, which the device accessed often enough in place.
    pub fn migrate_hot(&self, addr: VirtAddr) {
        if !self.is_released() && !self.has_failed() {
            let id = BlockId::of(addr);
            let now_ns = self.mm.world().now_ns();
            let block = self.mm.blocks.get(id).filter(|_| !self.memory.thrash.is_off());
            let damped = block.map_or(PageMask::NONE, |block| block.lock().pace.staying(now_ns));
            let goes = PageMask::FULL.without(self.staying(id, Placement::OnTouch).or(damped));
            let near = if self.mm.world().takes_neighbours() {
                PageMask::FULL
            } else {
                let index = addr.get() / PAGE_SIZE - id.first_page();
                PageMask::of(index, index + 1)
            };
            for run in goes.and(near).runs() {
                let _ = self.mm.send(&self.sender_of_miss(), id.pages(run));
            }
        }
    }
}

/// What of `window` lies around page `index` without a page that stays between.
fn clip(window: core::ops::Range<usize>, index: usize, stays: PageMask) -> core::ops::Range<usize> {
    let goes = PageMask::of(window.start, window.end).without(stays);
    goes.runs().find(|run| run.contains(&index)).unwrap_or(index..index + 1)
}
