//! Read duplication: a page that is read on both sides lives on both, and ends on one before a write to it (MIG-12).
//!
//! Where the program advised a page to be read mostly ([`Advice::ReadMostly`](crate::mm::Advice::ReadMostly)) and it is on a device, a CPU's *read*
//! does not bring it home: its bytes are copied to their place there, write-protected, and the device keeps its page without the right to write.
//! Either side then reads without a fault. A write by either side is a fault, and *collapses* the duplicate first: the device's page goes, the one at home
//! may be written again. A device that wants to write gets its page after that as any other that it misses.
//!
//! # Invariants
//! - DUP-1: as long as a page is a duplicate, both sides hold the same bytes, and nobody can write either.
//! - DUP-2: the device's side goes, or can be reached by nobody, before the CPU may write the page at home. So a read that comes too late, through a stale
//!   pin, runs into a hole and asks for the page again; it never finds old bytes.
//! - DUP-3: the bytes at home are the truth: a duplicate that ends copies nothing, and cannot fail for want of memory (MIG-8).
//!
//! # Locking
//! As for a move home: the pages are in transit, under an invalidation; no lock but `arrivals`, for one copy.
//!
//! ```text
//! CPU thread reads       pager                                    device
//! fault: away            transit; start: entries go               .
//! .                      copy home, write-protected               .
//! goes on                settle: duplicate; end                   a miss: its page again, read-only
//! writes: fault          transit; start: entries go               .
//! .                      the arena's page goes (DUP-2)            a stale pin: a hole, waits
//! goes on                protection goes; settle: at home; end    a miss: the page comes over, or is mapped at home
//! ```
//!
//! # What Linux does to a write-protected anonymous page (tried on 6.18)
//! The mark stays when the area's protection changes, when the mapping moves, and in a fork's parent; a fork's child has it until the descriptor of
//! its areas is closed, which takes it away. MADV_DONTNEED drops page and mark. MADV_FREE leaves both, UFFDIO_MOVE takes the page and drops the mark. The mark
//! keeps khugepaged and MADV_COLLAPSE off (EINVAL). A system call's write to it, mlock, MADV_POPULATE_WRITE and process_vm_writev are faults that are
//! served; a write by /proc/self/mem, as a debugger makes it, fails (EIO), as it does on a page that is away. The mark stays in the swap (by the
//! kernel's source).
//!
//! Linux: no counterpart for anonymous memory; nearest are KSM's stable pages, and read duplication in vendors' unified memory.

use core::ops::Range;

use crate::addr::{PageMask, PageRange};
use crate::devmem::DeviceId;
use crate::migrate::Elsewhere;
use crate::migrate::home::{ATTEMPTS, Why};
use crate::migrate::homeward::{Arrived, Homeward, Which};
use crate::migrate::out::{Goal, Sender};
use crate::mm::MmState;
use crate::mm::block::arena_pages;
use crate::world::{Pte, Stop, World};

/// Pages that are copied at one fault, at most: a copy takes as long as thirty moves, and the fault waits for all.
pub(crate) const COPIES_MOST: usize = 64;

impl<W: World> MmState<W> {
    /// Gives the CPU copies of the pages, as far as that works; those that got none are to come home. No device reaches them (the invalidation found
    /// none that still does).
    pub(super) fn duplicate(&self, homeward: &Homeward<'_, W>, arrived: &mut Arrived) {
        for run in homeward.pages.runs() {
            self.duplicate_run(homeward, run, arrived);
        }
    }

    fn duplicate_run(&self, homeward: &Homeward<'_, W>, mut run: Range<usize>, arrived: &mut Arrived) {
        let mut attempts = 0;
        while attempts < ATTEMPTS {
            // As in `carry_run`: what was discarded before is marked, and for what is discarded from here on the kernel refuses the copy, or drops it.
            let arrivals = self.arrivals.read();
            let dropped = homeward.block.lock().dropped;
            let Some(part) = PageMask::of(run.start, run.end).without(dropped).next_run(0) else {
                return;
            };
            let from = arena_pages(homeward.base_page, part.clone());
            let done = self.world().duplicate_home(from, homeward.block.id.pages(part.clone()));
            drop(arrivals);
            run.start = part.start + done.pages;
            arrived.duplicated = arrived.duplicated.or(PageMask::of(part.start, run.start));
            attempts = if done.pages > 0 { 0 } else { attempts + 1 };
            match done.stop {
                Some(Stop::Again) => self.world().pause(1_000),
                Some(_) if done.pages == 0 => return,
                _ => {}
            }
        }
    }

    /// Ends duplicates: the device's side goes, then the CPU may write (DUP-2).
    pub(super) fn collapse(&self, homeward: &Homeward<'_, W>, arrived: &mut Arrived) {
        for run in homeward.duplicates.runs() {
            let arena = arena_pages(homeward.base_page, run.clone());
            self.world().scrub_arena(arena);
            if homeward.fenced && !self.is_scrubbed(arena) {
                // It stays a duplicate: who is late would read from it what is about to become old.
                arrived.stop = Some(Stop::Again);
                continue;
            }
            let pages = PageMask::of(run.start, run.end);
            arrived.collapsed = arrived.collapsed.or(pages);
            // Where that fails the pages stay protected, and the next write is served as one to what a copy left behind.
            if self.world().write_protect(homeward.block.id.pages(run), false).is_ok() {
                arrived.opened = arrived.opened.or(pages);
            }
        }
    }

    fn is_scrubbed(&self, arena: PageRange) -> bool {
        let mut is_empty = true;
        let looked = self.world().scan(arena, &mut |run| is_empty &= run.pte == Pte::None);
        looked.is_ok() && is_empty
    }

    /// Ends duplicates of the pages of `range` on the devices that `of` accepts, wherever there are any. Waits for pages in transit; with nothing in
    /// transit and no lock held.
    pub(crate) fn collapse_those(&self, range: PageRange, of: impl Fn(DeviceId) -> bool) {
        for (block, span) in self.blocks.known(range) {
            // Unlocked before anything is brought home.
            let duplicates = block.wait_settled(span.mask()).duplicates(&of);
            if duplicates.overlaps(&span.mask()) {
                self.home_those(span.range(), &of, Which::Duplicates, Why::Request);
            }
        }
    }

    /// Ends what stands in the way of sending the pages of `range`: a page goes as one that is at home.
    pub(super) fn collapse_for(&self, sender: &Sender<'_, W>, range: PageRange) {
        let id = sender.memory.id;
        let exclusively = sender.goal == Goal::Exclusive;
        match sender.elsewhere {
            Elsewhere::Take => self.collapse_those(range, |device| exclusively || device != id),
            Elsewhere::Leave if exclusively => self.collapse_those(range, |device| device == id),
            Elsewhere::Leave => {}
        }
    }
}
