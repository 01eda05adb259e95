//! This object's own memory: isomem's, not the program's heap.
//!
//! A program that writes beyond its own blocks (the kernel's `hmm-tests` does: it has the driver store a page into a block of 7 bytes) must
//! not find the devices' state there. And what is not in the program's heap is never away on a device.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use allocator_api2::alloc::Allocator;
use isomem_linux::sys::metadata::MetadataHeap;

struct OwnMemory;

#[global_allocator]
static OWN: OwnMemory = OwnMemory;

// SAFETY: `MetadataHeap` keeps the contract of an allocator: blocks are valid until freed, do not overlap, and fit their layout.
unsafe impl GlobalAlloc for OwnMemory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        MetadataHeap
            .allocate(layout)
            .map_or(core::ptr::null_mut(), |block| block.as_ptr().cast())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        MetadataHeap
            .allocate_zeroed(layout)
            .map_or(core::ptr::null_mut(), |block| block.as_ptr().cast())
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller gives back a block of this allocator, with its layout.
            unsafe { MetadataHeap.deallocate(block, layout) };
        }
    }
}
