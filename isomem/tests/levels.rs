//! The levels of exactness as processes and threads come and go: children, handles that are dropped while others open, other preloaded objects.
//!
//! A filter cannot be taken away again, so each case runs in a process of its own.

mod apart;

use std::sync::atomic::{AtomicBool, Ordering};

use apart::{MIB, Mapped, apart, config, role, wait_forked};
use isomem::{Exactness, Mm, PAGE_SIZE, Windows};

const EXACT: Exactness = Exactness::Exact(Windows::EVERYWHERE);

fn fork_raw() -> i32 {
    // SAFETY: the children look, and end.
    unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as i32 }
}

fn end(is_well: bool) -> ! {
    // SAFETY: ends the child.
    unsafe { libc::_exit(if is_well { 0 } else { 1 }) }
}

#[test]
fn life_6_a_child_gets_the_level_below_what_the_environment_says_and_is_told_so() {
    apart(
        "life_6_a_child_gets_the_level_below_what_the_environment_says_and_is_told_so",
        || {
            // SAFETY: no other thread of this process looks at the environment.
            unsafe { std::env::set_var("ISOMEM_EXACTNESS", "exact") };
            let mm = Mm::current().unwrap();
            assert_eq!(mm.exactness().name(), "exact");
            // SAFETY: the child is alone, and opens isomem as any process does.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let asked = Mm::builder().exactness(EXACT).open().is_err();
                end(asked && Mm::current().is_ok_and(|mm| mm.exactness().name() == "cooperative"));
            }
            assert!(wait_forked(child).success());
        },
    );
}

/// Opens, moves a page away, and unmaps it by the bare call: devices are told before, each time.
fn open_and_unmap() {
    let mm = Mm::builder().exactness(EXACT).open().unwrap();
    let device = mm.soft_device(config()).unwrap();
    let mirror = device.mirror().unwrap();
    let memory = Mapped::numbered(MIB / 4);
    let sent = mirror.migrate_to_device(memory.range()).unwrap();
    assert_eq!(sent.skipped, 0);
    memory.check();
    let late = mm.stats().late_unmapped;
    // SAFETY: the test's own memory.
    let unmapped = unsafe { libc::syscall(libc::SYS_munmap, memory.start, PAGE_SIZE) };
    assert_eq!((unmapped, mm.stats().late_unmapped), (0, late));
    core::mem::forget(memory);
    drop(mirror);
    // Dropped with the last handle, too; but others may have handles for a long time.
    device.unregister().unwrap();
}

#[test]
fn wld_2_who_opens_while_the_last_handle_goes_has_the_level_for_good() {
    apart(
        "wld_2_who_opens_while_the_last_handle_goes_has_the_level_for_good",
        || {
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| (0..60).for_each(|_| open_and_unmap()));
                }
            });
        },
    );
}

#[test]
#[ignore = "open: the child hung once; see docs/testing.md"]
fn life_6_a_child_opens_whatever_the_parents_threads_were_at() {
    apart("life_6_a_child_opens_whatever_the_parents_threads_were_at", || {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    drop(Mm::builder().exactness(Exactness::Cooperative).open().unwrap());
                }
            });
            for _ in 0..60 {
                let child = fork_raw();
                if child == 0 {
                    end(Mm::current().is_ok());
                }
                assert!(wait_forked(child).success());
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
}

/// Counts what comes by, and passes it on.
const COUNTING: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
int unmappings;
int munmap(void *at, size_t len)
{
    int (*next)(void *, size_t) = (int (*)(void *, size_t))dlsym(RTLD_NEXT, "munmap");
    __atomic_add_fetch(&unmappings, 1, __ATOMIC_SEQ_CST);
    return next(at, len);
}
"#;

fn unmappings() -> i32 {
    // SAFETY: the name is a C string.
    let counter = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"unmappings".as_ptr()) };
    assert!(!counter.is_null());
    // SAFETY: it is that variable, which others change by atomic operations only.
    unsafe { core::sync::atomic::AtomicI32::from_ptr(counter.cast()) }.load(Ordering::SeqCst)
}

#[test]
fn wld_2_other_preloaded_objects_see_the_calls_too() {
    if role().is_some() {
        let mm = Mm::builder().exactness(Exactness::Interposed).open().unwrap();
        let memory = Mapped::numbered(MIB);
        let (seen, announced) = (unmappings(), mm.stats().changes_announced);
        // SAFETY: the test's own memory.
        assert_eq!(unsafe { libc::munmap(memory.start as *mut _, PAGE_SIZE) }, 0);
        assert_eq!((unmappings(), mm.stats().changes_announced), (seen + 1, announced + 1));
        // SAFETY: refused by the kernel.
        assert_eq!(unsafe { libc::munmap((memory.start + 1) as *mut _, PAGE_SIZE) }, -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EINVAL));
        return core::mem::forget(memory);
    }
    let this = std::env::current_exe().unwrap();
    let object = this.ancestors().nth(2).unwrap().join("libisomem_preload.so");
    if !object.exists() {
        return eprintln!("skipped: `cargo build -p isomem-preload` makes {}", object.display());
    }
    let folder = tempfile::tempdir().unwrap();
    let (source, other) = (folder.path().join("counting.c"), folder.path().join("counting.so"));
    std::fs::write(&source, COUNTING).unwrap();
    let compiled = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&other, &source])
        .status();
    if !compiled.is_ok_and(|status| status.success()) {
        return eprintln!("skipped: there is no C compiler `cc`");
    }
    // Before ours and after it.
    for preload in [[&object, &other], [&other, &object]] {
        let preload = preload.map(|path| path.to_str().unwrap()).join(":");
        let again = std::process::Command::new(&this)
            .args([
                "wld_2_other_preloaded_objects_see_the_calls_too",
                "--exact",
                "--nocapture",
            ])
            .env("ISOMEM_TEST_APART", "body")
            .env("LD_PRELOAD", preload)
            .spawn();
        let status = apart::wait(again.unwrap(), std::time::Duration::from_secs(60));
        assert!(status.success(), "{status}");
    }
}
