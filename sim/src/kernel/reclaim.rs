//! What the kernel does to pages by itself: swap, the OOM reaper, huge pages.

use isomem_core::addr::{BlockId, PageRange};
use isomem_core::notifier::{Blocking, Cause};

use crate::journal::{Event, Journal};
use crate::kernel::access::one;
use crate::kernel::frame::ZERO;
use crate::kernel::space::{Present, Pte, Swapped};
use crate::kernel::{Process, Refused, State, Words};

/// What became of a page that reclaim wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reclaimed {
    /// It is on swap.
    Yes,
    /// It is not there, shared, or pinned.
    No,
}

impl Process {
    /// Sends a page to the swap, under the reclaim lock, by a pass that does not wait. It is left alone where a subscriber refuses.
    pub fn reclaim(&self, page: usize) -> Result<Reclaimed, Refused> {
        let _reclaim = self.kernel().lock_reclaim();
        self.notified(one(page), Cause::Clear, Blocking::Never, || self.swap_out(page))
    }

    /// The same by a pass that waits for subscribers, under the lock of the file's mappings, as a shrinker does that must find who maps a page.
    pub fn shrink(&self, page: usize) -> Reclaimed {
        let _reclaim = self.kernel().lock_reclaim();
        let _mapping = self.kernel().file_mapping().write();
        let swapped = self.notified(one(page), Cause::Clear, Blocking::May, || self.swap_out(page));
        swapped.unwrap_or(Reclaimed::No)
    }

    fn swap_out(&self, page: usize) -> Reclaimed {
        self.kernel().point();
        let mut state = self.lock();
        let Some(Pte::Present(present)) = state.space(self.pid()).pte(page) else {
            return Reclaimed::No;
        };
        let busy = state.frames.is_shared(present.frame) || state.frames.is_pinned(present.frame);
        if busy || present.protected || present.frame == ZERO {
            return Reclaimed::No;
        }
        let words = *state.frames.words(present.frame);
        let slot = state.swap_slot(self.journal(), words);
        state.zap(self.journal(), self.pid(), page);
        let protected = false;
        state
            .space(self.pid())
            .ptes
            .insert(page, Pte::Swap(Swapped { slot, protected }));
        Reclaimed::Yes
    }

    /// The OOM reaper's pass over an address space that is to die: takes what subscribers give up without waiting. Says how many pages one
    /// refused to give up. (For the lock of the address space it waits here, where Linux goes away and comes back.)
    pub fn oom_reap(&self) -> usize {
        let ranges: Vec<PageRange> = self.lock().space(self.pid()).vmas.iter().map(|vma| vma.range).collect();
        let mut left = 0;
        for range in ranges {
            let mmap = self.mmap_lock().read();
            let pages = self.lock().space(self.pid()).present(range);
            let count = pages.len();
            let reaped = self.notified(range, Cause::Clear, Blocking::Never, || {
                for page in pages {
                    self.kernel().point();
                    self.zap_one(page);
                }
            });
            if reaped.is_err() {
                left += count;
            }
            drop(mmap);
        }
        left
    }

    /// Makes one huge page of a block (khugepaged): each page that is present gets a new frame. Not where one is write-protected, as Linux.
    pub fn collapse(&self, block: BlockId) {
        let _mmap = self.mmap_lock().write();
        let _ = self.notified(block.range(), Cause::Clear, Blocking::May, || {
            self.kernel().point();
            let mut state = self.lock();
            let pages = state.space(self.pid()).present(block.range());
            if pages.iter().any(|&page| state.is_protected(self.pid(), page)) {
                return;
            }
            for page in pages {
                state.replace(self, page);
            }
        });
    }

    /// Splits the huge page of a block.
    pub fn split(&self, block: BlockId) {
        let _mmap = self.mmap_lock().read();
        let _ = self.notified(block.range(), Cause::Clear, Blocking::May, || {
            self.kernel().point();
            let mut state = self.lock();
            let space = state.space(self.pid());
            for (_, pte) in space
                .ptes
                .range_mut(block.range().first_page()..block.range().end_page())
            {
                if let Pte::Present(present) = pte {
                    present.huge = false;
                }
            }
        });
    }
}

impl State {
    /// Puts a page's contents into the swap.
    pub(super) fn swap_slot(&mut self, journal: &Journal, words: Words) -> u64 {
        self.swapped += 1;
        self.swap.insert(self.swapped, words);
        let what = slot_name(self.swapped);
        journal.record(Event::Opened { what });
        self.swapped
    }

    /// Takes a page's contents out of the swap.
    pub(super) fn free_slot(&mut self, journal: &Journal, slot: u64) -> Words {
        let what = slot_name(slot);
        journal.record(Event::Closed { what });
        self.swap.remove(&slot).expect("a slot of the swap that an entry names")
    }

    fn is_protected(&mut self, pid: usize, page: usize) -> bool {
        matches!(self.space(pid).pte(page), Some(Pte::Present(present)) if present.protected)
    }

    fn replace(&mut self, process: &Process, page: usize) {
        let Some(Pte::Present(present)) = self.space(process.pid()).pte(page) else {
            return;
        };
        if self.frames.is_shared(present.frame) || self.frames.is_pinned(present.frame) {
            return;
        }
        let words = *self.frames.words(present.frame);
        let frame = self.frames.allocate(process.journal(), words);
        self.frames.unmap(process.journal(), present.frame);
        let huge = Present {
            frame,
            huge: true,
            ..present
        };
        self.space(process.pid()).ptes.insert(page, Pte::Present(huge));
    }
}

fn slot_name(slot: u64) -> String {
    format!("swap slot {slot}")
}
