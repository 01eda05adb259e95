//! A device's memory: chunks of the arena, who holds them, and who must go when it is full.
//!
//! Memory is handed out in two steps: pages are reserved against the device's capacity and the mirror's budget, and a
//! block of the address space gets a chunk to put them in. A chunk belongs to one block and keeps page offsets, so a sparse block
//! costs address space but no memory.
//!
//! # Invariants
//! - MEM-1: `used` counts the pages resident or claimed plus those reserved for transits in flight, and never exceeds the capacity.
//! - MEM-2 (MIG-8): a budget's `used` never exceeds its limit; bringing pages home needs no budget.
//! - MEM-3 (MIG-7): the list holds every chunk with an owner, most recently used first.
//!
//! # Locking
//! `pool` is a leaf, below a block's lock.

use allocator_api2::vec::Vec;

use crate::addr::{BLOCK_SIZE, BlockId, PAGE_SIZE, PAGES_PER_BLOCK};
use crate::mm::ThrashPolicy;
use crate::notifier::Subscriber;
use crate::sync::{AtomicBool, AtomicUsize, MODEL, Mutex, Ordering};
use crate::world::{ArenaRange, Metadata, OutOfMetadata};

/// Number of a device in its address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceId(pub(crate) u8);

impl DeviceId {
    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// What a device's memory is to the CPU (MIG-10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MemoryKind {
    /// The CPU cannot map it: a page there is away from the program, and a touch brings it home.
    #[default]
    Private,
    /// The CPU maps it as it maps its own: a page there stays at its address, and a touch is an ordinary one. The device *claims* the page.
    Coherent,
}

/// Number of a chunk of a device's arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChunkId(u32);

#[cfg(test)]
impl ChunkId {
    pub(crate) const fn for_tests(number: u32) -> Self {
        Self(number)
    }
}

const NIL: u32 = u32::MAX;

/// Chunks of an arena beyond four times its capacity.
const SPARE_CHUNKS: usize = if MODEL { 4 } else { 1024 };

/// How much device memory somebody may hold.
#[derive(Debug)]
pub(crate) struct Budget {
    limit_pages: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(limit_pages: usize) -> Self {
        Self {
            limit_pages,
            used: AtomicUsize::new(0),
        }
    }

    pub(crate) fn limit_pages(&self) -> usize {
        self.limit_pages
    }

    #[cfg(test)]
    pub(crate) fn used_pages(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Charges up to `want` pages and says how many fit. Relaxed: the counter publishes nothing else.
    fn charge(&self, want: usize) -> usize {
        let mut granted = 0;
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            granted = want.min(self.limit_pages.saturating_sub(used));
            Some(used + granted)
        });
        granted
    }

    /// Charges all of `pages`, or nothing.
    pub(crate) fn charge_all(&self, pages: usize) -> bool {
        let fits = |used: usize| (used + pages <= self.limit_pages).then_some(used + pages);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .is_ok()
    }

    pub(crate) fn uncharge(&self, pages: usize) {
        let before = self.used.fetch_sub(pages, Ordering::Relaxed);
        debug_assert!(before >= pages, "MEM-2: more given back than charged");
    }
}

/// One chunk: a place for the pages of one block.
struct Chunk {
    owner: Option<BlockId>,
    /// Whether page tables below a huge page are left in it from earlier use.
    broken: bool,
    newer: u32,
    older: u32,
}

/// Chunks without an owner, one bit each. The lowest is taken first: so page tables of the arena stay few, and neighbouring blocks tend to get
/// neighbouring chunks, which one call can then move together.
struct FreeChunks<M: Metadata> {
    words: Vec<u64, M>,
    /// No word below has a bit.
    lowest: usize,
    count: usize,
}

impl<M: Metadata> FreeChunks<M> {
    fn new(count: usize) -> Result<Self, OutOfMetadata> {
        let mut words = Vec::new_in(M::default());
        words.try_reserve_exact(count.div_ceil(64)).map_err(|_| OutOfMetadata)?;
        words.extend((0..count.div_ceil(64)).map(|word| match count - word * 64 {
            64.. => u64::MAX,
            rest => (1 << rest) - 1,
        }));
        Ok(Self {
            words,
            lowest: 0,
            count,
        })
    }

    fn take(&mut self) -> Option<u32> {
        let word = self.lowest + self.words.get(self.lowest..)?.iter().position(|&word| word != 0)?;
        let bit = self.words[word].trailing_zeros();
        self.words[word] &= self.words[word] - 1;
        self.lowest = word;
        self.count -= 1;
        Some(word as u32 * 64 + bit)
    }

    fn put(&mut self, chunk: u32) {
        let word = chunk as usize / 64;
        self.words[word] |= 1 << (chunk % 64);
        self.lowest = self.lowest.min(word);
        self.count += 1;
    }
}

struct Pool<M: Metadata> {
    used: usize,
    chunks: Vec<Chunk, M>,
    /// Chunks without an owner.
    free: FreeChunks<M>,
    newest: u32,
    oldest: u32,
}

/// A chunk that a block was given.
pub(crate) struct Grant {
    pub(crate) chunk: ChunkId,
    pub(crate) base_page: usize,
    /// The chunk must be scrubbed before a huge page can go there whole.
    pub(crate) broken: bool,
}

/// Why no memory was reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// The device is full; evicting helps.
    Device,
    /// The mirror's budget is used up; evicting its own pages helps.
    Budget,
}

/// A device's memory.
pub(crate) struct DeviceMemory<M: Metadata> {
    pub(crate) id: DeviceId,
    pub(crate) name: &'static str,
    pub(crate) kind: MemoryKind,
    pub(crate) capacity_pages: usize,
    /// How its misses are damped where pages go to and fro.
    pub(crate) thrash: ThrashPolicy,
    /// Where pages lie that the CPU cannot reach: all in private memory; in coherent memory those taken exclusively.
    pub(crate) arena: ArenaRange,
    /// No more pages go there.
    pub(crate) failed: AtomicBool,
    /// Set once the mirrors of a device that failed are released: no access of it needs a page any more.
    pub(crate) closed: AtomicBool,
    /// Mirrors that are not yet unregistered.
    pub(crate) mirrors: AtomicUsize,
    /// The same as their notifier sees them, for the device's failure.
    listeners: Mutex<Listeners<M>>,
    pool: Mutex<Pool<M>>,
}

/// Numbered in the order in which they came; numbers are never used again.
struct Listeners<M: Metadata> {
    next: u64,
    all: Vec<(u64, M::Shared<dyn Subscriber>), M>,
}

impl<M: Metadata> DeviceMemory<M> {
    /// Bytes of arena for a device of `capacity_bytes`: address space is cheap, so that sparse blocks do not run out of chunks early.
    pub(crate) fn arena_bytes(capacity_bytes: usize) -> usize {
        (capacity_bytes.div_ceil(BLOCK_SIZE) * 4 + SPARE_CHUNKS) * BLOCK_SIZE
    }

    pub(crate) fn new(
        id: DeviceId,
        name: &'static str,
        kind: MemoryKind,
        capacity_pages: usize,
        arena: ArenaRange,
    ) -> Result<Self, OutOfMetadata> {
        let count = arena.page_count() / PAGES_PER_BLOCK;
        let mut chunks = Vec::new_in(M::default());
        chunks.try_reserve_exact(count).map_err(|_| OutOfMetadata)?;
        let free = FreeChunks::new(count)?;
        chunks.extend((0..count).map(|_| Chunk {
            owner: None,
            broken: false,
            newer: NIL,
            older: NIL,
        }));
        let pool = Mutex::new(
            "pool",
            Pool {
                used: 0,
                chunks,
                free,
                newest: NIL,
                oldest: NIL,
            },
        );
        let (failed, closed, mirrors) = (AtomicBool::new(false), AtomicBool::new(false), AtomicUsize::new(0));
        let listeners = Listeners {
            next: 0,
            all: Vec::new_in(M::default()),
        };
        let listeners = Mutex::new("listeners", listeners);
        Ok(Self {
            id,
            name,
            kind,
            capacity_pages,
            thrash: ThrashPolicy::default(),
            arena,
            failed,
            closed,
            mirrors,
            listeners,
            pool,
        })
    }

    /// With its misses damped so.
    pub(crate) fn damped(self, thrash: ThrashPolicy) -> Self {
        Self { thrash, ..self }
    }

    pub(crate) fn listen(&self, listener: M::Shared<dyn Subscriber>) -> Result<(), OutOfMetadata> {
        let mut listeners = self.listeners.lock();
        listeners.all.try_reserve(1).map_err(|_| OutOfMetadata)?;
        let number = listeners.next;
        listeners.next += 1;
        listeners.all.push((number, listener));
        Ok(())
    }

    pub(crate) fn unlisten(&self, listener: &M::Shared<dyn Subscriber>) {
        let mut listeners = self.listeners.lock();
        let index = listeners
            .all
            .iter()
            .position(|(_, other)| core::ptr::addr_eq(&raw const **other, &raw const **listener));
        let gone = index.map(|index| listeners.all.remove(index));
        drop(listeners);
        drop(gone);
    }

    /// Releases every mirror of the device, on the calling thread: a release may wait for what needs the threads that jobs run on.
    pub(crate) fn release_listeners(&self) {
        let mut next = 0;
        while let Some((number, listener)) = self.listener_from(next) {
            listener.release();
            next = number + 1;
        }
    }

    /// The listener with the smallest number from `first` on, and its number. Who walks them misses nobody, also while others leave.
    fn listener_from(&self, first: u64) -> Option<(u64, M::Shared<dyn Subscriber>)> {
        let listeners = self.listeners.lock();
        let at = listeners.all.partition_point(|(number, _)| *number < first);
        listeners.all.get(at).cloned()
    }

    pub(crate) fn used_pages(&self) -> usize {
        self.pool.lock().used
    }

    /// Reserves at least one and at most `want` pages.
    pub(crate) fn reserve(&self, want: usize, budget: &Budget) -> Result<usize, Full> {
        let charged = budget.charge(want);
        if charged == 0 {
            return Err(Full::Budget);
        }
        let mut pool = self.pool.lock();
        let granted = charged.min(self.capacity_pages - pool.used);
        pool.used += granted;
        drop(pool);
        budget.uncharge(charged - granted);
        if granted == 0 { Err(Full::Device) } else { Ok(granted) }
    }

    /// Gives back `pages` that were reserved or resident.
    pub(crate) fn unreserve(&self, pages: usize, budget: &Budget) {
        budget.uncharge(pages);
        let mut pool = self.pool.lock();
        debug_assert!(pool.used >= pages, "MEM-1: more given back than used");
        pool.used -= pages;
    }

    /// A chunk for `block`; `None` when all have owners.
    pub(crate) fn grant(&self, block: BlockId) -> Option<Grant> {
        let mut pool = self.pool.lock();
        let index = pool.free.take()?;
        let chunk = &mut pool.chunks[index as usize];
        chunk.owner = Some(block);
        let broken = core::mem::replace(&mut chunk.broken, false);
        pool.link_newest(index);
        let base_page = self.arena.first_page() + index as usize * PAGES_PER_BLOCK;
        Some(Grant {
            chunk: ChunkId(index),
            base_page,
            broken,
        })
    }

    /// Takes an empty chunk back. `whole` says that only a whole huge page was ever in it.
    pub(crate) fn revoke(&self, chunk: ChunkId, contents: Contents) {
        let mut pool = self.pool.lock();
        pool.unlink(chunk.0);
        let entry = &mut pool.chunks[chunk.0 as usize];
        entry.owner = None;
        entry.broken |= contents == Contents::Small;
        pool.free.put(chunk.0);
    }

    /// Chunks without an owner.
    pub(crate) fn free_chunks(&self) -> usize {
        self.pool.lock().free.count
    }

    /// Notes that the chunk was used just now (MEM-3).
    pub(crate) fn touch(&self, chunk: ChunkId) {
        let mut pool = self.pool.lock();
        if pool.newest != chunk.0 && pool.chunks[chunk.0 as usize].owner.is_some() {
            pool.unlink(chunk.0);
            pool.link_newest(chunk.0);
        }
    }

    /// The block that has not been used for longest and that `usable` accepts.
    pub(crate) fn oldest(&self, mut usable: impl FnMut(BlockId) -> bool, skip: usize) -> Option<BlockId> {
        let pool = self.pool.lock();
        let mut index = pool.oldest;
        let mut skipped = 0;
        while index != NIL {
            let chunk = &pool.chunks[index as usize];
            if let Some(owner) = chunk.owner
                && usable(owner)
            {
                if skipped == skip {
                    return Some(owner);
                }
                skipped += 1;
            }
            index = chunk.newer;
        }
        None
    }

    /// The block whose chunk holds arena page number `page`.
    pub(crate) fn owner_of(&self, page: usize) -> Option<BlockId> {
        let index = page.checked_sub(self.arena.first_page())? / PAGES_PER_BLOCK;
        self.pool.lock().chunks.get(index)?.owner
    }

    /// Whether arena page number `page` is this device's.
    pub(crate) fn holds(&self, page: usize) -> bool {
        self.arena.contains(page * PAGE_SIZE)
    }
}

/// What was in a chunk while it had an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contents {
    /// Only one whole huge page.
    Huge,
    /// Pages of 4 KiB at some time.
    Small,
}

impl<M: Metadata> Pool<M> {
    fn link_newest(&mut self, index: u32) {
        let previous = core::mem::replace(&mut self.newest, index);
        let chunk = &mut self.chunks[index as usize];
        (chunk.newer, chunk.older) = (NIL, previous);
        match previous {
            NIL => self.oldest = index,
            _ => self.chunks[previous as usize].newer = index,
        }
    }

    fn unlink(&mut self, index: u32) {
        let Chunk { newer, older, .. } = self.chunks[index as usize];
        match newer {
            NIL => self.newest = older,
            _ => self.chunks[newer as usize].older = older,
        }
        match older {
            NIL => self.oldest = newer,
            _ => self.chunks[older as usize].newer = newer,
        }
    }
}

#[cfg(test)]
mod tests;
