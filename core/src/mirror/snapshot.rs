//! Looks at where pages are, and touches none.
//!
//! # Locking
//! A block's lock for a copy of what it says. Pages may change place meanwhile: each run is right for some moment during the call.
//!
//! Linux: hmm_range_fault without HMM_PFN_REQ_FAULT, mm/hmm.c.

use allocator_api2::vec::Vec;

use crate::addr::{BlockId, PAGES_PER_BLOCK, PageMask, PageRange};
use crate::device::Device;
use crate::devmem::DeviceId;
use crate::mirror::range::FaultError;
use crate::mirror::{Mirror, MirrorState};
use crate::mm::block::RESIDENCIES;
use crate::world::{Access, Area, Metadata, OutOfMetadata, Pte, World};

impl<W: World, D: Device> Mirror<W, D> {
    /// Tells what is mapped in `range`, and never faults (FLT-1).
    ///
    /// Pages may change place meanwhile; each run is right for some moment during the call.
    #[doc(alias = "hmm_range_snapshot")]
    pub fn snapshot(&self, range: PageRange) -> Result<Snapshot<W::Meta>, FaultError> {
        self.state().mm().check_entry()?;
        let state = self.state().clone();
        self.state().mm().off_stack(move || {
            state.mm().catch_up();
            state.look(range)
        })
    }
}

impl<W: World, D: Device> MirrorState<W, D> {
    fn look(&self, range: PageRange) -> Result<Snapshot<W::Meta>, FaultError> {
        let mut snapshot = Snapshot {
            range,
            runs: Vec::new_in(W::Meta::default()),
        };
        let mut next = range.first_page();
        let mut result = Ok(());
        self.mm.world().areas(range, &mut |area| {
            if result.is_ok() {
                result = self.look_area(area, next, &mut snapshot);
                next = area.range.end_page();
            }
        })?;
        result?;
        snapshot.gap(next, range.end_page())?;
        Ok(snapshot)
    }

    fn look_area(&self, area: Area, next: usize, snapshot: &mut Snapshot<W::Meta>) -> Result<(), FaultError> {
        snapshot.gap(next, area.range.first_page())?;
        let Some(access) = area.access else {
            return Ok(snapshot.push(area.range, PageState::NoAccess)?);
        };
        let mut result = Ok(());
        self.mm.world().scan(area.range, &mut |run| {
            if result.is_ok() {
                result = self.look_run(run.range, run.pte, access, snapshot);
            }
        })?;
        Ok(result?)
    }

    /// Pages of which the CPU's page table says the same: block by block, what the core knows of them is added.
    fn look_run(
        &self,
        range: PageRange,
        pte: Pte,
        access: Access,
        snapshot: &mut Snapshot<W::Meta>,
    ) -> Result<(), OutOfMetadata> {
        let nothing_known = Known::default().state(0, pte, access, self.memory.id);
        let mut next = range.first_page();
        for (block, span) in self.mm.blocks.known(range) {
            snapshot.fill(next, span.range().first_page(), nothing_known)?;
            let known = self.known(block.id);
            let mut index = span.first;
            while index < span.end {
                let state = known.state(index, pte, access, self.memory.id);
                let same = |&other: &usize| known.state(other, pte, access, self.memory.id) == state;
                let end = (index + 1..span.end)
                    .take_while(same)
                    .last()
                    .map_or(index + 1, |last| last + 1);
                snapshot.push(span.block.pages(index..end), state)?;
                index = end;
            }
            next = span.range().end_page();
        }
        snapshot.fill(next, range.end_page(), nothing_known)
    }

    fn known(&self, block: BlockId) -> Known {
        let Some(block) = self.mm.blocks.get(block) else {
            return Known::default();
        };
        let state = block.lock();
        Known(state.residencies.each_ref().map(|slot| {
            slot.as_ref().map(|residency| Held {
                device: residency.device,
                pages: residency.pages,
                claimed: residency.claimed,
                exclusive: residency.exclusive,
                duplicates: residency.duplicates,
                huge: residency.huge,
            })
        }))
    }
}

/// What one device has of a block.
struct Held {
    device: DeviceId,
    pages: PageMask,
    claimed: PageMask,
    exclusive: PageMask,
    duplicates: PageMask,
    huge: bool,
}

/// What the core knows of a block.
#[derive(Default)]
struct Known([Option<Held>; RESIDENCIES]);

impl Known {
    /// The state of page `index` of the block, whose entry in the CPU's page table is `pte`, as device `asking` sees it.
    fn state(&self, index: usize, pte: Pte, access: Access, asking: DeviceId) -> PageState {
        debug_assert!(index < PAGES_PER_BLOCK);
        let find = |has: fn(&Held) -> &PageMask| self.0.iter().flatten().find(|held| has(held).has(index));
        let duplicate = || {
            let Held { device, .. } = *find(|held| &held.duplicates)?;
            let local = device == asking;
            Some(PageState::Duplicate { device, local, access })
        };
        if pte != Pte::None
            && let Some(duplicate) = duplicate()
        {
            return duplicate;
        }
        match pte {
            Pte::None => match find(|held| &held.pages) {
                Some(held) => held.away(index, access, asking),
                None => PageState::Missing,
            },
            Pte::Swapped => PageState::Missing,
            Pte::Present { zero, huge } => match find(|held| &held.claimed) {
                Some(&Held { device, .. }) => PageState::Coherent {
                    device,
                    local: device == asking,
                    access,
                    huge,
                },
                None if zero => PageState::Zero,
                None => PageState::System { access, huge },
            },
        }
    }
}

impl Held {
    fn away(&self, index: usize, access: Access, asking: DeviceId) -> PageState {
        let device = self.device;
        let local = device == asking;
        if self.exclusive.has(index) {
            return PageState::Exclusive { device, local, access };
        }
        PageState::Device {
            device,
            local,
            access,
            huge: self.huge,
        }
    }
}

/// What a snapshot says of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageState {
    /// No area.
    Hole,
    /// PROT_NONE.
    NoAccess,
    /// An area, but no page: untouched, discarded or on swap.
    Missing,
    /// The shared page of zeroes.
    Zero,
    /// In system memory.
    System {
        /// What the area allows.
        access: Access,
        /// Part of a huge page.
        huge: bool,
    },
    /// In device memory, which the CPU cannot map.
    Device {
        /// Which device.
        device: DeviceId,
        /// It is the device of the mirror that was asked.
        local: bool,
        /// What the area allows.
        access: Access,
        /// The 2 MiB around it are one huge page there.
        huge: bool,
    },
    /// In coherent device memory, which the CPU maps (MIG-10).
    Coherent {
        /// Which device.
        device: DeviceId,
        /// It is the device of the mirror that was asked.
        local: bool,
        /// What the area allows.
        access: Access,
        /// Part of a huge page.
        huge: bool,
    },
    /// In device memory, and in system memory as well: either side reads it where it is, and a write by either ends that (MIG-12).
    Duplicate {
        /// Which device.
        device: DeviceId,
        /// It is the device of the mirror that was asked.
        local: bool,
        /// What the area allows.
        access: Access,
    },
    /// A device took it exclusively: the CPU may not access it for now (MIG-11).
    Exclusive {
        /// Which device.
        device: DeviceId,
        /// It is the device of the mirror that was asked.
        local: bool,
        /// What the area allows.
        access: Access,
    },
}

/// What is mapped in a range, as runs of pages in the same state, in address order and gapless.
pub struct Snapshot<M: Metadata> {
    range: PageRange,
    runs: Vec<(PageRange, PageState), M>,
}

impl<M: Metadata> core::fmt::Debug for Snapshot<M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.runs()).finish()
    }
}

impl<M: Metadata> Snapshot<M> {
    /// The range that was asked for.
    pub fn range(&self) -> PageRange {
        self.range
    }

    /// The runs.
    pub fn runs(&self) -> &[(PageRange, PageState)] {
        &self.runs
    }

    /// The state of the page that holds `addr`; `None` outside the range.
    pub fn at(&self, addr: usize) -> Option<PageState> {
        let after = self.runs.partition_point(|(run, _)| run.end() <= addr);
        self.runs
            .get(after)
            .filter(|(run, _)| run.contains(addr))
            .map(|(_, state)| *state)
    }

    fn push(&mut self, range: PageRange, state: PageState) -> Result<(), OutOfMetadata> {
        if let Some((last, same)) = self.runs.last_mut()
            && *same == state
            && last.end_page() == range.first_page()
        {
            *last = last.hull(range);
            return Ok(());
        }
        self.runs.try_reserve(1).map_err(|_| OutOfMetadata)?;
        self.runs.push((range, state));
        Ok(())
    }

    fn fill(&mut self, first: usize, end: usize, state: PageState) -> Result<(), OutOfMetadata> {
        match PageRange::from_pages(first, end.saturating_sub(first)) {
            Some(range) => self.push(range, state),
            None => Ok(()),
        }
    }

    fn gap(&mut self, first: usize, end: usize) -> Result<(), OutOfMetadata> {
        self.fill(first, end, PageState::Hole)
    }
}
