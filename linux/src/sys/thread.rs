//! Threads of isomem's own: what they stand on is never mirrored, and no signal handler of the program runs on them.
//!
//! Code that serves CPU faults, or that has pages in transit, must not itself wait for such a fault. So its stack lies
//! in the metadata range (the thread's control block and static thread-locals lie on top of it), and all signals are blocked.
//!
//! # Invariants
//! - THR-1: an own thread's stack lies in the metadata range for as long as the thread runs; [`is_own_thread`] is therefore
//!   one comparison of the stack pointer, and needs no thread-local.
//! - THR-2: no signal handler runs on an own thread. A fault of its own (running into the guard page, too) kills the process.
//! - THR-3: a stack is used again only after its thread was joined.
//!
//! # Locking
//! None. Creating a thread does take the program's heap lock (the C library allocates the thread's vector of dynamic
//! thread-locals there), so it belongs to start-up, never on the fault path. For the same reason own threads use no thread-local of a
//! library that was loaded with `dlopen`.
//!
//! Linux: kthread_create, for the role.

use core::alloc::Layout;
use core::ffi::{CStr, c_void};
use core::mem::MaybeUninit;
use core::ptr::NonNull;

use super::call::{Call, checked, make};
use super::metadata::{self, MetadataHeap};
use allocator_api2::alloc::Allocator;
use allocator_api2::boxed::Box;

#[cfg(test)]
mod tests;

/// The page below the stack that nobody may touch.
const GUARD_BYTES: usize = 4096;
const STACK_ALIGN: usize = 4096;

/// Usable bytes of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StackSize(usize);

impl StackSize {
    /// For isomem's own code: pagers and service threads.
    pub const SYSTEM: Self = Self(256 << 10);
    /// For threads that run kernels of the user: device workers.
    pub const KERNEL: Self = Self(2 << 20);

    /// Another size, rounded up to pages; at least that of [`StackSize::SYSTEM`].
    pub const fn bytes(len_bytes: usize) -> Self {
        let len_bytes = len_bytes.next_multiple_of(STACK_ALIGN);
        if len_bytes < Self::SYSTEM.0 {
            Self::SYSTEM
        } else {
            Self(len_bytes)
        }
    }
}

/// Why a thread did not start. Nothing is left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpawnError {
    /// No memory of isomem's own for the stack or the closure.
    #[error("no memory left for the stack of a thread of isomem's own")]
    OutOfMetadata,
    /// The system refused.
    #[error("{call} failed: {}", std::io::Error::from_raw_os_error(*.errno))]
    Refused {
        /// The call, in the words of its manual page.
        call: &'static str,
        /// The raw errno.
        errno: i32,
    },
}

/// Whether the caller runs on a thread of isomem's own. Takes no system call and no thread-local.
#[inline]
pub fn is_own_thread() -> bool {
    let on_stack = MaybeUninit::<u8>::uninit();
    metadata::contains(on_stack.as_ptr().addr())
}

/// A running thread; dropping the handle waits until its entry returned.
///
/// In a fork's child the thread does not exist, and dropping does nothing. Dropped by the thread itself, it is let go: the
/// thread runs on, and its stack is never used again.
#[derive(Debug)]
pub struct OwnThread {
    thread: libc::pthread_t,
    stack: Option<Stack>,
    process: u32,
}

// SAFETY: a `pthread_t` may be joined from any thread; the stack is only touched after that.
unsafe impl Send for OwnThread {}
// SAFETY: `&OwnThread` offers nothing but reading.
unsafe impl Sync for OwnThread {}

impl OwnThread {
    /// Starts a thread that runs `entry`. The kernel shows the first 15 bytes of `name`.
    ///
    /// A panic that leaves `entry` aborts the process: there is nobody to resume it in.
    ///
    /// # Errors
    /// [`SpawnError`]; `entry` was dropped without running.
    pub fn spawn<F: FnOnce() + Send + 'static>(
        name: &'static CStr,
        size: StackSize,
        entry: F,
    ) -> Result<Self, SpawnError> {
        let stack = Stack::new(size)?;
        let start = Box::try_new_in(Start { name, entry }, MetadataHeap).map_err(|_| SpawnError::OutOfMetadata)?;
        let (start, _) = Box::into_raw_with_allocator(start);
        match create(&stack, run_start::<F>, start.cast()) {
            Ok(thread) => Ok(Self {
                thread,
                stack: Some(stack),
                process: std::process::id(),
            }),
            Err(refused) => {
                // SAFETY: it comes from `into_raw` just above, and no thread was made that would take it.
                drop(unsafe { Box::from_raw_in(start, MetadataHeap) });
                Err(refused)
            }
        }
    }

    /// Whether this handle's thread exists in the calling process: not in a fork's child.
    pub fn is_here(&self) -> bool {
        self.process == std::process::id()
    }
}

impl Drop for OwnThread {
    fn drop(&mut self) {
        let stack = self.stack.take();
        if !self.is_here() {
            core::mem::forget(stack);
            return;
        }
        // SAFETY: the thread was created joinable, in this process, and only this drop joins it.
        let joined = unsafe { libc::pthread_join(self.thread, core::ptr::null_mut()) };
        if joined != 0 {
            // EDEADLK: the thread drops its own handle. It still stands on the stack (THR-3).
            core::mem::forget(stack);
            // SAFETY: not joined, so the handle is still valid.
            unsafe { libc::pthread_detach(self.thread) };
        }
    }
}

/// What the new thread takes with it.
struct Start<F> {
    name: &'static CStr,
    entry: F,
}

/// The first function on the new stack. As `extern "C"` it aborts when a panic would leave it.
extern "C" fn run_start<F: FnOnce()>(start: *mut c_void) -> *mut c_void {
    // SAFETY: `spawn` passed the raw parts of such a box, and left it to this thread.
    let start = unsafe { Box::<Start<F>, MetadataHeap>::from_raw_in(start.cast(), MetadataHeap) };
    let Start { name, entry } = Box::into_inner(start);
    let _ = rustix::thread::set_name(name);
    entry();
    core::ptr::null_mut()
}

/// Creates a joinable thread with all signals blocked.
fn create(
    stack: &Stack,
    entry: extern "C" fn(*mut c_void) -> *mut c_void,
    argument: *mut c_void,
) -> Result<libc::pthread_t, SpawnError> {
    let attributes = Attributes::with_stack(stack)?;
    let mut thread = MaybeUninit::<libc::pthread_t>::uninit();
    let blocked = BlockedSignals::new();
    // SAFETY: the attributes are initialised and name a stack that nobody uses; `entry` takes `argument`, by `spawn`.
    let errno = unsafe { libc::pthread_create(thread.as_mut_ptr(), &attributes.0, entry, argument) };
    drop(blocked);
    check("pthread_create", errno)?;
    // SAFETY: a successful call wrote it.
    Ok(unsafe { thread.assume_init() })
}

fn check(call: &'static str, errno: i32) -> Result<(), SpawnError> {
    if errno == 0 {
        Ok(())
    } else {
        Err(SpawnError::Refused { call, errno })
    }
}

/// Attributes of a thread to be made.
struct Attributes(libc::pthread_attr_t);

impl Attributes {
    fn with_stack(stack: &Stack) -> Result<Self, SpawnError> {
        let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
        // SAFETY: the call initialises what it is given.
        check("pthread_attr_init", unsafe {
            libc::pthread_attr_init(attributes.as_mut_ptr())
        })?;
        // SAFETY: initialised by the successful call above.
        let mut attributes = Self(unsafe { attributes.assume_init() });
        // SAFETY: the attributes are initialised; the stack is memory of ours, of that length.
        let errno = unsafe {
            libc::pthread_attr_setstack(&mut attributes.0, stack.bottom().as_ptr().cast(), stack.usable_bytes)
        };
        check("pthread_attr_setstack", errno).map(|()| attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised by `with_stack`.
        unsafe { libc::pthread_attr_destroy(&mut self.0) };
    }
}

/// All signals blocked in the calling thread; a thread made meanwhile inherits that. Dropping restores what was.
pub(super) struct BlockedSignals {
    before: MaybeUninit<libc::sigset_t>,
}

impl BlockedSignals {
    pub(super) fn new() -> Self {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: fills the set it is given; it cannot fail for a valid pointer.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        // SAFETY: `all` was filled; `before` is written. It fails for a bad `how` only.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
        Self { before }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: `before` was written by the call in `new`.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, self.before.as_ptr(), core::ptr::null_mut()) };
    }
}

/// A stack in the metadata range, above a guard page.
#[derive(Debug)]
struct Stack {
    guard: NonNull<u8>,
    usable_bytes: usize,
}

impl Stack {
    fn new(StackSize(usable_bytes): StackSize) -> Result<Self, SpawnError> {
        let layout = Self::layout(usable_bytes).ok_or(SpawnError::OutOfMetadata)?;
        let block = MetadataHeap.allocate(layout).map_err(|_| SpawnError::OutOfMetadata)?;
        let stack = Self {
            guard: block.cast(),
            usable_bytes,
        };
        stack.protect_guard(libc::PROT_NONE)?;
        Ok(stack)
    }

    fn layout(usable_bytes: usize) -> Option<Layout> {
        Layout::from_size_align(usable_bytes.checked_add(GUARD_BYTES)?, STACK_ALIGN).ok()
    }

    fn bottom(&self) -> NonNull<u8> {
        // SAFETY: the block has the guard page and `usable_bytes` more.
        unsafe { self.guard.add(GUARD_BYTES) }
    }

    fn protect_guard(&self, protection: i32) -> Result<(), SpawnError> {
        let call = Call::new(
            libc::SYS_mprotect,
            [
                self.guard.as_ptr().expose_provenance(),
                GUARD_BYTES,
                protection as usize,
            ],
        );
        // SAFETY: the first page of a block of ours that holds no value.
        checked(unsafe { make(call) })
            .map(drop)
            .map_err(|errno| SpawnError::Refused {
                call: "mprotect",
                errno: errno.raw_os_error(),
            })
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let Some(layout) = Self::layout(self.usable_bytes) else {
            return;
        };
        // A block with a page that cannot be touched must not be handed out; then it is lost.
        if self.protect_guard(libc::PROT_READ | libc::PROT_WRITE).is_ok() {
            // SAFETY: allocated in `new` with this layout; no thread runs on it any more (THR-3).
            unsafe { MetadataHeap.deallocate(self.guard, layout) };
        }
    }
}
