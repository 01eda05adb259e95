//! All unsafe code of the facade: windows made from borrows, a kernel's lifetime erased for as long as its launch, and the calls whose
//! safety is the caller's business.

use core::mem::MaybeUninit;
use core::ops::Range;

use bytemuck::Pod;
use isomem_core::addr::PageRange;
use isomem_core::world::Access;
use isomem_linux::Window;
use isomem_soft::DeviceFault;

use crate::mirror::{LaunchError, Mirror};
use crate::mm::{ChangeError, Mm};
use crate::worker::{SoftWorker, Worker};

/// A slice without its lifetime: whoever holds it keeps the borrow alive.
#[derive(Debug, Clone, Copy)]
pub struct RawSlice {
    window: Window,
    start: usize,
    len: usize,
}

impl RawSlice {
    /// For reading (and for atomic operations, where the elements are atomics).
    pub(crate) fn of<T: crate::args::Shareable>(slice: &[T]) -> Self {
        let start = slice.as_ptr().expose_provenance();
        let access = <T::Kind as crate::args::Kind<T>>::ACCESS;
        // SAFETY: the slice is borrowed for as long as the window is used: launches keep their arguments, and handles end with the
        // kernel. `ACCESS` is writing only for atomics, which may be written through a shared borrow.
        let window = unsafe { Window::new(start, size_of_val(slice), access) };
        Self {
            window,
            start,
            len: slice.len(),
        }
    }

    /// For reading and writing.
    pub(crate) fn of_mut<T: Pod>(slice: &mut [T]) -> Self {
        let start = slice.as_mut_ptr().expose_provenance();
        // SAFETY: as in `of`; the borrow is exclusive, and any bytes are a `T`.
        let window = unsafe { Window::new(start, size_of_val(slice), Access::Write) };
        Self {
            window,
            start,
            len: slice.len(),
        }
    }

    /// Elements `range` alone, of a slice of `T` (ARG-2).
    pub(crate) fn part<T>(&self, range: Range<usize>) -> Self {
        let (start, len) = (self.addr_of::<T>(range.start), range.len());
        // SAFETY: a part of what was vouched for when `self` was made, for the same access.
        let window = unsafe { Window::new(start, len * size_of::<T>(), self.window.access()) };
        Self { window, start, len }
    }

    /// Number of elements.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// What the device may touch.
    #[inline]
    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    /// Address of element `index` of a slice of `T`.
    #[inline]
    pub(crate) fn addr_of<T>(&self, index: usize) -> usize {
        self.start.wrapping_add(index.wrapping_mul(size_of::<T>()))
    }
}

/// A kernel as the device takes it, borrowed.
pub(crate) type Kernel<'a> = dyn for<'k> Fn(SoftWorker<'k>) + Sync + 'a;

/// Runs `kernel`, which may borrow from the caller, on every worker of `mirror`.
pub(crate) fn run(
    mirror: &isomem_soft::SoftMirror<isomem_linux::Linux>,
    kernel: &Kernel<'_>,
) -> Result<(), isomem_soft::LaunchError> {
    // SAFETY: `launch` returns only when no worker uses the kernel any more and the device has forgotten it (LNC-1 of isomem-soft), and
    // `kernel` outlives this call.
    let kernel = unsafe { core::mem::transmute::<&Kernel<'_>, &'static Kernel<'static>>(kernel) };
    mirror.launch(kernel)
}

impl Mirror {
    /// Runs `kernel` on every worker with nothing lent to it: it reaches the process's memory by raw pointers, with
    /// [`Worker::peek`] and [`Worker::poke`]. Returns what the kernel returned on each worker.
    ///
    /// ```
    /// # use isomem::{Mm, SoftConfig};
    /// # let mm = Mm::current()?;
    /// # let device = mm.soft_device(SoftConfig::default())?;
    /// # let mirror = device.mirror()?;
    /// struct Node { value: u64, next: Option<Box<Node>> }
    /// let list = Node { value: 1, next: Some(Box::new(Node { value: 2, next: None })) };
    /// let head = &raw const list as usize;
    /// // SAFETY: the list lives longer than the launch, and nobody writes to it.
    /// let sums = unsafe {
    ///     mirror.launch_raw(|worker| {
    ///         let (mut sum, mut at) = (0, head as *const Node);
    ///         while !at.is_null() {
    ///             sum += worker.peek(&raw const (*at).value)?;
    ///             // An optional box is a pointer that may be null.
    ///             at = worker.peek((&raw const (*at).next).cast::<*const Node>())?;
    ///         }
    ///         Ok(sum)
    ///     })
    /// }?;
    /// assert!(sums.iter().all(|&sum| sum == 3));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Safety
    /// Each [`Worker::peek`] and [`Worker::poke`] in the kernel keeps its contract.
    pub unsafe fn launch_raw<R, F>(&self, kernel: F) -> Result<Vec<R>, LaunchError>
    where
        R: Send,
        F: for<'k> Fn(&mut Worker<'k>) -> Result<R, DeviceFault> + Sync,
    {
        self.launch((), |worker, ()| kernel(worker))
    }
}

impl Worker<'_> {
    /// Reads the value at `from`, through the device's page table. An address where nothing is mapped is a [`DeviceFault`].
    ///
    /// # Safety
    /// If memory is there, it holds a `T`, and nobody writes it at the same time. A naturally aligned word may be written by atomic
    /// operations.
    pub unsafe fn peek<T: Copy>(&mut self, from: *const T) -> Result<T, DeviceFault> {
        // SAFETY: the caller vouches for it.
        let window = unsafe { Window::new(from.addr(), size_of::<T>(), Access::Read) };
        let mut value = MaybeUninit::<T>::zeroed();
        // SAFETY: all bytes of it are initialised, and the slice ends before `value` is used again.
        let bytes = unsafe { core::slice::from_raw_parts_mut(value.as_mut_ptr().cast::<u8>(), size_of::<T>()) };
        self.soft.read(&window, from.addr(), bytes)?;
        // SAFETY: the bytes are those of a `T`, by the caller.
        Ok(unsafe { value.assume_init() })
    }

    /// Writes `value` to `to`, through the device's page table.
    ///
    /// # Safety
    /// If memory is there, it may be written, and nobody accesses it at the same time. A naturally aligned word may be accessed by
    /// atomic operations.
    pub unsafe fn poke<T: Pod>(&mut self, to: *mut T, value: T) -> Result<(), DeviceFault> {
        // SAFETY: the caller vouches for it.
        let window = unsafe { Window::new(to.addr(), size_of::<T>(), Access::Write) };
        self.soft.write(&window, to.addr(), bytemuck::bytes_of(&value))
    }
}

impl Mm {
    /// Unmaps the pages of `range`, like munmap; devices lose them first (WLD-2).
    ///
    /// # Safety
    /// Nothing uses the memory any more, as for munmap.
    #[doc(alias = "munmap")]
    pub unsafe fn unmap(&self, range: PageRange) -> Result<(), ChangeError> {
        self.core().unmap(range)
    }

    /// Sets what the program may do in `range`, like mprotect; `None` is PROT_NONE. Devices lose their entries first.
    ///
    /// # Safety
    /// As for mprotect: whatever uses the memory meanwhile does nothing that is no longer permitted.
    #[doc(alias = "mprotect")]
    pub unsafe fn protect(&self, range: PageRange, access: Option<Access>) -> Result<(), ChangeError> {
        self.core().protect(range, access)
    }

    /// Drops the contents of `range`, like madvise with MADV_DONTNEED; the next touch finds zeroes, or the file's bytes.
    ///
    /// # Safety
    /// Nothing relies on the contents.
    #[doc(alias = "madvise")]
    pub unsafe fn discard_pages(&self, range: PageRange) -> Result<(), ChangeError> {
        self.core().discard(range)
    }

    /// Moves the mapping of `from` to `to`, of the same length, replacing what was at `to`, like mremap with MREMAP_FIXED.
    ///
    /// # Safety
    /// Nothing uses the memory at `from` by its old address, nor what was at `to`.
    #[doc(alias = "mremap")]
    pub unsafe fn remap(&self, from: PageRange, to: PageRange) -> Result<(), ChangeError> {
        self.core().remap(from, to)
    }
}

/// Drops whole pages of memory that is borrowed exclusively and where any bytes are good values.
pub(crate) fn discard_borrowed<T: Pod>(mm: &Mm, slice: &mut [T], whole: PageRange) -> Result<(), ChangeError> {
    let start = slice.as_ptr().addr();
    assert!(whole.start() >= start && whole.end() <= start + size_of_val(slice));
    // SAFETY: the pages lie in a slice that is borrowed exclusively; its contents may be any bytes.
    unsafe { mm.discard_pages(whole) }
}
