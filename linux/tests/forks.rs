//! Pages that a forked child shares, and what tells the child from its parent.
//!
//! Apart from the other tests, whose pages a fork would share too.

mod common;

use std::sync::{Mutex, PoisonError};

use common::{Program, check, while_forked};
use isomem_core::world::{Moved, Stop, World};
use isomem_linux::Linux;

static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn copy_on_write_pages_are_busy_until_unshared() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let program = Program::filled(8);
    let world = Linux::open().unwrap();
    let arena = world.reserve_arena(2 << 20).unwrap().take(8);
    while_forked(|| {
        assert_eq!(
            world.move_out(program.range, arena),
            Moved {
                pages: 0,
                stop: Some(Stop::Busy)
            }
        );
        assert_eq!(world.unshare(program.part(0, 5)), Moved { pages: 5, stop: None });
        assert_eq!(
            world.move_out(program.range, arena),
            Moved {
                pages: 5,
                stop: Some(Stop::Busy)
            }
        );
    });
    check(arena.take(5), 0);
    check(program.part(5, 3), 5);
    world.release_arena(arena);
}

#[test]
fn the_child_of_a_fork_is_told_apart() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let world = Linux::open().unwrap();
    assert!(world.is_current());
    // SAFETY: the child only looks at a word and ends.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let code = i32::from(world.is_current());
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(code) };
    }
    let mut status = -1;
    // SAFETY: our child, and room for its status.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child took itself for the parent");
}
