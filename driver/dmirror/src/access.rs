//! READ and WRITE: the device copies as far as its page table goes, and asks for the rest.

use core::ops::ControlFlow;

use isomem_core::addr::{PAGE_SIZE, PageRange, VirtAddr};
use isomem_core::mirror::MirrorState;
use isomem_core::mirror::pin::{PinSlot, PinnedSide};
use isomem_core::world::{Access, World};
use rustix::io::Errno;

use crate::command::{Counts, Target, chunks};
use crate::file::{Data, File, errno_of};
use crate::{Place, Process};

/// Passes after which somebody else takes the pages away as fast as they come.
const PASSES: u64 = 1000;

impl<W: World, P: Process> File<W, P> {
    pub(crate) fn access(&self, target: Target, access: Access, mut data: Data<W>) -> Result<(Counts, Data<W>), Errno> {
        let range = target.range.ok_or(Errno::FAULT)?;
        if access == Access::Write {
            self.end_exclusive(range)?;
        }
        let (mut done, mut faults) = (0, 0);
        // A write that is going to fail writes nothing: what is missing is asked for first.
        if let Some(missing) = self.missing(range, access) {
            self.bring_in(missing, access)?;
            faults += 1;
        }
        while faults < PASSES {
            let copied;
            (copied, data) = self.copy(range, done, access, data);
            done += copied;
            if done == target.npages {
                let cpages = done as u64;
                return Ok((Counts { cpages, faults }, data));
            }
            self.bring_in(range.skip(done).ok_or(Errno::FAULT)?, access)?;
            faults += 1;
        }
        Err(Errno::BUSY)
    }

    fn bring_in(&self, range: PageRange, access: Access) -> Result<(), Errno> {
        chunks(range).try_for_each(|chunk| match self.mirror.fault(chunk, access) {
            Ok(_) => Ok(()),
            Err(error) => Err(errno_of(&error)),
        })
    }

    /// From the first page of `range` on that the device's table has no entry for.
    fn missing(&self, range: PageRange, access: Access) -> Option<PageRange> {
        let table = self.mirror.state().table();
        let hole = range.spans().find_map(|span| {
            let missing = span.mask().without(table.valid_mask(span.block, access));
            missing.next_run(0).map(|run| span.block.pages(run).first_page())
        })?;
        range.skip(hole - range.first_page())
    }

    /// Copies the pages of `range` from number `done` on, as far as the device's page table has them. Says how many.
    pub(crate) fn copy(&self, range: PageRange, done: usize, access: Access, mut data: Data<W>) -> (usize, Data<W>) {
        let state = self.mirror.state().clone();
        let process = self.process.clone();
        let world = self.mirror.state().mm().world();
        loop {
            let (state, process) = (state.clone(), process.clone());
            let copied;
            (copied, data) = world.off_stack(move || {
                let copied = copy_here(&state, &process, range, done, access, &mut data);
                (copied, data)
            });
            match copied {
                Some(pages) => return (pages, data),
                // All places are taken by copies of other threads, which are short.
                None => world.pause(0),
            }
        }
    }
}

/// `None` where no slot was free.
fn copy_here<W: World, P: Process>(
    state: &MirrorState<W, PinnedSide<W>>,
    process: &P,
    range: PageRange,
    mut done: usize,
    access: Access,
    data: &mut [u8],
) -> Option<usize> {
    let first = done;
    let mut slot = state.device().pins.claim(state.table())?;
    while let Some(rest) = range.skip(done) {
        let piece = &mut data[done * PAGE_SIZE..range.page_count() * PAGE_SIZE];
        match copy_span(state, process, &mut slot, rest, access, piece) {
            ControlFlow::Continue(pages) => done += pages,
            ControlFlow::Break(pages) => {
                done += pages;
                break;
            }
        }
    }
    Some(done - first)
}

/// Copies what one pin holds of `rest`. Breaks where the table has no more.
fn copy_span<W: World, P: Process>(
    state: &MirrorState<W, PinnedSide<W>>,
    process: &P,
    slot: &mut PinSlot<'_, W::Meta>,
    rest: PageRange,
    access: Access,
    data: &mut [u8],
) -> ControlFlow<usize, usize> {
    let Ok(addr) = VirtAddr::new(rest.start()) else {
        return ControlFlow::Break(0);
    };
    let Some(pin) = slot.pin(addr, rest.len_bytes(), access) else {
        return ControlFlow::Break(0);
    };
    // After the pin was published: the release sees it, or it is seen here.
    if state.is_released() {
        return ControlFlow::Break(0);
    }
    let wanted = pin.len_bytes();
    let place = Place {
        addr: pin.addr(),
        known_as: rest.start(),
    };
    let copied = match access {
        Access::Read => process.read(place, &mut data[..wanted]),
        Access::Write => process.write(place, &data[..wanted]),
    };
    drop(pin);
    let pages = copied / PAGE_SIZE;
    if copied == wanted {
        return ControlFlow::Continue(pages);
    }
    // The memory changed behind isomem's back: what the table says of this page is not so. Asking again tells what is.
    if let Some(page) = rest.skip(pages).map(|stale| stale.take(1)) {
        state.table().discard(page);
    }
    ControlFlow::Break(pages)
}
