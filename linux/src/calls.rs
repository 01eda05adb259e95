//! What a system call does to the address space, by its number and arguments.
//!
//! Both levels that learn of calls use it: the exact one, which holds them, and the interposed one, whose functions stand before the C library's.
//!
//! # Invariants
//! - CALL-1: the ranges of an [`Effect`] cover whatever the call may change; a call that would change nothing may have one, too.
//!
//! Linux: mm/mmap.c, mm/mprotect.c, mm/madvise.c, mm/mremap.c, ipc/shm.c, kernel/fork.c.

use isomem_core::addr::{PAGE_SIZE, PageRange, USER_END};
use isomem_core::mm::Changes;
use isomem_core::notifier::Cause;

use crate::sys::call::Call;

/// The bit that marks calls of the x32 interface.
pub const X32: usize = 0x4000_0000;

/// MADV_GUARD_INSTALL (Linux 6.13): drops the pages and makes accesses fail.
const MADV_GUARD_INSTALL: i32 = 102;

/// Advice that drops contents. Others change frames, or what a fork does: neither is a device's business.
pub const ADVICES: [i32; 6] = [
    libc::MADV_DONTNEED,
    libc::MADV_FREE,
    libc::MADV_REMOVE,
    libc::MADV_DONTNEED_LOCKED,
    libc::MADV_HWPOISON,
    MADV_GUARD_INSTALL,
];

/// Modes of fallocate that take pages out of a file, or put others in their place.
pub const CUTTING_MODES: i32 = libc::FALLOC_FL_PUNCH_HOLE
    | libc::FALLOC_FL_COLLAPSE_RANGE
    | libc::FALLOC_FL_ZERO_RANGE
    | libc::FALLOC_FL_INSERT_RANGE;

/// Calls that may change what is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// munmap.
    Unmap,
    /// mmap.
    Map,
    /// mremap.
    Remap,
    /// remap_file_pages.
    RemapFile,
    /// mprotect, pkey_mprotect.
    Protect,
    /// madvise.
    Advise,
    /// process_madvise.
    AdviseProcess,
    /// brk.
    Break,
    /// shmat.
    Attach,
    /// shmdt.
    Detach,
    /// ftruncate.
    Truncate,
    /// truncate.
    TruncatePath,
    /// fallocate.
    Allocate,
    /// fork.
    Fork,
    /// clone.
    Clone,
    /// clone3.
    Clone3,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 16] = [
        Self::Advise,
        Self::Unmap,
        Self::Map,
        Self::Protect,
        Self::Break,
        Self::Remap,
        Self::RemapFile,
        Self::AdviseProcess,
        Self::Attach,
        Self::Detach,
        Self::Truncate,
        Self::TruncatePath,
        Self::Allocate,
        Self::Fork,
        Self::Clone,
        Self::Clone3,
    ];

    /// The numbers of its system calls.
    pub const fn numbers(self) -> &'static [libc::c_long] {
        match self {
            Self::Unmap => &[libc::SYS_munmap],
            Self::Map => &[libc::SYS_mmap],
            Self::Remap => &[libc::SYS_mremap],
            Self::RemapFile => &[libc::SYS_remap_file_pages],
            Self::Protect => &[libc::SYS_mprotect, libc::SYS_pkey_mprotect],
            Self::Advise => &[libc::SYS_madvise],
            Self::AdviseProcess => &[libc::SYS_process_madvise],
            Self::Break => &[libc::SYS_brk],
            Self::Attach => &[libc::SYS_shmat],
            Self::Detach => &[libc::SYS_shmdt],
            Self::Truncate => &[libc::SYS_ftruncate],
            Self::TruncatePath => &[libc::SYS_truncate],
            Self::Allocate => &[libc::SYS_fallocate],
            #[cfg(target_arch = "x86_64")]
            Self::Fork => &[libc::SYS_fork],
            #[cfg(not(target_arch = "x86_64"))]
            Self::Fork => &[],
            Self::Clone => &[libc::SYS_clone],
            Self::Clone3 => &[libc::SYS_clone3],
        }
    }

    fn of(number: usize) -> Option<Self> {
        let is_it = |kind: &Self| kind.numbers().iter().any(|&known| known as usize == number & !X32);
        Self::ALL.into_iter().find(is_it)
    }
}

/// What part of a file goes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// From here.
    pub start: u64,
    /// To here.
    pub end: u64,
}

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing to any mapping.
    Nothing,
    /// Ranges change.
    Changes(Changes),
    /// The heap ends there from now on.
    Break(usize),
    /// The shared memory that is attached there goes.
    Detach(usize),
    /// Something is attached there, in the place of what there is; the number of the shared memory.
    Attach {
        /// Where.
        at: usize,
        /// What.
        id: usize,
    },
    /// Pages of the file by that descriptor go.
    CutFile(usize, Cut),
    /// Pages of the file by that path go; where the path is.
    CutPath(usize, Cut),
    /// A child gets a copy of the address space.
    Fork,
    /// The same, if the flags at that address say so.
    ForkIf(usize),
}

/// What `call` does.
pub fn effect(call: &Call) -> Effect {
    let Some(kind) = Kind::of(call.number) else {
        return Effect::Nothing;
    };
    let [a, b, c, d, e, _] = call.args;
    let changed = |cause| range(a, b).map_or(Effect::Nothing, |range| Effect::Changes(Changes::one(range, cause)));
    match kind {
        Kind::Unmap => changed(Cause::Unmap),
        Kind::Map if is_replacing(d as i32) => changed(Cause::Unmap),
        Kind::Map => Effect::Nothing,
        Kind::Remap => remap(a, b, c, d as i32, e),
        Kind::RemapFile => changed(Cause::Unmap),
        Kind::Protect => changed(Cause::ProtectArea),
        Kind::Advise if ADVICES.contains(&(c as i32)) => changed(Cause::Clear),
        // The ranges are behind a pointer, and whoever makes such a call on itself does it seldom.
        Kind::AdviseProcess if ADVICES.contains(&(d as i32)) => {
            Effect::Changes(Changes::one(PageRange::ALL, Cause::Clear))
        }
        Kind::Advise | Kind::AdviseProcess => Effect::Nothing,
        Kind::Break if a == 0 => Effect::Nothing,
        Kind::Break => Effect::Break(a),
        Kind::Attach if c as i32 & libc::SHM_REMAP != 0 && b != 0 => Effect::Attach { at: b, id: a },
        Kind::Attach => Effect::Nothing,
        Kind::Detach => Effect::Detach(a),
        Kind::Truncate => Effect::CutFile(a, cut_from(b)),
        Kind::TruncatePath => Effect::CutPath(a, cut_from(b)),
        Kind::Allocate => allocate(a, b as i32, c as u64, d as u64),
        Kind::Fork => Effect::Fork,
        Kind::Clone if a as i32 & libc::CLONE_VM != 0 => Effect::Nothing,
        Kind::Clone => Effect::Fork,
        Kind::Clone3 => Effect::ForkIf(a),
    }
}

/// What a call means besides memory, that not all threads need have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// Nothing.
    None,
    /// A descriptor.
    Files,
    /// A path.
    Paths,
}

/// What `call` means besides memory.
pub fn context(call: &Call) -> Context {
    match Kind::of(call.number) {
        Some(Kind::Map) if call.args[3] as i32 & libc::MAP_ANONYMOUS == 0 => Context::Files,
        Some(Kind::Truncate | Kind::Allocate | Kind::AdviseProcess) => Context::Files,
        Some(Kind::TruncatePath) => Context::Paths,
        _ => Context::None,
    }
}

/// Whether `call` moves a mapping, which must be one area.
pub(crate) fn moves(call: &Call) -> bool {
    Kind::of(call.number) == Some(Kind::Remap)
}

fn is_replacing(flags: i32) -> bool {
    flags & libc::MAP_FIXED != 0 && flags & libc::MAP_FIXED_NOREPLACE == 0
}

fn remap(old: usize, old_len: usize, new_len: usize, flags: i32, new: usize) -> Effect {
    let fixed = flags & libc::MREMAP_FIXED != 0;
    let shrinks = !fixed && new_len < old_len;
    // What shrinks in place keeps its beginning; the kernel rounds the new length up.
    let kept = if shrinks {
        new_len.next_multiple_of(PAGE_SIZE)
    } else {
        0
    };
    let from = range(old.saturating_add(kept), old_len.saturating_sub(kept));
    let to = if fixed { range(new, new_len) } else { None };
    let changes = [from, to]
        .into_iter()
        .flatten()
        .fold(Changes::default(), |changes, range| changes.and(range, Cause::Unmap));
    if changes.is_empty() {
        return Effect::Nothing;
    }
    Effect::Changes(changes)
}

/// A file that ends at `len` keeps the page with its last byte.
fn cut_from(len: usize) -> Cut {
    Cut {
        start: (len as u64).div_ceil(PAGE_SIZE as u64) * PAGE_SIZE as u64,
        end: u64::MAX,
    }
}

fn allocate(fd: usize, mode: i32, offset: u64, len: u64) -> Effect {
    if mode & CUTTING_MODES == 0 {
        return Effect::Nothing;
    }
    let moves_rest = mode & (libc::FALLOC_FL_COLLAPSE_RANGE | libc::FALLOC_FL_INSERT_RANGE) != 0;
    let end = if moves_rest {
        u64::MAX
    } else {
        offset.saturating_add(len)
    };
    Effect::CutFile(fd, Cut { start: offset, end })
}

/// The pages that a call with this start and length may touch: what lies beyond user space is refused, or found unmapped, by the kernel.
pub(crate) fn range(start: usize, len_bytes: usize) -> Option<PageRange> {
    let start = start / PAGE_SIZE * PAGE_SIZE;
    let len_bytes = len_bytes.min(USER_END.saturating_sub(start));
    PageRange::covering(start, len_bytes).ok()
}

#[cfg(test)]
mod tests;
