//! A ready-made machine for stories: kernel, process, address space, device, mirror and pager in one call.
//!
//! ```
//! # if cfg!(feature = "shuttle") { return; } // Then there are threads only in a story that the model checker tells.
//! use isomem_sim::{checker, journal::Journal, rig::Rig};
//!
//! let journal = Journal::new(checker::all(), true);
//! let rig = Rig::new(&journal, 3);
//! rig.cpu_write(0, 0, 7);
//! rig.migrate(0, 1);
//! assert_eq!(rig.gpu_read(0, 0), 7);
//! assert_eq!(rig.cpu_read(0, 0), 7);
//! rig.shut_down();
//! assert!(journal.finish().finding.is_none());
//! ```
//!
//! Pages are named by small numbers, from 0. [`Rig::page`] says where they lie: four to a block, in neighbouring blocks, so that stories
//! can have both neighbours in a block and pages in different ones. Everything is journaled by the kernel and the device. What cannot work any
//! more because a checker has decided the story answers 0.

use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use isomem_core::addr::{PAGES_PER_BLOCK, PageRange};
use isomem_core::mirror::range::Placement;
use isomem_core::mm::{ChangeError, MemoryConfig, MemoryKind, Mm};
use isomem_core::world::Access;

use crate::device::{Gpu, GpuConfig, GpuError, Reach};
use crate::journal::{Event, Journal, Name};
use crate::kernel::{Errno, Kernel, Origin, Process, Segv, Words, Zeroes, address};
use crate::world::{Arenas, Pager, SimWorld};

/// Pages of a story in one block.
pub const PER_BLOCK: usize = 4;
/// The most pages a story can have.
pub const MAX_PAGES: usize = 3 * PER_BLOCK;

/// What the machine is to be like.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Pages of the program, mapped and not touched.
    pub pages: usize,
    /// Its devices, from number 0. At least one.
    pub gpus: &'static [GpuConfig],
}

/// One device called "gpu".
pub const GPU: &[GpuConfig] = &[GpuConfig::named("gpu")];
/// One device called "gpu" that takes pages at the first touch.
pub const TAKING_GPU: &[GpuConfig] = &[GpuConfig {
    placement: Placement::OnTouch,
    ..GpuConfig::named("gpu")
}];
/// One device called "gpu" with page frames in its own table, which nothing but the protocol keeps from a stale access.
pub const STRICT_GPU: &[GpuConfig] = &[GpuConfig {
    reach: Reach::Frames,
    ..GpuConfig::named("gpu")
}];
/// Two of those.
pub const TWO_GPUS: &[GpuConfig] = &[GpuConfig::named("gpu 0"), GpuConfig::named("gpu 1")];

/// Two private devices with page frames in their own tables.
pub const STRICT_GPUS: &[GpuConfig] = &[
    GpuConfig {
        reach: Reach::Frames,
        ..GpuConfig::named("gpu 0")
    },
    GpuConfig {
        reach: Reach::Frames,
        ..GpuConfig::named("gpu 1")
    },
];
/// Two private devices, then one with coherent memory, "gpu 2".
pub const GPUS_OF_EACH_KIND: &[GpuConfig] = &[
    GpuConfig::named("gpu 0"),
    GpuConfig::named("gpu 1"),
    GpuConfig {
        kind: MemoryKind::Coherent,
        ..GpuConfig::named("gpu 2")
    },
];

struct Parts {
    journal: Journal,
    kernel: Kernel,
    process: Process,
    mm: Mm<SimWorld>,
    gpus: Vec<Gpu>,
    pager: StdMutex<Option<Pager>>,
}

/// A machine. Clones are handles to the same, for the threads of a story.
#[derive(Clone)]
pub struct Rig(Arc<Parts>);

impl core::fmt::Debug for Rig {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Rig").finish_non_exhaustive()
    }
}

impl Rig {
    /// A program of `pages` pages and one device, [`GPU`].
    pub fn new(journal: &Journal, pages: usize) -> Self {
        Self::with(journal, Config { pages, gpus: GPU })
    }

    /// A machine like this.
    pub fn with(journal: &Journal, config: Config) -> Self {
        assert!(config.pages <= MAX_PAGES, "a story has at most {MAX_PAGES} pages");
        let kernel = Kernel::new(journal);
        let process = kernel.process();
        for first in (0..config.pages).step_by(PER_BLOCK) {
            let count = PER_BLOCK.min(config.pages - first);
            process.mmap_anonymous(pages_at(first, count));
        }
        let uses = |reach| config.gpus.iter().any(|gpu| gpu.reach == reach);
        let arenas = if uses(Reach::SharedMmu) {
            Arenas::Served
        } else {
            Arenas::Quiet
        };
        let zeroes = if uses(Reach::Frames) {
            Zeroes::Own
        } else {
            Zeroes::Shared
        };
        let mm = Mm::new(SimWorld::with(&process, zeroes)).expect("the heap is large");
        let pager = Pager::start(&mm, journal, arenas);
        let gpus = config.gpus.iter().map(|gpu| open(&mm, &process, *gpu)).collect();
        Self(Arc::new(Parts {
            journal: journal.clone(),
            kernel,
            process,
            mm,
            gpus,
            pager: StdMutex::new(Some(pager)),
        }))
    }

    /// The journal.
    pub fn journal(&self) -> &Journal {
        &self.0.journal
    }

    /// The kernel: failures to plan, locks of its own.
    pub fn kernel(&self) -> &Kernel {
        &self.0.kernel
    }

    /// The program's process: system calls past isomem.
    pub fn process(&self) -> &Process {
        &self.0.process
    }

    /// The address space.
    pub fn mm(&self) -> &Mm<SimWorld> {
        &self.0.mm
    }

    /// Device number `index`.
    pub fn gpu(&self, index: usize) -> &Gpu {
        &self.0.gpus[index]
    }

    /// The page number of page `index` of the story.
    pub fn page(&self, index: usize) -> usize {
        page_at(index)
    }

    /// The range of `count` pages from page `first` on, which lie in one block, or begin at the first page of one.
    pub fn range(&self, first: usize, count: usize) -> PageRange {
        pages_at(first, count)
    }

    /// Byte address of a word, as events have it.
    pub fn addr(&self, page: usize, word: usize) -> u64 {
        address(page_at(page), word)
    }

    // The program.

    /// Loads a word; 0 where that is not allowed.
    pub fn cpu_read(&self, page: usize, word: usize) -> u64 {
        self.try_cpu_read(page, word).unwrap_or(0)
    }

    /// Loads a word.
    pub fn try_cpu_read(&self, page: usize, word: usize) -> Result<u64, Segv> {
        self.0.process.read(page_at(page), word)
    }

    /// Stores a word; nothing where that is not allowed.
    pub fn cpu_write(&self, page: usize, word: usize, value: u64) {
        let _ = self.try_cpu_write(page, word, value);
    }

    /// Stores a word.
    pub fn try_cpu_write(&self, page: usize, word: usize, value: u64) -> Result<(), Segv> {
        self.0.process.write(page_at(page), word, value)
    }

    /// Adds to a word atomically.
    pub fn cpu_add(&self, page: usize, word: usize, value: u64) -> u64 {
        self.0.process.add(page_at(page), word, value).unwrap_or(0)
    }

    /// Reads a page word by word, and tells the journal what it saw.
    pub fn cpu_read_page(&self, page: usize) -> Words {
        self.0.process.read_page(page_at(page)).unwrap_or_default()
    }

    // The device (number 0).

    /// Loads a word on the device; 0 where that fails.
    pub fn gpu_read(&self, page: usize, word: usize) -> u64 {
        self.try_gpu_read(page, word).unwrap_or(0)
    }

    /// Loads a word on the device.
    pub fn try_gpu_read(&self, page: usize, word: usize) -> Result<u64, GpuError> {
        self.gpu(0).read(page_at(page), word)
    }

    /// Stores a word on the device; nothing where that fails.
    pub fn gpu_write(&self, page: usize, word: usize, value: u64) {
        let _ = self.try_gpu_write(page, word, value);
    }

    /// Stores a word on the device.
    pub fn try_gpu_write(&self, page: usize, word: usize, value: u64) -> Result<(), GpuError> {
        self.gpu(0).write(page_at(page), word, value)
    }

    /// Adds to a word on the device, atomically.
    pub fn gpu_add(&self, page: usize, word: usize, value: u64) -> u64 {
        self.gpu(0).add(page_at(page), word, value).unwrap_or(0)
    }

    /// Reads a page on the device word by word, and tells the journal what it saw.
    pub fn gpu_read_page(&self, page: usize) -> Words {
        self.gpu(0).read_page(page_at(page)).unwrap_or_default()
    }

    /// Sends pages to the device; says how many went.
    pub fn migrate(&self, first: usize, count: usize) -> usize {
        self.gpu(0).migrate(pages_at(first, count)).unwrap_or(0)
    }

    /// Brings pages home; says how many came.
    pub fn home(&self, first: usize, count: usize) -> usize {
        self.gpu(0).home(pages_at(first, count)).unwrap_or(0)
    }

    // Changes through the API: devices are told first.

    /// Unmaps pages.
    pub fn unmap(&self, first: usize, count: usize) -> Result<(), ChangeError> {
        self.0.mm.unmap(pages_at(first, count))
    }

    /// Drops the contents of pages.
    pub fn discard(&self, first: usize, count: usize) -> Result<(), ChangeError> {
        self.0.mm.discard(pages_at(first, count))
    }

    /// Sets what the program may do; `None` is nothing.
    pub fn protect(&self, first: usize, count: usize, access: Option<Access>) -> Result<(), ChangeError> {
        self.0.mm.protect(pages_at(first, count), access)
    }

    /// Moves pages to where others are, which go.
    pub fn remap(&self, from: usize, to: usize, count: usize) -> Result<(), ChangeError> {
        self.0.mm.remap(pages_at(from, count), pages_at(to, count))
    }

    /// Forks, announced: every page is at home. The child has no mirror.
    pub fn fork(&self) -> Process {
        self.0.mm.fork_prepare();
        let child = self.0.process.fork(Origin::Own);
        self.0.mm.fork_done();
        child
    }

    // Changes past isomem, which hears of them afterwards.

    /// Unmaps pages.
    pub fn late_unmap(&self, first: usize, count: usize) {
        self.0.process.munmap(pages_at(first, count), Origin::Program);
    }

    /// Maps pages where nothing is.
    pub fn map(&self, first: usize, count: usize) -> Result<(), Errno> {
        self.0.process.mmap_unless_taken(pages_at(first, count))
    }

    /// Maps pages anew, replacing what is there.
    pub fn late_map(&self, first: usize, count: usize) {
        self.0.process.mmap_anonymous(pages_at(first, count));
    }

    /// Drops the contents of pages.
    pub fn late_discard(&self, first: usize, count: usize) -> Result<(), Errno> {
        self.0.process.discard(pages_at(first, count), Origin::Program)
    }

    /// Moves pages to where others are, which go.
    pub fn late_remap(&self, from: usize, to: usize, count: usize) -> Result<(), Errno> {
        self.0
            .process
            .mremap(pages_at(from, count), pages_at(to, count), Origin::Program)
    }

    /// Forks without announcing it.
    pub fn late_fork(&self) -> Process {
        self.0.process.fork(Origin::Program)
    }

    // The end.

    /// The address space ends: mirrors are released, pages come home.
    pub fn exit(&self) {
        self.0.mm.exit();
        self.0.journal.record(Event::Died { mm: MM });
    }

    /// Ends the pager: what is away stays away from here on, unless it is called home.
    pub fn stop_pager(&self) {
        let pager = self.0.pager.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(pager);
    }

    /// Ends mirrors, devices, the pager and the process, in that order. No other thread may use the machine any more. Afterwards every frame has
    /// been freed, or the checker for leaks finds it.
    pub fn shut_down(&self) {
        for gpu in &self.0.gpus {
            gpu.close();
        }
        self.stop_pager();
        self.0.process.exit();
    }
}

/// What events call the address space of a rig.
pub const MM: Name = "mm";

fn open(mm: &Mm<SimWorld>, process: &Process, config: GpuConfig) -> Gpu {
    let memory = MemoryConfig {
        name: config.name,
        capacity_bytes: config.memory_pages * isomem_core::addr::PAGE_SIZE,
        mirror_budget_bytes: None,
        kind: config.kind,
    };
    let handle = mm
        .register_with(memory, config.thrash)
        .expect("there is room for a device");
    Gpu::new(handle, process, config).expect("the heap is large")
}

/// Page numbers begin at the second block.
fn page_at(index: usize) -> usize {
    (1 + index / PER_BLOCK) * PAGES_PER_BLOCK + index % PER_BLOCK
}

fn pages_at(first: usize, count: usize) -> PageRange {
    let last = page_at(first + count - 1);
    PageRange::from_pages(page_at(first), last + 1 - page_at(first)).expect("a story's pages")
}
