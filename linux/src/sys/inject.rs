//! Makes system calls fail on demand, at each call site of this crate, so that tests can see what is kept.
//!
//! # Invariants
//! - INJ-1: while nothing is armed a call site costs one relaxed load.
//! - INJ-2: a call that was made to fail has not reached the kernel.
//!
//! # Locking
//! None: a table of atomics. Arm and disarm from one thread.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

use rustix::io::{Errno, Result};

/// A system call of this crate, by where it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Site {
    /// Opening userfaultfd, by the device or by the system call.
    UffdOpen,
    /// UFFDIO_API.
    UffdApi,
    /// UFFDIO_REGISTER.
    Register,
    /// UFFDIO_UNREGISTER.
    Unregister,
    /// UFFDIO_WAKE.
    Wake,
    /// UFFDIO_ZEROPAGE.
    Zeropage,
    /// UFFDIO_COPY.
    Copy,
    /// UFFDIO_MOVE.
    Move,
    /// UFFDIO_WRITEPROTECT.
    WriteProtect,
    /// UFFDIO_POISON.
    Poison,
    /// read of a userfaultfd.
    UffdRead,
    /// Opening a file of /proc/self.
    ProcOpen,
    /// PAGEMAP_SCAN.
    PagemapScan,
    /// Reading /proc/self/pagemap.
    PagemapRead,
    /// PROCMAP_QUERY.
    ProcmapQuery,
    /// Reading /proc/self/maps.
    MapsRead,
    /// mmap.
    Mmap,
    /// munmap.
    Munmap,
    /// mprotect.
    Mprotect,
    /// mremap.
    Mremap,
    /// madvise that asks for pages: MADV_POPULATE_READ, MADV_POPULATE_WRITE.
    Populate,
    /// madvise that drops pages: MADV_DONTNEED.
    Discard,
    /// Any other madvise.
    Advise,
}

impl Site {
    /// Every site, in order.
    pub const ALL: [Self; 23] = [
        Self::UffdOpen,
        Self::UffdApi,
        Self::Register,
        Self::Unregister,
        Self::Wake,
        Self::Zeropage,
        Self::Copy,
        Self::Move,
        Self::WriteProtect,
        Self::Poison,
        Self::UffdRead,
        Self::ProcOpen,
        Self::PagemapScan,
        Self::PagemapRead,
        Self::ProcmapQuery,
        Self::MapsRead,
        Self::Mmap,
        Self::Munmap,
        Self::Mprotect,
        Self::Mremap,
        Self::Populate,
        Self::Discard,
        Self::Advise,
    ];
}

struct Plan {
    errno: AtomicI32,
    skip: AtomicU32,
    times: AtomicU32,
    hits: AtomicU32,
}

static ARMED: AtomicBool = AtomicBool::new(false);
static PLANS: [Plan; Site::ALL.len()] = [const {
    Plan {
        errno: AtomicI32::new(0),
        skip: AtomicU32::new(0),
        times: AtomicU32::new(0),
        hits: AtomicU32::new(0),
    }
}; Site::ALL.len()];

/// From now on calls at `site` fail with `errno`: the first `skip` go through, the next `times` fail.
pub fn fail(site: Site, errno: i32, skip: u32, times: u32) {
    let plan = &PLANS[site as usize];
    plan.errno.store(errno, Ordering::Relaxed);
    plan.skip.store(skip, Ordering::Relaxed);
    plan.hits.store(0, Ordering::Relaxed);
    // Release, with the acquire in `decide`: who sees the count sees the rest of the plan.
    plan.times.store(times, Ordering::Release);
    ARMED.store(true, Ordering::Release);
}

/// Lets every call through again.
pub fn clear() {
    ARMED.store(false, Ordering::Release);
    for plan in &PLANS {
        plan.times.store(0, Ordering::Relaxed);
    }
}

/// How many calls at `site` were made to fail since it was armed.
pub fn hits(site: Site) -> u32 {
    PLANS[site as usize].hits.load(Ordering::Relaxed)
}

/// What a call site asks before it makes its call.
#[inline]
pub(crate) fn check(site: Site) -> Result<()> {
    if ARMED.load(Ordering::Relaxed) {
        decide(&PLANS[site as usize])
    } else {
        Ok(())
    }
}

#[cold]
fn decide(plan: &Plan) -> Result<()> {
    if plan.times.load(Ordering::Acquire) == 0 || take_one(&plan.skip) || !take_one(&plan.times) {
        return Ok(());
    }
    plan.hits.fetch_add(1, Ordering::Relaxed);
    Err(Errno::from_raw_os_error(plan.errno.load(Ordering::Relaxed)))
}

fn take_one(count: &AtomicU32) -> bool {
    count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
        .is_ok()
}

#[cfg(test)]
mod tests;
