//! Memory to measure on, and the raw touches of it.

use std::ffi::c_void;
use std::ptr::NonNull;

use isomem::{ChangeError, Mm};
use isomem_core::addr::{BLOCK_SIZE, PAGE_SIZE, PageRange};
use isomem_core::world::Access;
use isomem_linux::Window;
use rustix::io::Result;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Announces a protection that the range, which is `Memory`, has already: devices lose their entries, and nothing else changes.
pub(crate) fn protect_as_it_is(mm: &Mm, range: PageRange, access: Access) -> std::result::Result<(), ChangeError> {
    // SAFETY: the range is readable and writable memory of a benchmark, and stays so.
    unsafe { mm.protect(range, Some(access)) }
}

/// The kernel's part of the same alone. The range is `Memory`'s.
pub(crate) fn protect_by_kernel(range: PageRange) -> Result<()> {
    let start = std::ptr::with_exposed_provenance_mut(range.start());
    let protection = rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::WRITE;
    // SAFETY: the range is readable and writable memory of a benchmark, and stays so.
    unsafe { rustix::mm::mprotect(start, range.len_bytes(), protection) }
}

/// All of the memory, for devices. Whoever else accesses it does so after they did.
pub(crate) fn window(memory: &Memory) -> Window {
    // SAFETY: the mapping stays while devices work; nobody else accesses a page while one does.
    unsafe { Window::new(memory.range.start(), memory.range.len_bytes(), Access::Write) }
}

/// Which pages the memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pages {
    /// 4 KiB each.
    Small,
    /// 2 MiB each, if the kernel has them.
    Huge,
}

/// Private anonymous memory like any program's, aligned to blocks.
pub(crate) struct Memory {
    map: NonNull<c_void>,
    map_bytes: usize,
    range: PageRange,
}

// SAFETY: the mapping belongs to this value, and what it holds is only touched as the methods say.
unsafe impl Send for Memory {}
// SAFETY: shared access is by volatile loads and stores of whole words, which tests of timing may race.
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn new(len_bytes: usize, pages: Pages) -> Result<Self> {
        let map_bytes = len_bytes + BLOCK_SIZE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches nobody's memory.
        let map = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                map_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )
        }?;
        let start = (map as usize).next_multiple_of(BLOCK_SIZE);
        let advice = match pages {
            Pages::Small => Advice::LinuxNoHugepage,
            Pages::Huge => Advice::LinuxHugepage,
        };
        // SAFETY: the advice concerns the mapping just made only, and changes no contents.
        unsafe { rustix::mm::madvise(map, map_bytes, advice) }?;
        let range = PageRange::new(start, len_bytes).expect("a mapping is in user space");
        Ok(Self {
            map: NonNull::new(map).expect("a mapping is not at 0"),
            map_bytes,
            range,
        })
    }

    pub(crate) fn range(&self) -> PageRange {
        self.range
    }

    /// The words, for plain use.
    pub(crate) fn words(&mut self) -> &mut [u64] {
        let len = self.range.len_bytes() / 8;
        // SAFETY: the mapping is readable, writable, aligned, zero or what was written, and borrowed through `self`.
        unsafe { std::slice::from_raw_parts_mut(self.range.start() as *mut u64, len) }
    }

    /// Touches every page and gives each its number.
    pub(crate) fn fill(&mut self) {
        for (index, word) in self.words().iter_mut().enumerate() {
            *word = index as u64;
        }
    }

    /// Reads the first word of page `index`, with a load that is really made.
    pub(crate) fn touch(&self, index: usize) -> u64 {
        assert!(index < self.range.page_count());
        let at = (self.range.start() + index * PAGE_SIZE) as *const u64;
        // SAFETY: in bounds of the mapping, by the assertion; aligned; any bytes are a u64.
        unsafe { at.read_volatile() }
    }

    /// Writes the first word of page `index`.
    pub(crate) fn store(&self, index: usize, value: u64) {
        assert!(index < self.range.page_count());
        let at = (self.range.start() + index * PAGE_SIZE) as *mut u64;
        // SAFETY: in bounds of the mapping, by the assertion; aligned; nobody holds a reference to the words while benchmarks store.
        unsafe { at.write_volatile(value) }
    }

    /// Copies page `index` out.
    pub(crate) fn load(&self, index: usize, out: &mut [u8; PAGE_SIZE]) {
        assert!(index < self.range.page_count());
        let at: *const u8 = std::ptr::with_exposed_provenance(self.range.start() + index * PAGE_SIZE);
        // SAFETY: in bounds of the mapping, by the assertion; `out` is none of it. Nobody else accesses the page meanwhile.
        unsafe { at.copy_to_nonoverlapping(out.as_mut_ptr(), PAGE_SIZE) };
    }

    /// Copies `from` to page `index`.
    pub(crate) fn put(&self, index: usize, from: &[u8; PAGE_SIZE]) {
        assert!(index < self.range.page_count());
        let at: *mut u8 = std::ptr::with_exposed_provenance_mut(self.range.start() + index * PAGE_SIZE);
        // SAFETY: as in `load`.
        unsafe { at.copy_from_nonoverlapping(from.as_ptr(), PAGE_SIZE) };
    }

    /// Drops the contents.
    pub(crate) fn discard(&mut self) -> Result<()> {
        let start = self.range.start() as *mut c_void;
        // SAFETY: the mapping is this value's, and borrowed mutably: nobody relies on its contents.
        unsafe { rustix::mm::madvise(start, self.range.len_bytes(), Advice::LinuxDontNeed) }
    }

    /// Copies all of `from`, which is as large.
    pub(crate) fn copy_from(&mut self, from: &mut Self) {
        self.words().copy_from_slice(from.words());
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this length and is unmapped once, here.
        let _ = unsafe { rustix::mm::munmap(self.map.as_ptr(), self.map_bytes) };
    }
}

/// Maps a page that has no neighbour, so that it is an area by itself, and touches it.
pub(crate) fn map_page() -> usize {
    let flags = MapFlags::PRIVATE;
    // SAFETY: a fresh mapping at an address of the kernel's choice touches nobody's memory.
    let map = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            2 * PAGE_SIZE,
            ProtFlags::READ | ProtFlags::WRITE,
            flags,
        )
    };
    let at = map.expect("a page can be mapped");
    // SAFETY: the second page of it, which nobody uses, keeps the next one apart.
    let guarded = unsafe {
        rustix::mm::mprotect(
            at.wrapping_byte_add(PAGE_SIZE),
            PAGE_SIZE,
            rustix::mm::MprotectFlags::empty(),
        )
    };
    guarded.expect("a page can be protected");
    // SAFETY: mapped just now.
    unsafe { at.cast::<u8>().write_volatile(1) };
    at.expose_provenance()
}

/// Unmaps what [`map_page`] mapped.
pub(crate) fn unmap_page(at: usize) {
    // SAFETY: nobody uses it any more.
    let unmapped = unsafe { rustix::mm::munmap(std::ptr::with_exposed_provenance_mut(at), 2 * PAGE_SIZE) };
    unmapped.expect("what is mapped can be unmapped");
}

/// The same by the C library's function, or what stands before it.
pub(crate) fn unmap_by_libc(at: usize) {
    // SAFETY: nobody uses it any more.
    let unmapped = unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(at), 2 * PAGE_SIZE) };
    assert_eq!(unmapped, 0, "what is mapped can be unmapped");
}

/// The same by isomem.
pub(crate) fn unmap_announced(mm: &Mm, at: usize) {
    let range = PageRange::new(at, 2 * PAGE_SIZE).expect("a mapping is in user space");
    // SAFETY: nobody uses it any more.
    unsafe { mm.unmap(range) }.expect("what is mapped can be unmapped");
}

/// Runs `measure` in a child, and returns what it measured; `None` where it could not.
pub(crate) fn in_child(measure: impl FnOnce() -> Option<[f64; 2]>) -> std::io::Result<Option<[f64; 2]>> {
    use std::io::{Read, Write};
    let (mut from, mut to) = std::io::pipe()?;
    // SAFETY: nothing else of the program runs meanwhile, so the child can do what it likes.
    let child = unsafe { libc::fork() };
    if child == 0 {
        if let Some(measured) = measure() {
            let bytes: Vec<u8> = measured.iter().flat_map(|value| value.to_le_bytes()).collect();
            let _ = to.write_all(&bytes);
        }
        // SAFETY: ends the child without running what is the parent's.
        unsafe { libc::_exit(0) };
    }
    if child < 0 {
        return Err(std::io::Error::last_os_error());
    }
    drop(to);
    let mut bytes = [0_u8; 16];
    let read = from.read_exact(&mut bytes);
    // SAFETY: the child is ours.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    let value = |at: usize| f64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
    Ok(read.is_ok().then(|| [value(0), value(8)]))
}
