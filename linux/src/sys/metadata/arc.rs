//! A counted pointer into isomem's own memory: `Arc`, with failure instead of abort, and no weak count.

use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::NonNull;

use allocator_api2::alloc::Allocator;
use isomem_core::count::{RefCount, Remaining};
use isomem_core::notifier::Subscriber;
use isomem_core::world::OutOfMetadata;

use super::MetadataHeap;

#[repr(C)]
struct Counted<T: ?Sized> {
    count: RefCount,
    value: T,
}

/// A counted pointer to a value in [`MetadataHeap`].
///
/// # Invariants
/// - `counted` points to a live block of the heap, of the layout of its `Counted<T>`, for as long as one clone lives.
pub struct MetaArc<T: ?Sized> {
    counted: NonNull<Counted<T>>,
    owns: PhantomData<Counted<T>>,
}

// SAFETY: like `Arc`: another thread gets `&T` (so T: Sync) and may be the one that drops it (so T: Send).
unsafe impl<T: ?Sized + Send + Sync> Send for MetaArc<T> {}
// SAFETY: as above; `&MetaArc` gives a clone.
unsafe impl<T: ?Sized + Send + Sync> Sync for MetaArc<T> {}

impl<T> MetaArc<T> {
    /// Puts `value` into isomem's memory.
    ///
    /// # Errors
    /// [`OutOfMetadata`]; `value` is dropped.
    pub fn try_new(value: T) -> Result<Self, OutOfMetadata> {
        let block = MetadataHeap
            .allocate(Layout::new::<Counted<T>>())
            .map_err(|_| OutOfMetadata)?;
        let counted = block.cast::<Counted<T>>();
        // SAFETY: the block is new, ours alone, and has the layout of `Counted<T>`.
        unsafe {
            counted.write(Counted {
                count: RefCount::new(),
                value,
            });
        };
        Ok(Self {
            counted,
            owns: PhantomData,
        })
    }
}

impl<T: Subscriber> MetaArc<T> {
    /// The same value, known by its trait only.
    pub(super) fn into_subscriber(self) -> MetaArc<dyn Subscriber> {
        let counted: *mut Counted<dyn Subscriber> = self.counted.as_ptr();
        core::mem::forget(self);
        // SAFETY: it comes from a `NonNull`.
        let counted = unsafe { NonNull::new_unchecked(counted) };
        MetaArc {
            counted,
            owns: PhantomData,
        }
    }
}

impl<T: ?Sized> MetaArc<T> {
    /// Whether two pointers share one value.
    pub fn ptr_eq(this: &Self, other: &Self) -> bool {
        core::ptr::addr_eq(this.counted.as_ptr(), other.counted.as_ptr())
    }

    fn counted(&self) -> &Counted<T> {
        // SAFETY: the type's invariant: the block lives as long as this clone, and is only borrowed shared.
        unsafe { self.counted.as_ref() }
    }
}

impl<T: ?Sized> Deref for MetaArc<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.counted().value
    }
}

impl<T: ?Sized> Clone for MetaArc<T> {
    fn clone(&self) -> Self {
        // A clone too many aborts the process: there is no other answer, and not counting it would free memory in use.
        if self.counted().count.hold().is_err() {
            std::process::abort();
        }
        Self {
            counted: self.counted,
            owns: PhantomData,
        }
    }
}

impl<T: ?Sized> Drop for MetaArc<T> {
    fn drop(&mut self) {
        if self.counted().count.leave() == Remaining::Others {
            return;
        }
        let layout = Layout::for_value(self.counted());
        // SAFETY: nobody remains, so this was the last clone, nobody else can reach the block, and their uses of it are over (CNT-2).
        unsafe { core::ptr::drop_in_place(self.counted.as_ptr()) };
        // SAFETY: `try_new` allocated it from this heap with this layout: unsizing keeps size and alignment of the value.
        unsafe { MetadataHeap.deallocate(self.counted.cast(), layout) };
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MetaArc<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
