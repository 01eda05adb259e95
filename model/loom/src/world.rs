//! The smallest world in which pages travel: a program of a few pages, and a kernel that queues faults and wakes threads.
//!
//! Real threads of the program wait in the kernel until somebody wakes them, and the kernel forgets a wake-up for which nobody waits yet: so a hand-off
//! that loses one leaves a thread asleep, which loom reports as a deadlock.
//!
//! # Invariants
//! - Places of the arena ([`Kernel`]'s `slots`) are cells of loom's without a lock: only who has the page in transit may touch its place, and loom reports two
//!   who do without the one's settling before the other's collecting.
//! - What the CPU maps is under the kernel's own lock, as page tables are.
//!
//! ```text
//! the program                              pagers, migrations
//! touch: no page; queued                   .
//! the fault is read and served             .
//! asleep unless woken since it queued      move_home, copy_home, fill_zero, wake
//! touch again                              .
//! ```

use std::sync::Arc;

use isomem_core::addr::{BlockId, PAGE_SIZE, PAGES_PER_BLOCK, PageMask, PageRange, VirtAddr};
use isomem_core::device::Device;
use isomem_core::mm::{CpuFault, Mm, Served};
use isomem_core::notifier::{Answer, CallbackScope, Invalidation};
use isomem_core::world::{
    Access, Area, ArenaRange, Backing, Moved, PopulateError, Pte, PteRun, Stop, World, WorldError,
};
use loom::cell::UnsafeCell;
use loom::sync::{Condvar, Mutex, MutexGuard};
use loom::thread;

use crate::ModelHeap;

/// Pages of the program, from page 0 on.
pub const PAGES: usize = 3;
/// Where the only arena begins.
const ARENA: usize = 1024 * PAGES_PER_BLOCK;

/// What goes wrong in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    None,
    /// It refuses the first so many moves home.
    RefusesHome(usize),
    /// Planted: it forgets the wake-ups that are asked of it by themselves.
    ForgetsWakes,
}

/// What the kernel's lock guards.
struct Tables {
    /// Whether the CPU maps the page.
    home: [bool; PAGES],
    /// Whether the arena has it.
    away: [bool; PAGES],
    /// Wake-ups so far of who waits for the page.
    wakes: [usize; PAGES],
    /// The same for its place in the arena.
    arena_wakes: [usize; PAGES],
    trouble: Trouble,
}

/// Something that only one thread at a time may use, without a lock that says so: loom reports two uses of which none is ordered before the other.
pub struct Place(UnsafeCell<()>);

// SAFETY: nothing is in the cell and no closure uses its pointer; loom looks at the accesses as such.
unsafe impl Sync for Place {}

impl Default for Place {
    fn default() -> Self {
        Self(UnsafeCell::new(()))
    }
}

impl core::fmt::Debug for Place {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Place")
    }
}

impl Place {
    /// Uses it.
    pub fn use_alone(&self) {
        self.0.with_mut(|_| ());
    }
}

/// The kernel, and the program's memory.
struct Kernel {
    tables: Mutex<Tables>,
    woken: Condvar,
    /// Each page's place in the arena.
    slots: [Place; PAGES],
}

impl Kernel {
    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().expect("no thread panics with it")
    }
}

/// A handle to the world.
#[derive(Clone)]
pub struct ModelWorld(Arc<Kernel>);

impl core::fmt::Debug for ModelWorld {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ModelWorld").finish_non_exhaustive()
    }
}

fn address(page: usize) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE).expect("a small number")
}

/// The pages of the program among `range`, by number; of its places in the arena likewise.
fn indices(range: PageRange) -> impl Iterator<Item = usize> {
    let first = range.first_page() % PAGES_PER_BLOCK;
    (first..first + range.page_count()).take_while(|&page| page < PAGES)
}

fn all(range: PageRange) -> Moved {
    Moved {
        pages: range.page_count(),
        stop: None,
    }
}

/// What the story does not do.
fn not_here(call: &'static str) -> ! {
    unreachable!("{call} is no part of the hand-off")
}

impl ModelWorld {
    /// A world whose pages are all at home.
    pub fn new(trouble: Trouble) -> Self {
        Self(Arc::new(Kernel {
            tables: Mutex::new(Tables {
                home: [true; PAGES],
                away: [false; PAGES],
                wakes: [0; PAGES],
                arena_wakes: [0; PAGES],
                trouble,
            }),
            woken: Condvar::new(),
            slots: core::array::from_fn(|_| Place::default()),
        }))
    }

    /// Whether the CPU maps page `page`.
    pub fn is_home(&self, page: usize) -> bool {
        self.0.lock().home[page]
    }

    /// The program touches page `page`: returns when it is there.
    pub fn touch(&self, mm: &Mm<Self>, page: usize) {
        loop {
            let tables = self.0.lock();
            if tables.home[page] {
                return;
            }
            // The thread is in the queue before anybody hears of its fault.
            let queued = tables.wakes[page];
            drop(tables);
            self.serve(mm, page);
            self.sleep(|tables| tables.wakes[page] != queued);
        }
    }

    /// A device touches the place of page `page` in the arena: returns when the page is there.
    pub fn touch_arena(&self, mm: &Mm<Self>, page: usize) {
        loop {
            let tables = self.0.lock();
            if tables.away[page] {
                return;
            }
            let queued = tables.arena_wakes[page];
            drop(tables);
            match mm.arena_fault(address(ARENA + page)) {
                Served::Done | Served::InTransit => {}
                Served::Hole | Served::Again => self.wake_arena(address(ARENA + page).page()),
            }
            self.sleep(|tables| tables.arena_wakes[page] != queued);
        }
    }

    /// As a pager does.
    fn serve(&self, mm: &Mm<Self>, page: usize) {
        let mut served = mm.cpu_fault(address(page), CpuFault::Missing(Access::Read));
        if served == Served::Hole {
            served = mm.fill_hole(address(page), CpuFault::Missing(Access::Read));
        }
        match served {
            Served::Done | Served::InTransit => {}
            Served::Hole | Served::Again => self.wake_for_certain(page),
        }
    }

    fn sleep(&self, woken: impl Fn(&Tables) -> bool) {
        let mut tables = self.0.lock();
        while !woken(&tables) {
            tables = self.0.woken.wait(tables).expect("no thread panics with it");
        }
    }

    fn wake_for_certain(&self, page: usize) {
        self.0.lock().wakes[page] += 1;
        self.0.woken.notify_all();
    }

    /// Puts pages of the program's at home, and wakes who waits for them.
    fn arrive(&self, to: PageRange) {
        let mut tables = self.0.lock();
        for page in indices(to) {
            tables.home[page] = true;
            tables.away[page] = false;
            tables.wakes[page] += 1;
        }
        drop(tables);
        self.0.woken.notify_all();
    }

    /// The places of `range` in the arena are touched by who has the pages in transit: before a move and, to tidy them, after it. So the kernel's
    /// lock does not order what settling has to.
    fn use_slots(&self, range: ArenaRange) {
        indices(range).for_each(|page| self.0.slots[page].use_alone());
    }
}

impl World for ModelWorld {
    type Meta = ModelHeap;
    type Thread = ();

    const FENCED: bool = true;

    fn is_current(&self) -> bool {
        true
    }

    fn off_stack<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> R {
        job()
    }

    fn memory_bytes(&self) -> usize {
        1 << 30
    }

    fn spawn(
        &self,
        _name: &'static str,
        _stack_bytes: usize,
        _body: impl FnOnce() + Send + 'static,
    ) -> Result<(), WorldError> {
        not_here("spawn")
    }

    fn takes_neighbours(&self) -> bool {
        false
    }

    fn now_ns(&self) -> u64 {
        0
    }

    fn pause(&self, _ns: u64) {
        thread::yield_now();
    }

    fn areas(&self, range: PageRange, each: &mut dyn FnMut(Area)) -> Result<(), WorldError> {
        if let Some(range) = PageRange::from_pages(0, PAGES).and_then(|pages| pages.intersect(range)) {
            each(Area {
                range,
                access: Some(Access::Write),
                backing: Backing::Anonymous,
            });
        }
        Ok(())
    }

    fn needed_at_home(&self, _block: BlockId) -> Result<PageMask, WorldError> {
        Ok(PageMask::NONE)
    }

    fn scan(&self, range: PageRange, each: &mut dyn FnMut(PteRun)) -> Result<(), WorldError> {
        let present = Pte::Present {
            zero: false,
            huge: false,
        };
        for page in indices(range) {
            let pte = if self.is_home(page) { present } else { Pte::None };
            each(PteRun {
                range: address(page).page(),
                pte,
            });
        }
        Ok(())
    }

    fn populate(&self, _range: PageRange, _access: Access) -> Result<(), PopulateError> {
        not_here("populate")
    }

    fn track(&self, _range: PageRange) -> Result<(), WorldError> {
        Ok(())
    }

    fn untrack(&self, range: PageRange) -> Result<(), WorldError> {
        self.wake(range);
        Ok(())
    }

    fn wake(&self, range: PageRange) {
        if self.0.lock().trouble != Trouble::ForgetsWakes {
            indices(range).for_each(|page| self.wake_for_certain(page));
        }
    }

    fn fill_zero(&self, range: PageRange) -> Moved {
        let there = indices(range).all(|page| self.is_home(page));
        assert!(there, "BLK-1: a page that is nowhere else would be lost");
        Moved {
            pages: 0,
            stop: Some(Stop::Exists),
        }
    }

    fn unmap(&self, _range: PageRange) -> Result<(), WorldError> {
        not_here("unmap")
    }

    fn protect(&self, _range: PageRange, _access: Option<Access>) -> Result<(), WorldError> {
        not_here("protect")
    }

    fn discard(&self, _range: PageRange) -> Result<(), WorldError> {
        not_here("discard")
    }

    fn remap(&self, _from: PageRange, _to: PageRange) -> Result<(), WorldError> {
        not_here("remap")
    }

    fn reserve_arena(&self, len_bytes: usize) -> Result<ArenaRange, WorldError> {
        Ok(PageRange::from_pages(ARENA, len_bytes / PAGE_SIZE).expect("a small number"))
    }

    fn release_arena(&self, _arena: ArenaRange) {}

    fn move_out(&self, from: PageRange, to: ArenaRange) -> Moved {
        self.use_slots(to);
        let mut tables = self.0.lock();
        for page in indices(from) {
            assert!(tables.home[page] && !tables.away[page], "BLK-2: moved by two");
            tables.home[page] = false;
            tables.away[page] = true;
        }
        drop(tables);
        self.use_slots(to);
        all(from)
    }

    fn move_home(&self, from: ArenaRange, to: PageRange) -> Moved {
        self.use_slots(from);
        let mut tables = self.0.lock();
        if let Trouble::RefusesHome(times @ 1..) = tables.trouble {
            tables.trouble = Trouble::RefusesHome(times - 1);
            return Moved {
                pages: 0,
                stop: Some(Stop::Busy),
            };
        }
        for page in indices(to) {
            assert!(tables.away[page] && !tables.home[page], "BLK-2: moved by two");
        }
        drop(tables);
        self.arrive(to);
        self.use_slots(from);
        all(to)
    }

    fn unshare(&self, _range: PageRange) -> Moved {
        not_here("unshare")
    }

    fn write_protect(&self, _range: PageRange, _on: bool) -> Result<(), WorldError> {
        not_here("write_protect")
    }

    fn open_copies(&self, range: ArenaRange) {
        self.wake_arena(range);
    }

    fn copy_out(&self, _from: PageRange, _to: ArenaRange) -> Moved {
        not_here("copy_out")
    }

    fn drop_source(&self, _range: PageRange) -> Result<(), WorldError> {
        not_here("drop_source")
    }

    fn copy_home(&self, _from: ArenaRange, _to: PageRange) -> Moved {
        not_here("copy_home")
    }

    fn duplicate_home(&self, _from: ArenaRange, _to: PageRange) -> Moved {
        not_here("duplicate_home")
    }

    fn move_across(&self, _from: ArenaRange, _to: ArenaRange) -> Moved {
        not_here("move_across")
    }

    fn copy_across(&self, _from: ArenaRange, _to: ArenaRange) -> Moved {
        not_here("copy_across")
    }

    fn zero_arena(&self, _range: ArenaRange) -> Moved {
        not_here("zero_arena")
    }

    fn scrub_arena(&self, range: ArenaRange) {
        self.use_slots(range);
    }

    fn wake_arena(&self, range: ArenaRange) {
        let mut tables = self.0.lock();
        indices(range).for_each(|page| tables.arena_wakes[page] += 1);
        drop(tables);
        self.0.woken.notify_all();
    }

    fn poison_arena(&self, _range: ArenaRange) {
        not_here("poison_arena")
    }
}

/// A device, by what an invalidation finds it at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelDevice {
    /// It uses no page, and so is never in the way.
    Idle,
    /// It is in an access that does not end; the MMU stops it once the page has gone.
    Stuck,
}

impl Device for ModelDevice {
    fn invalidate(&self, _: &Invalidation, scope: &CallbackScope<'_>) {
        if *self == Self::Stuck {
            scope.leave_to_the_mmu();
        }
    }

    fn try_invalidate(&self, _: &Invalidation, _: &CallbackScope<'_>) -> Answer {
        match self {
            Self::Idle => Answer::Done,
            Self::Stuck => Answer::Fenced,
        }
    }

    fn release(&self) {}
}
