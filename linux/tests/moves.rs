//! Pages go to the arena and come home by real userfaultfd calls, with nobody else at work.

mod common;

use common::{Program, check, read, write};
use isomem_core::addr::{PAGES_PER_BLOCK, PageRange};
use isomem_core::world::{Access, Moved, Pte, Stop, World, WorldError};
use isomem_linux::Linux;
use isomem_linux::sys::mapping;

const DONE: Option<Stop> = None;

fn world() -> Linux {
    Linux::open().expect("these tests need userfaultfd: run as root, or set vm.unprivileged_userfaultfd=1")
}

fn arena(world: &Linux, pages: usize) -> PageRange {
    world.reserve_arena(pages * 4096).unwrap()
}

fn ptes(world: &Linux, range: PageRange) -> Vec<(usize, Pte)> {
    let mut runs = Vec::new();
    world
        .scan(range, &mut |run| runs.push((run.range.page_count(), run.pte)))
        .unwrap();
    runs
}

fn moved(pages: usize, stop: Option<Stop>) -> Moved {
    Moved { pages, stop }
}

#[test]
fn lnx_1_a_move_there_and_back_keeps_contents() {
    let program = Program::filled(64);
    let world = world();
    let arena = arena(&world, 64);
    assert_eq!(world.move_out(program.range, arena), moved(64, DONE));
    assert_eq!(ptes(&world, program.range), [(64, Pte::None)]);
    check(arena, 0);
    write(arena, 3, 99);
    world.track(program.range).unwrap();
    assert_eq!(world.move_home(arena, program.range), moved(64, DONE));
    world.untrack(program.range).unwrap();
    assert_eq!(read(program.range, 3), 99);
    write(program.range, 3, 4);
    program.check();
    assert_eq!(ptes(&world, arena), [(64, Pte::None)]);
    world.release_arena(arena);
}

#[test]
fn a_huge_page_moves_whole_both_ways() {
    let program = Program::map(PAGES_PER_BLOCK);
    let world = world();
    if mapping::prefer_huge(program.range).is_err() {
        eprintln!(
            "skipped: no transparent huge pages here; set /sys/kernel/mm/transparent_hugepage/enabled to madvise"
        );
        return;
    }
    program.fill();
    let huge = [(
        PAGES_PER_BLOCK,
        Pte::Present {
            zero: false,
            huge: true,
        },
    )];
    if ptes(&world, program.range) != huge {
        eprintln!("skipped: the kernel had no huge page to give");
        return;
    }
    let arena = arena(&world, PAGES_PER_BLOCK);
    assert_eq!(world.move_out(program.range, arena), moved(PAGES_PER_BLOCK, DONE));
    assert_eq!(ptes(&world, arena), huge);
    world.track(program.range).unwrap();
    assert_eq!(world.move_home(arena, program.range), moved(PAGES_PER_BLOCK, DONE));
    assert_eq!(ptes(&world, program.range), huge);
    world.untrack(program.range).unwrap();
    program.check();
    world.release_arena(arena);
}

#[test]
fn a_part_of_a_huge_page_moves_by_splitting() {
    let program = Program::map(PAGES_PER_BLOCK);
    let world = world();
    let _ = mapping::prefer_huge(program.range);
    program.fill();
    let arena = arena(&world, PAGES_PER_BLOCK);
    assert_eq!(
        world.move_out(program.part(7, 9), arena.skip(7).unwrap().take(9)),
        moved(9, DONE)
    );
    check(arena.skip(7).unwrap().take(9), 7);
    check(program.part(0, 7), 0);
    world.release_arena(arena);
}

#[test]
fn a_scrubbed_arena_takes_a_huge_page_again() {
    let program = Program::filled(1);
    let world = world();
    let arena = arena(&world, PAGES_PER_BLOCK);
    assert_eq!(world.move_out(program.range, arena.take(1)), moved(1, DONE));
    world.scrub_arena(arena);
    let huge = Program::map(PAGES_PER_BLOCK);
    let _ = mapping::prefer_huge(huge.range);
    huge.fill();
    if !matches!(ptes(&world, huge.range)[..], [(_, Pte::Present { huge: true, .. })]) {
        eprintln!("skipped: the kernel had no huge page to give");
        return;
    }
    assert_eq!(world.move_out(huge.range, arena), moved(PAGES_PER_BLOCK, DONE));
    check(arena, 0);
    println!("after a scrub the arena holds {:?}", ptes(&world, arena));
    world.release_arena(arena);
}

#[test]
fn a_hole_and_an_occupied_destination_stop_a_move() {
    let program = Program::filled(8);
    let world = world();
    let arena = arena(&world, 8);
    mapping::discard(program.part(3, 1)).unwrap();
    assert_eq!(world.move_out(program.range, arena), moved(3, Some(Stop::Hole)));
    assert_eq!(
        world.move_out(program.part(4, 1), arena.take(1)),
        moved(0, Some(Stop::Exists))
    );
    world.track(program.range).unwrap();
    assert_eq!(
        world.move_home(arena.skip(3).unwrap().take(1), program.part(3, 1)),
        moved(0, Some(Stop::Hole))
    );
    assert_eq!(
        world.move_home(arena.take(1), program.part(4, 1)),
        moved(0, Some(Stop::Exists))
    );
    world.untrack(program.range).unwrap();
    mapping::unmap(program.give_up(0, 1)).unwrap();
    assert_eq!(
        world.move_home(arena.take(1), program.part(0, 1)),
        moved(0, Some(Stop::Gone))
    );
    check(arena.take(3), 0);
    world.release_arena(arena);
}

#[test]
fn read_only_pages_are_unlike_and_take_the_copy_path() {
    let program = Program::filled(16);
    let world = world();
    let arena = arena(&world, 16);
    world.protect(program.range, Some(Access::Read)).unwrap();
    assert_eq!(world.unshare(program.range), moved(0, Some(Stop::Unlike)));
    copy_there_and_back(&world, &program, arena);
}

#[test]
fn locked_pages_are_unlike_and_take_the_copy_path() {
    let program = Program::filled(16);
    let world = world();
    let arena = arena(&world, 16);
    let start: *const core::ffi::c_void = core::ptr::with_exposed_provenance(program.range.start());
    // SAFETY: locking changes no contents.
    if unsafe { libc::mlock(start, program.range.len_bytes()) } != 0 {
        eprintln!("skipped: mlock is refused; raise RLIMIT_MEMLOCK");
        return;
    }
    copy_there_and_back(&world, &program, arena);
}

fn copy_there_and_back(world: &Linux, program: &Program, arena: PageRange) {
    let all = moved(program.range.page_count(), DONE);
    assert_eq!(world.move_out(program.range, arena), moved(0, Some(Stop::Unlike)));
    assert_eq!(world.copy_out(program.range, arena), all);
    check(arena, 0);
    world.drop_source(program.range).unwrap();
    assert_eq!(ptes(world, program.range), [(program.range.page_count(), Pte::None)]);
    world.track(program.range).unwrap();
    assert_eq!(world.move_home(arena, program.range), moved(0, Some(Stop::Unlike)));
    assert_eq!(world.copy_home(arena, program.range), all);
    assert_eq!(world.copy_home(arena, program.range), moved(0, Some(Stop::Exists)));
    world.untrack(program.range).unwrap();
    program.check();
    world.scrub_arena(arena);
    assert_eq!(ptes(world, arena), [(arena.page_count(), Pte::None)]);
    world.release_arena(arena);
}

#[test]
fn a_run_over_two_areas_moves_page_by_page_where_it_must() {
    let program = Program::filled(32);
    let world = world();
    let arena = arena(&world, 32);
    world.protect(program.part(10, 3), Some(Access::Read)).unwrap();
    assert_eq!(world.move_out(program.range, arena), moved(10, Some(Stop::Unlike)));
    assert_eq!(
        world.move_out(program.part(13, 19), arena.skip(13).unwrap()),
        moved(19, DONE)
    );
    world.protect(program.part(10, 3), Some(Access::Write)).unwrap();
    world.protect(program.part(20, 4), None).unwrap();
    world.track(program.range).unwrap();
    assert_eq!(world.move_home(arena.take(10), program.part(0, 10)), moved(10, DONE));
    // The destination is three areas now; the middle one differs from the arena.
    assert_eq!(
        world.move_home(arena.skip(13).unwrap(), program.part(13, 19)),
        moved(7, Some(Stop::Unlike))
    );
    assert_eq!(
        world.copy_home(arena.skip(20).unwrap().take(4), program.part(20, 4)),
        moved(4, DONE)
    );
    assert_eq!(
        world.move_home(arena.skip(24).unwrap(), program.part(24, 8)),
        moved(8, DONE)
    );
    world.untrack(program.range).unwrap();
    world.protect(program.range, Some(Access::Write)).unwrap();
    program.check();
    world.release_arena(arena);
}

#[test]
fn untracked_destinations_are_refused() {
    let program = Program::filled(2);
    let world = world();
    let arena = arena(&world, 2);
    assert_eq!(world.move_out(program.range, arena), moved(2, DONE));
    assert_eq!(world.move_home(arena, program.range), moved(0, Some(Stop::Unlike)));
    assert_eq!(world.copy_home(arena, program.range), moved(0, Some(Stop::Gone)));
    assert_eq!(world.fill_zero(program.range), moved(0, Some(Stop::Gone)));
    check(arena, 0);
    world.release_arena(arena);
}

#[test]
fn zeroes_and_poison_fill_holes() {
    let program = Program::map(4);
    let world = world();
    let arena = arena(&world, 4);
    assert_eq!(world.zero_arena(arena.take(2)), moved(2, DONE));
    assert_eq!((read(arena, 0), read(arena, 1)), (0, 0));
    write(arena, 1, 7);
    world.track(program.range).unwrap();
    assert_eq!(world.fill_zero(program.part(0, 2)), moved(2, DONE));
    assert_eq!(world.fill_zero(program.part(0, 2)), moved(0, Some(Stop::Exists)));
    assert_eq!(read(program.range, 1), 0);
    world.poison_arena(arena.skip(3).unwrap());
    assert_eq!(world.zero_arena(arena.skip(3).unwrap()), moved(0, Some(Stop::Exists)));
    world.scrub_arena(arena);
    assert_eq!(world.zero_arena(arena), moved(4, DONE));
    world.untrack(program.range).unwrap();
    world.release_arena(arena);
}

#[test]
fn zero_pages_and_written_zero_pages_move() {
    let program = Program::map(4);
    let world = world();
    let arena = arena(&world, 4);
    world.populate(program.range, Access::Read).unwrap();
    write(program.range, 2, 5);
    assert_eq!(world.move_out(program.range, arena), moved(4, DONE));
    assert_eq!((read(arena, 1), read(arena, 2)), (0, 5));
    write(arena, 1, 6);
    assert_eq!(read(arena, 1), 6);
    world.release_arena(arena);
}

#[test]
fn write_protected_pages_can_be_copied() {
    let program = Program::filled(4);
    let world = world();
    let arena = arena(&world, 4);
    if !world.features().wp() {
        eprintln!("skipped: no write-protect feature (Linux 5.7)");
        return;
    }
    world.track(program.range).unwrap();
    world.write_protect(program.range, true).unwrap();
    assert_eq!(world.copy_out(program.range, arena), moved(4, DONE));
    world.write_protect(program.range, false).unwrap();
    write(program.range, 0, 1);
    world.untrack(program.range).unwrap();
    check(arena, 0);
    world.release_arena(arena);
}

#[test]
fn populate_names_the_page_that_refuses() {
    use isomem_core::world::PopulateError;
    let program = Program::map(8);
    let world = world();
    world.protect(program.part(2, 1), Some(Access::Read)).unwrap();
    world.protect(program.part(5, 1), None).unwrap();
    mapping::unmap(program.give_up(7, 1)).unwrap();
    let refused = |first: usize, count: usize, access| match world.populate(program.part(first, count), access) {
        Err(PopulateError::Refused(addr)) => Some((addr.get() - program.range.start()) / 4096),
        Err(PopulateError::World(error)) => panic!("{error}"),
        Ok(()) => None,
    };
    assert_eq!(refused(0, 4, Access::Write), Some(2));
    assert_eq!(refused(0, 5, Access::Read), None);
    assert_eq!(refused(0, 8, Access::Read), Some(5));
    assert_eq!(refused(6, 2, Access::Write), Some(7));
    let nowhere = PageRange::new(0x10000, 4096).unwrap();
    assert!(
        matches!(world.populate(nowhere, Access::Read), Err(PopulateError::Refused(addr)) if addr.get() == 0x10000)
    );
}

#[test]
fn tracking_nothing_is_an_error() {
    let world = world();
    let nowhere = PageRange::new(0x10000, 4096).unwrap();
    assert!(matches!(
        world.track(nowhere),
        Err(WorldError {
            call: "UFFDIO_REGISTER",
            ..
        })
    ));
}

#[test]
fn mig_9_a_move_that_happened_and_is_denied_counts_as_done() {
    let program = Program::filled(4);
    let world = world();
    let arena = arena(&world, 4);
    world.track(program.range).unwrap();
    // What the kernel leaves behind when it denies a move that it made.
    assert_eq!(
        world.move_out(program.part(1, 2), arena.skip(1).unwrap().take(2)),
        moved(2, DONE)
    );
    assert_eq!(world.move_out(program.range, arena), moved(4, DONE));
    assert_eq!(ptes(&world, program.range), [(4, Pte::None)]);
    assert_eq!(world.move_home(arena.take(1), program.part(0, 1)), moved(1, DONE));
    assert_eq!(world.move_home(arena, program.range), moved(4, DONE));
    check(program.range, 0);
    // But a page that is in the way stays in the way.
    assert_eq!(world.move_out(program.part(0, 1), arena.take(1)), moved(1, DONE));
    world.untrack(program.range).unwrap();
    write(program.range, 0, 9);
    assert_eq!(
        world.move_out(program.part(0, 1), arena.take(1)),
        moved(0, Some(Stop::Exists))
    );
}
