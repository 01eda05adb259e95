//! What the kernel does to a write-protected anonymous page, as read duplication relies on it (MIG-12, DUP-1): it tells of every write, and keeps the
//! mark through whatever happens to the page.

#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "calls on one mapping share one reason"
)]

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use common::{Program, read, write};
use isomem_core::addr::PageRange;
use isomem_core::world::{Access, Moved, World};
use isomem_linux::Linux;
use isomem_linux::sys::uffd::{BATCH, Msg};

/// Serves faults of the program's descriptor: protection goes, and is counted.
struct Server<'a> {
    world: &'a Linux,
    protected: AtomicUsize,
    /// It needs nothing more of the heap, whose lock a fork holds while it waits for this.
    started: AtomicBool,
    stop: AtomicBool,
}

/// Stops the server also where a test fails.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A fork waits for the readers of every descriptor, those of other tests, too.
static ALONE: Mutex<()> = Mutex::new(());

impl Server<'_> {
    fn serve(&self) {
        let mut messages = [const { Msg::Other(0) }; BATCH];
        self.started.store(true, Ordering::SeqCst);
        while !self.stop.load(Ordering::SeqCst) {
            let read = self.world.program().try_read(&mut messages).unwrap();
            for message in &messages[..read] {
                if let Msg::Fault { addr, wp: true, .. } = message {
                    self.protected.fetch_add(1, Ordering::SeqCst);
                    while self.world.write_protect(addr.page(), false).is_err() {}
                }
            }
            std::thread::yield_now();
        }
    }
}

/// Copies a page to the first page of a new area, protected; lets `act` do something with it, and says how many writes were told of meanwhile.
fn told(act: impl FnOnce(&Linux, &Program, PageRange)) -> usize {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // Unmapped last: with the descriptor open that would wait for a reader.
    let program = Program::map(8);
    let world = Linux::open().expect("these tests need userfaultfd: run as root, or set vm.unprivileged_userfaultfd=1");
    let arena = world.reserve_arena(4096 * 8).unwrap();
    let page = program.part(0, 1);
    let all = Moved { pages: 1, stop: None };
    write(page, 0, 7);
    assert_eq!(world.move_out(page, arena.take(1)), all);
    world.track(program.range).unwrap();
    assert_eq!(world.duplicate_home(arena.take(1), page), all);
    assert_eq!(
        read_back(page),
        7,
        "it is there to be read, and reading is told to nobody"
    );
    let server = Server {
        world: &world,
        protected: AtomicUsize::new(0),
        started: AtomicBool::new(false),
        stop: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        scope.spawn(|| server.serve());
        let _stops = Stops(&server.stop);
        while !server.started.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        act(&world, &program, page);
    });
    let told = server.protected.load(Ordering::SeqCst);
    world.release_arena(arena);
    told
}

/// The word that `write` to the arena's page went to is another one, by its address; so all are looked at.
fn read_back(page: PageRange) -> u64 {
    // SAFETY: a mapped page of the test's own.
    let words = unsafe { core::slice::from_raw_parts(page.start() as *const u64, 512) };
    words.iter().copied().max().unwrap()
}

fn at(page: PageRange) -> *mut libc::c_void {
    page.start() as *mut _
}

#[test]
fn dup_1_a_write_is_told_once_by_a_thread_and_by_a_system_call() {
    assert_eq!(told(|_, _, _| {}), 0);
    let by_thread = told(|_, _, page| {
        write(page, 0, 1);
        write(page, 0, 2);
        assert_eq!(read(page, 0), 2);
    });
    assert_eq!(by_thread, 1);
    let by_kernel = told(|_, _, page| {
        let mut pipe = [0; 2];
        // SAFETY: room for two descriptors; the page takes what is read.
        unsafe {
            assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
            assert_eq!(libc::write(pipe[1], c"abc".as_ptr().cast(), 3), 3);
            assert_eq!(libc::read(pipe[0], at(page), 3), 3);
            libc::close(pipe[0]);
            libc::close(pipe[1]);
        }
    });
    assert_eq!(by_kernel, 1);
    // SAFETY: it touches the page as a write does, and changes nothing.
    let populated =
        told(|_, _, page| assert_eq!(unsafe { libc::madvise(at(page), 4096, libc::MADV_POPULATE_WRITE) }, 0));
    assert_eq!(populated, 1);
}

#[test]
fn dup_1_changes_of_protection_and_a_move_of_the_mapping_keep_the_mark() {
    for access in [None, Some(Access::Read)] {
        let after = told(|world, _, page| {
            world.protect(page, access).unwrap();
            world.protect(page, Some(Access::Write)).unwrap();
            assert_eq!(read_back(page), 7);
            write(page, 0, 1);
        });
        assert_eq!(after, 1, "{access:?}");
    }
    let moved = told(|_, program, page| {
        let to = Program::map(1);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        program.give_up(0, 1);
        // SAFETY: pages of the test's own.
        let moved = unsafe { libc::mremap(at(page), 4096, 4096, flags, at(to.range)) };
        assert_eq!(moved, at(to.range));
        assert_eq!(read_back(to.range), 7);
        write(to.range, 0, 1);
    });
    assert_eq!(moved, 1);
}

#[test]
fn dup_1_a_fork_keeps_the_parents_mark() {
    let forked = told(|_, _, page| {
        common::while_forked(|| {
            assert_eq!(read_back(page), 7);
            write(page, 0, 1);
        });
    });
    assert_eq!(forked, 1);
}

#[test]
fn dup_3_what_is_dropped_is_gone_with_its_mark() {
    let dropped = told(|world, _, page| {
        // SAFETY: a page of the test's own.
        assert_eq!(unsafe { libc::madvise(at(page), 4096, libc::MADV_DONTNEED) }, 0);
        while world.fill_zero(page).pages == 0 {}
        write(page, 0, 1);
    });
    assert_eq!(dropped, 0);
}

#[test]
fn dup_1_a_move_out_takes_the_page_without_the_mark() {
    let told = told(|world, _, page| {
        let to = world.reserve_arena(4096).unwrap();
        assert_eq!(world.move_out(page, to.take(1)).pages, 1);
        assert_eq!(read_back(to.take(1)), 7);
        write(to, 0, 1);
        world.release_arena(to);
    });
    assert_eq!(told, 0);
}
