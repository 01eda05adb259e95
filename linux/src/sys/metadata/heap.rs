//! One heap: a reservation of address space, cut into slabs from below and into large blocks from above.
//!
//! ```text
//! | link words of units | slab | slab | ..  ->      <- .. | large | large block |
//! ```
//!
//! Slabs stay with their size. A large block stays a block of its size when it is freed, but gives its pages back to the kernel
//! from [`GIVE_BACK_BYTES`] on; only address space can be lost to fragmentation, and of that there is plenty.

use core::alloc::Layout;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use allocator_api2::alloc::AllocError;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::super::call::{Call, checked, make};
use super::classes::{CUTS, LARGE_CLASSES, PAGE_BYTES, SLAB_BYTES, SMALL_CLASSES, UNIT_BYTES};
use super::classes::{small_class, step, step_len};
use super::list::FreeList;

/// The reservation is aligned to this; also the least that is worth having.
const REGION_ALIGN: usize = 2 << 20;
/// The smallest reservation that is tried.
const LEAST_BYTES: usize = 16 << 20;
/// Where overcommit is strict every reserved byte counts against the program, so no more than this is tried.
const STRICT_BYTES: usize = 256 << 20;
/// A freed block of this size gives its pages back; it then reads as zeroes.
const GIVE_BACK_BYTES: usize = 256 << 10;
const UNITS_PER_SLAB: usize = SLAB_BYTES / UNIT_BYTES;

/// The reservation. The length is a power of two.
#[derive(Clone, Copy)]
pub(super) struct Region {
    base: usize,
    len_bytes: usize,
}

impl Region {
    /// From the one word that holds both: the base's low bits are free for the length's logarithm.
    fn unpack(word: usize) -> Option<Self> {
        (word != 0).then(|| Self {
            base: word & !(REGION_ALIGN - 1),
            len_bytes: 1 << (word & (REGION_ALIGN - 1)),
        })
    }

    fn pack(self) -> usize {
        self.base | self.len_bytes.ilog2() as usize
    }

    pub(super) fn range(self) -> Range<usize> {
        self.base..self.base + self.len_bytes
    }

    fn unit_count(self) -> usize {
        self.len_bytes / UNIT_BYTES
    }

    /// Slabs that the link words of the units take; at least one, so that no block has id 0.
    fn table_slabs(self) -> usize {
        (self.unit_count() * size_of::<u32>()).div_ceil(SLAB_BYTES)
    }

    fn at(self, offset: usize) -> NonNull<u8> {
        debug_assert!(offset < self.len_bytes);
        NonNull::new(core::ptr::with_exposed_provenance_mut(self.base + offset)).expect("a mapping is not at null")
    }

    fn word<'a>(self, offset: usize) -> &'a AtomicU32 {
        let word = self.at(offset).as_ptr().cast::<u32>();
        // SAFETY: `offset` is a multiple of four within the region, which is mapped read-write for as long as the heap lives. Offsets
        // passed here are those of link words, which are never handed out and only used as atomics (META-1).
        unsafe { AtomicU32::from_ptr(word) }
    }

    fn unit_link<'a>(self, unit: u32) -> &'a AtomicU32 {
        self.word(unit as usize * size_of::<u32>())
    }

    fn block_link<'a>(self, id: u32) -> &'a AtomicU32 {
        self.word((id >> 16) as usize * SLAB_BYTES + (id & 0xffff) as usize * size_of::<u32>())
    }

    fn map(len_bytes: usize) -> Option<Self> {
        let len_mapped = len_bytes + REGION_ALIGN;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing one.
        let mapped = unsafe {
            rustix::mm::mmap_anonymous(
                core::ptr::null_mut(),
                len_mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )
        };
        let start = mapped.ok()?.expose_provenance();
        let base = start.next_multiple_of(REGION_ALIGN);
        unmap(start..base);
        unmap(base + len_bytes..start + len_mapped);
        let region = Self { base, len_bytes };
        // A huge page would make a small heap cost 2 MiB at once. Without THP in the kernel this fails, and need not work.
        // SAFETY: advice about a mapping of our own that changes no contents.
        let _ = unsafe { rustix::mm::madvise(region.at(0).as_ptr().cast(), len_bytes, Advice::LinuxNoHugepage) };
        Some(region)
    }
}

/// Removes a part of a mapping that nobody uses.
fn unmap(range: Range<usize>) {
    if range.is_empty() {
        return;
    }
    let start = core::ptr::with_exposed_provenance_mut(range.start);
    // SAFETY: callers pass a part of a mapping that they made and that nothing points into.
    let _ = unsafe { rustix::mm::munmap(start, range.len()) };
}

/// Whether the kernel counts every reserved byte (vm.overcommit_memory is 2).
fn overcommit_is_strict() -> bool {
    use rustix::fs::{CWD, Mode, OFlags};
    let opened = rustix::fs::openat(
        CWD,
        c"/proc/sys/vm/overcommit_memory",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let mut first = [0u8; 1];
    opened.is_ok_and(|file| rustix::io::read(&file, &mut first).is_ok()) && first == *b"2"
}

/// A size's free blocks, and the slab that new ones are cut from.
struct SmallClass {
    free: FreeList,
    /// The slab above the number of blocks already cut from it; slab 0 means none yet.
    fresh: AtomicU64,
}

/// See the module.
pub(super) struct Heap {
    most_bytes: usize,
    region: AtomicUsize,
    /// Units taken from above, over slabs taken from below.
    ends: AtomicU64,
    small: [SmallClass; SMALL_CLASSES],
    large: [FreeList; LARGE_CLASSES],
    /// Slabs taken by who then lost the race to install them.
    spare: FreeList,
    in_use_bytes: AtomicUsize,
}

impl Heap {
    /// A heap of at most `most_bytes` (a power of two) of address space, reserved at first use.
    pub(super) const fn new(most_bytes: usize) -> Self {
        assert!(most_bytes.is_power_of_two() && most_bytes >= LEAST_BYTES);
        Self {
            most_bytes,
            region: AtomicUsize::new(0),
            ends: AtomicU64::new(0),
            small: [const {
                SmallClass {
                    free: FreeList::new(),
                    fresh: AtomicU64::new(0),
                }
            }; SMALL_CLASSES],
            large: [const { FreeList::new() }; LARGE_CLASSES],
            spare: FreeList::new(),
            in_use_bytes: AtomicUsize::new(0),
        }
    }

    /// The reservation, made now if it was not.
    pub(super) fn reserve(&self) -> Result<Region, AllocError> {
        // Acquire: pairs with the release below, so that who sees the base sees a mapping that is set up.
        match Region::unpack(self.region.load(Ordering::Acquire)) {
            Some(region) => Ok(region),
            None => self.reserve_first(),
        }
    }

    #[cold]
    fn reserve_first(&self) -> Result<Region, AllocError> {
        let most_bytes = if overcommit_is_strict() {
            self.most_bytes.min(STRICT_BYTES)
        } else {
            self.most_bytes
        };
        let sizes = core::iter::successors(Some(most_bytes), |len| {
            (*len > LEAST_BYTES).then(|| (len / 4).max(LEAST_BYTES))
        });
        let mine = sizes.into_iter().find_map(Region::map).ok_or(AllocError)?;
        match self
            .region
            .compare_exchange(0, mine.pack(), Ordering::Release, Ordering::Acquire)
        {
            Ok(_) => Ok(mine),
            Err(first) => {
                unmap(mine.range());
                Region::unpack(first).ok_or(AllocError)
            }
        }
    }

    #[inline]
    pub(super) fn contains(&self, addr: usize) -> bool {
        Region::unpack(self.region.load(Ordering::Acquire)).is_some_and(|region| region.range().contains(&addr))
    }

    pub(super) fn bytes_in_use(&self) -> usize {
        self.in_use_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            return Ok(NonNull::slice_from_raw_parts(dangling(layout), 0));
        }
        let region = self.reserve()?;
        let (start, counted_bytes) = match small_class(layout.size(), layout.align()) {
            Some(class) => (self.allocate_small(region, class)?, CUTS[class].block_bytes),
            None => (
                self.allocate_large(region, layout)?,
                layout.size().next_multiple_of(PAGE_BYTES),
            ),
        };
        self.in_use_bytes.fetch_add(counted_bytes, Ordering::Relaxed);
        Ok(NonNull::slice_from_raw_parts(start, layout.size()))
    }

    /// Large blocks that give their pages back need no writing: they read as zeroes already.
    pub(super) fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let block = self.allocate(layout)?;
        if layout.size() < GIVE_BACK_BYTES {
            // SAFETY: the block was just handed out to us, and has `layout.size()` bytes.
            unsafe { block.cast::<u8>().write_bytes(0, layout.size()) };
        }
        Ok(block)
    }

    /// # Safety
    /// `start` is a live block of this heap, allocated with `layout`.
    pub(super) unsafe fn deallocate(&self, start: NonNull<u8>, layout: Layout) {
        if layout.size() == 0 {
            return;
        }
        let Some(region) = Region::unpack(self.region.load(Ordering::Acquire)) else {
            return;
        };
        let offset = start.addr().get() - region.base;
        match small_class(layout.size(), layout.align()) {
            Some(class) => self.free_small(region, class, offset),
            None => self.free_large(region, layout, offset),
        }
    }

    fn allocate_small(&self, region: Region, class: usize) -> Result<NonNull<u8>, AllocError> {
        let id = match self.small[class].free.pop(|id| region.block_link(id)) {
            Some(id) => id,
            None => self.cut_block(region, class)?,
        };
        let cut = &CUTS[class];
        let in_slab = cut.header_bytes + (id & 0xffff) as usize * cut.block_bytes;
        Ok(region.at((id >> 16) as usize * SLAB_BYTES + in_slab))
    }

    fn free_small(&self, region: Region, class: usize, offset: usize) {
        let cut = &CUTS[class];
        let block = (offset % SLAB_BYTES - cut.header_bytes) / cut.block_bytes;
        let id = ((offset / SLAB_BYTES) << 16 | block) as u32;
        self.in_use_bytes.fetch_sub(cut.block_bytes, Ordering::Relaxed);
        self.small[class].free.push(id, region.block_link(id));
    }

    /// A block that was never used, as its id: the slab above the block's number.
    fn cut_block(&self, region: Region, class: usize) -> Result<u32, AllocError> {
        let fresh = &self.small[class].fresh;
        loop {
            // Relaxed throughout: the word alone says who owns which block, and a new slab holds nothing to be seen.
            let word = fresh.load(Ordering::Relaxed);
            let (slab, used) = ((word >> 32) as u32, word as u32);
            if slab != 0 && (used as usize) < CUTS[class].block_count {
                if fresh
                    .compare_exchange_weak(word, word + 1, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
                {
                    return Ok(slab << 16 | used);
                }
                continue;
            }
            let slab = self.take_slab(region)?;
            let installed = u64::from(slab) << 32 | 1;
            if fresh
                .compare_exchange(word, installed, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
            {
                return Ok(slab << 16);
            }
            self.spare.push(slab, region.unit_link(slab * UNITS_PER_SLAB as u32));
        }
    }

    fn take_slab(&self, region: Region) -> Result<u32, AllocError> {
        if let Some(slab) = self.spare.pop(|slab| region.unit_link(slab * UNITS_PER_SLAB as u32)) {
            return Ok(slab);
        }
        let (slabs, _) = self.take_ends(region, 1, 0)?;
        Ok((region.table_slabs() + slabs) as u32 - 1)
    }

    fn allocate_large(&self, region: Region, layout: Layout) -> Result<NonNull<u8>, AllocError> {
        let wanted = layout.size().div_ceil(UNIT_BYTES);
        if layout.align() > UNIT_BYTES || wanted > region.unit_count() {
            return Err(AllocError);
        }
        let class = step(wanted);
        let unit = match self.large[class].pop(|unit| region.unit_link(unit)) {
            Some(unit) => unit as usize,
            None => region.unit_count() - self.take_ends(region, 0, step_len(class))?.1,
        };
        Ok(region.at(unit * UNIT_BYTES))
    }

    fn free_large(&self, region: Region, layout: Layout, offset: usize) {
        self.in_use_bytes
            .fetch_sub(layout.size().next_multiple_of(PAGE_BYTES), Ordering::Relaxed);
        if layout.size() >= GIVE_BACK_BYTES {
            let start = region.at(offset).as_ptr().expose_provenance();
            let call = Call::new(libc::SYS_madvise, [start, layout.size(), libc::MADV_DONTNEED as usize]);
            // SAFETY: the block is being freed, so nobody relies on its contents; it is page-aligned and within the region.
            if checked(unsafe { make(call) }).is_err() {
                // It would not read as zeroes again. Its address space is lost; that is all.
                return;
            }
        }
        let unit = (offset / UNIT_BYTES) as u32;
        self.large[step(layout.size().div_ceil(UNIT_BYTES))].push(unit, region.unit_link(unit));
    }

    /// Takes slabs from below or units from above; the answer is how many of each are taken in all.
    fn take_ends(&self, region: Region, slabs: usize, units: usize) -> Result<(usize, usize), AllocError> {
        let take = |word: u64| {
            let slabs = (word as u32) as usize + slabs;
            let units = (word >> 32) as usize + units;
            let fits = (region.table_slabs() + slabs) * UNITS_PER_SLAB + units <= region.unit_count();
            fits.then_some((slabs, units))
        };
        let pack = |(slabs, units): (usize, usize)| (units as u64) << 32 | slabs as u64;
        // Relaxed: the word alone says who owns what.
        let before = self
            .ends
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| take(word).map(pack));
        before.ok().and_then(take).ok_or(AllocError)
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        if let Some(region) = Region::unpack(*self.region.get_mut()) {
            unmap(region.range());
        }
    }
}

/// A pointer that is aligned for `layout` and not null, for no bytes.
fn dangling(layout: Layout) -> NonNull<u8> {
    NonNull::new(core::ptr::without_provenance_mut(layout.align())).expect("an alignment is not zero")
}
