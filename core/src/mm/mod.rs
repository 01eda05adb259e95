//! An address space: its blocks, its devices' memory, its notifier.
//!
//! # Invariants
//! - MM-1 (LIFE-6): nothing is done for a caller from another address space; every public call checks.
//! - MM-2 (INV-7): nothing here can be entered from a notifier callback; the calls that would start an invalidation say so.
//!
//! # Locking
//! `gate` (shared by whoever sends pages to a device) > `areas` > a block's lock > a device memory's pool. See docs/locking.md.
//!
//! Linux: struct mm_struct with its notifier subscriptions, mm/hmm.c.

mod advice;
mod arrivals;
pub(crate) mod block;
mod change;
mod fault;
mod fork;
mod gate;
mod interval;
mod late;
mod pace;

use core::ops::Deref;

use crate::addr::{PAGE_SIZE, PageRange, VirtAddr};
pub use crate::devmem::MemoryKind;
use crate::devmem::{Budget, DeviceId, DeviceMemory};
use crate::migrate::homeward::Which;
use crate::mirror::DeviceHandle;
use crate::mm::advice::AdviceStore;
use crate::mm::arrivals::Arrivals;
use crate::mm::block::BlockTable;
use crate::mm::gate::Gate;
use crate::notifier::{Notifier, in_callback};
use crate::stats::{Counters, Stats, add};
use crate::sync::{AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering, RwLockWriteGuard};
use crate::world::{Metadata, OutOfMetadata, World, WorldError};

pub use advice::{Advice, AdviseError, Advised, Preferred, Usage};
pub use change::{CHANGES_MAX, Change, ChangeError, Changes};
pub(crate) use fault::Streams;
pub use fault::{CpuFault, Served};
pub use interval::Interval;
pub use late::LateEvent;
pub use pace::ThrashPolicy;
pub(crate) use pace::Verdict;

/// Devices an address space can have at the same time.
pub const MAX_DEVICES: usize = 16;

/// Why a call was refused before it did anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The handle belongs to another process: a fork's child must open its own.
    #[error("the handle belongs to another address space; after a fork the child opens its own")]
    WrongAddressSpace,
    /// A notifier callback may only update its device's page table.
    #[error("called from inside an invalidation callback, which may update the device's page table and nothing else")]
    InCallback,
}

/// Why nobody is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// See [`EntryError`].
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// isomem's own memory is used up.
    #[error(transparent)]
    Metadata(#[from] OutOfMetadata),
}

/// Why a device could not be registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// See [`EntryError`].
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// A device with memory needs at least a page of it.
    #[error("a device needs memory of at least one page ({PAGE_SIZE} bytes), not {0} bytes")]
    NoMemory(usize),
    /// More device memory than the machine has memory.
    #[error("{asked} bytes of device memory are more than the {there} bytes of memory that there are")]
    TooMuch {
        /// Bytes asked for.
        asked: usize,
        /// Bytes the machine has.
        there: usize,
    },
    /// The address space has as many devices as it can have.
    #[error("there are {MAX_DEVICES} devices already")]
    TooMany,
    /// There is no address space for its arena.
    #[error("no address space for the device's memory: {0}")]
    World(#[from] WorldError),
    /// isomem's own memory is used up.
    #[error(transparent)]
    Metadata(#[from] OutOfMetadata),
}

/// No page begins to leave home while this lives; see [`MmState::hold_departures`].
#[must_use]
pub struct Held<'a> {
    telling: &'a AtomicU64,
    _areas: MutexGuard<'a, ()>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Release pairs with the Acquire in `catch_up`: devices were told.
        self.telling.fetch_add(1, Ordering::Release);
    }
}

impl core::fmt::Debug for Held<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Held")
    }
}

/// No page arrives at home while this lives; see [`MmState::hold_arrivals`].
#[must_use]
pub struct HeldArrivals<'a> {
    _arrivals: RwLockWriteGuard<'a, ()>,
}

impl core::fmt::Debug for HeldArrivals<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("HeldArrivals")
    }
}

/// What a device's memory is to be like.
#[derive(Debug, Clone, Copy)]
pub struct MemoryConfig {
    /// For statistics and messages.
    pub name: &'static str,
    /// Bytes of device memory; rounded down to whole pages.
    pub capacity_bytes: usize,
    /// Most bytes that one mirror may hold there (MIG-8); `None` for all.
    pub mirror_budget_bytes: Option<usize>,
    /// Whether the CPU can map it (MIG-10).
    pub kind: MemoryKind,
}

/// A handle to an address space. Clones are handles to the same.
pub struct Mm<W: World>(pub(crate) Shared<W, MmState<W>>);

/// A counted pointer into the world's metadata memory.
pub(crate) type Shared<W, T> = <<W as World>::Meta as Metadata>::Shared<T>;

/// A device's memory, as the address space and its mirrors share it.
pub(crate) type Memory<W> = Shared<W, DeviceMemory<<W as World>::Meta>>;

impl<W: World> Clone for Mm<W> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<W: World> core::fmt::Debug for Mm<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Mm").finish_non_exhaustive()
    }
}

impl<W: World> Deref for Mm<W> {
    type Target = MmState<W>;

    fn deref(&self) -> &MmState<W> {
        &self.0
    }
}

/// What the handles of an address space share.
pub struct MmState<W: World> {
    world: W,
    pub(crate) notifier: Notifier<W::Meta>,
    pub(crate) blocks: BlockTable<W::Meta>,
    pub(crate) advice: AdviceStore<W::Meta>,
    /// Read by who moves pages home, for each move; written by the reader of the world's events.
    pub(crate) arrivals: Arrivals,
    /// Held while areas are looked at and tracked, until the pages concerned are in transit.
    areas: Mutex<()>,
    /// Whether something could not come home before the last fork (FRK-1).
    stragglers: AtomicBool,
    /// Odd while events are read and handled.
    telling: AtomicU64,
    pub(crate) gate: Gate,
    exited: AtomicBool,
    /// Held while a device gets its number and its arena, so that pagers never wait for the system calls.
    registering: Mutex<()>,
    devices: Mutex<[Option<Memory<W>>; MAX_DEVICES]>,
    pub(crate) counters: Counters,
    pub(crate) streams: fault::Streams,
}

impl<W: World> Mm<W> {
    /// An address space with no devices.
    pub fn new(world: W) -> Result<Self, OutOfMetadata> {
        Ok(Self(W::Meta::share(MmState {
            world,
            notifier: Notifier::new()?,
            blocks: BlockTable::new(),
            advice: AdviceStore::new(),
            arrivals: Arrivals::new(),
            areas: Mutex::new("areas", ()),
            stragglers: AtomicBool::new(false),
            telling: AtomicU64::new(0),
            gate: Gate::new(),
            exited: AtomicBool::new(false),
            registering: Mutex::new("registering", ()),
            devices: Mutex::new("devices", [const { None }; MAX_DEVICES]),
            counters: Counters::default(),
            streams: fault::Streams::new(),
        })?))
    }

    /// Adds a device with memory of its own (LIFE-1). Nothing is touched until pages migrate.
    ///
    /// Blocks for a few system calls. Changes nothing when it fails.
    #[doc(alias = "hmm_device_register")]
    pub fn register(&self, config: MemoryConfig) -> Result<DeviceHandle<W>, RegisterError> {
        self.register_with(config, ThrashPolicy::default())
    }

    /// The same, with other bounds for pages that go to and fro between this device and the CPU (MIG-13).
    pub fn register_with(&self, config: MemoryConfig, thrash: ThrashPolicy) -> Result<DeviceHandle<W>, RegisterError> {
        self.check_entry()?;
        let capacity_pages = config.capacity_bytes / PAGE_SIZE;
        if capacity_pages == 0 {
            return Err(RegisterError::NoMemory(config.capacity_bytes));
        }
        let there = self.world.memory_bytes();
        if config.capacity_bytes > there {
            return Err(RegisterError::TooMuch {
                asked: config.capacity_bytes,
                there,
            });
        }
        let mm = self.clone();
        let memory = self.off_stack(move || mm.add_memory(config.name, config.kind, capacity_pages, thrash))?;
        let budget = config
            .mirror_budget_bytes
            .map_or(capacity_pages, |bytes| bytes / PAGE_SIZE);
        Ok(DeviceHandle::new(self.clone(), memory, budget))
    }

    fn add_memory(
        &self,
        name: &'static str,
        kind: MemoryKind,
        capacity_pages: usize,
        thrash: ThrashPolicy,
    ) -> Result<Memory<W>, RegisterError> {
        let _registering = self.registering.lock();
        let free = self.devices.lock().iter().position(Option::is_none);
        let id = DeviceId(free.ok_or(RegisterError::TooMany)? as u8);
        let arena = self
            .world
            .reserve_arena(DeviceMemory::<W::Meta>::arena_bytes(capacity_pages * PAGE_SIZE))?;
        let memory = DeviceMemory::new(id, name, kind, capacity_pages, arena)
            .and_then(|memory| W::Meta::share(memory.damped(thrash)));
        if memory.is_err() {
            self.world.release_arena(arena);
        }
        let memory = memory?;
        self.devices.lock()[id.0 as usize] = Some(memory.clone());
        Ok(memory)
    }

    /// Ends the mirroring of this address space: every mirror is released (LIFE-3) and every page comes home.
    ///
    /// Blocks until callbacks in flight have returned and all pages are home.
    #[doc(alias = "mmu_notifier_release")]
    pub fn exit(&self) {
        if !self.world.is_current() {
            return;
        }
        let mm = self.clone();
        let devices = self.off_stack(move || mm.devices.lock().clone());
        devices.iter().flatten().for_each(|memory| memory.release_listeners());
        let mm = self.clone();
        self.off_stack(move || {
            // Only refused inside a callback or an invalidation, and this thread is in none.
            let exited = mm.notifier.exit();
            debug_assert!(exited.is_ok());
            // Release pairs with the Acquire in `has_exited`. Who was on the way when this was raised arrives; who comes later sees it. Not
            // before the mirrors are released: that waits for accesses, which may have to call a page back.
            mm.exited.store(true, Ordering::Release);
            mm.gate.close();
            mm.gate.open();
            mm.home_everything(Which::All);
        });
    }
}

impl<W: World> Mm<W> {
    /// What was said of the page at `addr`.
    pub fn advised(&self, addr: VirtAddr) -> Advised {
        let mm = self.clone();
        // Not on the program's stack: whoever places a page takes the lock.
        self.off_stack(move || mm.advice.at(addr.get() / PAGE_SIZE))
    }

    /// Counts so far.
    pub fn stats(&self) -> Stats {
        let mm = self.clone();
        // Not on the program's stack: a pager takes the notifier's lock, too.
        let notifier = self.off_stack(move || mm.notifier.stats());
        let mut stats = self.counters.read();
        stats.invalidations = notifier.invalidations;
        stats.invalidations_refused = notifier.refused;
        stats.collisions = notifier.collisions;
        stats.metadata_bytes = W::Meta::bytes_in_use() as u64;
        stats
    }
}

impl<W: World> MmState<W> {
    /// The world it lives in.
    pub fn world(&self) -> &W {
        &self.world
    }

    /// Whether no page leaves home any more.
    pub(crate) fn has_exited(&self) -> bool {
        self.exited.load(Ordering::Acquire)
    }

    /// Adds a device miss that took `ns` nanoseconds to the statistics, and whether it shared another's service.
    pub fn count_device_fault(&self, ns: u64, merged: bool) {
        self.counters.device_fault_ns.record(ns);
        if merged {
            add(&self.counters.device_faults_merged, 1);
        }
    }

    pub(crate) fn check_entry(&self) -> Result<(), EntryError> {
        if in_callback() {
            return Err(EntryError::InCallback);
        }
        if !self.world.is_current() {
            return Err(EntryError::WrongAddressSpace);
        }
        Ok(())
    }

    pub(crate) fn off_stack<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> R {
        self.world.off_stack(job)
    }

    /// Keeps pages from beginning to leave home while the answer lives.
    ///
    /// For the reader of the world's events, from before it reads some until it has handled them: the program goes on as soon as an
    /// event is read, and may fill the place with new pages; those must not leave before what the event says is done, or they would be
    /// taken for the old ones.
    pub fn hold_departures(&self) -> Held<'_> {
        let areas = self.areas.lock();
        // The event that is read next lets the program go on, so who comes after that sees this (Acquire in `catch_up`).
        self.telling.fetch_add(1, Ordering::AcqRel);
        Held {
            telling: &self.telling,
            _areas: areas,
        }
    }

    /// Keeps pages from arriving at home while the answer lives; the same for the other direction. What handles an event that waits for pages in
    /// transit must not be waited for with this held.
    pub fn hold_arrivals(&self) -> HeldArrivals<'_> {
        HeldArrivals {
            _arrivals: self.arrivals.write(),
        }
    }

    /// Waits until devices are told of every change that the program has seen done.
    ///
    /// A change that does not come through the API returns as soon as its event is read, a moment before it is told.
    pub(crate) fn catch_up(&self) {
        // Without a lock: the caller may stand on the program's stack, and whoever brings that home would need it.
        let seen = self.telling.load(Ordering::Acquire);
        while seen % 2 == 1 && self.telling.load(Ordering::Acquire) == seen {
            self.world.pause(10_000);
        }
    }

    pub(crate) fn lock_areas(&self) -> MutexGuard<'_, ()> {
        self.areas.lock()
    }

    /// The memory of device `id`.
    pub(crate) fn memory(&self, id: DeviceId) -> Option<Memory<W>> {
        self.devices.lock()[id.0 as usize].clone()
    }

    /// The memory whose arena holds page number `page`.
    pub(crate) fn memory_at(&self, page: usize) -> Option<Memory<W>> {
        self.devices
            .lock()
            .iter()
            .flatten()
            .find(|memory| memory.holds(page))
            .cloned()
    }

    /// Forgets a device that has no mirror and holds no page any more.
    pub(crate) fn remove_memory(&self, memory: &DeviceMemory<W::Meta>) {
        for (block, _) in self.blocks.known(PageRange::ALL) {
            let mut state = block.lock();
            // Chunks that were kept for a stale access: without mirrors there is none.
            if let Some(residency) = state.on_mut(memory.id) {
                residency.fenced = false;
                drop(state.take_empty(memory.id));
            }
        }
        // Before the number can be used again (ADV-3).
        self.advice.forget_device(memory.id);
        let removed = self.devices.lock()[memory.id.0 as usize].take();
        if removed.is_some() {
            self.world.release_arena(memory.arena);
        }
    }
}

/// A budget of `pages` pages in the world's metadata memory.
pub(crate) fn share_budget<W: World>(pages: usize) -> Result<Shared<W, Budget>, OutOfMetadata> {
    W::Meta::share(Budget::new(pages))
}
