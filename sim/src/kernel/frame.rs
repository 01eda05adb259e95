//! Page frames: contents and references.

use crate::journal::{Event, Frame, Journal};
use crate::kernel::{Words, frame_name, opened};

/// The shared page of zeroes.
pub(super) const ZERO: Frame = 0;

#[derive(Clone, Copy)]
struct PageFrame {
    words: Words,
    /// Entries of page tables that map it.
    maps: u32,
    /// References of devices and of I/O.
    pins: u32,
}

/// All frames there ever were, by number.
pub(super) struct Frames(Vec<PageFrame>);

impl Frames {
    pub(super) fn new() -> Self {
        Self(vec![PageFrame {
            words: Words::default(),
            maps: 0,
            pins: 0,
        }])
    }

    /// A new frame with these contents, mapped once.
    pub(super) fn allocate(&mut self, journal: &Journal, words: Words) -> Frame {
        let frame = self.0.len() as Frame;
        self.0.push(PageFrame {
            words,
            maps: 1,
            pins: 0,
        });
        opened(journal, frame);
        frame
    }

    pub(super) fn words(&self, frame: Frame) -> &Words {
        &self.0[frame as usize].words
    }

    pub(super) fn word_mut(&mut self, frame: Frame, word: usize) -> &mut u64 {
        &mut self.0[frame as usize].words[word]
    }

    /// Whether somebody else maps it, too.
    pub(super) fn is_shared(&self, frame: Frame) -> bool {
        frame == ZERO || self.0[frame as usize].maps > 1
    }

    pub(super) fn is_pinned(&self, frame: Frame) -> bool {
        self.0[frame as usize].pins > 0
    }

    /// One more page table maps it.
    pub(super) fn map(&mut self, frame: Frame) {
        self.0[frame as usize].maps += 1;
    }

    /// One page table less maps it.
    pub(super) fn unmap(&mut self, journal: &Journal, frame: Frame) {
        if frame != ZERO {
            self.0[frame as usize].maps -= 1;
            self.free_if_unused(journal, frame);
        }
    }

    pub(super) fn pin(&mut self, frame: Frame) {
        self.0[frame as usize].pins += 1;
    }

    pub(super) fn unpin(&mut self, journal: &Journal, frame: Frame) {
        self.0[frame as usize].pins -= 1;
        self.free_if_unused(journal, frame);
    }

    fn free_if_unused(&mut self, journal: &Journal, frame: Frame) {
        let page = &self.0[frame as usize];
        if frame != ZERO && page.maps == 0 && page.pins == 0 {
            journal.record(Event::Closed {
                what: frame_name(frame),
            });
            journal.record(Event::Freed { frame });
        }
    }
}
