//! A device missed on a page: where the page is to be, and how much is brought in with it.
//!
//! # Locking
//! None across a migration or a range fault: the caller holds no pin.
//!
//! Linux: handle_mm_fault for the CPU's side; a GPU driver's fault worker (nouveau_svm_fault) for the device's.

use crate::addr::{BlockId, PAGE_SIZE, PAGES_PER_BLOCK, PageMask, VirtAddr};
use crate::device::Device;
use crate::devmem::DeviceId;
use crate::mirror::MirrorState;
use crate::mirror::range::{Around, FaultError, Faulted};
use crate::mm::Preferred;
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
        let stays = self.staying(id, placement);
        if !stays.has(page - id.first_page()) && !self.shares_duplicate(page, id, access) {
            self.send_around(page, id, stays);
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

    /// Sends the page and, while misses are sequential, a growing part of its block after it, as far as that does not stay. What cannot go is mapped
    /// in place instead, so failures here are not errors.
    fn send_around(&self, page: usize, id: BlockId, stays: PageMask) {
        let index = page - id.first_page();
        if self.mm.blocks.get(id).is_some_and(|block| {
            let state = block.lock();
            state
                .on(self.memory.id)
                .is_some_and(|residency| residency.held().has(index))
        }) {
            return;
        }
        let pages = clip(self.around(index, page), index, stays);
        let _ = self.mm.send(&self.sender(), id.pages(pages.clone()));
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
            let goes = PageMask::FULL.without(self.staying(id, Placement::OnTouch));
            let near = if self.mm.world().takes_neighbours() {
                PageMask::FULL
            } else {
                let index = addr.get() / PAGE_SIZE - id.first_page();
                PageMask::of(index, index + 1)
            };
            for run in goes.and(near).runs() {
                let _ = self.mm.send(&self.sender(), id.pages(run));
            }
        }
    }
}

/// What of `window` lies around page `index` without a page that stays between.
fn clip(window: core::ops::Range<usize>, index: usize, stays: PageMask) -> core::ops::Range<usize> {
    let goes = PageMask::of(window.start, window.end).without(stays);
    goes.runs().find(|run| run.contains(&index)).unwrap_or(index..index + 1)
}
