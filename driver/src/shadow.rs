//! A virtual machine's memory: a shadow of the CPU's page table by guest page numbers, filled as the guest misses.
//!
//! A [`MemSlot`] says which program pages are a run of guest pages. [`Shadow::run`] lets a virtual CPU work: each access looks the guest page up in the
//! shadow, and a miss (an exit) brings the program's page in, enters it with its neighbours, and makes the access. An invalidation zaps shadow entries
//! and waits until no virtual CPU uses them. The shadow also ages pages, and logs which 4 KiB pages the guest wrote.
//!
//! The threads (2019): start and end exist for KVM only so that it can count invalidations in progress; a pass refused by another
//! subscriber gave it a start without an end, and its count never came back to zero. Every other driver wrote that counter again. So it went into the
//! core. This shadow has none: a miss asks the core's look, under the one lock that its callback takes, whether what it saw is stale. It asks
//! of the whole window that it enters, as KVM keeps one range for all invalidations in progress: that may be told stale for a neighbour's sake (a false
//! retry, allowed), and never misses an invalidation of a page it enters.
//!
//! # Invariants
//! - SHD-1 (FLT-2): a shadow entry is set under `mmu`, with the program's page in the mirror's table and the look not stale.
//! - SHD-2 (INV-4, INV-5): no counter here; the look covers every page that is entered.
//! - SHD-3: when a blocking invalidation's callback returned, no virtual CPU makes an access to the range, and no entry of it is in the shadow.
//! - SHD-4 (TBL-3): a page the guest wrote since the last collection is in the next one's log, also if its entry went meanwhile. Once a collection
//!   returned, what was written before it can be read, and a later write is logged anew.
//!
//! # Locking
//! `mmu` guards changes of entries, but for the accessed flag, which virtual CPUs set as hardware does. It is a leaf, never taken on a stack of the
//! program's. A walk takes no lock: it pins, then looks at the entry.
//!
//! ```text
//! virtual CPU                                invalidating thread or collector
//! pin the program's page                     .
//! look at the entry: there, writable         mmu { entries go, or are protected }
//! access; drop the pin                       wait for pins: the write is over, and was logged before it was allowed
//! pin; look at the entry: exit               the change, or the pages are read
//! ```
//!
//! Linux: virt/kvm/kvm_main.c (mmu_invalidate_retry_gfn, kvm_get_dirty_log_protect), arch/x86/kvm/mmu.

mod entries;

use allocator_api2::vec::Vec;
use isomem_core::addr::{PAGE_SIZE, PageRange, VirtAddr};
use isomem_core::mirror::MirrorState;
use isomem_core::mirror::pin::{Pin, PinSlot};
use isomem_core::mirror::range::FaultError;
use isomem_core::mm::{EntryError, Mm};
use isomem_core::notifier::Attempt;
use isomem_core::world::{Access, OutOfMetadata, World};

use self::entries::At;
pub use self::entries::Side;
use crate::link::Link;

/// Runs of guest pages that a machine can have.
pub const MAX_SLOTS: usize = 4;
/// Virtual CPUs that can run at a time.
pub const MAX_VCPUS: usize = 8;

type State<W> = MirrorState<W, Side<W>>;

/// A run of guest pages, and the program's pages that they are.
#[doc(alias = "kvm_userspace_memory_region")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemSlot {
    /// Number of the first guest page.
    pub first_gfn: usize,
    /// The program's pages.
    pub host: PageRange,
}

impl MemSlot {
    /// Which page of the slot guest page `gfn` is.
    fn index(&self, gfn: usize) -> Option<usize> {
        gfn.checked_sub(self.first_gfn)
            .filter(|&index| index < self.host.page_count())
    }
}

/// Why there is no machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// More than [`MAX_SLOTS`] slots, or two of the same guest pages.
    #[error("a machine has at most {MAX_SLOTS} slots, of different guest pages")]
    Slots,
    /// There is no device for it.
    #[error(transparent)]
    Device(#[from] crate::link::OpenError),
    /// isomem's own memory is used up.
    #[error(transparent)]
    Metadata(#[from] OutOfMetadata),
}

/// Why a guest's access or a machine's request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    /// No slot has this guest page: it would be emulated.
    #[error("guest page {0:#x} is in no slot")]
    NoSlot(usize),
    /// The program's page could not be had.
    #[error(transparent)]
    Fault(#[from] FaultError),
    /// [`MAX_VCPUS`] are running.
    #[error("{MAX_VCPUS} virtual CPUs are running already")]
    Busy,
}

impl From<EntryError> for GuestError {
    fn from(error: EntryError) -> Self {
        Self::Fault(error.into())
    }
}

/// A machine's memory. See the module.
pub struct Shadow<W: World> {
    link: Link<W, Side<W>>,
}

impl<W: World> core::fmt::Debug for Shadow<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Shadow")
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

impl<W: World> Shadow<W> {
    /// A machine with this memory. Nothing is brought in before the guest touches it. Effective on return (INV-8).
    pub fn new(mm: &Mm<W>, slots: &[MemSlot]) -> Result<Self, OpenError> {
        let link = Link::open(mm, "shadow", Side::new(mm, slots)?)?;
        Ok(Self { link })
    }

    /// Runs `work` as a virtual CPU, on a thread of isomem's own. The caller may hold no lock that a callback or the serving of a CPU fault needs.
    #[doc(alias = "kvm_vcpu_ioctl_run")]
    pub fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Guest<'_, W>) -> Result<R, GuestError> + Send + 'static,
    ) -> Result<R, GuestError> {
        self.on_own_stack(move |state| {
            let slot = state.device().pins.claim(state.table()).ok_or(GuestError::Busy)?;
            work(&mut Guest { state, slot })
        })
    }

    /// Takes the log of guest pages `first_gfn..first_gfn + count`, which lie in one slot: those that the guest wrote since the last time, in order, and
    /// begins anew (SHD-4). What the program writes itself is not in it. Nothing is taken where there is no memory for the answer.
    ///
    /// Blocks until writes in flight are over.
    #[doc(alias = "kvm_vm_ioctl_get_dirty_log")]
    pub fn collect_dirty(&self, first_gfn: usize, count: usize) -> Result<Vec<usize, W::Meta>, GuestError> {
        let mut log = Vec::new_in(W::Meta::default());
        log.try_reserve_exact(count)
            .map_err(|_| FaultError::from(OutOfMetadata))?;
        self.on_own_stack(move |state| {
            let side = state.device();
            let pages = side.pages(first_gfn, count)?;
            side.take_dirty(pages, &mut |index| log.push(first_gfn + index));
            Ok(log)
        })
    }

    /// How many of the guest pages `first_gfn..first_gfn + count`, which lie in one slot, were accessed since the last time.
    #[doc(alias = "kvm_age_gfn")]
    pub fn age(&self, first_gfn: usize, count: usize) -> Result<usize, GuestError> {
        self.on_own_stack(move |state| {
            let side = state.device();
            Ok(side.age(side.pages(first_gfn, count)?))
        })
    }

    /// Entries that there are at the moment. For tests and statistics.
    pub fn entries(&self) -> usize {
        self.link.state().device().count()
    }

    fn on_own_stack<R: Send + 'static>(
        &self,
        job: impl FnOnce(&State<W>) -> Result<R, GuestError> + Send + 'static,
    ) -> Result<R, GuestError> {
        let state = self.link.state().clone();
        // The guest's memory may lie where memory lay that the program has just unmapped.
        state.synchronize()?;
        let mm = state.mm().clone();
        mm.world().off_stack(move || job(&state))
    }

    /// The machine is gone on return: no virtual CPU makes an access any more.
    pub fn close(self) {
        drop(self);
    }
}

/// A running virtual CPU: the way to the guest's memory.
pub struct Guest<'g, W: World> {
    state: &'g State<W>,
    slot: PinSlot<'g, W::Meta>,
}

impl<W: World> core::fmt::Debug for Guest<'_, W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Guest").finish_non_exhaustive()
    }
}

/// An access, in the guest's terms and in the program's.
#[derive(Clone, Copy)]
struct Wanted {
    index: usize,
    addr: VirtAddr,
    len_bytes: usize,
    access: Access,
}

impl<W: World> Guest<'_, W> {
    /// Calls `reach` with a pin of the bytes from guest address `gpa` on: at most `len_bytes`, less where the page ends. Misses are served first.
    ///
    /// An invalidation of the page waits while it runs: it should only copy.
    #[inline]
    pub fn with<R>(
        &mut self,
        gpa: usize,
        len_bytes: usize,
        access: Access,
        reach: impl FnOnce(&W, Pin<'_>) -> R,
    ) -> Result<R, GuestError> {
        let (state, gfn) = (self.state, gpa / PAGE_SIZE);
        let side = state.device();
        let at = side.find(gfn).ok_or(GuestError::NoSlot(gfn))?;
        let start = at.page.start() + gpa % PAGE_SIZE;
        let wanted = Wanted {
            index: at.index,
            addr: VirtAddr::new(start).map_err(|_| GuestError::NoSlot(gfn))?,
            len_bytes: len_bytes.min(PAGE_SIZE - gpa % PAGE_SIZE),
            access,
        };
        if let Some(pin) = self.pin(wanted) {
            return Ok(reach(state.mm().world(), pin));
        }
        self.miss(at, wanted, reach)
    }

    /// The pin of an access that the shadow permits.
    #[inline(always)]
    fn pin(&mut self, wanted: Wanted) -> Option<Pin<'_>> {
        let pin = self.slot.pin(wanted.addr, wanted.len_bytes, wanted.access)?;
        // After the pin was published: who takes the entry away sees the pin, or this sees that it is gone.
        let permitted = self.state.device().permits(wanted.index, wanted.access);
        permitted.then_some(pin)
    }

    /// Makes the entry, and the access. Apart from accesses that need none, which are to be short.
    #[cold]
    fn miss<R>(&mut self, at: At, wanted: Wanted, reach: impl FnOnce(&W, Pin<'_>) -> R) -> Result<R, GuestError> {
        let state = self.state;
        let side = state.device();
        let around = side.around(at);
        let mut reach = Some(reach);
        let done = state.fault_then(around.range, &[(at.page, wanted.access)], &mut |seen_in| {
            if !side.enter(state.table(), seen_in, around, at, wanted.access) {
                return Attempt::Retry;
            }
            // With the look still under way: who misses for the core's patience long gets its turn.
            let Some(pin) = self.pin(wanted) else {
                return Attempt::Retry;
            };
            let reach = reach.take().expect("the access is made once");
            Attempt::Done(reach(state.mm().world(), pin))
        })?;
        Ok(done)
    }
}
