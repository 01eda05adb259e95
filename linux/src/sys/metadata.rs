//! Memory of isomem's own, at addresses that are never mirrored, so that serving a CPU fault cannot cause one.
//!
//! The program's heap may be away on a device, or its lock held by the very thread that waits for a fault to be served; so
//! nothing the fault path uses may come from there. [`MetadataHeap`] hands out parts of one reservation of address space, made at
//! first use. "Is this address isomem's" is then one comparison ([`contains`]); the stacks of isomem's threads lie in it too.
//!
//! # Invariants
//! - META-1: every byte that the heap handed out, and every word it keeps about it, lies in the reservation or in this library's
//!   own data; none of them is ever mirrored.
//! - META-2: no thread can keep another from allocating or freeing, wherever it stops: each step is one compare-and-swap. So a
//!   thread may be suspended, wait for a fault on its own stack, or be missing in a fork's child in the middle of
//!   a call; at worst the one block it was about to get is lost.
//! - META-3: out of memory is an error, never an abort.
//!
//! # Locking
//! None (META-2). A free list is a Treiber stack whose links lie outside the blocks, and whose head carries a count against ABA.
//!
//! Linux: the slab allocator's per-size caches (mm/slub.c), for the shape.

mod arc;
mod classes;
mod heap;
mod list;
#[cfg(test)]
mod tests;

use core::alloc::Layout;
use core::ops::Range;
use core::ptr::NonNull;

use allocator_api2::alloc::{AllocError, Allocator};
use isomem_core::notifier::Subscriber;
use isomem_core::world::{Metadata, OutOfMetadata};

pub use arc::MetaArc;
use heap::Heap;

/// Address space for the one heap of the process. Only touched pages cost memory.
const RESERVE_BYTES: usize = 64 << 30;

static HEAP: Heap = Heap::new(RESERVE_BYTES);

/// Where the heap lies: all of isomem's own memory and stacks. Reserved by the first call.
///
/// # Errors
/// [`OutOfMetadata`] when the kernel gives no address space (RLIMIT_AS, strict overcommit).
pub fn owned_range() -> Result<Range<usize>, OutOfMetadata> {
    HEAP.reserve()
        .map(|region| region.range())
        .map_err(|AllocError| OutOfMetadata)
}

/// Whether `addr` is isomem's own. Takes a load and a comparison; never reserves.
#[inline]
pub fn contains(addr: usize) -> bool {
    HEAP.contains(addr)
}

/// The process-wide heap of isomem's own memory: a handle without size or state.
///
/// Sizes are rounded up to one of eight steps for each power of two, so at most an eighth is lost to rounding. Above 32 KiB only
/// touched pages count. Alignments up to 64 KiB are served; larger ones fail.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MetadataHeap;

// SAFETY: blocks stay valid until freed (the reservation is never unmapped), distinct live blocks do not overlap (META-2, heap.rs), and
// all handles are the same heap, so a block may be freed through any of them.
unsafe impl Allocator for MetadataHeap {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        HEAP.allocate(layout)
    }

    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        HEAP.allocate_zeroed(layout)
    }

    unsafe fn deallocate(&self, ptr: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller promises that `ptr` is a live block of this heap and that `layout` fits it.
        unsafe { HEAP.deallocate(ptr, layout) }
    }
}

impl Metadata for MetadataHeap {
    type Shared<T: ?Sized + Send + Sync + 'static> = MetaArc<T>;

    fn share<T: Send + Sync + 'static>(value: T) -> Result<MetaArc<T>, OutOfMetadata> {
        MetaArc::try_new(value)
    }

    fn share_subscriber<T: Subscriber>(value: T) -> Result<MetaArc<dyn Subscriber>, OutOfMetadata> {
        MetaArc::try_new(value).map(MetaArc::into_subscriber)
    }

    fn bytes_in_use() -> usize {
        HEAP.bytes_in_use()
    }
}
