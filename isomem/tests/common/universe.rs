//! Some blocks of address space beside a flat model of what every byte of them must be.

use std::ops::Range;

use isomem::{Access, DeviceFault, Mirror, PAGE_SIZE, PageRange, PageState, Worker};

use super::{Area, BLOCK, Barrier, PAGES_PER_BLOCK, map_at, unmap_raw};

/// Far from where the kernel puts mappings by itself.
const START: usize = 0x20_0000_0000;
/// Blocks of address space; the upper ones are empty at first.
const BLOCKS: usize = 6;
pub(crate) const PAGES: usize = BLOCKS * PAGES_PER_BLOCK;

pub(crate) type Page = [u8; PAGE_SIZE];

/// The memory and its model.
pub(crate) struct Universe {
    pub(crate) areas: Vec<Area>,
    /// What the CPU or the device must read, page by page.
    pub(crate) pages: Vec<Page>,
    /// Pages that may be on a device.
    pub(crate) away: Vec<bool>,
    pub(crate) barrier: Barrier,
}

impl Universe {
    /// Three blocks with odd pages before and after, a hole, and a part that is only read.
    pub(crate) fn new() -> Self {
        let mut universe = Self {
            areas: vec![Area::Hole; PAGES],
            pages: vec![[0; PAGE_SIZE]; PAGES],
            away: vec![false; PAGES],
            barrier: Barrier::new(START - BLOCK),
        };
        universe.map(500..2060);
        universe
    }

    pub(crate) fn addr(page: usize) -> usize {
        START + page * PAGE_SIZE
    }

    pub(crate) fn range(pages: Range<usize>) -> PageRange {
        PageRange::new(Self::addr(pages.start), pages.len() * PAGE_SIZE).unwrap()
    }

    /// The page as the CPU has it.
    fn memory(page: usize) -> *mut Page {
        Self::addr(page) as *mut Page
    }

    /// Pages that may be written, borrowed from nobody: the caller alone uses them.
    pub(crate) fn words(pages: Range<usize>) -> &'static mut [u64] {
        // SAFETY: the tests own these addresses, and use one such slice at a time, while its pages are mapped.
        unsafe { std::slice::from_raw_parts_mut(Self::addr(pages.start) as *mut u64, pages.len() * (PAGE_SIZE / 8)) }
    }

    /// Runs of neighbouring pages of `pages` for which `is` holds.
    pub(crate) fn runs(&self, pages: Range<usize>, is: impl Fn(Area) -> bool) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for page in pages.filter(|&page| is(self.areas[page])) {
            match runs.last_mut() {
                Some(last) if last.end == page => last.end += 1,
                _ => runs.push(page..page + 1),
            }
        }
        runs
    }

    /// Maps zeroes in place of whatever is there.
    pub(crate) fn map(&mut self, pages: Range<usize>) {
        map_at(Self::addr(pages.start), pages.len());
        self.forget(pages.clone());
        self.areas[pages].fill(Area::ReadWrite);
    }

    /// The model's side of unmapping.
    pub(crate) fn forget(&mut self, pages: Range<usize>) {
        self.areas[pages.clone()].fill(Area::Hole);
        self.zero(pages);
    }

    /// The model's side of discarding.
    pub(crate) fn zero(&mut self, pages: Range<usize>) {
        self.pages[pages.clone()].fill([0; PAGE_SIZE]);
        self.away[pages].fill(false);
    }

    /// The model's side of moving a mapping.
    pub(crate) fn relocate(&mut self, from: Range<usize>, to: usize) {
        let areas = self.areas[from.clone()].to_vec();
        let pages = self.pages[from.clone()].to_vec();
        let into = to..to + from.len();
        self.forget(into.clone());
        self.forget(from);
        self.areas[into.clone()].copy_from_slice(&areas);
        self.pages[into].copy_from_slice(&pages);
    }

    /// Whole blocks of `pages` may be on a device.
    pub(crate) fn may_leave(&mut self, pages: Range<usize>) {
        let first = pages.start / PAGES_PER_BLOCK * PAGES_PER_BLOCK;
        let end = pages.end.next_multiple_of(PAGES_PER_BLOCK);
        for page in first..end {
            self.away[page] = self.areas[page].allows(Access::Read);
        }
    }

    /// The CPU writes: whole pages, or one word of each.
    pub(crate) fn cpu_write(&mut self, pages: Range<usize>, seed: u64) {
        for page in pages {
            if self.areas[page] != Area::ReadWrite {
                continue;
            }
            let change = Change::of(page, seed);
            change.apply(&mut self.pages[page]);
            // SAFETY: the page is mapped for writing, and nobody else uses it now.
            change.apply(unsafe { &mut *Self::memory(page) });
            self.away[page] = false;
        }
    }

    /// The first byte of `pages` that the CPU reads otherwise than it should be. Allocates nothing: it runs in children too.
    pub(crate) fn differs_for_cpu(&self, pages: Range<usize>) -> Option<Difference> {
        for page in pages.filter(|&page| self.areas[page].allows(Access::Read)) {
            // SAFETY: the page is mapped for reading, and nobody writes to it now.
            let memory = unsafe { &*Self::memory(page) };
            if memory != &self.pages[page] {
                return Some(Difference::new(page, memory, &self.pages[page]));
            }
        }
        None
    }

    /// The CPU reads.
    pub(crate) fn cpu_read(&mut self, pages: Range<usize>) {
        assert_eq!(self.differs_for_cpu(pages.clone()), None, "read by the CPU");
        for page in pages {
            self.away[page] &= !self.areas[page].allows(Access::Read);
        }
    }

    /// The device reads all pages, and must get what they hold or the right fault.
    pub(crate) fn device_read(&mut self, mirror: &Mirror, pages: Range<usize>) {
        let this = &*self;
        let kernel = |worker: &mut Worker<'_>| {
            let share = worker.share(pages.len());
            for page in pages.start + share.start..pages.start + share.end {
                // SAFETY: any bytes are a page, and nobody writes them now.
                let read = unsafe { worker.peek(Self::memory(page)) };
                let right = match &read {
                    Ok(bytes) => this.areas[page].allows(Access::Read) && *bytes == this.pages[page],
                    Err(fault) => this.is_right_fault(page, Access::Read, fault),
                };
                if !right {
                    let read = read.map(|bytes| Difference::new(page, &bytes, &this.pages[page]));
                    return Ok(Some((page, this.areas[page], read)));
                }
            }
            Ok(None)
        };
        // SAFETY: the kernel's accesses say why they are sound.
        let told = unsafe { mirror.launch_raw(kernel) };
        let wrong: Vec<_> = told.unwrap().into_iter().flatten().collect();
        assert!(wrong.is_empty(), "read by the device: {wrong:?}");
    }

    /// The device writes, and gets the right faults where it may not.
    pub(crate) fn device_write(&mut self, mirror: &Mirror, pages: Range<usize>, seed: u64) {
        let this = &*self;
        let kernel = |worker: &mut Worker<'_>| {
            let share = worker.share(pages.len());
            for page in pages.start + share.start..pages.start + share.end {
                let wrote = match Change::of(page, seed) {
                    // SAFETY: any bytes are good, and nobody else uses them now.
                    Change::Whole(bytes) => unsafe { worker.poke(Self::memory(page), bytes) },
                    // SAFETY: as above.
                    Change::Word(at, word) => unsafe {
                        worker.poke(Self::memory(page).cast::<u64>().wrapping_add(at), word)
                    },
                };
                let right = match &wrote {
                    Ok(()) => this.areas[page].allows(Access::Write),
                    Err(fault) => this.is_right_fault(page, Access::Write, fault),
                };
                if !right {
                    return Ok(Some((page, this.areas[page], wrote)));
                }
            }
            Ok(None)
        };
        // SAFETY: the kernel's accesses say why they are sound.
        let told = unsafe { mirror.launch_raw(kernel) };
        let wrong: Vec<_> = told.unwrap().into_iter().flatten().collect();
        assert!(wrong.is_empty(), "written by the device: {wrong:?}");
        for page in pages {
            if self.areas[page] == Area::ReadWrite {
                Change::of(page, seed).apply(&mut self.pages[page]);
            }
        }
    }

    fn is_right_fault(&self, page: usize, access: Access, fault: &DeviceFault) -> bool {
        let at = match (self.areas[page], access, fault) {
            (Area::Hole, _, DeviceFault::Hole { addr })
            | (Area::Forbidden, _, DeviceFault::NoAccess { addr })
            | (Area::ReadOnly, Access::Write, DeviceFault::ReadOnly { addr }) => *addr,
            _ => return false,
        };
        at.page() == Self::range(page..page + 1)
    }

    /// What is mapped where agrees with the model, as far as it says.
    pub(crate) fn check_snapshot(&self, mirror: &Mirror) {
        let snapshot = mirror.snapshot(Self::range(0..PAGES)).unwrap();
        let is_zero = |page: usize| self.pages[page] == [0; PAGE_SIZE];
        for page in 0..PAGES {
            let state = snapshot.at(Self::addr(page)).expect("snapshots have no gaps");
            let area = self.areas[page];
            let right = match state {
                PageState::Hole => area == Area::Hole,
                PageState::NoAccess => area == Area::Forbidden,
                PageState::Missing | PageState::Zero => area.allows(Access::Read) && is_zero(page),
                PageState::System { access, .. } => {
                    area.allows(access) && area.allows(Access::Write) == (access == Access::Write)
                }
                // No device here has coherent memory, and none takes pages exclusively.
                PageState::Coherent { .. } | PageState::Exclusive { .. } | PageState::Duplicate { .. } => false,
                PageState::Device { access, .. } => {
                    area.allows(access) && area.allows(Access::Write) == (access == Access::Write) && self.away[page]
                }
            };
            assert!(
                right,
                "page {page} is {area:?}, may be away: {}, and the snapshot says {state:?}",
                self.away[page]
            );
        }
    }
}

impl Drop for Universe {
    fn drop(&mut self) {
        unmap_raw(Self::range(0..PAGES));
    }
}

/// Where memory and model first differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Difference {
    page: usize,
    offset: usize,
    is: u8,
    should_be: u8,
    /// The page is all zeroes.
    zeroes: bool,
}

impl Difference {
    fn new(page: usize, is: &Page, should_be: &Page) -> Self {
        let offset = is
            .iter()
            .zip(should_be)
            .position(|(is, should)| is != should)
            .unwrap_or(0);
        Self {
            page,
            offset,
            is: is[offset],
            should_be: should_be[offset],
            zeroes: is.iter().all(|&byte| byte == 0),
        }
    }
}

/// What a write does to a page.
#[allow(clippy::large_enum_variant, reason = "one at a time, on the stack")]
enum Change {
    Whole(Page),
    /// A word, by its number.
    Word(usize, u64),
}

impl Change {
    fn of(page: usize, seed: u64) -> Self {
        let value = (seed ^ page as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        if seed.is_multiple_of(2) {
            let mut bytes = [0; PAGE_SIZE];
            for (at, piece) in bytes.chunks_exact_mut(8).enumerate() {
                piece.copy_from_slice(&value.wrapping_add(at as u64).to_ne_bytes());
            }
            Self::Whole(bytes)
        } else {
            Self::Word(value as usize % (PAGE_SIZE / 8), value)
        }
    }

    fn apply(&self, page: &mut Page) {
        match self {
            Self::Whole(bytes) => *page = *bytes,
            Self::Word(at, word) => page[at * 8..at * 8 + 8].copy_from_slice(&word.to_ne_bytes()),
        }
    }
}
