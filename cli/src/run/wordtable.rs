//! The table of words that the device builds: open addressing over atomics in ordinary memory.
//!
//! # Invariants
//! - A slot is two cells: the key, which is 0 while the slot is free and then never changes, and the count.
//! - The key holds where the word stands in the text, so that words are compared byte by byte and no two ever share a
//!   slot, and a tag of the hash, so that they seldom need to be.

use super::words::{Classes, Word};
use isomem::{Atomics, DeviceFault, Shared, Worker};
use std::ops::Range;

/// Text that a worker looks at in one go: it fits the worker's stack.
pub(crate) const BLOCK: usize = 1024;
/// Of a key, the bits that hold the place, counted from 1; the tag is above them.
pub(crate) const OFFSET_BITS: u32 = 40;

/// Where the word of a key that is not 0 stands.
pub(crate) fn place(key: u64) -> usize {
    (key & ((1 << OFFSET_BITS) - 1)) as usize - 1
}

/// Whether the table had room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    All,
    Full,
}

/// Copies a short span of the text to the worker's own stack.
pub(crate) fn load<'b>(
    w: &mut Worker<'_>,
    text: Shared<'_, u8>,
    span: Range<usize>,
    block: &'b mut [u8; BLOCK],
) -> Result<&'b [u8], DeviceFault> {
    let len = span.len();
    text.read(w, span.start, &mut block[..len])?;
    Ok(&block[..len])
}

/// Text that the worker has at hand.
#[derive(Clone, Copy)]
pub(crate) struct Near<'a> {
    pub(crate) start: usize,
    pub(crate) bytes: &'a [u8],
}

impl Near<'_> {
    /// Copies the text at `span` from what is at hand, or else through the device.
    pub(crate) fn load(
        self,
        w: &mut Worker<'_>,
        text: Shared<'_, u8>,
        span: Range<usize>,
        out: &mut [u8; BLOCK],
    ) -> Result<(), DeviceFault> {
        let (from, len) = (span.start.wrapping_sub(self.start), span.len());
        match self.bytes.get(from..from.wrapping_add(len)) {
            Some(bytes) => out[..len].copy_from_slice(bytes),
            None => {
                load(w, text, span, out)?;
            }
        }
        Ok(())
    }
}

/// The table of words on the device: two words a slot, and after the slots how many are taken.
pub(crate) struct Table<'a> {
    cells: Atomics<'a, u64>,
    slots: usize,
}

impl<'a> Table<'a> {
    pub(crate) fn new(cells: Atomics<'a, u64>) -> Self {
        Self {
            cells,
            slots: cells.len() / 2,
        }
    }

    pub(crate) fn add(
        &self,
        w: &mut Worker<'_>,
        text: Shared<'_, u8>,
        classes: &Classes,
        word: &Word,
        near: Near<'_>,
    ) -> Result<Filled, DeviceFault> {
        let tag = word.hash >> OFFSET_BITS;
        let mine = tag << OFFSET_BITS | (word.start as u64 + 1);
        for probe in 0..self.slots {
            let slot = (word.hash as usize).wrapping_add(probe) & (self.slots - 1);
            let mut key = self.cells.load(w, 2 * slot)?;
            if key == 0 {
                match self.cells.compare_exchange(w, 2 * slot, 0, mine)? {
                    Ok(_) => return self.count_new(w, slot),
                    Err(other) => key = other,
                }
            }
            let start = place(key);
            if key >> OFFSET_BITS == tag && same_word(w, text, classes, word, start, near)? {
                self.cells.fetch_add(w, 2 * slot + 1, 1)?;
                return Ok(Filled::All);
            }
        }
        Ok(Filled::Full)
    }

    /// Counts a word in the slot just taken. Above three quarters probing gets slow, and the table counts as full.
    fn count_new(&self, w: &mut Worker<'_>, slot: usize) -> Result<Filled, DeviceFault> {
        self.cells.fetch_add(w, 2 * slot + 1, 1)?;
        let taken = self.cells.fetch_add(w, 2 * self.slots, 1)?;
        Ok(if taken as usize >= self.slots / 4 * 3 {
            Filled::Full
        } else {
            Filled::All
        })
    }
}

/// Whether the word at `start` is `word`.
fn same_word(
    w: &mut Worker<'_>,
    text: Shared<'_, u8>,
    classes: &Classes,
    word: &Word,
    start: usize,
    near: Near<'_>,
) -> Result<bool, DeviceFault> {
    let (mut ours, mut theirs) = ([0u8; BLOCK], [0u8; BLOCK]);
    if start + word.len > text.len() {
        return Ok(false);
    }
    for from in (0..word.len).step_by(BLOCK) {
        let len = BLOCK.min(word.len - from);
        near.load(w, text, word.start + from..word.start + from + len, &mut ours)?;
        near.load(w, text, start + from..start + from + len, &mut theirs)?;
        if ours[..len] != theirs[..len] {
            return Ok(false);
        }
    }
    let end = start + word.len;
    Ok(end == text.len() || classes.is_space(text.get(w, end)?))
}
