//! One address space: its areas, its page table, and what waits to be read of its userfaultfds.

use std::collections::{BTreeMap, VecDeque};

use isomem_core::addr::PageRange;
use isomem_core::world::{Access, Backing};

use crate::journal::Frame;

/// One of the two userfaultfds of a process: that of the program's areas has events, that of the arenas has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// The program's areas.
    Program,
    /// The arenas.
    Arena,
}

/// What is read from a userfaultfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Msg {
    /// A thread waits for a page.
    Fault {
        /// Its number.
        page: usize,
        /// What the thread wants.
        access: Access,
        /// It is there, but write-protected.
        protected: bool,
    },
    /// Contents are about to be dropped.
    Removed(PageRange, crate::kernel::Origin),
    /// The mapping is gone.
    Unmapped(PageRange, crate::kernel::Origin),
    /// The mapping moved.
    Remapped(PageRange, PageRange, crate::kernel::Origin),
    /// There is a child, of this number.
    Forked(usize, crate::kernel::Origin),
}

/// An area.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vma {
    pub(super) range: PageRange,
    pub(super) access: Option<Access>,
    pub(super) backing: Backing,
    /// Whether missing pages are reported, and where.
    pub(super) tracked: Option<Channel>,
    /// Not inherited by children.
    pub(super) private: bool,
}

impl Vma {
    /// Readable and writable, and nobody watches.
    pub(super) fn anonymous(range: PageRange) -> Self {
        Self {
            range,
            access: Some(Access::Write),
            backing: Backing::Anonymous,
            tracked: None,
            private: false,
        }
    }

    pub(super) fn is_writable(&self) -> bool {
        self.access == Some(Access::Write)
    }
}

/// An entry of the page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pte {
    Present(Present),
    /// Its contents are in the swap.
    Swap(Swapped),
    /// To touch it is an error.
    Poison,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Present {
    pub(super) frame: Frame,
    pub(super) writable: bool,
    /// Write-protected by userfaultfd.
    pub(super) protected: bool,
    /// Part of a huge page.
    pub(super) huge: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Swapped {
    pub(super) slot: u64,
    /// Write-protected by userfaultfd, as the page will be that comes back (Linux: pte_swp_uffd_wp).
    pub(super) protected: bool,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) faults: VecDeque<Msg>,
    /// Events, numbered so that who waits for one knows when it was read.
    pub(super) events: VecDeque<(u64, Msg)>,
    pub(super) last_event: u64,
    /// Somebody reads it.
    pub(super) has_reader: bool,
    /// The reader was asked to come back without a message.
    pub(super) nudged: bool,
    /// Changes under way, or whose event is unread.
    pub(super) changing: u32,
}

pub(super) struct Space {
    pub(super) vmas: Vec<Vma>,
    pub(super) ptes: BTreeMap<usize, Pte>,
    pub(super) program: Queue,
    pub(super) arena: Queue,
    pub(super) alive: bool,
    pub(super) next_arena: usize,
}

/// Page number from which arenas are laid out.
const ARENAS: usize = 1 << 16;

impl Space {
    pub(super) fn new() -> Self {
        Self {
            vmas: Vec::new(),
            ptes: BTreeMap::new(),
            program: Queue::default(),
            arena: Queue::default(),
            alive: true,
            next_arena: ARENAS,
        }
    }

    pub(super) fn queue(&mut self, channel: Channel) -> &mut Queue {
        match channel {
            Channel::Program => &mut self.program,
            Channel::Arena => &mut self.arena,
        }
    }

    pub(super) fn vma(&self, page: usize) -> Option<&Vma> {
        self.vmas
            .iter()
            .find(|vma| vma.range.first_page() <= page && page < vma.range.end_page())
    }

    pub(super) fn pte(&self, page: usize) -> Option<Pte> {
        self.ptes.get(&page).copied()
    }

    /// The areas of `range`, cut to it, in address order.
    pub(super) fn parts(&self, range: PageRange) -> Vec<Vma> {
        let cut = |vma: &Vma| vma.range.intersect(range).map(|part| Vma { range: part, ..*vma });
        let mut parts: Vec<Vma> = self.vmas.iter().filter_map(cut).collect();
        parts.sort_by_key(|vma| vma.range.first_page());
        parts
    }

    /// Whether every page of `range` lies in an area.
    pub(super) fn is_mapped(&self, range: PageRange) -> bool {
        self.parts(range)
            .iter()
            .map(|vma| vma.range.page_count())
            .sum::<usize>()
            == range.page_count()
    }

    /// Takes `range` out of the areas; the pieces on both sides stay.
    pub(super) fn cut(&mut self, range: PageRange) {
        let mut rest = Vec::with_capacity(self.vmas.len() + 1);
        for vma in self.vmas.drain(..) {
            let (first, end) = (vma.range.first_page(), vma.range.end_page());
            if !vma.range.overlaps(range) {
                rest.push(vma);
                continue;
            }
            for (first, end) in [(first, range.first_page()), (range.end_page(), end)] {
                if let Some(range) = PageRange::from_pages(first, end.saturating_sub(first)) {
                    rest.push(Vma { range, ..vma });
                }
            }
        }
        self.vmas = rest;
    }

    /// Changes the areas of `range`, splitting them at its borders.
    pub(super) fn edit(&mut self, range: PageRange, mut change: impl FnMut(&mut Vma)) {
        let mut parts = self.parts(range);
        self.cut(range);
        parts.iter_mut().for_each(&mut change);
        self.vmas.extend(parts);
    }

    /// The pages of `range` that have an entry.
    pub(super) fn present(&self, range: PageRange) -> Vec<usize> {
        self.ptes
            .range(range.first_page()..range.end_page())
            .map(|(page, _)| *page)
            .collect()
    }
}
