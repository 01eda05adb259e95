//! Mappings of isomem's own, and changes to the program's mappings.
//!
//! # Invariants
//! - MAPN-1: a [`Mapping`] is listed as isomem's own from before it exists for others until after it is gone, so that it
//!   is never mirrored.
//! - MAPN-2: a mapping is unmapped exactly once, by the process that made it: a forked child may have something else there.
//!
//! # Locking
//! None: the list is a table of atomics.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::call::{Call, checked, make};
use super::inject::{self, Site};
use isomem_core::addr::{BLOCK_SIZE, PAGE_SIZE, PageRange};
use isomem_core::world::Access;
use rustix::io::{Errno, Result};

/// Mappings of isomem's own that can exist at the same time.
const OWN_MAX: usize = 256;

struct Place {
    start: AtomicUsize,
    end: AtomicUsize,
}

static OWN: [Place; OWN_MAX] = [const {
    Place {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
    }
}; OWN_MAX];
/// A place that is being filled: taken, but holds no range yet.
const CLAIMED: usize = 1;

/// Reports isomem's own mappings that overlap `range`, in no order.
pub fn own_in(range: PageRange, each: &mut dyn FnMut(PageRange)) {
    for place in &OWN {
        // Acquire: pairs with the release in `list`, so that the end belongs to the start.
        let start = place.start.load(Ordering::Acquire);
        if start <= CLAIMED {
            continue;
        }
        let end = place.end.load(Ordering::Relaxed);
        if let Ok(own) = PageRange::new(start, end.saturating_sub(start))
            && own.overlaps(range)
        {
            each(own);
        }
    }
}

/// Says that `range` is isomem's own (MAPN-1).
pub(super) fn list(range: PageRange) -> Result<()> {
    let free = |place: &&Place| {
        place
            .start
            .compare_exchange(0, CLAIMED, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    };
    let place = OWN.iter().find(free).ok_or(Errno::NOMEM)?;
    place.end.store(range.end(), Ordering::Relaxed);
    place.start.store(range.start(), Ordering::Release);
    Ok(())
}

fn unlist(range: PageRange) {
    if let Some(place) = OWN
        .iter()
        .find(|place| place.start.load(Ordering::Relaxed) == range.start())
    {
        place.start.store(0, Ordering::Release);
    }
}

/// A private anonymous mapping of isomem's own, readable and writable; unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    range: PageRange,
    process: u32,
}

impl Mapping {
    /// Maps `len_bytes` bytes, a multiple of the page size. Memory is taken as pages are touched.
    pub fn new(len_bytes: usize) -> Result<Self> {
        let start = map_anonymous(len_bytes)?;
        Self::own(PageRange::new(start, len_bytes).map_err(|_| Errno::INVAL)?)
    }

    /// Maps `len_bytes` bytes aligned to a block.
    pub fn new_aligned(len_bytes: usize) -> Result<Self> {
        let padded = len_bytes.checked_add(BLOCK_SIZE).ok_or(Errno::NOMEM)?;
        let start = map_anonymous(padded)?;
        let aligned = start.next_multiple_of(BLOCK_SIZE);
        let cut = |from: usize, to: usize| PageRange::new(from, to - from).map_or(Ok(()), unmap);
        cut(start, aligned)?;
        cut(aligned + len_bytes, start + padded)?;
        Self::own(PageRange::new(aligned, len_bytes).map_err(|_| Errno::INVAL)?)
    }

    fn own(range: PageRange) -> Result<Self> {
        if let Err(errno) = list(range) {
            let _ = unmap(range);
            return Err(errno);
        }
        Ok(Self {
            range,
            process: std::process::id(),
        })
    }

    /// Where it lies.
    pub const fn range(&self) -> PageRange {
        self.range
    }

    /// Gives up the value but keeps the mapping, for [`Mapping::from_range`].
    pub fn into_range(self) -> PageRange {
        let range = self.range;
        core::mem::forget(self);
        range
    }

    /// The mapping that [`Mapping::into_range`] kept.
    pub fn from_range(range: PageRange) -> Self {
        Self {
            range,
            process: std::process::id(),
        }
    }

    /// The child of a fork does not get it.
    pub fn not_in_children(&self) -> Result<()> {
        advise(self.range, libc::MADV_DONTFORK, Site::Advise)
    }

    /// The child of a fork finds zeroes in it.
    pub fn wiped_in_children(&self) -> Result<()> {
        advise(self.range, libc::MADV_WIPEONFORK, Site::Advise)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.process == std::process::id() && unmap(self.range).is_ok() {
            unlist(self.range);
        }
    }
}

/// Tells a process from its forked children.
#[derive(Debug)]
pub struct ForkMark {
    page: Mapping,
}

impl ForkMark {
    /// The calling process is the one that [`ForkMark::is_here`] stands for.
    pub fn new() -> Result<Self> {
        let page = Mapping::new(PAGE_SIZE)?;
        page.wiped_in_children()?;
        let mark = Self { page };
        mark.word().store(1, Ordering::Relaxed);
        Ok(mark)
    }

    /// Whether the caller runs in the process that made the mark, and not in a child of it.
    #[inline]
    pub fn is_here(&self) -> bool {
        // Relaxed: a child is alone with its copy, and the parent never changes it.
        self.word().load(Ordering::Relaxed) == 1
    }

    fn word(&self) -> &AtomicUsize {
        // SAFETY: the page is mapped and aligned as long as `self` lives, zeroes are a valid value, and nobody else has it.
        unsafe { &*pointer(self.page.range()).cast::<AtomicUsize>() }
    }
}

fn map_anonymous(len_bytes: usize) -> Result<usize> {
    inject::check(Site::Mmap)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let call = Call::new(
        libc::SYS_mmap,
        [0, len_bytes, protection as usize, flags as usize, usize::MAX, 0],
    );
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing one.
    checked(unsafe { make(call) })
}

fn pointer(range: PageRange) -> *mut core::ffi::c_void {
    core::ptr::with_exposed_provenance_mut(range.start())
}

/// Reads a byte of a page of isomem's own; waits where the page is missing and a userfaultfd serves it.
pub fn touch(mapping: &Mapping) {
    let byte: *const u8 = pointer(mapping.range()).cast();
    // SAFETY: the page is mapped and readable as long as the mapping lives.
    let _ = unsafe { byte.read_volatile() };
}

/// Removes what is mapped in `range`. The caller answers for nobody using it.
#[doc(alias = "munmap")]
pub fn unmap(range: PageRange) -> Result<()> {
    inject::check(Site::Munmap)?;
    let call = Call::new(libc::SYS_munmap, [range.start(), range.len_bytes()]);
    // SAFETY: the range is isomem's own (MAPN-2), or the program asked for it through an unsafe call that says so.
    checked(unsafe { make(call) }).map(drop)
}

/// Sets what may be done in `range`; `None` is PROT_NONE.
#[doc(alias = "mprotect")]
pub fn protect(range: PageRange, access: Option<Access>) -> Result<()> {
    let protection = match access {
        None => libc::PROT_NONE,
        Some(Access::Read) => libc::PROT_READ,
        Some(Access::Write) => libc::PROT_READ | libc::PROT_WRITE,
    };
    inject::check(Site::Mprotect)?;
    let call = Call::new(
        libc::SYS_mprotect,
        [range.start(), range.len_bytes(), protection as usize],
    );
    // SAFETY: the range is isomem's own, or the program asked for it.
    checked(unsafe { make(call) }).map(drop)
}

/// Moves the mapping at `from` to `to`, replacing what is there.
#[doc(alias = "mremap")]
pub fn remap(from: PageRange, to: PageRange) -> Result<()> {
    inject::check(Site::Mremap)?;
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let call = Call::new(
        libc::SYS_mremap,
        [
            from.start(),
            from.len_bytes(),
            to.len_bytes(),
            flags as usize,
            to.start(),
        ],
    );
    // SAFETY: the program asked for it through an unsafe call that says what happens to both ranges.
    checked(unsafe { make(call) }).map(drop)
}

/// Drops the contents of `range`, also where it is locked in memory.
#[doc(alias = "MADV_DONTNEED")]
pub fn discard(range: PageRange) -> Result<()> {
    match advise(range, libc::MADV_DONTNEED, Site::Discard) {
        // What a locked area answers.
        Err(Errno::INVAL) => advise(range, libc::MADV_DONTNEED_LOCKED, Site::Discard),
        other => other,
    }
}

/// Brings every page of `range` in, as an access would. Some may be in although it fails.
#[doc(alias = "MADV_POPULATE_WRITE")]
pub fn populate(range: PageRange, access: Access) -> Result<()> {
    let advice = match access {
        Access::Read => libc::MADV_POPULATE_READ,
        Access::Write => libc::MADV_POPULATE_WRITE,
    };
    advise(range, advice, Site::Populate)
}

/// Asks for huge pages in `range`.
pub fn prefer_huge(range: PageRange) -> Result<()> {
    advise(range, libc::MADV_HUGEPAGE, Site::Advise)
}

fn advise(range: PageRange, advice: i32, site: Site) -> Result<()> {
    let call = Call::new(libc::SYS_madvise, [range.start(), range.len_bytes(), advice as usize]);
    loop {
        // SAFETY: the callers pass a mapping of isomem's own, or a range of which the program (or the protocol, which keeps the
        // contents elsewhere) wants exactly this.
        let advised = || checked(unsafe { make(call) }).map(drop);
        match inject::check(site).and_then(|()| advised()) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests;
