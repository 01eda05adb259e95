//! Addresses and ranges by type: what is page-aligned, non-empty and in user space is known once, here.
//!
//! # Invariants
//! - ADDR-1: a [`VirtAddr`] lies in user space.
//! - ADDR-2: a [`PageRange`] is page-aligned, not empty, and does not wrap or leave user space.
//! - ADDR-3: a [`PageSpan`] lies within one block.

use core::fmt;
use core::ops::Range;

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;
/// Bytes in a block: the unit in which per-mm state is kept, and the size of a huge page.
pub const BLOCK_SIZE: usize = 2 << 20;
/// Pages in a block.
pub const PAGES_PER_BLOCK: usize = BLOCK_SIZE / PAGE_SIZE;
/// The first address that is not user space (x86-64 and arm64 with 48-bit addresses).
pub const USER_END: usize = 1 << 47;

/// Why an address or a range was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The range holds no byte.
    #[error("the range at {0:#x} is empty")]
    Empty(usize),
    /// Start or length is not a multiple of the page size.
    #[error("{start:#x}+{len_bytes:#x} is not a multiple of the {PAGE_SIZE}-byte page")]
    Misaligned {
        /// Start of the refused range.
        start: usize,
        /// Length of the refused range in bytes.
        len_bytes: usize,
    },
    /// Start plus length exceeds the address width.
    #[error("{start:#x}+{len_bytes:#x} wraps around the end of the address space")]
    Wraps {
        /// Start of the refused range.
        start: usize,
        /// Length of the refused range in bytes.
        len_bytes: usize,
    },
    /// The range reaches into the kernel's half.
    #[error("{0:#x} is not a user-space address")]
    NotUser(usize),
}

/// An address in user space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtAddr(usize);

impl VirtAddr {
    /// Checks that `addr` is in user space.
    #[inline]
    pub const fn new(addr: usize) -> Result<Self, RangeError> {
        if addr >= USER_END {
            return Err(RangeError::NotUser(addr));
        }
        Ok(Self(addr))
    }

    /// The address as a number.
    #[inline]
    pub const fn get(self) -> usize {
        self.0
    }

    /// The page that holds the address.
    #[inline]
    pub const fn page(self) -> PageRange {
        PageRange {
            first: self.0 / PAGE_SIZE,
            count: 1,
        }
    }
}

impl fmt::Debug for VirtAddr {
    #[inline]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for VirtAddr {
    #[inline]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A non-empty run of pages of one address space.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRange {
    first: usize,
    count: usize,
}

impl PageRange {
    /// All of user space.
    pub const ALL: Self = Self {
        first: 0,
        count: USER_END / PAGE_SIZE,
    };

    /// A range of whole pages. Both numbers in bytes, both multiples of the page size.
    #[inline]
    pub const fn new(start: usize, len_bytes: usize) -> Result<Self, RangeError> {
        if len_bytes == 0 {
            return Err(RangeError::Empty(start));
        }
        if !start.is_multiple_of(PAGE_SIZE) || !len_bytes.is_multiple_of(PAGE_SIZE) {
            return Err(RangeError::Misaligned { start, len_bytes });
        }
        let Some(end) = start.checked_add(len_bytes) else {
            return Err(RangeError::Wraps { start, len_bytes });
        };
        if end > USER_END {
            return Err(RangeError::NotUser(if start >= USER_END { start } else { end - 1 }));
        }
        Ok(Self {
            first: start / PAGE_SIZE,
            count: len_bytes / PAGE_SIZE,
        })
    }

    /// The smallest range of whole pages that covers `len_bytes` bytes from `start`.
    #[inline]
    pub const fn covering(start: usize, len_bytes: usize) -> Result<Self, RangeError> {
        if len_bytes == 0 {
            return Err(RangeError::Empty(start));
        }
        let Some(end) = start.checked_add(len_bytes) else {
            return Err(RangeError::Wraps { start, len_bytes });
        };
        if end > USER_END {
            return Err(RangeError::NotUser(if start >= USER_END { start } else { end - 1 }));
        }
        let first = start / PAGE_SIZE;
        Ok(Self {
            first,
            count: end.div_ceil(PAGE_SIZE) - first,
        })
    }

    /// The range of `count` pages from page number `first`. `None` where it is empty or leaves user space.
    #[inline]
    pub const fn from_pages(first: usize, count: usize) -> Option<Self> {
        if count == 0 || first > USER_END / PAGE_SIZE || count > USER_END / PAGE_SIZE - first {
            return None;
        }
        Some(Self { first, count })
    }

    /// Number of the first page (address / page size).
    #[inline]
    pub const fn first_page(self) -> usize {
        self.first
    }

    /// Number of pages.
    #[inline]
    pub const fn page_count(self) -> usize {
        self.count
    }

    /// First page number after the range.
    #[inline]
    pub const fn end_page(self) -> usize {
        self.first + self.count
    }

    /// Address of the first byte.
    #[inline]
    pub const fn start(self) -> usize {
        self.first * PAGE_SIZE
    }

    /// Address after the last byte.
    #[inline]
    pub const fn end(self) -> usize {
        self.end_page() * PAGE_SIZE
    }

    /// Length in bytes.
    #[inline]
    pub const fn len_bytes(self) -> usize {
        self.count * PAGE_SIZE
    }

    /// Whether `addr` lies in the range.
    #[inline]
    pub const fn contains(self, addr: usize) -> bool {
        addr >= self.start() && addr < self.end()
    }

    /// Whether all of `other` lies in the range.
    #[inline]
    pub const fn covers(self, other: Self) -> bool {
        other.first >= self.first && other.end_page() <= self.end_page()
    }

    /// Whether the two share a page.
    #[inline]
    pub const fn overlaps(self, other: Self) -> bool {
        self.first < other.end_page() && other.first < self.end_page()
    }

    /// The pages the two share.
    #[inline]
    pub fn intersect(self, other: Self) -> Option<Self> {
        let first = self.first.max(other.first);
        let end = self.end_page().min(other.end_page());
        (first < end).then(|| Self {
            first,
            count: end - first,
        })
    }

    /// The smallest range that covers both.
    #[inline]
    #[must_use]
    pub fn hull(self, other: Self) -> Self {
        let first = self.first.min(other.first);
        Self {
            first,
            count: self.end_page().max(other.end_page()) - first,
        }
    }

    /// The range grown outwards to whole blocks.
    #[inline]
    #[must_use]
    pub const fn round_to_blocks(self) -> Self {
        let first = self.first / PAGES_PER_BLOCK * PAGES_PER_BLOCK;
        let end = self.end_page().div_ceil(PAGES_PER_BLOCK) * PAGES_PER_BLOCK;
        Self {
            first,
            count: end - first,
        }
    }

    /// The part of `self` from its `skip`-th page on.
    #[inline]
    pub const fn skip(self, skip: usize) -> Option<Self> {
        if skip >= self.count {
            return None;
        }
        Some(Self {
            first: self.first + skip,
            count: self.count - skip,
        })
    }

    /// At most the first `count` pages; `count` must not be 0.
    #[inline]
    #[must_use]
    pub const fn take(self, count: usize) -> Self {
        debug_assert!(count > 0);
        Self {
            first: self.first,
            count: if count < self.count { count } else { self.count },
        }
    }

    /// The range cut at block borders.
    #[inline]
    pub fn spans(self) -> impl Iterator<Item = PageSpan> + Clone {
        let blocks = self.first / PAGES_PER_BLOCK..=(self.end_page() - 1) / PAGES_PER_BLOCK;
        blocks.map(move |number| {
            let block = BlockId(number);
            let base = block.first_page();
            PageSpan {
                block,
                first: self.first.max(base) - base,
                end: self.end_page().min(base + PAGES_PER_BLOCK) - base,
            }
        })
    }
}

impl fmt::Debug for PageRange {
    #[inline]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start(), self.end())
    }
}

impl fmt::Display for PageRange {
    #[inline]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Number of a block: address / block size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(usize);

impl BlockId {
    /// Blocks in user space.
    pub const COUNT: usize = USER_END / BLOCK_SIZE;

    /// The block that holds `addr`.
    #[inline]
    pub const fn of(addr: VirtAddr) -> Self {
        Self(addr.get() / BLOCK_SIZE)
    }

    /// Block number `number`, which must be below [`Self::COUNT`].
    #[inline]
    pub const fn new(number: usize) -> Option<Self> {
        if number < Self::COUNT { Some(Self(number)) } else { None }
    }

    /// The number.
    #[inline]
    pub const fn get(self) -> usize {
        self.0
    }

    /// Number of the block's first page.
    #[inline]
    pub const fn first_page(self) -> usize {
        self.0 * PAGES_PER_BLOCK
    }

    /// All pages of the block.
    #[inline]
    pub const fn range(self) -> PageRange {
        PageRange {
            first: self.first_page(),
            count: PAGES_PER_BLOCK,
        }
    }

    /// The pages `pages` (indices in the block) as a range of the address space.
    #[inline]
    pub fn pages(self, pages: Range<usize>) -> PageRange {
        debug_assert!(pages.start < pages.end && pages.end <= PAGES_PER_BLOCK);
        PageRange {
            first: self.first_page() + pages.start,
            count: pages.end - pages.start,
        }
    }
}

/// The pages of a range that lie in one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSpan {
    /// The block.
    pub block: BlockId,
    /// Index in the block of the first page.
    pub first: usize,
    /// Index in the block after the last page.
    pub end: usize,
}

impl PageSpan {
    /// The span as a range of the address space.
    #[inline]
    pub const fn range(self) -> PageRange {
        PageRange {
            first: self.block.first_page() + self.first,
            count: self.end - self.first,
        }
    }

    /// The span as a set of pages of its block.
    #[inline]
    pub const fn mask(self) -> PageMask {
        PageMask::of(self.first, self.end)
    }
}

/// A set of pages of one block.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct PageMask([u64; PAGES_PER_BLOCK / 64]);

impl PageMask {
    /// No page.
    pub const NONE: Self = Self([0; PAGES_PER_BLOCK / 64]);
    /// Every page of the block.
    pub const FULL: Self = Self([u64::MAX; PAGES_PER_BLOCK / 64]);

    /// The pages `first..end`.
    #[inline]
    pub const fn of(first: usize, end: usize) -> Self {
        let mut words = [0; PAGES_PER_BLOCK / 64];
        let mut word = 0;
        while word < words.len() {
            let base = word * 64;
            let low = first.saturating_sub(base);
            let high = if end < base + 64 { end.saturating_sub(base) } else { 64 };
            if low < high {
                let upto = if high == 64 { u64::MAX } else { (1 << high) - 1 };
                words[word] = upto & (u64::MAX << low);
            }
            word += 1;
        }
        Self(words)
    }

    /// Whether page `index` is in the set.
    #[inline]
    pub const fn has(&self, index: usize) -> bool {
        self.0[index / 64] & (1 << (index % 64)) != 0
    }

    /// Adds page `index`.
    #[inline]
    pub const fn insert(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    /// Takes page `index` out.
    #[inline]
    pub const fn remove(&mut self, index: usize) {
        self.0[index / 64] &= !(1 << (index % 64));
    }

    /// Whether no page is in the set.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }

    /// Whether every page of the block is in the set.
    #[inline]
    pub fn is_full(&self) -> bool {
        *self == Self::FULL
    }

    /// Number of pages in the set.
    #[inline]
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether the two share a page.
    #[inline]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).any(|(a, b)| a & b != 0)
    }

    /// The pages in both.
    #[inline]
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        self.zip(other, |a, b| a & b)
    }

    /// The pages in either.
    #[inline]
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        self.zip(other, |a, b| a | b)
    }

    /// The pages in `self` but not in `other`.
    #[inline]
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        self.zip(other, |a, b| a & !b)
    }

    /// The first run of set pages at or after page `from`.
    #[inline]
    pub fn next_run(&self, from: usize) -> Option<Range<usize>> {
        let start = self.find(from, true)?;
        Some(start..self.find(start, false).unwrap_or(PAGES_PER_BLOCK))
    }

    /// The maximal runs of set pages, in order.
    #[inline]
    pub fn runs(self) -> impl Iterator<Item = Range<usize>> {
        let mut from = 0;
        core::iter::from_fn(move || {
            let run = self.next_run(from)?;
            from = run.end;
            Some(run)
        })
    }

    /// Index of the first page at or after `from` whose membership is `set`.
    #[inline]
    fn find(&self, from: usize, set: bool) -> Option<usize> {
        let mut index = from;
        while index < PAGES_PER_BLOCK {
            let word = if set { self.0[index / 64] } else { !self.0[index / 64] };
            let rest = word >> (index % 64);
            if rest != 0 {
                return Some(index + rest.trailing_zeros() as usize);
            }
            index = (index / 64 + 1) * 64;
        }
        None
    }

    #[inline]
    fn zip(self, other: Self, op: impl Fn(u64, u64) -> u64) -> Self {
        let mut words = self.0;
        for (word, other) in words.iter_mut().zip(other.0) {
            *word = op(*word, other);
        }
        Self(words)
    }
}

impl fmt::Debug for PageMask {
    #[inline]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.runs()).finish()
    }
}

#[cfg(test)]
mod tests;
