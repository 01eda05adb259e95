//! System calls that fail at each call site: a clear error, nothing changed, nothing lost.

mod common;

use std::sync::{Mutex, MutexGuard, PoisonError};

use common::Program;
use isomem_core::addr::PageRange;
use isomem_core::world::{Access, Moved, Stop, World};
use isomem_linux::sys::inject::{self, Site};
use isomem_linux::{Linux, OpenError};

// The table of failures is the process's.
static ALONE: Mutex<()> = Mutex::new(());

struct Armed<'a>(#[allow(dead_code)] MutexGuard<'a, ()>);

fn alone() -> Armed<'static> {
    Armed(ALONE.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        inject::clear();
    }
}

/// One call of each method that reaches a site; the errno it reported, or `None` for success.
fn errno_of(site: Site, world: &Linux, program: &Program, arena: PageRange) -> Option<i32> {
    let by_move = |moved: Moved| match moved.stop {
        None => None,
        Some(Stop::Failed(errno)) => Some(errno),
        Some(Stop::Again) => Some(libc::EAGAIN),
        Some(Stop::Unlike) => Some(libc::EINVAL),
        Some(other) => panic!("{other:?}"),
    };
    let range = program.range;
    match site {
        Site::Move => by_move(world.move_out(range, arena)),
        Site::Copy => by_move(world.copy_out(range, arena)),
        Site::Zeropage => by_move(world.zero_arena(arena)),
        Site::Populate => by_move(world.unshare(range)),
        Site::Register => world.track(range).err().map(|error| error.errno),
        Site::Unregister => world.untrack(range).err().map(|error| error.errno),
        Site::WriteProtect => world.write_protect(range, false).err().map(|error| error.errno),
        Site::Mprotect => world.protect(range, Some(Access::Write)).err().map(|error| error.errno),
        Site::Discard => world.discard(range).err().map(|error| error.errno),
        Site::Munmap => world.unmap(range).err().map(|error| error.errno),
        Site::Mremap => world.remap(range, arena).err().map(|error| error.errno),
        Site::PagemapScan => world.scan(range, &mut |_| {}).err().map(|error| error.errno),
        Site::ProcmapQuery => world.areas(range, &mut |_| {}).err().map(|error| error.errno),
        other => panic!("no case for {other:?}"),
    }
}

#[test]
fn lnx_1_a_failed_call_is_reported_and_changes_nothing() {
    let _alone = alone();
    let program = Program::filled(8);
    let world = Linux::open().unwrap();
    let arena = world.reserve_arena(2 << 20).unwrap().take(8);
    for site in [
        Site::Move,
        Site::Copy,
        Site::Zeropage,
        Site::Populate,
        Site::Register,
        Site::Unregister,
        Site::WriteProtect,
        Site::Mprotect,
        Site::Discard,
        Site::Munmap,
        Site::Mremap,
        Site::PagemapScan,
        Site::ProcmapQuery,
    ] {
        inject::fail(site, libc::ENOMEM, 0, u32::MAX);
        assert_eq!(errno_of(site, &world, &program, arena), Some(libc::ENOMEM), "{site:?}");
        assert!(inject::hits(site) > 0, "{site:?}");
        inject::clear();
        program.check();
    }
}

#[test]
fn a_failed_reservation_leaves_nothing() {
    let _alone = alone();
    let world = Linux::open().unwrap();
    for site in [Site::Mmap, Site::Advise, Site::Register] {
        inject::fail(site, libc::ENOMEM, 0, 1);
        assert_eq!(world.reserve_arena(4096).unwrap_err().errno, libc::ENOMEM, "{site:?}");
        inject::clear();
    }
}

#[test]
fn lnx_1_a_move_that_fails_half_way_says_how_far_it_came() {
    let _alone = alone();
    let world = Linux::open().unwrap();
    for errno in [libc::EAGAIN, libc::EBUSY, libc::EEXIST, libc::ENOENT, libc::ENOMEM] {
        let program = Program::filled(8);
        let arena = world.reserve_arena(2 << 20).unwrap();
        world.protect(program.part(4, 4), Some(Access::Read)).unwrap();
        // The first piece (8 pages) straddles two areas, the second (4) moves, the third is made to fail.
        inject::fail(Site::Move, errno, 2, u32::MAX);
        let moved = world.move_out(program.range, arena.take(8));
        inject::clear();
        let stop = match errno {
            libc::EAGAIN => Stop::Again,
            libc::EBUSY => Stop::Busy,
            libc::EEXIST => Stop::Exists,
            // The page is there, so it cannot be the source that is missing.
            libc::ENOENT => Stop::Gone,
            other => Stop::Failed(other),
        };
        assert_eq!(
            moved,
            Moved {
                pages: 4,
                stop: Some(stop)
            }
        );
        common::check(arena.take(4), 0);
        common::check(program.part(4, 4), 4);
        world.release_arena(arena);
    }
}

#[test]
fn short_trouble_is_sat_out() {
    let _alone = alone();
    let program = Program::filled(4);
    let world = Linux::open().unwrap();
    let arena = world.reserve_arena(2 << 20).unwrap();
    inject::fail(Site::Move, libc::EAGAIN, 0, 3);
    assert_eq!(
        world.move_out(program.range, arena.take(4)),
        Moved { pages: 4, stop: None }
    );
    inject::fail(Site::Discard, libc::EINTR, 0, 2);
    world.scrub_arena(arena);
    assert_eq!(inject::hits(Site::Discard), 2);
    inject::fail(Site::ProcmapQuery, libc::EINTR, 0, 2);
    world.areas(program.range, &mut |_| {}).unwrap();
    world.release_arena(arena);
}

#[test]
fn a_process_that_may_not_is_told_what_to_do() {
    let _alone = alone();
    for (site, skip) in [
        (Site::UffdOpen, 0),
        (Site::UffdOpen, 3),
        (Site::UffdApi, 0),
        (Site::Register, 0),
    ] {
        inject::fail(site, libc::EPERM, skip, u32::MAX);
        let error = Linux::open().unwrap_err();
        assert_eq!(error, OpenError::Userfaultfd { errno: libc::EPERM });
        assert!(error.to_string().contains("vm.unprivileged_userfaultfd"));
        inject::clear();
    }
    inject::fail(Site::ProcOpen, libc::EACCES, 1, 1);
    assert_eq!(
        Linux::open().unwrap_err(),
        OpenError::Proc {
            path: "/proc/self/maps",
            errno: libc::EACCES
        }
    );
}

#[test]
fn without_the_privilege_for_fork_events_the_rest_is_granted() {
    let _alone = alone();
    // Two descriptors, each with a handshake that asks and one that sets.
    inject::fail(Site::UffdApi, libc::EPERM, 1, 1);
    let world = Linux::open().unwrap();
    assert!(!world.features().event_fork());
    assert!(world.features().event_remove() && world.features().event_unmap());
}
