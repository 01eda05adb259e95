//! Misses in order: what is merged into one range fault, and whom its answer concerns. Nothing here waits or locks.

use core::cmp::Reverse;

use isomem_core::addr::PageRange;
use isomem_core::mirror::copy::Patience;
use isomem_core::mirror::range::FaultError;
use isomem_core::world::Access;

/// A lane's miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Miss {
    pub(super) context: usize,
    pub(super) lane: usize,
    /// Page number.
    pub(super) page: usize,
    pub(super) access: Access,
    pub(super) patience: Patience,
    /// Why the lane is to be cancelled; without it, it is replayed.
    pub(super) error: Option<FaultError>,
}

impl Miss {
    /// Filled in before it is used.
    pub(super) const NONE: Self = Self {
        context: 0,
        lane: 0,
        page: 0,
        access: Access::Read,
        patience: Patience::Left,
        error: None,
    };

    /// Context, page, and the strongest access to it first.
    pub(super) fn order(&self) -> (usize, usize, Reverse<Access>) {
        (self.context, self.page, Reverse(self.access))
    }
}

/// The longest run of neighbouring pages at the front of `misses`, which are in order, whose strongest access is the same: what one range fault
/// serves. And how many misses that are.
pub(super) fn leading_run(misses: &[Miss]) -> (PageRange, usize) {
    let first = misses[0];
    let (mut end, mut count) = (first.page + 1, 1);
    for miss in &misses[1..] {
        let same_page = miss.page + 1 == end;
        let next_page = miss.page == end && miss.access == first.access;
        if miss.context != first.context || !(same_page || next_page) {
            break;
        }
        end = miss.page + 1;
        count += 1;
    }
    let range = PageRange::from_pages(first.page, end - first.page);
    (range.expect("pages that were missed are in user space"), count)
}

/// Notes what a range fault's answer means for a run. Says how many misses from the front are settled by that: at least one; the others are to be
/// served again (SVM-2).
pub(super) fn settle(run: &mut [Miss], served: Result<(), FaultError>) -> usize {
    let Err(error) = served else {
        return run.len();
    };
    let strongest = run[0].access;
    let (before, cancelled) = match error.addr().map(|addr| addr.page().first_page()) {
        // The pages before it have their entries (FLT-4).
        Some(bad) => {
            let before = run.iter().take_while(|miss| miss.page < bad).count();
            let is_its = |miss: &&Miss| miss.page == bad && miss.access == strongest;
            (before, run[before..].iter().take_while(is_its).count())
        }
        None => (0, run.len()),
    };
    run[before..before + cancelled]
        .iter_mut()
        .for_each(|miss| miss.error = Some(error));
    (before + cancelled).max(1)
}

#[cfg(test)]
mod tests;
