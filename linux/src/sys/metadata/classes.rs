//! The sizes that blocks come in: eight steps for each power of two.
//!
//! Small blocks (up to 32 KiB) are cut from slabs of one size each. A slab begins with one link word per block, so that the links of a
//! free list never lie in memory that is handed out.

/// The smallest step of small blocks.
pub(super) const GRAIN_BYTES: usize = 16;
/// The largest small block.
pub(super) const SMALL_MAX_BYTES: usize = 32 << 10;
/// One slab, and its alignment.
pub(super) const SLAB_BYTES: usize = 1 << 20;
/// Large blocks are multiples of this, and aligned to it.
pub(super) const UNIT_BYTES: usize = 64 << 10;
/// The page size that the heap counts in and the alignment that slabs provide at most.
pub(super) const PAGE_BYTES: usize = 4096;
/// Number of small classes.
pub(super) const SMALL_CLASSES: usize = step(SMALL_MAX_BYTES / GRAIN_BYTES) + 1;
/// Number of large classes: up to 2^20 units.
pub(super) const LARGE_CLASSES: usize = step(1 << 20) + 1;
/// Size of a link word.
const LINK_BYTES: usize = size_of::<u32>();

/// The step whose length is the least that holds `n > 0` grains.
pub(super) const fn step(n: usize) -> usize {
    if n <= 8 {
        return n - 1;
    }
    let last = n - 1;
    let shift = last.ilog2() as usize - 3;
    8 + shift * 8 + (last >> shift) - 8
}

/// The length of a step in grains; the inverse of [`step`].
pub(super) const fn step_len(step: usize) -> usize {
    if step < 8 {
        step + 1
    } else {
        (step % 8 + 9) << (step / 8 - 1)
    }
}

/// How a slab of one size is cut.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    /// Bytes of a block.
    pub(super) block_bytes: usize,
    /// Alignment that every block has.
    pub(super) align: usize,
    /// Where the first block begins.
    pub(super) header_bytes: usize,
    /// Blocks in a slab.
    pub(super) block_count: usize,
}

impl Cut {
    const fn of(class: usize) -> Self {
        let block_bytes = step_len(class) * GRAIN_BYTES;
        let natural = 1 << block_bytes.trailing_zeros();
        let align = if natural < PAGE_BYTES { natural } else { PAGE_BYTES };
        let most = SLAB_BYTES / (block_bytes + LINK_BYTES);
        let header_bytes = (most * LINK_BYTES).next_multiple_of(align);
        let fitting = (SLAB_BYTES - header_bytes) / block_bytes;
        let block_count = if fitting < most { fitting } else { most };
        Self {
            block_bytes,
            align,
            header_bytes,
            block_count,
        }
    }
}

/// The cut of each small class.
pub(super) static CUTS: [Cut; SMALL_CLASSES] = {
    let mut cuts = [Cut::of(0); SMALL_CLASSES];
    let mut class = 1;
    while class < SMALL_CLASSES {
        cuts[class] = Cut::of(class);
        class += 1;
    }
    cuts
};

/// The small class that serves a size and an alignment; `None` when that takes a large block.
pub(super) fn small_class(size_bytes: usize, align: usize) -> Option<usize> {
    if size_bytes > SMALL_MAX_BYTES || align > PAGE_BYTES {
        return None;
    }
    let first = step(size_bytes.max(1).div_ceil(GRAIN_BYTES));
    (first..SMALL_CLASSES).find(|&class| CUTS[class].align >= align)
}
