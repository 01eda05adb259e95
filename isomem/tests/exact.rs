//! The exact level on the live process: every system call that changes what is mapped is held until devices were told (WLD-2).
//!
//! A filter cannot be taken away again, so each case runs in a process of its own.

mod apart;
mod torture;

use apart::{MIB, Mapped, apart, config, device_sum, number, pages_on_device, role, run_again, wait_forked};
use isomem::{Exactness, Mirror, Mm, PAGE_SIZE, PageRange, SoftDevice, Windows};

fn open(level: Exactness) -> (Mm, SoftDevice, Mirror) {
    let mm = Mm::builder().exactness(level).open().expect("these tests need root");
    let device = mm.soft_device(config()).unwrap();
    let mirror = device.mirror().unwrap();
    (mm, device, mirror)
}

const EVERYWHERE: Exactness = Exactness::Exact(Windows::EVERYWHERE);

/// A call as the bare instruction makes it, past the C library.
fn raw<const N: usize>(number: libc::c_long, args: [usize; N]) -> isize {
    let mut all = [0; 6];
    all[..N].copy_from_slice(&args);
    let [a, b, c, d, e, f] = all;
    // SAFETY: the tests name memory of their own.
    unsafe { libc::syscall(number, a, b, c, d, e, f) as isize }
}

fn late(mm: &Mm) -> u64 {
    let stats = mm.stats();
    stats.late_removed + stats.late_unmapped + stats.late_remapped + stats.late_forked
}

/// What a device reads of a word there.
fn device_word(mirror: &Mirror, addr: usize) -> Option<u64> {
    // SAFETY: a word that is there may be read.
    let kernel = |worker: &mut isomem::Worker<'_>| unsafe { worker.peek(addr as *const u64) };
    // SAFETY: as above.
    let read = unsafe { mirror.launch_raw(kernel) };
    read.ok().map(|words| words[0])
}

#[test]
fn wld_2_a_raw_unmapping_is_told_before_it_is_made() {
    apart("wld_2_a_raw_unmapping_is_told_before_it_is_made", || {
        let (mm, _device, mirror) = open(EVERYWHERE);
        assert_eq!(mm.exactness().name(), "exact");
        let memory = Mapped::numbered(4 * MIB);
        mirror.migrate_to_device(memory.range()).unwrap();
        assert!(pages_on_device(&mirror, memory.range()) > 500);
        assert_eq!(device_word(&mirror, memory.start + 8), Some(number(1)));
        let announced = mm.stats().changes_announced;
        let half = memory.pages(0, 512);
        assert_eq!(raw(libc::SYS_munmap, [half.start(), half.len_bytes()]), 0);
        assert_eq!(mm.stats().changes_announced, announced + 1);
        assert_eq!(device_word(&mirror, memory.start), None);
        assert_eq!(device_word(&mirror, half.end()), Some(number(half.len_bytes() / 8)));
        assert_eq!(late(&mm), 0, "{:?}", mm.stats());
        core::mem::forget(memory);
    });
}

#[test]
fn wld_2_what_no_event_reports_is_told_too() {
    apart("wld_2_what_no_event_reports_is_told_too", || {
        let (mm, _device, mirror) = open(EVERYWHERE);
        let memory = Mapped::numbered(MIB);
        mirror.migrate_to_device(memory.range()).unwrap();
        assert_eq!(
            raw(libc::SYS_mprotect, [memory.start, MIB, libc::PROT_NONE as usize]),
            0
        );
        assert_eq!(device_word(&mirror, memory.start), None);
        let both = (libc::PROT_READ | libc::PROT_WRITE) as usize;
        assert_eq!(raw(libc::SYS_mprotect, [memory.start, MIB, both]), 0);
        assert_eq!(device_word(&mirror, memory.start + 8), Some(number(1)));
        memory.check();
        assert_eq!(late(&mm), 0);
    });
}

#[test]
fn wld_2_a_file_that_is_cut_is_told() {
    apart("wld_2_a_file_that_is_cut_is_told", || {
        let (mm, _device, mirror) = open(EVERYWHERE);
        // SAFETY: a new file without a name.
        let fd = unsafe { libc::memfd_create(c"cut".as_ptr(), 0) };
        assert_eq!(raw(libc::SYS_ftruncate, [fd as usize, MIB]), 0);
        let mut memory = Mapped::with(MIB, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd);
        memory.number();
        assert_eq!(device_sum(&mirror, memory.words()), memory.words().iter().sum::<u64>());
        let announced = mm.stats().changes_announced;
        assert_eq!(raw(libc::SYS_ftruncate, [fd as usize, MIB / 2]), 0);
        assert_eq!(mm.stats().changes_announced, announced + 1);
        assert_eq!(device_word(&mirror, memory.start + 8), Some(number(1)));
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        assert_eq!(raw(libc::SYS_fallocate, [fd as usize, punch as usize, 0, PAGE_SIZE]), 0);
        assert_eq!(mm.stats().changes_announced, announced + 2);
        assert_eq!(device_word(&mirror, memory.start + 8), Some(0));
    });
}

#[test]
fn wld_2_every_kind_of_call_returns_what_the_kernel_returns() {
    apart("wld_2_every_kind_of_call_returns_what_the_kernel_returns", || {
        let (mm, _device, mirror) = open(EVERYWHERE);
        let memory = Mapped::numbered(2 * MIB);
        let to = Mapped::numbered(2 * MIB);
        let errno = |made: isize| (made, std::io::Error::last_os_error().raw_os_error().unwrap());
        assert_eq!(
            errno(raw(libc::SYS_munmap, [memory.start + 1, 4096])),
            (-1, libc::EINVAL)
        );
        assert_eq!(
            errno(raw(
                libc::SYS_mremap,
                [memory.start, 4096, 4096, libc::MREMAP_FIXED as usize, 1]
            )),
            (-1, libc::EINVAL)
        );
        mirror.migrate_to_device(memory.range()).unwrap();
        mirror.migrate_to_device(to.range()).unwrap();
        let moved = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as usize;
        let at = raw(libc::SYS_mremap, [memory.start, MIB, MIB, moved, to.start]);
        assert_eq!(at as usize, to.start);
        assert_eq!(device_word(&mirror, to.start + 8), Some(number(1)));
        assert_eq!(device_word(&mirror, memory.start), None);
        assert_eq!(device_word(&mirror, to.start + MIB), Some(number(MIB / 8)));
        mirror.migrate_to_device(to.range()).unwrap();
        let drop = raw(libc::SYS_madvise, [to.start, MIB, libc::MADV_DONTNEED as usize]);
        assert_eq!((drop, device_word(&mirror, to.start + 8)), (0, Some(0)));
        let fixed = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        mirror.migrate_to_device(to.range()).unwrap();
        let over = raw(libc::SYS_mmap, [to.start + MIB, MIB, 3, fixed as usize, usize::MAX, 0]);
        assert_eq!(over as usize, to.start + MIB);
        assert_eq!(device_word(&mirror, to.start + MIB), Some(0));
        // SAFETY: nobody else moves the end of the heap.
        let top = unsafe { libc::sbrk(0) }.addr();
        let grown = raw(libc::SYS_brk, [top + MIB]) as usize;
        assert_eq!(grown, top + MIB);
        assert_eq!(raw(libc::SYS_brk, [top]) as usize, top);
        assert_eq!(late(&mm), 0, "{:?}", mm.stats());
        core::mem::forget(memory);
    });
}

#[test]
fn inv_5_calls_outside_the_windows_are_not_held() {
    apart("inv_5_calls_outside_the_windows_are_not_held", || {
        let window = Mapped::numbered(2 * MIB);
        let windows = Windows::only(&[window.range()]).unwrap();
        let (mm, _device, mirror) = open(Exactness::Exact(windows));
        let outside = Mapped::numbered(2 * MIB);
        let announced = mm.stats().changes_announced;
        assert_eq!(
            raw(libc::SYS_madvise, [outside.start, MIB, libc::MADV_DONTNEED as usize]),
            0
        );
        assert_eq!(mm.stats().changes_announced, announced);
        mirror.migrate_to_device(window.range()).unwrap();
        let both = PageRange::new(window.start + MIB, PAGE_SIZE).unwrap();
        assert_eq!(raw(libc::SYS_munmap, [both.start(), both.len_bytes()]), 0);
        assert_eq!(mm.stats().changes_announced, announced + 1);
        assert_eq!(late(&mm), 0);
        core::mem::forget(window);
    });
}

#[test]
fn mig_4_a_raw_fork_finds_everything_at_home() {
    apart("mig_4_a_raw_fork_finds_everything_at_home", || {
        let (mm, _device, mirror) = open(EVERYWHERE);
        let memory = Mapped::numbered(4 * MIB);
        for round in 0..8 {
            mirror.migrate_to_device(memory.range()).unwrap();
            let child = match round % 4 {
                // SAFETY: the child only looks, and ends.
                0 => unsafe { libc::fork() },
                1 => raw(libc::SYS_fork, []) as i32,
                2 => raw(libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0, 0, 0]) as i32,
                _ => {
                    let mut args = [0_u64; 8];
                    args[4] = libc::SIGCHLD as u64;
                    raw(
                        libc::SYS_clone3,
                        [args.as_ptr().expose_provenance(), size_of_val(&args)],
                    ) as i32
                }
            };
            if child == 0 {
                let words = memory.words();
                let whole = (0..words.len()).all(|index| words[index] == number(index));
                // The child's own calls are let go on.
                let unmapped = raw(libc::SYS_munmap, [memory.start, PAGE_SIZE]) == 0;
                // SAFETY: ends the child.
                unsafe { libc::_exit(if whole && unmapped { 0 } else { 1 }) };
            }
            assert!(child > 0);
            assert!(wait_forked(child).success());
        }
        memory.check();
        assert_eq!(late(&mm), 0, "{:?}", mm.stats());
    });
}

#[test]
fn mig_4_a_fork_that_fails_does_not_keep_pages_at_home() {
    apart("mig_4_a_fork_that_fails_does_not_keep_pages_at_home", || {
        let (mm, _device, mirror) = open(EVERYWHERE);
        let memory = Mapped::numbered(MIB);
        // A child cannot have a thread of its own without the memory: refused before anything is copied.
        let flags = libc::CLONE_THREAD as usize;
        assert_eq!(raw(libc::SYS_clone, [flags, 0, 0, 0, 0]), -1);
        let sent = mirror.migrate_to_device(memory.range()).unwrap();
        assert_eq!(sent.skipped, 0);
        memory.check();
        assert_eq!(late(&mm), 0, "{:?}", mm.stats());
    });
}

#[test]
fn life_6_commands_run_and_a_child_opens_its_own() {
    apart("life_6_commands_run_and_a_child_opens_its_own", || {
        let (mm, _device, _mirror) = open(EVERYWHERE);
        let status = std::process::Command::new("/bin/sh")
            .args(["-c", "ls / >/dev/null; true"])
            .status();
        assert!(status.unwrap().success());
        // SAFETY: the child is alone, and opens isomem as any process does.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let refused = Mm::builder().exactness(EVERYWHERE).open().is_err();
            let own = Mm::builder().exactness(Exactness::Cooperative).open().is_ok();
            // SAFETY: ends the child.
            unsafe { libc::_exit(if refused && own { 0 } else { 1 }) };
        }
        assert!(wait_forked(child).success());
        assert_eq!(late(&mm), 0, "{:?}", mm.stats());
    });
}

#[test]
fn wld_2_threads_that_are_there_already_are_held_too() {
    apart("wld_2_threads_that_are_there_already_are_held_too", || {
        let (go, wait) = std::sync::mpsc::channel::<usize>();
        let (done, ended) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            for start in wait {
                assert_eq!(raw(libc::SYS_munmap, [start, PAGE_SIZE]), 0);
                done.send(()).unwrap();
            }
        });
        let (mm, _device, mirror) = open(EVERYWHERE);
        let memory = Mapped::numbered(MIB);
        mirror.migrate_to_device(memory.range()).unwrap();
        let announced = mm.stats().changes_announced;
        go.send(memory.start).unwrap();
        ended.recv().unwrap();
        assert!(mm.stats().changes_announced > announced);
        assert_eq!(late(&mm), 0, "{:?}", mm.stats());
        drop(go);
        thread.join().unwrap();
        core::mem::forget(memory);
    });
}

#[test]
fn wld_2_after_closing_calls_go_on_and_it_can_be_opened_again() {
    apart("wld_2_after_closing_calls_go_on_and_it_can_be_opened_again", || {
        for _ in 0..3 {
            let (mm, device, mirror) = open(EVERYWHERE);
            let memory = Mapped::numbered(MIB);
            mirror.migrate_to_device(memory.range()).unwrap();
            memory.check();
            drop((mirror, device, mm));
            assert_eq!(raw(libc::SYS_munmap, [memory.start, PAGE_SIZE]), 0);
            core::mem::forget(memory);
        }
        let narrow = Windows::only(&[PageRange::new(1 << 40, MIB).unwrap()]).unwrap();
        assert!(Mm::builder().exactness(Exactness::Exact(narrow)).open().is_ok());
    });
}

/// Waits for what a process that nobody can wait for leaves.
fn read_when_there(path: &std::path::Path) -> String {
    let began = std::time::Instant::now();
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) if !text.is_empty() => return text,
            _ => assert!(began.elapsed().as_secs() < 20, "nothing came"),
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn life_6_a_child_that_outlives_its_parent_goes_on() {
    let test = "life_6_a_child_that_outlives_its_parent_goes_on";
    let Some(path) = role() else {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("left");
        assert!(run_again(test, path.to_str().unwrap()).success());
        return assert_eq!(read_when_there(&path), "well");
    };
    let (mm, _device, mirror) = open(EVERYWHERE);
    let memory = Mapped::numbered(MIB);
    mirror.migrate_to_device(memory.range()).unwrap();
    let parent = std::process::id();
    // SAFETY: the child is alone, and goes on as any process does.
    if unsafe { libc::fork() } == 0 {
        // SAFETY: a plain system call.
        while unsafe { libc::getppid() } as u32 == parent {
            // Many calls, so that one of them is under way when the parent ends.
            drop(Mapped::numbered(MIB / 4));
        }
        let kept = memory.words()[1] == number(1);
        let ran = std::process::Command::new("/bin/sh")
            .args(["-c", "ls / >/dev/null"])
            .status();
        let well = kept && raw(libc::SYS_munmap, [memory.start, MIB]) == 0 && ran.is_ok_and(|ran| ran.success());
        std::fs::write(path, if well { "well" } else { "ill" }).unwrap();
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    std::thread::sleep(std::time::Duration::from_millis(20));
    drop(mm);
    // SAFETY: ends this process at once, with everything open.
    unsafe { libc::_exit(0) };
}

#[test]
fn life_6_a_process_that_executes_another_program_goes_on() {
    use std::os::unix::process::CommandExt;
    let test = "life_6_a_process_that_executes_another_program_goes_on";
    if role().is_none() {
        return assert_eq!(run_again(test, "body").code(), Some(7));
    }
    let (_mm, _device, mirror) = open(EVERYWHERE);
    let memory = Mapped::numbered(MIB);
    mirror.migrate_to_device(memory.range()).unwrap();
    panic!(
        "{}",
        std::process::Command::new("/bin/sh")
            .args(["-c", "ls / >/dev/null; exit 7"])
            .exec()
    );
}

#[test]
fn wld_2_the_warden_is_no_child_of_the_program() {
    apart("wld_2_the_warden_is_no_child_of_the_program", || {
        let (_mm, _device, _mirror) = open(EVERYWHERE);
        assert_eq!(isomem::has_warden(), Some(true));
        // SAFETY: asks for any child's end.
        assert_eq!(unsafe { libc::waitpid(-1, core::ptr::null_mut(), libc::__WALL) }, -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ECHILD));
    });
}

#[test]
fn wld_2_under_torture_no_access_is_stale_and_nothing_slips_past() {
    apart("wld_2_under_torture_no_access_is_stale_and_nothing_slips_past", || {
        let report = torture::torture(EVERYWHERE, torture::ALL_DEEDS, 10.0, 3, 1);
        assert_eq!((report.stale, report.lost, report.late), (0, 0, 0), "{report:#?}");
        assert!(report.changes > 0 && report.sure_reads > 0, "{report:#?}");
    });
}

#[test]
fn wld_2_at_the_cooperative_level_what_slips_past_is_counted() {
    apart("wld_2_at_the_cooperative_level_what_slips_past_is_counted", || {
        let report = torture::torture(Exactness::Cooperative, torture::LATE_DEEDS, 2.0, 3, 1);
        assert!(report.late > 0, "{report:#?}");
    });
}

#[test]
fn wld_2_at_the_interposed_level_libcs_functions_are_told() {
    let test = "wld_2_at_the_interposed_level_libcs_functions_are_told";
    if role().is_none() {
        let this = std::env::current_exe().unwrap();
        let object = this.ancestors().nth(2).unwrap().join("libisomem_preload.so");
        if !object.exists() {
            return eprintln!(
                "skipped: {} is not built; `cargo build -p isomem-preload` makes it",
                object.display()
            );
        }
        let again = std::process::Command::new(this)
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env("ISOMEM_TEST_APART", "body")
            .env("LD_PRELOAD", object)
            .spawn();
        let status = apart::wait(again.unwrap(), std::time::Duration::from_secs(60));
        return assert!(status.success(), "{status}");
    }
    let (mm, _device, mirror) = open(Exactness::Interposed);
    let memory = Mapped::numbered(MIB);
    mirror.migrate_to_device(memory.range()).unwrap();
    let announced = mm.stats().changes_announced;
    // SAFETY: the test's own memory.
    let forbidden = unsafe { libc::mprotect(memory.start as *mut _, PAGE_SIZE, libc::PROT_NONE) };
    assert_eq!(forbidden, 0);
    assert_eq!(device_word(&mirror, memory.start), None);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::munmap(memory.start as *mut _, MIB / 2) }, 0);
    assert_eq!(mm.stats().changes_announced, announced + 2);
    assert_eq!(device_word(&mirror, memory.start + MIB / 2), Some(number(MIB / 16)));
    // SAFETY: nobody else moves the end of the heap.
    let top = unsafe { libc::sbrk(MIB as isize) }.addr();
    // SAFETY: as above.
    assert_eq!(unsafe { libc::sbrk(-(MIB as isize)) }.addr(), top + MIB);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::sbrk(0) }.addr(), top);
    assert_eq!(late(&mm), 0, "{:?}", mm.stats());
    core::mem::forget(memory);
}
