//! Makes a call that may come only part of the way go all the way, or say why not.
//!
//! # Invariants
//! - DRV-A: the count of pages done never exceeds what the kernel said it did.
//! - DRV-B: it ends: each round makes progress, makes the piece smaller, or uses up an attempt.

use isomem_core::addr::{PAGE_SIZE, PageRange};
use rustix::io::{Errno, Result};

use crate::sys::uffd::Progress;

/// Attempts without progress before EAGAIN is reported.
const ATTEMPTS: usize = 16;

/// The errno by which a call refuses a range that straddles two areas; a smaller piece may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Border {
    /// EINVAL: UFFDIO_MOVE.
    Invalid,
    /// ENOENT: UFFDIO_COPY, UFFDIO_ZEROPAGE, UFFDIO_POISON.
    NoEntry,
}

/// What to do about EAGAIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Try a few times.
    Some,
    /// Say so: the caller holds what others need who would end it.
    None,
}

/// Calls `step` with the parts of `range` that remain. Returns the pages done and why not all.
pub(crate) fn drive(
    range: PageRange,
    border: Border,
    patience: Patience,
    mut step: impl FnMut(PageRange) -> Progress,
) -> (usize, Option<Errno>) {
    let mut done = 0;
    let mut piece = range.page_count();
    let mut attempts = 0;
    while let Some(rest) = range.skip(done) {
        let part = rest.take(piece);
        let progress = step(part);
        let pages = (progress.bytes / PAGE_SIZE).min(part.page_count());
        done += pages;
        let straddles = match border {
            Border::Invalid => Errno::INVAL,
            Border::NoEntry => Errno::NOENT,
        };
        match progress.errno {
            _ if pages > 0 => {
                attempts = 0;
                piece = (piece * 2).min(range.page_count());
            }
            Some(Errno::AGAIN | Errno::INTR) if patience == Patience::Some && attempts < ATTEMPTS => {
                attempts += 1;
                rustix::thread::sched_yield();
            }
            Some(errno) if errno == straddles && part.page_count() > 1 => piece = part.page_count() / 2,
            Some(errno) => return (done, Some(errno)),
            // Success without progress: not a kernel that we know.
            None => return (done, Some(Errno::IO)),
        }
    }
    (done, None)
}

/// Calls `call` until it answers something else than EAGAIN or EINTR, a few times at most.
pub(crate) fn persist(mut call: impl FnMut() -> Result<()>) -> Result<()> {
    let mut attempts = 0;
    loop {
        match call() {
            Err(Errno::AGAIN | Errno::INTR) if attempts < ATTEMPTS => {
                attempts += 1;
                rustix::thread::sched_yield();
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests;
