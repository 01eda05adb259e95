//! A device missed on a page: where the page is to be, and how much is brought in with it.
//!
//! # Locking
//! None across a migration or a range fault: the caller holds no pin.
//!
//! Linux: handle_mm_fault for the CPU's side; a GPU driver's fault worker (nouveau_svm_fault) for the device's.

use crate::addr::{BlockId, PAGE_SIZE, PAGES_PER_BLOCK, VirtAddr};
use crate::device::Device;
use crate::devmem::DeviceId;
use crate::mirror::MirrorState;
use crate::mirror::range::{Around, FaultError, Faulted};
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
        let around = if self.wants_migration(placement) {
            if !self.shares_duplicate(page, id, access) {
                self.send_around(page, id);
            }
            Around::PageOnDevice(page)
        } else {
            Around::Page(page)
        };
        self.enter(id.range(), access, around)
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

    fn wants_migration(&self, placement: Placement) -> bool {
        !self.has_failed()
            && match placement {
                Placement::OnTouch => true,
                Placement::InPlace => false,
                // The accesses themselves are counted where they happen, see `count_access`.
                Placement::AfterAccesses(accesses) => accesses == 0,
            }
    }

    /// Sends the page and, while misses are sequential, a growing part of its block after it. What cannot go is mapped in place instead,
    /// so failures here are not errors.
    fn send_around(&self, page: usize, id: BlockId) {
        let index = page - id.first_page();
        if self.mm.blocks.get(id).is_some_and(|block| {
            let state = block.lock();
            state
                .on(self.memory.id)
                .is_some_and(|residency| residency.held().has(index))
        }) {
            return;
        }
        let pages = self.around(index, page);
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
            let neighbours = self.mm.world().takes_neighbours();
            let range = if neighbours {
                BlockId::of(addr).range()
            } else {
                addr.page()
            };
            let _ = self.mm.send(&self.sender(), range);
        }
    }
}
