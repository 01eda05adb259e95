//! Reads what the CPU's page table holds, without touching it.
//!
//! PAGEMAP_SCAN (Linux 6.7) where there is one; else the words of /proc/self/pagemap, which cannot tell the
//! zero page nor huge pages.
//!
//! # Invariants
//! - PMAP-1: the runs are in order, gapless, cover exactly the range, and neighbours differ.
//! - PMAP-2: nothing is allocated: buffers are on the stack.
//!
//! # Locking
//! None. The answer may be stale when it arrives.
//!
//! Linux: fs/proc/task_mmu.c.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use isomem_core::addr::{PAGE_SIZE, PageRange, USER_END};
use isomem_core::world::{Pte, PteRun};
use linux_raw_sys::general as raw;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

use super::inject::{self, Site};

const SCAN: Opcode = opcode::read_write::<raw::pm_scan_arg>(b'f', 16);
/// Regions that one PAGEMAP_SCAN reports.
const REGIONS: usize = 64;
/// Words of the pagemap that one read fetches.
const WORDS: usize = 256;
const WORD_PRESENT: u64 = 1 << 63;
const WORD_SWAPPED: u64 = 1 << 62;
/// Installed by MADV_GUARD_INSTALL: an access is an error.
const WORD_GUARD: u64 = 1 << 58;
const OCCUPIED: u64 = (raw::PAGE_IS_PRESENT | raw::PAGE_IS_SWAPPED) as u64;
/// The page is still that of the file behind the mapping, or of shared memory.
const WORD_FILE: u64 = 1 << 61;
const REPORTED: u64 = OCCUPIED | (raw::PAGE_IS_PFNZERO | raw::PAGE_IS_HUGE | raw::PAGE_IS_GUARD) as u64;

/// The page table of the process that opened it.
#[derive(Debug)]
pub struct Pagemap {
    fd: OwnedFd,
    /// PAGEMAP_SCAN works here; cleared when the kernel says it does not know it.
    has_scan: AtomicBool,
    /// PAGE_IS_GUARD is known too (Linux 6.15).
    has_guard: AtomicBool,
}

impl Pagemap {
    /// Opens that of the calling process.
    pub fn open() -> Result<Self> {
        inject::check(Site::ProcOpen)?;
        let fd = rustix::fs::open("/proc/self/pagemap", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self {
            fd,
            has_scan: AtomicBool::new(true),
            has_guard: AtomicBool::new(true),
        })
    }

    /// Reports the state of each page of `range` to `each` (PMAP-1).
    pub fn scan(&self, range: PageRange, each: &mut dyn FnMut(PteRun)) -> Result<()> {
        let mut runs = Runs {
            at: range.start(),
            pending: None,
            each,
        };
        // Relaxed: a reader that misses the news only asks the kernel once more.
        if self.has_scan.load(Ordering::Relaxed) {
            match self.scan_by_ioctl(range, &mut runs) {
                Err(Errno::NOTTY | Errno::INVAL) if runs.at == range.start() => {
                    self.has_scan.store(false, Ordering::Relaxed);
                }
                Err(errno) => return Err(errno),
                Ok(()) => return runs.finish(range.end()),
            }
        }
        self.scan_by_read(range, &mut runs)?;
        runs.finish(range.end())
    }

    /// The same by reading words only, as on a kernel before 6.7.
    pub fn scan_words(&self, range: PageRange, each: &mut dyn FnMut(PteRun)) -> Result<()> {
        let mut runs = Runs {
            at: range.start(),
            pending: None,
            each,
        };
        self.scan_by_read(range, &mut runs)?;
        runs.finish(range.end())
    }

    /// Whether PAGEMAP_SCAN works here, as far as is known: true until a first scan failed.
    pub fn has_scan(&self) -> bool {
        self.has_scan.load(Ordering::Relaxed)
    }

    /// Reports the pages of `range` that are present and still those of the file behind the mapping (or of shared memory), in order.
    pub fn file_pages(&self, range: PageRange, each: &mut dyn FnMut(PageRange)) -> Result<()> {
        let mut words = [[0_u8; 8]; WORDS];
        let mut page = range.first_page();
        while page < range.end_page() {
            let want = WORDS.min(range.end_page() - page);
            let got = match rustix::io::pread(&self.fd, words[..want].as_flattened_mut(), (page * 8) as u64) {
                Err(Errno::INTR) => continue,
                other => other? / 8,
            };
            if got == 0 {
                return Ok(());
            }
            let mut first = None;
            for (index, word) in words[..got].iter().enumerate() {
                let word = u64::from_ne_bytes(*word);
                let of_file = word & WORD_PRESENT != 0 && word & WORD_FILE != 0;
                match (first, of_file) {
                    (None, true) => first = Some(index),
                    (Some(from), false) => {
                        report(page + from, index - from, each);
                        first = None;
                    }
                    _ => {}
                }
            }
            if let Some(from) = first {
                report(page + from, got - from, each);
            }
            page += got;
        }
        Ok(())
    }

    fn scan_by_ioctl(&self, range: PageRange, runs: &mut Runs<'_>) -> Result<()> {
        const EMPTY: raw::page_region = raw::page_region {
            start: 0,
            end: 0,
            categories: 0,
        };
        let mut regions = [EMPTY; REGIONS];
        let mut from = range.start();
        while from < range.end() {
            let (count, walk_end) = self.scan_some(from, range.end(), &mut regions)?;
            for region in &regions[..count] {
                runs.push(region.start as usize, region.end as usize, pte_of(region.categories));
            }
            // A walk always gets on; should the kernel ever not, end rather than spin.
            if walk_end <= from {
                return Err(Errno::IO);
            }
            from = walk_end;
        }
        Ok(())
    }

    fn scan_some(&self, start: usize, end: usize, regions: &mut [raw::page_region; REGIONS]) -> Result<(usize, usize)> {
        let guard = u64::from(raw::PAGE_IS_GUARD);
        loop {
            let has_guard = self.has_guard.load(Ordering::Relaxed);
            let mut arg = raw::pm_scan_arg {
                size: size_of::<raw::pm_scan_arg>() as u64,
                flags: 0,
                start: start as u64,
                end: end as u64,
                walk_end: 0,
                vec: regions.as_mut_ptr().expose_provenance() as u64,
                vec_len: REGIONS as u64,
                max_pages: 0,
                category_inverted: 0,
                category_mask: 0,
                category_anyof_mask: OCCUPIED,
                return_mask: if has_guard { REPORTED } else { REPORTED & !guard },
            };
            // SAFETY: `Scan` describes PAGEMAP_SCAN, and `vec` is room for `vec_len` regions, borrowed exclusively until it returns.
            let mut call = || unsafe { ioctl(&self.fd, Scan(&mut arg)) };
            match inject::check(Site::PagemapScan).and_then(|()| call()) {
                Ok(count) => return Ok((count.min(REGIONS), arg.walk_end as usize)),
                Err(Errno::INVAL) if has_guard => self.has_guard.store(false, Ordering::Relaxed),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    fn scan_by_read(&self, range: PageRange, runs: &mut Runs<'_>) -> Result<()> {
        let mut words = [[0_u8; 8]; WORDS];
        let mut page = range.first_page();
        while page < range.end_page() {
            let want = WORDS.min(range.end_page() - page);
            let mut read = || rustix::io::pread(&self.fd, words[..want].as_flattened_mut(), (page * 8) as u64);
            let got = match inject::check(Site::PagemapRead).and_then(|()| read()) {
                Err(Errno::INTR) => continue,
                other => other? / 8,
            };
            if got == 0 {
                // The end of the table is the end of user space: holes from here on.
                debug_assert!(range.end() <= USER_END);
                return Ok(());
            }
            for word in &words[..got] {
                runs.push(
                    page * PAGE_SIZE,
                    (page + 1) * PAGE_SIZE,
                    pte_of_word(u64::from_ne_bytes(*word)),
                );
                page += 1;
            }
        }
        Ok(())
    }
}

fn report(first: usize, count: usize, each: &mut dyn FnMut(PageRange)) {
    if let Some(run) = PageRange::from_pages(first, count) {
        each(run);
    }
}

fn pte_of(categories: u64) -> Pte {
    let has = |category: u32| categories & u64::from(category) != 0;
    if has(raw::PAGE_IS_PRESENT) {
        Pte::Present {
            zero: has(raw::PAGE_IS_PFNZERO),
            huge: has(raw::PAGE_IS_HUGE),
        }
    } else if has(raw::PAGE_IS_SWAPPED) && !has(raw::PAGE_IS_GUARD) {
        Pte::Swapped
    } else {
        Pte::None
    }
}

fn pte_of_word(word: u64) -> Pte {
    if word & WORD_PRESENT != 0 {
        Pte::Present {
            zero: false,
            huge: false,
        }
    } else if word & WORD_SWAPPED != 0 && word & WORD_GUARD == 0 {
        Pte::Swapped
    } else {
        Pte::None
    }
}

/// Joins what is reported piecewise, and fills the gaps with holes (PMAP-1).
struct Runs<'a> {
    at: usize,
    pending: Option<(usize, Pte)>,
    each: &'a mut dyn FnMut(PteRun),
}

impl Runs<'_> {
    fn push(&mut self, start: usize, end: usize, pte: Pte) {
        if start > self.at {
            self.extend(start, Pte::None);
        }
        self.extend(end, pte);
    }

    fn extend(&mut self, end: usize, pte: Pte) {
        match self.pending {
            Some((_, last)) if last == pte => {}
            _ => {
                self.flush();
                self.pending = Some((self.at, pte));
            }
        }
        self.at = end;
    }

    fn flush(&mut self) {
        if let Some((start, pte)) = self.pending.take()
            && let Ok(range) = PageRange::new(start, self.at - start)
        {
            (self.each)(PteRun { range, pte });
        }
    }

    fn finish(mut self, end: usize) -> Result<()> {
        if self.at < end {
            self.extend(end, Pte::None);
        }
        self.flush();
        Ok(())
    }
}

/// PAGEMAP_SCAN; answers how many regions it wrote.
struct Scan<'a>(&'a mut raw::pm_scan_arg);

// SAFETY: the request reads and writes the structure and the vector named in it, and answers a count.
unsafe impl Ioctl for Scan<'_> {
    type Output = usize;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        SCAN
    }

    fn as_ptr(&mut self) -> *mut core::ffi::c_void {
        core::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut core::ffi::c_void) -> Result<usize> {
        Ok(usize::try_from(out).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests;
