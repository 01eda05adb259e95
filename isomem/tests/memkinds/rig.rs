//! Devices without workers: any thread of a test works for them, through the mirror's table.

use std::sync::atomic::{AtomicU64, Ordering};

use isomem::{Access, MemoryKind, Mm, PAGE_SIZE, PageRange, PageState, Stats, VirtAddr};
use isomem_core::bus::{AtomicOp, Bus, Span};
use isomem_core::mirror::pin::{PinSlot, PinnedSide};
use isomem_core::mirror::{DeviceHandle, Mirror};
use isomem_core::mm::MemoryConfig;
use isomem_core::world::Metadata;
use isomem_linux::sys::metadata::{MetaArc, MetadataHeap};
use isomem_linux::{Linux, Window};

use crate::apart::{MIB, Mapped};

/// A device with one mirror.
pub(crate) struct Gpu {
    pub(crate) handle: DeviceHandle<Linux>,
    pub(crate) mirror: Mirror<Linux, PinnedSide<Linux>>,
    device: MetaArc<PinnedSide<Linux>>,
}

pub(crate) fn open() -> Mm {
    Mm::current().expect("these tests need userfaultfd: run them as root")
}

/// A device with memory of `pages` pages.
pub(crate) fn gpu_of(mm: &Mm, name: &'static str, kind: MemoryKind, pages: usize) -> Gpu {
    let config = MemoryConfig {
        name,
        capacity_bytes: pages * PAGE_SIZE,
        mirror_budget_bytes: None,
        kind,
    };
    let handle = mm.core().register(config).unwrap();
    let device = MetadataHeap::share(PinnedSide::new(mm.core(), 8).unwrap()).unwrap();
    let mirror = handle.mirror(device.clone()).unwrap();
    Gpu { handle, mirror, device }
}

pub(crate) fn gpu(mm: &Mm, name: &'static str, kind: MemoryKind) -> Gpu {
    gpu_of(mm, name, kind, 16 * MIB / PAGE_SIZE)
}

impl Gpu {
    /// Pages of its memory in use.
    pub(crate) fn used(&self) -> usize {
        self.handle.memory_pages().0
    }

    /// A place to pin pages from, for the calling thread.
    pub(crate) fn slot(&self) -> PinSlot<'_, MetadataHeap> {
        self.device.pins.claim(self.mirror.state().table()).unwrap()
    }

    /// Adds to the word at `addr`, as the device.
    pub(crate) fn add(&self, slot: &mut PinSlot<'_, MetadataHeap>, addr: usize, value: u64) {
        // SAFETY: the tests access these words by atomic operations while devices do.
        let window = unsafe { Window::new(addr, 8, Access::Write) };
        let at = VirtAddr::new(addr).unwrap();
        loop {
            if let Some(pin) = slot.pin(at, 8, Access::Write) {
                let span = Span::new(pin, &window, Access::Write).unwrap();
                let world = self.mirror.state().mm().world();
                world.atomic_u64(&span, 0, AtomicOp::Add(value)).unwrap();
                return;
            }
            self.mirror.fault(at.page(), Access::Write).unwrap();
        }
    }

    /// All words of `memory`, as the device reads them.
    pub(crate) fn words(&self, memory: &Mapped) -> Vec<u64> {
        let mut bytes = vec![0; memory.len_bytes];
        // SAFETY: nobody writes meanwhile.
        let window = unsafe { Window::new(memory.start, memory.len_bytes, Access::Read) };
        let mut slot = self.slot();
        let mut done = 0;
        while done < bytes.len() {
            let at = VirtAddr::new(memory.start + done).unwrap();
            let got = self.mirror.state().load(&mut slot, &window, at, &mut bytes[done..]);
            done += match got.unwrap() {
                0 => {
                    self.mirror.fault(at.page(), Access::Read).unwrap();
                    0
                }
                got => got,
            };
        }
        let words = bytes.chunks_exact(8);
        words.map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect()
    }

    /// The states of the pages of `range`, in runs.
    pub(crate) fn states(&self, range: PageRange) -> Vec<(usize, PageState)> {
        let snapshot = self.mirror.snapshot(range).unwrap();
        let runs = snapshot.runs().iter();
        runs.map(|(run, state)| (run.page_count(), *state)).collect()
    }

    /// How many pages of `range` are in a state that `is` accepts.
    pub(crate) fn count(&self, range: PageRange, is: impl Fn(&PageState) -> bool) -> usize {
        let states = self.states(range).into_iter();
        states.filter(|(_, state)| is(state)).map(|(pages, _)| pages).sum()
    }

    /// Waits until the device holds so many pages: what happens behind isomem's back is noticed soon, not at once.
    #[track_caller]
    pub(crate) fn wait_used(&self, pages: usize) {
        let began = std::time::Instant::now();
        while self.used() != pages {
            let waited = began.elapsed();
            assert!(waited.as_secs() < 20, "{} pages are held, not {pages}", self.used());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

pub(crate) fn rw(len_bytes: usize) -> Mapped {
    Mapped::new(len_bytes, libc::PROT_READ | libc::PROT_WRITE)
}

pub(crate) fn is_coherent_here(state: &PageState) -> bool {
    matches!(state, PageState::Coherent { local: true, .. })
}

pub(crate) fn is_exclusive_here(state: &PageState) -> bool {
    matches!(state, PageState::Exclusive { local: true, .. })
}

/// Pages that came home for whatever reason.
pub(crate) fn came_home(stats: &Stats) -> u64 {
    stats.pages_home_by_fault + stats.pages_home_by_eviction + stats.pages_home_by_request
}

/// The word at `addr`, for atomic operations of the CPU.
pub(crate) fn word(addr: usize) -> &'static AtomicU64 {
    // SAFETY: an aligned word of a mapping that outlives the test's threads; devices access it by atomic operations, too.
    unsafe { AtomicU64::from_ptr(addr as *mut u64) }
}

pub(crate) fn load(addr: usize) -> u64 {
    word(addr).load(Ordering::SeqCst)
}
