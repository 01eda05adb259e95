//! Makes a system call of the program with devices told before and after.
//!
//! # Invariants
//! - BRK-1: the end of the heap is looked at and moved by one call at a time, so that what a call takes away is known before it is made.
//!
//! # Locking
//! The lock of the heap's end is held across the bracket of a call that moves it. It is outermost.

use std::sync::{Mutex, PoisonError};

use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::mm::{CHANGES_MAX, ChangeError, Changes, Mm};
use isomem_core::notifier::Cause;
use rustix::io::Errno;

use crate::calls::{self, Cut, Effect};
use crate::own::{Change, Ticket};
use crate::sys::call::{Call, make};
use crate::sys::files;
use crate::world::Linux;

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It changes nothing, and was not made.
    Untouched,
    /// It was made and returned this.
    Made(isize),
    /// Devices could not be told, and it was not made.
    Refused(Errno),
}

static HEAP_END: Mutex<()> = Mutex::new(());

/// Makes the call on the calling thread, from isomem's own place.
pub fn make_here(_: &Linux, call: Call) -> isize {
    // SAFETY: the program asked for this very call, and waits for its result.
    unsafe { make(call) }
}

/// Makes `call`, which does `effect`, by `how`, with devices told. Forks are not made here.
///
/// Blocks until devices gave up what changes, and the call returned. Not to be called from a notifier callback.
pub fn perform(
    mm: &Mm<Linux>,
    call: Call,
    effect: Effect,
    how: impl FnOnce(&Linux, Call) -> isize + Send + 'static,
) -> Outcome {
    let changes = match effect {
        Effect::Nothing | Effect::Fork | Effect::ForkIf(_) => return Outcome::Untouched,
        Effect::Changes(changes) => changes,
        Effect::Break(to) => return move_heap_end(mm, call, to, how),
        Effect::Detach(at) => attached(mm.world(), at),
        Effect::Attach { at, id } => replaced(at, id),
        Effect::CutFile(fd, cut) => mapped(mm.world(), files::number_of(fd), cut),
        Effect::CutPath(path, cut) => mapped(mm.world(), files::number_at(path), cut),
    };
    if changes.is_empty() {
        return Outcome::Untouched;
    }
    bracketed(mm, changes, call, how)
}

fn move_heap_end(
    mm: &Mm<Linux>,
    call: Call,
    to: usize,
    how: impl FnOnce(&Linux, Call) -> isize + Send + 'static,
) -> Outcome {
    let _one_at_a_time = HEAP_END.lock().unwrap_or_else(PoisonError::into_inner);
    let now = make_here(mm.world(), Call::new(libc::SYS_brk, [0])).cast_unsigned();
    let (to, now) = (to.div_ceil(PAGE_SIZE), now.div_ceil(PAGE_SIZE));
    match PageRange::from_pages(to, now.saturating_sub(to)) {
        Some(lost) => bracketed(mm, Changes::one(lost, Cause::Unmap), call, how),
        None => Outcome::Made(how(mm.world(), call)),
    }
}

fn bracketed(
    mm: &Mm<Linux>,
    changes: Changes,
    call: Call,
    how: impl FnOnce(&Linux, Call) -> isize + Send + 'static,
) -> Outcome {
    let state = mm.clone();
    let made = mm.bracket(changes, move |world| {
        let mut tickets: [Option<Ticket>; CHANGES_MAX] = [None; CHANGES_MAX];
        // The kernel reports what happens where a page was ever away, and nothing else.
        if state.has_blocks(&changes) {
            for (ticket, change) in tickets.iter_mut().zip(changes.iter()) {
                if calls::moves(&call) {
                    world.join_areas(change.range);
                }
                *ticket = world.announce(Change::Within(change.range));
            }
        }
        let result = how(world, call);
        tickets.into_iter().for_each(|ticket| world.settle(ticket));
        Ok(result)
    });
    match made {
        Ok(result) => Outcome::Made(result),
        Err(ChangeError::World(error)) => Outcome::Refused(Errno::from_raw_os_error(error.errno)),
        // Of the errors that these calls have, it says best that the same may work later.
        Err(_) => Outcome::Refused(Errno::NOMEM),
    }
}

/// The areas that shmdt takes away: those of one shared memory, each as far from `at` as its part is from the beginning.
fn attached(world: &Linux, at: usize) -> Changes {
    let mut file = None;
    areas_of_file(world, |inode, offset, range| {
        let begins = range.start().checked_sub(offset as usize) == Some(at);
        (begins && *file.get_or_insert(inode) == inode).then_some(range)
    })
}

fn replaced(at: usize, id: usize) -> Changes {
    let range = files::shared_memory_bytes(id).and_then(|len| calls::range(at, len));
    range.map_or(Changes::default(), |range| Changes::one(range, Cause::Unmap))
}

/// Where the file's `cut` part is mapped.
fn mapped(world: &Linux, file: Option<u64>, cut: Cut) -> Changes {
    let Some(file) = file else { return Changes::default() };
    areas_of_file(world, |inode, offset, range| {
        if inode != file {
            return None;
        }
        let first = cut.start.saturating_sub(offset).min(range.len_bytes() as u64) as usize / PAGE_SIZE;
        let end = cut.end.saturating_sub(offset).min(range.len_bytes() as u64) as usize;
        let end = end.div_ceil(PAGE_SIZE);
        PageRange::from_pages(range.first_page() + first, end.saturating_sub(first))
    })
}

/// The ranges that `pick` makes of the areas with a file, from its number, the offset and the area.
fn areas_of_file(world: &Linux, mut pick: impl FnMut(u64, u64, PageRange) -> Option<PageRange>) -> Changes {
    let mut changes = Changes::default();
    let looked = world.maps().in_range(PageRange::ALL, &mut |vma| {
        if vma.file
            && let Some(range) = pick(vma.inode, vma.offset, vma.range)
        {
            changes = changes.and(range, Cause::Unmap);
        }
    });
    match looked {
        Ok(()) => changes,
        // Then it may be anywhere.
        Err(_) => Changes::one(PageRange::ALL, Cause::Unmap),
    }
}
