//! What the model checkers' tests stand on: memory for the core's tables, taken from the ordinary heap.
//!
//! The tests run the core's own code, built on loom's locks and atomics, so what is checked is what ships.

pub mod world;

use std::alloc::Layout;
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::Arc;

use allocator_api2::alloc::{AllocError, Allocator, Global};
use isomem_core::notifier::Subscriber;
use isomem_core::world::{Metadata, OutOfMetadata};

thread_local! {
    // loom runs all threads of a model on one thread of the system, so this counts for the model as a whole.
    static IN_USE: Cell<usize> = const { Cell::new(0) };
    static REQUESTS: Cell<usize> = const { Cell::new(0) };
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The ordinary heap as the core's own memory, with a count of requests and a limit to them.
#[derive(Debug, Clone, Copy, Default)]
pub struct ModelHeap;

impl ModelHeap {
    /// Requests made so far in this model.
    pub fn requests() -> usize {
        REQUESTS.get()
    }

    /// Lets `count` further requests succeed, and fails all after them.
    pub fn fail_after(count: usize) {
        LEFT.set(count);
    }

    fn request() -> Result<(), OutOfMetadata> {
        REQUESTS.set(REQUESTS.get() + 1);
        let left = LEFT.get().checked_sub(1).ok_or(OutOfMetadata)?;
        // `usize::MAX` stands for no limit.
        LEFT.set(if LEFT.get() == usize::MAX { usize::MAX } else { left });
        Ok(())
    }
}

// SAFETY: both methods hand every request to `Global`, which meets the trait's obligations; all copies of the zero-sized value
// are the same allocator.
unsafe impl Allocator for ModelHeap {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        Self::request().map_err(|_| AllocError)?;
        let memory = Global.allocate(layout)?;
        IN_USE.set(IN_USE.get() + layout.size());
        Ok(memory)
    }

    unsafe fn deallocate(&self, memory: NonNull<u8>, layout: Layout) {
        IN_USE.set(IN_USE.get() - layout.size());
        // SAFETY: the caller got `memory` from `allocate` with this layout, which got it from `Global`.
        unsafe { Global.deallocate(memory, layout) }
    }
}

impl Metadata for ModelHeap {
    type Shared<T: ?Sized + Send + Sync + 'static> = Arc<T>;

    fn share<T: Send + Sync + 'static>(value: T) -> Result<Arc<T>, OutOfMetadata> {
        Self::request()?;
        Ok(Arc::new(value))
    }

    fn share_subscriber<T: Subscriber>(value: T) -> Result<Arc<dyn Subscriber>, OutOfMetadata> {
        Self::request()?;
        Ok(Arc::new(value))
    }

    fn bytes_in_use() -> usize {
        IN_USE.get()
    }
}
