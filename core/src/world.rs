//! What the core needs of the world it runs in: an address space, memory of its own, and a place for pages to go.
//!
//! There are two: the calling process on live Linux, and (for model checking) a simulated kernel. A method is here
//! because the protocol calls it; what a backend merely offers stays in the backend. None of the methods may
//! call back into the core.
//!
//! Errors carry the raw errno, so that the cause reaches the user.

mod heap;

use core::ops::Deref;

use allocator_api2::alloc::Allocator;

use crate::addr::{BlockId, PageMask, PageRange, VirtAddr};
use crate::notifier::Subscriber;

/// What a reader or a writer wants of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Read only.
    Read,
    /// Read and write.
    Write,
}

/// A system call that failed, by name, with its errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed on {range}: {}", std::io::Error::from_raw_os_error(*.errno))]
pub struct WorldError {
    /// The call, in the words of its manual page.
    pub call: &'static str,
    /// The pages it was for.
    pub range: PageRange,
    /// The raw errno.
    pub errno: i32,
}

/// What backs an area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory: heap, stacks, `mmap`. Pages can migrate.
    Anonymous,
    /// A file, shared memory, or huge-page pool: mapped in place, never migrated.
    Mapped,
    /// isomem's own memory, or memory of the process that isomem's threads run on (program and library data): never mirrored.
    Excluded,
}

/// One area of the address space (Linux: a vma), cut to the range that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Where it lies.
    pub range: PageRange,
    /// What the program may do there; `None` for PROT_NONE.
    pub access: Option<Access>,
    /// What is behind it.
    pub backing: Backing,
}

/// What the CPU's page table holds for a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pte {
    /// Nothing: never touched, discarded, or away on a device.
    None,
    /// On swap.
    Swapped,
    /// A page in memory.
    Present {
        /// The shared page of zeroes.
        zero: bool,
        /// Part of a huge page.
        huge: bool,
    },
}

/// Neighbouring pages in the same state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PteRun {
    /// Which pages.
    pub range: PageRange,
    /// Their common state.
    pub pte: Pte,
}

/// Why the CPU itself could not have touched a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PopulateError {
    /// No area there, or PROT_NONE, or a write to a read-only area: look at the areas to tell which.
    #[error("no access at {0}")]
    Refused(VirtAddr),
    /// Anything else.
    #[error(transparent)]
    World(#[from] WorldError),
}

/// Why a run of moves or copies stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The next source page is not there.
    Hole,
    /// The next source page is shared (copy-on-write), pinned or write-protected: it cannot move as it is.
    Busy,
    /// The next source and destination differ in protection or locking, or are no private memory: they cannot be exchanged.
    Unlike,
    /// Something is at the destination already.
    Exists,
    /// The address space is changing; try again after the change was noticed.
    Again,
    /// No such area, or it is not tracked.
    Gone,
    /// Another error, by its errno.
    Failed(i32),
}

/// How far a move or a copy came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Pages done, from the front.
    pub pages: usize,
    /// Why not all; `None` when all are done.
    pub stop: Option<Stop>,
}

/// An address in the arena, page-aligned. It is where the CPU would find the page, but the program has no business there.
pub type ArenaRange = PageRange;

/// Memory of isomem's own: mapped at start, never mirrored, so that the fault path can touch it whatever migrates.
pub trait Metadata: Allocator + Copy + Default + Send + Sync + 'static {
    /// A counted pointer into that memory.
    type Shared<T: ?Sized + Send + Sync + 'static>: Deref<Target = T> + Clone + Send + Sync + 'static;

    /// Puts `value` there. Fails, and drops it, when there is no memory left.
    fn share<T: Send + Sync + 'static>(value: T) -> Result<Self::Shared<T>, OutOfMetadata>;

    /// The same, for a value that will be known by its trait only.
    fn share_subscriber<T: Subscriber>(value: T) -> Result<Self::Shared<dyn Subscriber>, OutOfMetadata>;

    /// Bytes in use at present.
    fn bytes_in_use() -> usize;
}

/// isomem's own memory is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no memory left for isomem's own tables")]
pub struct OutOfMetadata;

/// An address space and a place for pages to go.
pub trait World: Send + Sync + Sized + 'static {
    /// Where the core keeps its tables.
    type Meta: Metadata;

    /// Whether an access through a stale pin faults and waits, instead of reaching a page that is no longer there. True where
    /// the arena and the program share one MMU; then a migration need not wait for ever for a device that holds a pin.
    const FENCED: bool;

    /// Whether the caller runs in the address space this world stands for (false in a fork's child).
    fn is_current(&self) -> bool;

    /// Runs `job` where no mirrored memory is touched: on a thread whose stack is isomem's own. Blocks until it is done.
    /// Runs it in place when the caller is such a thread already.
    fn off_stack<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> R;

    /// Bytes of memory the machine has.
    fn memory_bytes(&self) -> usize;

    /// A thread of isomem's own; dropping it waits for it to end. In a fork's child, where it is not, dropping it does nothing.
    type Thread: Send + Sync + 'static;

    /// Starts a thread on a stack of isomem's own, with all signals blocked.
    fn spawn(
        &self,
        name: &'static str,
        stack_bytes: usize,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<Self::Thread, WorldError>;

    /// Whether pages may migrate that nobody asked for, because they lie beside one that was. Not where the kernel's own accesses to a
    /// migrated page fail: it may lie beside memory that the kernel writes on behalf of a thread.
    fn takes_neighbours(&self) -> bool;

    /// Nanoseconds since some moment in the past.
    fn now_ns(&self) -> u64;

    /// Waits about `ns` nanoseconds, or lets others run.
    fn pause(&self, ns: u64);

    // What the CPU sees.

    /// The areas in `range`, in address order; what is in none of them is a hole.
    fn areas(&self, range: PageRange, each: &mut dyn FnMut(Area)) -> Result<(), WorldError>;

    /// The pages of `block` that must not leave, because somebody writes them in a way that no fault is served for: on Linux the word that
    /// the kernel clears when a thread ends.
    fn needed_at_home(&self, block: BlockId) -> Result<PageMask, WorldError>;

    /// The CPU's page table over `range`, in address order, gapless.
    fn scan(&self, range: PageRange, each: &mut dyn FnMut(PteRun)) -> Result<(), WorldError>;

    /// Makes every page of `range` present, as if the CPU had touched it. The pages must not be away on a device.
    fn populate(&self, range: PageRange, access: Access) -> Result<(), PopulateError>;

    // CPU faults.

    /// From now on a CPU access to a missing page of `range` (which lies in one anonymous area) comes to the core.
    fn track(&self, range: PageRange) -> Result<(), WorldError>;

    /// Undoes [`World::track`]; threads that wait in the range go on.
    fn untrack(&self, range: PageRange) -> Result<(), WorldError>;

    /// Lets threads that wait for a page of `range` try again.
    fn wake(&self, range: PageRange);

    /// Gives a missing page of a tracked area zeroes, as the kernel would, and wakes who waits for it.
    fn fill_zero(&self, range: PageRange) -> Moved;

    // Changes of the CPU's mappings that the program asked for; devices were told before.

    /// Removes the mappings.
    fn unmap(&self, range: PageRange) -> Result<(), WorldError>;

    /// Sets what the program may do; `None` is PROT_NONE.
    fn protect(&self, range: PageRange, access: Option<Access>) -> Result<(), WorldError>;

    /// Drops the contents; the next touch finds zeroes (or the file's bytes).
    fn discard(&self, range: PageRange) -> Result<(), WorldError>;

    /// Moves the mapping `from` to `to`, of the same length, replacing what was at `to`.
    fn remap(&self, from: PageRange, to: PageRange) -> Result<(), WorldError>;

    // The arena.

    /// Address space for device memory, aligned to blocks. Only touched pages of it cost memory.
    fn reserve_arena(&self, len_bytes: usize) -> Result<ArenaRange, WorldError>;

    /// Gives an arena back. No page of value may be in it.
    fn release_arena(&self, arena: ArenaRange);

    /// Moves pages of the program into the arena, without copying. Their place becomes a hole.
    fn move_out(&self, from: PageRange, to: ArenaRange) -> Moved;

    /// Moves pages of the arena back to the program, without copying, and wakes who waits for them.
    fn move_home(&self, from: ArenaRange, to: PageRange) -> Moved;

    /// Gives each page of `range`, which is present and shared copy-on-write, a copy of its own. Fails with
    /// [`Stop::Unlike`] where the area is read-only.
    fn unshare(&self, range: PageRange) -> Moved;

    /// Write-protects (or no longer) the present pages of a tracked range; a CPU write then comes to the core.
    fn write_protect(&self, range: PageRange, on: bool) -> Result<(), WorldError>;

    /// Copies pages of the program into the arena. The source stays, and the copies cannot be written before [`World::open_copies`]: a device
    /// that waits there with a stale pin would write what the program does not see.
    fn copy_out(&self, from: PageRange, to: ArenaRange) -> Moved;

    /// Lets copies in the arena be written, and wakes who waits for that.
    fn open_copies(&self, range: ArenaRange);

    /// Drops the program's copy of pages that were copied out; their place becomes a hole.
    fn drop_source(&self, range: PageRange) -> Result<(), WorldError>;

    /// Copies pages of the arena back to the program and wakes who waits for them. The arena's copy stays.
    fn copy_home(&self, from: ArenaRange, to: PageRange) -> Moved;

    /// Copies pages of the arena to their place at home, write-protected as by [`World::write_protect`], and wakes who waits for them; the arena's stay
    /// (MIG-12). [`Stop::Unlike`] where the kernel cannot tell of a write to them, or not of every write.
    fn duplicate_home(&self, from: ArenaRange, to: PageRange) -> Moved;

    /// Moves pages from one device's part of the arenas to another's, without copying. Their place becomes a hole.
    fn move_across(&self, from: ArenaRange, to: ArenaRange) -> Moved;

    /// Copies pages from one device's part of the arenas to another's. The source stays.
    fn copy_across(&self, from: ArenaRange, to: ArenaRange) -> Moved;

    /// Puts zeroes at holes of the arena, and wakes who waits there.
    fn zero_arena(&self, range: ArenaRange) -> Moved;

    /// Drops what is in the arena; whole blocks can then take huge pages again.
    fn scrub_arena(&self, range: ArenaRange);

    /// Lets device threads that wait for a page of the arena try again.
    fn wake_arena(&self, range: ArenaRange);

    /// Makes a hole of the arena an error for who touches it: its page no longer exists anywhere.
    fn poison_arena(&self, range: ArenaRange);
}
