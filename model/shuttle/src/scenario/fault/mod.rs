//! Fault against invalidation: a driver brings in pages of the program while the kernel changes the mapping under it.
//!
//! Bringing in a page takes two steps: ask the kernel which frame is behind it, and enter that frame in the device's table. Whoever changes the
//! mapping tells the driver first, which erases its entries, and again when the change is made. Between the two steps such a change can begin and
//! end, and then the entry names a frame that is the program's no longer. The driver cannot lock the change out either: to ask for a page may
//! itself cause one, and between start and end the kernel does what it likes, such as wait for memory.
//!
//! ```text
//! driver                                kernel
//! get_page: it is frame 1               .
//! .                                     start: the driver erases its entry (it has none yet)
//! .                                     the page goes, frame 1 is freed
//! .                                     end
//! enters frame 1; the device writes     .
//! ```
//!
//! Each design meets the opponents that it failed against on the mailing list, and ours meets all of them.

mod ban;
mod kernel;
mod late_check;
mod no_check;
mod own_count;
mod retry;
mod rwsem;
mod shipped;

use std::sync::Arc;

use isomem_core::addr::PageRange;
use isomem_core::notifier::Blocking;
use isomem_core::world::Access;
use isomem_sim::checker::Verdict;
use isomem_sim::journal::{Actor, Event, Frame, Journal};
use isomem_sim::sync::{Mutex, MutexGuard, thread};

use super::{Design, Run, Scenario};
use kernel::Kernel;

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "fault",
    about: "A driver asks the kernel for pages and enters them in its device's table, while the kernel changes the mapping of just these pages. \
            The device must never use a page that is gone, nobody may hang, and a good object must get there in the end.",
    source: "S2, FLT-2, FLT-3, INV-4",
    designs: &[
        Design {
            name: "no-check",
            about: "Invalidations erase the device's entries. Nothing tells the driver that one came between getting the pages and entering them.",
            expected: Verdict::StaleAccess,
            story: |run| story::<no_check::NoCheck>(run, Access::Write, &[Opponent::Discard]),
        },
        Design {
            name: "late-check",
            about: "A count of invalidations is looked at again before the pages are entered, but before the table's lock is taken, not under it.",
            expected: Verdict::StaleAccess,
            story: |run| story::<late_check::LateCheck>(run, Access::Write, &[Opponent::Discard]),
        },
        Design {
            name: "own-count",
            about: "The driver keeps the count itself, and counts no pass that must not wait and finds nothing of the device's in the range.",
            expected: Verdict::StaleAccess,
            story: |run| story::<own_count::OwnCount>(run, Access::Write, &[Opponent::Shrink]),
        },
        Design {
            name: "rwsem",
            about: "A semaphore, held for reading from getting the pages to entering them, for writing from start to end. Getting a page breaks \
                    copy-on-write, which is an invalidation.",
            expected: Verdict::Deadlock,
            story: |run| story::<rwsem::Rwsem>(run, Access::Write, &[Opponent::Fork]),
        },
        Design {
            name: "rwsem-fork-shrinker",
            about: "The same semaphore. Fork allocates between start and end; to get memory, a shrinker unmaps pages under the lock of a file's mappings.",
            expected: Verdict::LockOrder,
            story: |run| {
                story::<rwsem::Rwsem>(
                    run,
                    Access::Read,
                    &[Opponent::Fork, Opponent::ShrinkOther, Opponent::Truncate],
                );
            },
        },
        Design {
            name: "retry-for-ever",
            about: "The count is looked at under the table's lock, and the driver starts again when it moved, as often as it takes.",
            expected: Verdict::NoProgress,
            story: |run| story::<retry::RetryForEver>(run, Access::Write, &[Opponent::Steady]),
        },
        Design {
            name: "ban-on-first",
            about: "An object whose pages are invalidated is declared dead, since no honest program changes the mapping of memory in use.",
            expected: Verdict::ObjectLost,
            story: |run| story::<ban::BanOnFirst>(run, Access::Write, &[Opponent::Protect]),
        },
        Design {
            name: "shipped",
            about: "The core counts collisions per read; a read that went stale starts again, and after some collisions the next blocking \
                    invalidation waits for it.",
            expected: Verdict::Holds,
            story: |run| {
                story::<shipped::Shipped>(
                    run,
                    Access::Write,
                    &[Opponent::Discard, Opponent::Fork, Opponent::Shrink, Opponent::Protect],
                );
                story::<shipped::Shipped>(run, Access::Write, &[Opponent::Steady]);
            },
        },
    ],
};

/// Pages of the object that the driver is to bring in.
const PAGES: usize = 2;

/// All of them.
fn object() -> PageRange {
    PageRange::from_pages(0, PAGES).expect("a few pages are a range")
}

/// What changes the mapping while the driver works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opponent {
    /// The program drops the contents of a page.
    Discard,
    /// The program forks, and the child exits.
    Fork,
    /// The kernel runs short of memory, and takes a page away.
    Shrink,
    /// The kernel runs short of memory, and takes a page of another file.
    ShrinkOther,
    /// The program makes the file shorter that its pages are of.
    Truncate,
    /// The program sets the protection that the pages have already.
    Protect,
    /// The program keeps changing the mapping until the device got there.
    Steady,
}

/// A driver, by the way it guards itself against changes of the mapping.
trait Driver: Sized + Send + Sync + 'static {
    /// With `device` to look after.
    fn new(device: Device) -> Self;

    /// Its device.
    fn device(&self) -> &Device;

    /// The kernel makes `change` to the mapping of `pages`, and tells the driver at its start and its end.
    ///
    /// False where `blocking` forbids to wait and it would have to; then nothing was changed.
    fn around(&self, pages: PageRange, blocking: Blocking, change: &mut dyn FnMut()) -> bool;

    /// Brings in all pages of the object.
    fn bring_in(kernel: &Kernel<Self>) -> Result<(), Lost>;
}

/// The driver gave the object up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lost;

/// The frames the device can reach.
type Entries = [Option<Frame>; PAGES];

/// A device, with its page table.
#[derive(Debug)]
struct Device {
    journal: Journal,
    table: Mutex<Entries>,
}

impl Device {
    const NAME: Actor = Actor::Device("gpu");

    fn new(run: &Run) -> Self {
        Self {
            journal: run.journal.clone(),
            table: Mutex::new("device table", [None; PAGES]),
        }
    }

    /// Erases the entries of `pages`. When it returns, no access through them is under way.
    fn zap(&self, pages: PageRange) {
        self.zap_locked(&mut self.lock(), pages);
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.table.lock()
    }

    fn zap_locked(&self, table: &mut Entries, pages: PageRange) {
        let actor = Self::NAME;
        let range = pages.first_page()..pages.end_page();
        for (page, entry) in range.clone().zip(&mut table[range]) {
            if let Some(frame) = entry.take() {
                let page = page as u64;
                self.journal.record(Event::Taken { actor, page, frame });
            }
        }
    }

    /// Makes `frames` reachable for the device, one after the other. Takes its time.
    fn map_for_dma(&self, frames: [Frame; PAGES]) {
        for frame in frames {
            self.journal.note(format_args!("Frame {frame} is mapped for DMA."));
            thread::yield_now();
        }
    }

    /// Enters `frames`, one a page.
    fn enter(&self, table: &mut Entries, frames: [Frame; PAGES]) {
        let actor = Self::NAME;
        for (page, frame) in frames.into_iter().enumerate() {
            if table[page].replace(frame) != Some(frame) {
                let page = page as u64;
                self.journal.record(Event::Mapped { actor, page, frame });
            }
        }
    }

    /// The device uses what it can reach. It would miss on the rest, which is none of this story's business.
    fn work(&self) {
        let actor = Self::NAME;
        let table = self.lock();
        for (page, frame) in table.iter().enumerate() {
            if let Some(frame) = *frame {
                let page = page as u64;
                self.journal.record(Event::Touched { actor, page, frame });
            }
        }
    }

    /// Another attempt to bring the object in begins.
    fn attempt(&self) {
        self.journal.record(Event::Attempt {
            what: "bringing the object in",
        });
    }

    /// The object is in.
    fn arrived(&self) {
        self.journal.record(Event::Arrived {
            what: "bringing the object in",
        });
    }
}

fn story<D: Driver>(run: &Run, access: Access, opponents: &[Opponent]) {
    let kernel = Arc::new(Kernel::new(run, D::new(Device::new(run)), access));
    let mut threads = Vec::new();
    for &opponent in opponents {
        let kernel = kernel.clone();
        threads.push(run.spawn(opponent.thread(), move || kernel.play(opponent)));
    }
    {
        let kernel = kernel.clone();
        threads.push(run.spawn("driver", move || submit(&kernel)));
    }
    for thread in threads {
        thread.join().expect("no thread of the story panics");
    }
    // Whatever happened, the program's memory is as good as ever.
    submit(&kernel);
}

/// The program submits a job: its object is brought in, and the device works on it.
fn submit<D: Driver>(kernel: &Kernel<D>) {
    let brought_in = D::bring_in(kernel);
    kernel.device_got_there();
    let journal = kernel.journal();
    match brought_in {
        Ok(()) => kernel.device().work(),
        Err(Lost) => journal.found(
            Verdict::ObjectLost,
            "The driver gave the object up, though every page of it is mapped and accessible, as it was all the time.",
        ),
    }
}

impl Opponent {
    const fn thread(self) -> &'static str {
        match self {
            Self::Discard => "madvise",
            Self::Fork => "fork",
            Self::Shrink | Self::ShrinkOther => "reclaim",
            Self::Truncate => "truncate",
            Self::Protect => "mprotect",
            Self::Steady => "busy program",
        }
    }
}
