//! One device's view of one address space: a device page table that invalidations keep valid.
//!
//! # Invariants
//! - MIR-1 (LIFE-3): `release` of the device is called once, with no lock held: at address-space exit, at unregister or at device failure.
//! - MIR-2 (FLT-2): an entry is set only under `update`, after the read it rests on was found not stale there.
//! - MIR-3 (LIFE-2): once `unregister` returned, no callback of the mirror runs and none will.
//! - MIR-5: from the moment on when invalidations pass the mirror by, its table has no entry and its device makes no access.
//! - MIR-4 (TBL-4): every run of system pages in the table was mapped for DMA once, and is unmapped once when it leaves.
//!
//! # Locking
//! `release` is a leaf, held for single looks and changes; who waits for another thread's release holds nothing else.
//! `update` is held while entries are set or erased, never while the device is called to flush, nor across a system call.
//!
//! ```text
//! device thread (a miss)                   invalidating thread
//! read = begin(range)                      .
//! look at the CPU's pages                  start: the read is stale
//! .                                        update { zap }, device flushes
//! update { stale: start again }            the change
//! begin waits                              end
//! ```
//!
//! Linux: struct hmm_mirror (2015-2019), today's mmu_interval_notifier with hmm_range_fault.

pub mod copy;
mod end;
pub mod install;
mod miss;
pub mod pin;
pub mod range;
mod snapshot;
pub mod table;

use crate::addr::PageRange;
use crate::device::Device;
use crate::devmem::{Budget, DeviceId, MemoryKind};
use crate::migrate::home::Why;
use crate::migrate::homeward::Which;
use crate::migrate::out::{Goal, Sender};
use crate::migrate::{Elsewhere, Keep, MigrateError, Report};
use crate::mirror::end::Release;
use crate::mirror::table::{Entry, Flags, Table};
use crate::mm::{Advice, AdviseError, EntryError, Memory, Mm, Shared, Streams, share_budget};
use crate::notifier::{Answer, CallbackScope, Invalidation, Subscriber, Subscription};
use crate::sync::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering};
use crate::world::{Metadata, OutOfMetadata, World};

/// Why a device has no mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MirrorError {
    /// See [`EntryError`].
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The device failed or was unplugged.
    #[error("the device failed")]
    DeviceFailed,
    /// isomem's own memory is used up.
    #[error(transparent)]
    Metadata(#[from] OutOfMetadata),
}

/// A device cannot be unregistered while it has mirrors (LIFE-1).
#[derive(thiserror::Error)]
#[error("the device still has {mirrors} mirrors: unregister or drop them first")]
pub struct Busy<W: World> {
    /// Mirrors that live.
    pub mirrors: usize,
    /// The registration, unchanged.
    pub handle: DeviceHandle<W>,
}

impl<W: World> core::fmt::Debug for Busy<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Busy")
            .field("mirrors", &self.mirrors)
            .finish_non_exhaustive()
    }
}

/// A registered device. Dropping it while mirrors live leaves it registered until the address space goes.
pub struct DeviceHandle<W: World> {
    mm: Mm<W>,
    memory: Memory<W>,
    budget_pages: usize,
}

impl<W: World> core::fmt::Debug for DeviceHandle<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("DeviceHandle")
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}

impl<W: World> DeviceHandle<W> {
    pub(crate) fn new(mm: Mm<W>, memory: Memory<W>, budget_pages: usize) -> Self {
        Self {
            mm,
            memory,
            budget_pages,
        }
    }

    /// The name it was registered by.
    pub fn name(&self) -> &'static str {
        self.memory.name
    }

    /// The device's number in its address space.
    pub fn id(&self) -> DeviceId {
        self.memory.id
    }

    /// Whether the CPU can map its memory.
    pub fn kind(&self) -> MemoryKind {
        self.memory.kind
    }

    /// Pages of the device's memory in use, and how many it has. Pages that it took exclusively count, whatever its memory is.
    pub fn memory_pages(&self) -> (usize, usize) {
        (self.memory.used_pages(), self.memory.capacity_pages)
    }

    /// Empties the device's memory: what is in it comes home, claims end, and nothing is exclusive any more. Pages may go there again at once.
    ///
    /// Blocks until that is done.
    pub fn evict_all(&self) -> Result<Report<W::Meta>, MigrateError> {
        self.mm.check_entry()?;
        let (mm, id) = (self.mm.clone(), self.memory.id);
        Ok(self
            .mm
            .off_stack(move || mm.home_range(PageRange::ALL, Some(id), Why::Request)))
    }

    /// Links the device to its address space (LIFE-2). `device` is its side of this mirror.
    ///
    /// Effective on return: every invalidation that starts later reaches it (INV-8). Nothing changes when it fails.
    #[doc(alias = "hmm_mirror_register")]
    #[doc(alias = "mmu_interval_notifier_insert")]
    pub fn mirror<D: Device>(&self, device: Shared<W, D>) -> Result<Mirror<W, D>, MirrorError> {
        self.mm.check_entry()?;
        // Counted first: unregister must not miss it.
        self.memory.mirrors.fetch_add(1, Ordering::AcqRel);
        let made = self.mirror_counted(device);
        if made.is_err() {
            self.memory.mirrors.fetch_sub(1, Ordering::AcqRel);
        }
        made
    }

    fn mirror_counted<D: Device>(&self, device: Shared<W, D>) -> Result<Mirror<W, D>, MirrorError> {
        // Acquire pairs with the Release in `fail`.
        if self.memory.failed.load(Ordering::Acquire) {
            return Err(MirrorError::DeviceFailed);
        }
        let state = W::Meta::share(MirrorState {
            mm: self.mm.clone(),
            memory: self.memory.clone(),
            device,
            table: Table::new()?,
            update: Mutex::new("mirror update", ()),
            budget: share_budget::<W>(self.budget_pages)?,
            released: AtomicBool::new(false),
            release: Mutex::new("release", Release::Pending),
            release_over: Condvar::new("release over"),
            streams: Streams::new(),
        })?;
        let subscriber = W::Meta::share_subscriber(Listener::<W, D>(state.clone()))?;
        self.memory.listen(subscriber.clone())?;
        let (mm, listener) = (self.mm.clone(), subscriber.clone());
        // Not on the program's stack: a pager takes the notifier's lock, too.
        let subscribed = self
            .mm
            .off_stack(move || mm.notifier.subscribe(PageRange::ALL, listener));
        match subscribed {
            Ok(subscription) => {
                // Acquire pairs with the Release in `fail`: a device that failed since may have looked for mirrors before this one listened.
                if self.memory.failed.load(Ordering::Acquire) {
                    subscriber.release();
                }
                Ok(Mirror {
                    state,
                    subscriber,
                    subscription: Some(subscription),
                })
            }
            Err(error) => {
                self.memory.unlisten(&subscriber);
                Err(error.into())
            }
        }
    }

    /// Ends the registration (LIFE-1). Every page on the device comes home first.
    ///
    /// After it returned, no thread is inside a callback of the device. Blocks until pages are home.
    #[doc(alias = "hmm_device_unregister")]
    pub fn unregister(self) -> Result<(), Busy<W>> {
        // Acquire pairs with the AcqRel of the last mirror that went: its callbacks have returned.
        let mirrors = self.memory.mirrors.load(Ordering::Acquire);
        if mirrors > 0 {
            return Err(Busy { mirrors, handle: self });
        }
        if self.mm.check_entry().is_ok() {
            let (mm, memory) = (self.mm.clone(), self.memory.clone());
            self.mm.off_stack(move || {
                // A mirror that ended inside a callback no longer counts, but the callback may still run.
                mm.notifier.finish_deferred();
                mm.home_range(PageRange::ALL, Some(memory.id), Why::Request);
                if memory.used_pages() == 0 {
                    mm.remove_memory(&memory);
                }
            });
        }
        Ok(())
    }

    /// The device failed or was unplugged (LIFE-7): no page goes there any more, and those that are there come home. Pages that cannot
    /// come home stay where they are; nothing is filled with zeroes. Returns how many those are.
    ///
    /// Every mirror is released (LIFE-3); its owner still unregisters it. Blocks until that is done and the pages are home.
    pub fn fail(&self) -> usize {
        // Release pairs with the Acquire in `Sender::takes_pages`.
        self.memory.failed.store(true, Ordering::Release);
        if self.mm.check_entry().is_err() {
            return 0;
        }
        let mm = self.mm.clone();
        self.mm.off_stack(move || {
            // Who was on the way when the flag was raised arrives; who comes later sees it.
            mm.gate.close();
            mm.gate.open();
        });
        self.memory.release_listeners();
        // As above.
        self.memory.closed.store(true, Ordering::Release);
        let (mm, memory) = (self.mm.clone(), self.memory.clone());
        self.mm.off_stack(move || {
            mm.gate.close();
            mm.gate.open();
            // Twice: the first may meet pages that are still on their way out.
            mm.home_range(PageRange::ALL, Some(memory.id), Why::Request);
            mm.home_range(PageRange::ALL, Some(memory.id), Why::Request).skipped
        })
    }
}

/// What the handle and the notifier share of a mirror.
pub struct MirrorState<W: World, D: Device> {
    mm: Mm<W>,
    memory: Memory<W>,
    device: Shared<W, D>,
    table: Table<W::Meta>,
    update: Mutex<()>,
    budget: Shared<W, Budget>,
    /// Set before `release` of the device begins.
    released: AtomicBool,
    release: Mutex<Release>,
    release_over: Condvar,
    /// Sequential misses, to send more than was missed.
    streams: Streams,
}

impl<W: World, D: Device> MirrorState<W, D> {
    /// The address space.
    pub fn mm(&self) -> &Mm<W> {
        &self.mm
    }

    /// The device page table.
    pub fn table(&self) -> &Table<W::Meta> {
        &self.table
    }

    /// The device's side.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Whether the device must no longer use the address space.
    pub fn is_released(&self) -> bool {
        // Acquire pairs with the Release in `release_once`.
        self.released.load(Ordering::Acquire)
    }

    fn lock_update(&self) -> MutexGuard<'_, ()> {
        self.update.lock()
    }

    fn check(&self) -> Result<(), MigrateError> {
        self.mm.check_entry()?;
        if self.is_released() || self.has_failed() {
            return Err(MigrateError::Released);
        }
        Ok(())
    }

    fn has_failed(&self) -> bool {
        self.memory.failed.load(Ordering::Acquire)
    }

    fn sender(&self) -> Sender<'_, W> {
        Sender::new(&self.memory, &self.budget)
    }

    /// Erases entries; the caller holds `update`.
    fn zap(&self, range: PageRange) {
        self.table.zap(range, &mut |run, entry| self.unmap_dma(run, entry));
    }

    fn unmap_dma(&self, run: PageRange, entry: Entry) {
        if !entry.flags().has(Flags::DEVICE) {
            self.device.dma_unmap(run, entry.addr());
        }
    }
}

/// The mirror as the notifier sees it.
struct Listener<W: World, D: Device>(Shared<W, MirrorState<W, D>>);

/// Attempts at the update lock in a pass that must not wait. It is held for short table updates only.
const TRIES: usize = 1000;

impl<W: World, D: Device> Subscriber for Listener<W, D> {
    fn start(&self, invalidation: &Invalidation, scope: &CallbackScope<'_>) {
        {
            let _update = self.0.lock_update();
            self.0.zap(invalidation.range);
        }
        self.0.device.invalidate(invalidation, scope);
    }

    fn try_start(&self, invalidation: &Invalidation, scope: &CallbackScope<'_>) -> Answer {
        let Some(update) = (0..TRIES).find_map(|_| {
            self.0.update.try_lock().or_else(|| {
                crate::sync::spin_loop();
                None
            })
        }) else {
            return Answer::Refused;
        };
        self.0.zap(invalidation.range);
        drop(update);
        self.0.device.try_invalidate(invalidation, scope)
    }

    fn stop(&self) {
        // Refused inside the device's own callback only: then it is on its way.
        let _ = MirrorState::<W, D>::release_once(&self.0);
    }

    fn release(&self) {
        self.stop();
    }
}

/// A live mirror. Unregistering consumes it, so there is no use after.
#[must_use = "dropping a mirror unregisters it"]
pub struct Mirror<W: World, D: Device> {
    state: Shared<W, MirrorState<W, D>>,
    subscriber: Shared<W, dyn Subscriber>,
    subscription: Option<Subscription<W::Meta>>,
}

impl<W: World, D: Device> core::fmt::Debug for Mirror<W, D> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Mirror")
            .field("device", &self.state.memory.id)
            .finish_non_exhaustive()
    }
}

impl<W: World, D: Device> Mirror<W, D> {
    /// What device threads hold on to: it may outlive the mirror and the address space, and then refuses (LIFE-4).
    pub fn state(&self) -> &Shared<W, MirrorState<W, D>> {
        &self.state
    }

    /// Sends the pages of `range` to the device: prefetch (MIG-13). Pages that cannot go stay, and the report says why.
    ///
    /// Blocks; may evict. No lock of the caller's may be needed to serve a CPU fault.
    #[doc(alias = "migrate_vma_setup")]
    pub fn migrate_to_device(&self, range: PageRange) -> Result<Report<W::Meta>, MigrateError> {
        self.migrate_to_device_with(range, Elsewhere::Take)
    }

    /// The same, with a choice about pages that another device has: in its private memory, exclusively, or claimed for coherent memory.
    pub fn migrate_to_device_with(
        &self,
        range: PageRange,
        elsewhere: Elsewhere,
    ) -> Result<Report<W::Meta>, MigrateError> {
        self.state.check()?;
        let state = self.state.clone();
        let sent = self.state.mm.off_stack(move || {
            let sender = Sender {
                elsewhere,
                ..state.sender()
            };
            state.mm.send(&sender, range)
        });
        Ok(sent?)
    }

    /// Says something about the memory in `range`: how it is used, or where it is best (MIG-13). Holds for pages that are placed from now on, by
    /// whichever mirror; none is moved. [`Mm::advised`] tells what was said.
    ///
    /// All of it is taken, or nothing. There need not be memory there. What is unmapped or moved is forgotten, see [`Advice`]'s module.
    #[doc(alias = "madvise")]
    #[doc(alias = "cudaMemAdvise")]
    pub fn advise(&self, range: PageRange, advice: Advice) -> Result<(), AdviseError> {
        self.state.mm.check_entry()?;
        if self.state.is_released() {
            return Err(AdviseError::Released);
        }
        let state = self.state.clone();
        let taken = self
            .state
            .mm
            .off_stack(move || state.mm.advice.advise(range, advice, state.memory.id));
        Ok(taken?)
    }

    /// Brings the pages of `range` that are on this device home; claims of coherent memory end.
    #[doc(alias = "migrate_to_ram")]
    pub fn migrate_home(&self, range: PageRange) -> Result<Report<W::Meta>, MigrateError> {
        self.migrate_home_with(range, Keep::Nothing)
    }

    /// The same, but some pages stay.
    pub fn migrate_home_with(&self, range: PageRange, keep: Keep) -> Result<Report<W::Meta>, MigrateError> {
        self.bring_home(
            range,
            match keep {
                Keep::Nothing => Which::All,
                Keep::Exclusive => Which::NotExclusive,
            },
        )
    }

    fn bring_home(&self, range: PageRange, which: Which) -> Result<Report<W::Meta>, MigrateError> {
        self.state.mm.check_entry()?;
        let state = self.state.clone();
        Ok(self.state.mm.off_stack(move || {
            let here = |device| device == state.memory.id;
            let report = state.mm.home_those(range, here, which, Why::Request);
            crate::stats::add(&state.mm.counters.pages_skipped, report.skipped);
            report
        }))
    }

    /// Takes the pages of `range` for the device alone, for atomic operations that no CPU can come between (MIG-11). The CPU cannot reach them until
    /// that ends: by the CPU's next access, a fork, a change of the area, an eviction, another device's fault or migration, or
    /// [`Mirror::end_exclusive`].
    ///
    /// The pages lie in the device's arena meanwhile and are charged to it, also where its memory is coherent. Those that the CPU never touched are
    /// zeroes. The mirror's entries are there on return, but for pages that the CPU took back meanwhile; exclusivity is the device's, so its
    /// other mirrors may have entries, too. Pages that cannot be had are in the report, with the reason: a hole, no access, read-only,
    /// not private anonymous memory. Blocks as a migration does.
    #[doc(alias = "make_device_exclusive_range")]
    pub fn exclusive(&self, range: PageRange) -> Result<Report<W::Meta>, MigrateError> {
        self.state.check()?;
        let state = self.state.clone();
        let taken = self.state.mm.off_stack(move || {
            let sender = Sender {
                goal: Goal::Exclusive,
                ..state.sender()
            };
            let taken = state.mm.send(&sender, range);
            state.enter_exclusive(range);
            taken
        });
        Ok(taken?)
    }

    /// Ends what [`Mirror::exclusive`] began: the exclusive pages of `range` come home.
    pub fn end_exclusive(&self, range: PageRange) -> Result<Report<W::Meta>, MigrateError> {
        self.bring_home(range, Which::Exclusive)
    }

    /// How many pages of `range` the device has exclusively at this moment.
    pub fn exclusive_pages(&self, range: PageRange) -> Result<usize, EntryError> {
        self.state.mm.check_entry()?;
        let state = self.state.clone();
        Ok(self.state.mm.off_stack(move || {
            let mut pages = 0;
            state.each_exclusive(range, &mut |run| pages += run.page_count());
            pages
        }))
    }
}
