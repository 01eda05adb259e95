//! The pager threads serve real faults and events, for a protocol that is as simple as can be.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use common::{Program, read, write};
use isomem_core::addr::{PAGE_SIZE, PageRange, VirtAddr};
use isomem_core::mm::{CpuFault, LateEvent, Served};
use isomem_core::world::{Access, Stop, World};
use isomem_linux::Linux;
use isomem_linux::pager::{Pagee, Pagers};
use isomem_linux::sys::inject::{self, Site};
use isomem_linux::sys::mapping;
use isomem_linux::sys::uffd::{Protection, Uffd, Waiters};

static ALONE: Mutex<()> = Mutex::new(());

/// The forks of one test would share the pages of another.
fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A program range whose pages are away in an arena at the same offset, or not.
struct State {
    world: Linux,
    home: Mutex<PageRange>,
    arena: PageRange,
    away: Mutex<Vec<bool>>,
    late: Mutex<Vec<LateEvent>>,
    late_forks: AtomicUsize,
    forks: AtomicUsize,
    protected: AtomicUsize,
    holes: AtomicUsize,
}

#[derive(Clone)]
struct Simple(Arc<State>);

impl Simple {
    fn open(program: &Program) -> Self {
        let world = Linux::open().unwrap();
        let arena = world
            .reserve_arena(program.range.round_to_blocks().len_bytes())
            .unwrap();
        world.track(program.range).unwrap();
        let away = Mutex::new(vec![false; program.range.page_count()]);
        Self(Arc::new(State {
            world,
            home: Mutex::new(program.range),
            arena: arena.take(program.range.page_count()),
            away,
            late: Mutex::default(),
            late_forks: AtomicUsize::new(0),
            forks: AtomicUsize::new(0),
            protected: AtomicUsize::new(0),
            holes: AtomicUsize::new(0),
        }))
    }

    fn send_all(&self) {
        let home = *self.0.home.lock().unwrap();
        let mut away = self.0.away.lock().unwrap();
        assert_eq!(self.0.world.move_out(home, self.0.arena).stop, None);
        away.fill(true);
    }

    fn home_page(&self, index: usize) -> PageRange {
        self.0.home.lock().unwrap().skip(index).unwrap().take(1)
    }

    fn arena_page(&self, index: usize) -> PageRange {
        self.0.arena.skip(index).unwrap().take(1)
    }

    fn late(&self) -> Vec<LateEvent> {
        self.0.late.lock().unwrap().clone()
    }

    fn wait_for_late(&self, count: usize) -> Vec<LateEvent> {
        while self.0.late.lock().unwrap().len() < count {
            thread::sleep(Duration::from_millis(1));
        }
        self.late()
    }
}

impl Pagee for Simple {
    fn world(&self) -> &Linux {
        &self.0.world
    }

    fn cpu_fault(&self, addr: VirtAddr, _: CpuFault) -> Served {
        let home = *self.0.home.lock().unwrap();
        if !home.contains(addr.get()) {
            return Served::Hole;
        }
        let index = addr.page().first_page() - home.first_page();
        let mut away = self.0.away.lock().unwrap();
        if !away[index] {
            return Served::Hole;
        }
        if self
            .0
            .world
            .move_home(self.arena_page(index), self.home_page(index))
            .pages
            == 0
        {
            return Served::Again;
        }
        away[index] = false;
        Served::Done
    }

    fn fill_hole(&self, addr: VirtAddr, fault: CpuFault) -> Served {
        if fault == CpuFault::WriteProtected {
            self.0.protected.fetch_add(1, Ordering::SeqCst);
            self.0.world.write_protect(addr.page(), false).unwrap();
            return Served::Done;
        }
        let filled = self.0.world.fill_zero(addr.page()).pages;
        self.0.holes.fetch_add(filled, Ordering::SeqCst);
        if filled == 0 { Served::Again } else { Served::Done }
    }

    fn arena_fault(&self, addr: VirtAddr) -> Served {
        let index = addr.page().first_page() - self.0.arena.first_page();
        let mut away = self.0.away.lock().unwrap();
        self.0.world.move_out(self.home_page(index), self.arena_page(index));
        away[index] = true;
        self.0.world.wake_arena(addr.page());
        Served::Done
    }

    fn late(&self, event: LateEvent) {
        if let LateEvent::Remapped { to, .. } = event {
            let mut away = self.0.away.lock().unwrap();
            for index in 0..to.page_count() {
                if away[index] {
                    let to = to.skip(index).unwrap().take(1);
                    // The program's call that moved the mapping may not have been told yet that its event was read.
                    let stop = loop {
                        match self.0.world.move_home(self.arena_page(index), to).stop {
                            Some(Stop::Again) => self.0.world.pause(10_000),
                            stop => break stop,
                        }
                    };
                    assert_eq!(stop, None);
                    away[index] = false;
                }
            }
            *self.0.home.lock().unwrap() = to;
        }
        self.0.late.lock().unwrap().push(event);
    }

    fn late_fork(&self) {
        self.0.late_forks.fetch_add(1, Ordering::SeqCst);
    }

    fn give_to_child(&self, child: &Uffd) {
        for (index, _) in self
            .0
            .away
            .lock()
            .unwrap()
            .iter()
            .enumerate()
            .filter(|(_, away)| **away)
        {
            let source = self.arena_page(index).start();
            assert_eq!(
                child
                    .copy(self.home_page(index), source, Protection::None, Waiters::Leave)
                    .errno,
                None
            );
        }
    }

    fn hold_departures(&self) -> Option<isomem_core::mm::Held<'_>> {
        None
    }

    fn hold_arrivals(&self) -> Option<isomem_core::mm::HeldArrivals<'_>> {
        None
    }

    fn fork_prepare(&self) {
        self.0.forks.fetch_add(1, Ordering::SeqCst);
        let mut away = self.0.away.lock().unwrap();
        for (index, away) in away.iter_mut().enumerate().filter(|(_, away)| **away) {
            assert_eq!(
                self.0
                    .world
                    .move_home(self.arena_page(index), self.home_page(index))
                    .pages,
                1
            );
            *away = false;
        }
    }

    fn fork_done(&self) {
        self.0.forks.fetch_add(100, Ordering::SeqCst);
    }
}

const PAGES: usize = 512;

#[test]
fn pgr_3_every_touch_from_any_thread_finds_its_page() {
    let _alone = alone();
    let program = Program::filled(PAGES);
    let simple = Simple::open(&program);
    let pagers = Pagers::start(simple.clone(), 3).unwrap();
    for round in 0..20 {
        simple.send_all();
        thread::scope(|scope| {
            for first in 0..4 {
                let range = program.range;
                scope.spawn(move || {
                    // Two threads meet at each page.
                    for page in (0..PAGES).map(|page| (page * 37 + first / 2 * 5) % PAGES) {
                        assert_eq!(read(range, page), page as u64 + 1, "round {round}");
                    }
                });
            }
        });
    }
    assert!(pagers.stats().faults >= PAGES as u64, "{:?}", pagers.stats());
    assert_eq!(pagers.stats().late_events, 0);
}

#[test]
fn a_system_call_waits_for_its_page() {
    let _alone = alone();
    let program = Program::filled(4);
    let simple = Simple::open(&program);
    if simple.0.world.features().user_mode_only() {
        eprintln!("skipped: only faults of user mode are served without privileges");
        return;
    }
    let _pagers = Pagers::start(simple.clone(), 2).unwrap();
    simple.send_all();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let bytes = {
        let start: *const u8 = core::ptr::with_exposed_provenance(program.range.start());
        // SAFETY: four mapped pages that nobody writes.
        unsafe { core::slice::from_raw_parts(start, 4 * PAGE_SIZE) }
    };
    assert_eq!(rustix::io::write(&writer, bytes).unwrap(), 4 * PAGE_SIZE);
    let mut copy = vec![0; 4 * PAGE_SIZE];
    assert_eq!(rustix::io::read(&reader, &mut copy[..]).unwrap(), 4 * PAGE_SIZE);
    assert!(copy.iter().any(|byte| *byte != 0));
    program.check();
}

#[test]
fn pgr_2_holes_are_filled_with_zeroes() {
    let _alone = alone();
    let program = Program::map(PAGES);
    let simple = Simple::open(&program);
    let _pagers = Pagers::start(simple.clone(), 2).unwrap();
    thread::scope(|scope| {
        for first in 0..4 {
            let range = program.range;
            scope.spawn(move || (0..PAGES).for_each(|page| assert_eq!(read(range, (page + first) % PAGES), 0)));
        }
    });
    write(program.range, 9, 9);
    // The last reader may go on before the pager has counted.
    while simple.0.holes.load(Ordering::SeqCst) < PAGES {
        thread::yield_now();
    }
}

#[test]
fn a_write_to_a_protected_page_is_told() {
    let _alone = alone();
    let program = Program::filled(4);
    let simple = Simple::open(&program);
    let _pagers = Pagers::start(simple.clone(), 2).unwrap();
    simple.0.world.write_protect(program.range, true).unwrap();
    assert_eq!(read(program.range, 1), 2);
    assert_eq!(simple.0.protected.load(Ordering::SeqCst), 0);
    write(program.range, 1, 7);
    assert_eq!(simple.0.protected.load(Ordering::SeqCst), 1);
    assert_eq!(read(program.range, 1), 7);
}

#[test]
fn own_changes_are_not_late_and_the_programs_are() {
    let _alone = alone();
    let program = Program::filled(8);
    let simple = Simple::open(&program);
    let world = &simple.0.world;
    let pagers = Pagers::start(simple.clone(), 2).unwrap();
    world.discard(program.part(0, 2)).unwrap();
    world.drop_source(program.part(2, 1)).unwrap();
    // Nothing is tracked here, so no event tells that it is done.
    let elsewhere = Program::filled(1);
    world.discard(elsewhere.range).unwrap();
    assert_eq!(simple.late(), []);
    mapping::discard(program.part(0, 2)).unwrap();
    mapping::discard(program.part(4, 1)).unwrap();
    let removed = |first, count| LateEvent::Removed(program.part(first, count));
    assert_eq!(simple.wait_for_late(2), [removed(0, 2), removed(4, 1)]);
    assert_eq!(pagers.stats().own_events, 2);
    world.unmap(program.give_up(7, 1)).unwrap();
    mapping::unmap(program.give_up(6, 1)).unwrap();
    assert_eq!(simple.wait_for_late(3)[2..], [LateEvent::Unmapped(program.part(6, 1))]);
}

#[test]
fn own_3_an_own_change_without_event_hides_no_later_one() {
    let _alone = alone();
    let program = Program::filled(2);
    let simple = Simple::open(&program);
    let _pagers = Pagers::start(simple.clone(), 2).unwrap();
    simple.0.world.untrack(program.range).unwrap();
    simple.0.world.discard(program.range).unwrap();
    simple.0.world.track(program.range).unwrap();
    mapping::discard(program.range).unwrap();
    assert_eq!(simple.wait_for_late(1), [LateEvent::Removed(program.range)]);
}

#[test]
fn pgr_1_pages_follow_a_mapping_that_moves() {
    let _alone = alone();
    let program = Program::filled(16);
    let target = Program::map(16);
    let simple = Simple::open(&program);
    let pagers = Pagers::start(simple.clone(), 2).unwrap();
    simple.send_all();
    mapping::remap(program.range, target.range).unwrap();
    target.check();
    // The kernel tells that the mapping moved, and then that its old place is gone.
    let remapped = LateEvent::Remapped {
        from: program.range,
        to: target.range,
    };
    assert_eq!(simple.wait_for_late(2), [remapped, LateEvent::Unmapped(program.range)]);
    assert_eq!(simple.0.holes.load(Ordering::SeqCst), 0);
    // Onwards through the world: announced.
    program.give_up(0, 16);
    let last = Program::map(16);
    simple.0.world.remap(target.range, last.range).unwrap();
    target.give_up(0, 16);
    assert_eq!(simple.late().len(), 2, "{:?} {:?}", simple.late(), pagers.stats());
    last.check();
    drop(pagers);
    drop(simple);
}

#[test]
fn an_announced_fork_finds_everything_at_home() {
    let _alone = alone();
    let program = Program::filled(32);
    let simple = Simple::open(&program);
    let pagers = Pagers::start(simple.clone(), 2).unwrap();
    simple.send_all();
    // SAFETY: the child reads its memory and ends.
    let child = unsafe { libc::fork() };
    finish(child, &program);
    assert_eq!(simple.0.forks.load(Ordering::SeqCst), 101);
    assert_eq!(simple.0.late_forks.load(Ordering::SeqCst), 0);
    program.check();
    simple.0.world.untrack(program.range).unwrap();
    drop(pagers);
    // SAFETY: as above. The hooks are gone with the pagers.
    let child = unsafe { libc::fork() };
    finish(child, &program);
    assert_eq!(simple.0.forks.load(Ordering::SeqCst), 101);
}

#[test]
fn a_fork_by_system_call_finds_copies() {
    let _alone = alone();
    let program = Program::filled(32);
    let simple = Simple::open(&program);
    if !simple.0.world.features().event_fork() {
        eprintln!("skipped: fork events need CAP_SYS_PTRACE");
        return;
    }
    let _pagers = Pagers::start(simple.clone(), 2).unwrap();
    simple.send_all();
    // SAFETY: a fork without the C library's knowledge; the child reads its memory and ends.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } as i32;
    finish(child, &program);
    assert_eq!(simple.0.late_forks.load(Ordering::SeqCst), 1);
    program.check();
}

/// In the child: checks the program's pages and ends. In the parent: waits for a good end.
fn finish(child: i32, program: &Program) {
    assert!(child >= 0);
    if child == 0 {
        let good = (0..program.range.page_count()).all(|page| read(program.range, page) == page as u64 + 1);
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(i32::from(!good)) };
    }
    let mut status = -1;
    // SAFETY: our child, and room for its status.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child did not find its pages");
}

#[test]
fn an_access_to_the_arena_calls_its_page_back() {
    let _alone = alone();
    let program = Program::filled(8);
    let simple = Simple::open(&program);
    let _pagers = Pagers::start(simple.clone(), 2).unwrap();
    simple.send_all();
    assert_eq!(read(program.range, 3), 4);
    assert_eq!(read(simple.0.arena, 3), 4);
    program.check();
}

#[test]
fn trouble_with_reading_is_sat_out_and_counted() {
    let _alone = alone();
    let program = Program::filled(8);
    let simple = Simple::open(&program);
    inject::fail(Site::UffdRead, libc::EINTR, 0, 5);
    let pagers = Pagers::start(simple.clone(), 2).unwrap();
    simple.send_all();
    program.check();
    inject::fail(Site::UffdRead, libc::ENOMEM, 0, 3);
    simple.send_all();
    program.check();
    inject::clear();
    assert!(pagers.stats().read_errors > 0);
}

#[test]
fn pagers_stop_and_start_again() {
    let _alone = alone();
    let program = Program::filled(8);
    let simple = Simple::open(&program);
    for count in [0, 1, 2, 5] {
        let pagers = Pagers::start(simple.clone(), count).unwrap();
        simple.send_all();
        program.check();
        drop(pagers);
    }
    assert_eq!(
        Arc::strong_count(&simple.0),
        1,
        "the threads let go of what they served"
    );
}

#[test]
fn populating_a_tracked_hole_is_served() {
    let _alone = alone();
    let program = Program::map(8);
    let simple = Simple::open(&program);
    let _pagers = Pagers::start(simple.clone(), 2).unwrap();
    simple.0.world.populate(program.range, Access::Write).unwrap();
    assert!((0..8).all(|page| read(program.range, page) == 0));
}
