//! The kernel's side of the stories: a process of a few pages, and what changes their mapping.
//!
//! # Locking
//! `reclaim` > `i_mmap` > whatever the driver takes in an invalidation > `page table` (a leaf). To allocate is to take `reclaim`, whether memory is
//! short or not: the schedule in which it is short is what a driver must be ready for.

use std::sync::atomic::{AtomicBool, Ordering};

use isomem_core::addr::PageRange;
use isomem_core::notifier::Blocking;
use isomem_core::world::Access;
use isomem_sim::journal::{Event, Frame, Journal};
use isomem_sim::sync::{Mutex, thread};

use super::{Device, Driver, Opponent, PAGES, Run, object};

/// More changes than any checker lets a driver fail for.
const STEADY_CHANGES: usize = 100;

/// A page-table entry.
#[derive(Debug, Clone, Copy)]
struct Pte {
    frame: Frame,
    /// A fork's child has the frame, too: a write makes a copy first.
    shared: bool,
}

/// The process's memory, as the kernel has it.
#[derive(Debug)]
struct Memory {
    ptes: [Option<Pte>; PAGES],
    /// What the child has.
    child: [Option<Frame>; PAGES],
}

/// The kernel, with one process and one driver.
pub(super) struct Kernel<D> {
    journal: Journal,
    driver: D,
    /// What the device does with the pages.
    access: Access,
    memory: Mutex<Memory>,
    /// Held by who frees memory, and for a moment by who needs some.
    reclaim: Mutex<()>,
    /// The mappings of a file: held while they are unmapped.
    i_mmap: Mutex<()>,
    /// The steady opponent can stop.
    got_there: AtomicBool,
}

impl<D: Driver> Kernel<D> {
    pub(super) fn new(run: &Run, driver: D, access: Access) -> Self {
        // The program has written to every page.
        let touched = |_| Pte {
            frame: run.journal.next_pass(),
            shared: false,
        };
        let memory = Memory {
            ptes: core::array::from_fn(touched).map(Some),
            child: [None; PAGES],
        };
        Self {
            journal: run.journal.clone(),
            driver,
            access,
            memory: Mutex::new("page table", memory),
            reclaim: Mutex::new("reclaim", ()),
            i_mmap: Mutex::new("i_mmap", ()),
            got_there: AtomicBool::new(false),
        }
    }

    pub(super) fn journal(&self) -> &Journal {
        &self.journal
    }

    pub(super) fn driver(&self) -> &D {
        &self.driver
    }

    pub(super) fn device(&self) -> &Device {
        self.driver.device()
    }

    pub(super) fn device_got_there(&self) {
        self.got_there.store(true, Ordering::Relaxed);
    }

    /// The frames behind all pages of the object, for the device to use.
    pub(super) fn get_pages(&self) -> [Frame; PAGES] {
        core::array::from_fn(|page| self.get_page(page))
    }

    /// Makes the page present, as an access of the CPU would. Takes no reference: the driver is told when the page goes.
    fn get_page(&self, page: usize) -> Frame {
        loop {
            let pte = self.memory.lock().ptes[page];
            match pte {
                None => self.bring_page_in(page),
                Some(pte) if pte.shared && self.access == Access::Write => self.break_copy_on_write(page),
                Some(Pte { frame, .. }) => {
                    self.journal.note(format_args!("Page {page} is in frame {frame}."));
                    return frame;
                }
            }
        }
    }

    fn bring_page_in(&self, page: usize) {
        self.allocate();
        let frame = self.new_frame();
        let own = Pte { frame, shared: false };
        self.memory.lock().ptes[page].get_or_insert(own);
    }

    /// The page gets a frame of its own; the child keeps the old one.
    fn break_copy_on_write(&self, page: usize) {
        self.allocate();
        let copy = self.new_frame();
        let old = PageRange::from_pages(page, 1).expect("a page is a range");
        self.journal.note(format_args!(
            "Page {page} is shared with the child. It gets a copy, frame {copy}, and its mapping changes."
        ));
        self.driver.around(old, Blocking::May, &mut || {
            let pte = &mut self.memory.lock().ptes[page];
            if pte.is_some_and(|pte| pte.shared) {
                *pte = Some(Pte {
                    frame: copy,
                    shared: false,
                });
            }
        });
    }

    pub(super) fn play(&self, opponent: Opponent) {
        match opponent {
            Opponent::Discard => self.drop_page(0, Blocking::May),
            Opponent::Fork => {
                self.fork();
                self.child_exits();
            }
            Opponent::Shrink => self.shrink(|| self.drop_page(1, Blocking::Never)),
            Opponent::ShrinkOther => self.shrink(|| self.journal.note("It finds a file's page that nobody maps.")),
            Opponent::Truncate => self.truncate(),
            Opponent::Protect => self.protect(),
            Opponent::Steady => self.keep_changing(),
        }
    }

    /// The page goes; the next touch finds a new one.
    fn drop_page(&self, page: usize, blocking: Blocking) {
        let pages = PageRange::from_pages(page, 1).expect("a page is a range");
        self.driver.around(pages, blocking, &mut || {
            let mut memory = self.memory.lock();
            if let Some(Pte { frame, shared: false }) = memory.ptes[page].take() {
                self.journal.record(Event::Freed { frame });
            }
        });
    }

    /// Write-protects every page between start and end, and copies the page table.
    fn fork(&self) {
        self.driver.around(object(), Blocking::May, &mut || {
            self.journal.note("Fork allocates a page table for the child.");
            self.allocate();
            let mut memory = self.memory.lock();
            for page in 0..PAGES {
                if let Some(pte) = &mut memory.ptes[page] {
                    pte.shared = true;
                    let frame = pte.frame;
                    memory.child[page] = Some(frame);
                }
            }
            self.journal.note("The child shares every page that is there.");
        });
    }

    /// Frames that only the child has go with it.
    fn child_exits(&self) {
        let mut memory = self.memory.lock();
        let Memory { ptes, child } = &mut *memory;
        for (pte, child) in ptes.iter_mut().zip(child) {
            let Some(frame) = child.take() else { continue };
            match pte {
                Some(pte) if pte.frame == frame => pte.shared = false,
                _ => self.journal.record(Event::Freed { frame }),
            }
        }
    }

    /// Memory is short: whoever frees some unmaps it first, by a pass that must not wait.
    fn shrink(&self, unmap: impl FnOnce()) {
        let _reclaim = self.reclaim.lock();
        self.journal
            .note("Memory is short. A shrinker looks for a page to unmap.");
        let _i_mmap = self.i_mmap.lock();
        unmap();
    }

    /// The file behind the pages gets shorter: a page goes wherever it is mapped.
    fn truncate(&self) {
        let _i_mmap = self.i_mmap.lock();
        self.drop_page(1, Blocking::May);
    }

    /// Sets the protection that the pages have already.
    fn protect(&self) {
        self.driver.around(object(), Blocking::May, &mut || {
            drop(self.memory.lock());
            self.journal.note("The pages may be read and written, as before.");
        });
    }

    /// Drops a page, again and again, for as long as it matters.
    fn keep_changing(&self) {
        for _ in 0..STEADY_CHANGES {
            if self.got_there.load(Ordering::Relaxed) || self.journal.is_decided() {
                break;
            }
            self.drop_page(0, Blocking::May);
            thread::yield_now();
        }
    }

    /// Whoever needs memory waits for those who free some.
    fn allocate(&self) {
        drop(self.reclaim.lock());
    }

    fn new_frame(&self) -> Frame {
        // Any number will do that the story did not use before.
        self.journal.next_pass()
    }
}
