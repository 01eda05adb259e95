//! Input that is wrong, too much, or unusual: a clear error or the right result, and never a hang, a crash or a lost byte.

#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "a raw launch and the accesses in its kernel share one reason"
)]

mod apart;

use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use apart::{MIB, Mapped, apart, config, device_sum, open, pages_on_device};
use isomem::{
    Access, DeviceFault, FaultError, LaunchError, Mirror, Mm, OpenError, PAGE_SIZE, PageRange, Placement, RangeError,
    SkipReason, SoftConfig, SoftError, VerbError,
};
use isomem_core::mm::{ChangeError, RegisterError};

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn with(test: &str, body: impl FnOnce(&Mm, &Mirror)) {
    apart(test, || {
        let (mm, device, mirror) = open(config());
        body(&mm, &mirror);
        mirror.unregister();
        device.unregister().unwrap();
    });
}

#[test]
fn ranges_that_are_none_are_refused_by_their_constructor() {
    let page = PAGE_SIZE;
    for (start, len) in [
        (0x10000, 0),
        (0x10001, page),
        (0x10000, page + 1),
        (usize::MAX - page + 1, page),
        (usize::MAX - page + 1, 2 * page),
        (0xffff_8000_0000_0000, page),
        (1 << 47, page),
        ((1 << 47) - page, 2 * page),
        (0x10000, usize::MAX - page + 1),
    ] {
        let error: RangeError = PageRange::new(start, len).unwrap_err();
        assert!(error.to_string().len() > 10, "{error}");
    }
    assert!(PageRange::covering(usize::MAX - 10, 100).is_err());
    assert!(PageRange::covering(0x10000, 0).is_err());
}

#[test]
fn verbs_on_empty_slices_are_refused_and_launches_are_not() {
    with("verbs_on_empty_slices_are_refused_and_launches_are_not", |_, mirror| {
        let none: [u64; 0] = [];
        assert!(matches!(mirror.prefetch(&none).unwrap_err(), VerbError::Range(_)));
        assert!(matches!(mirror.bring_home(&none).unwrap_err(), VerbError::Range(_)));
        assert!(matches!(
            mirror.discard(&mut [0u64; 0]).unwrap_err(),
            VerbError::Range(_)
        ));
        let units = [(); 9];
        assert!(matches!(mirror.prefetch(&units).unwrap_err(), VerbError::Range(_)));
        let lens = mirror.launch((&none[..], &mut [0u8; 0][..]), |_, (shared, part)| {
            Ok((shared.len(), part.len()))
        });
        assert_eq!(lens.unwrap(), [(0, 0), (0, 0)]);
    });
}

#[test]
fn holes_are_told_by_the_first_address_and_skipped_by_migrations() {
    with(
        "holes_are_told_by_the_first_address_and_skipped_by_migrations",
        |mm, mirror| {
            let memory = Mapped::numbered(32 * PAGE_SIZE);
            let hole = memory.pages(10, 3);
            // SAFETY: nobody uses these pages any more.
            unsafe { mm.unmap(hole) }.unwrap();
            let error = mirror.fault(memory.range(), Access::Read).unwrap_err();
            assert!(
                matches!(error, FaultError::Hole { addr } if addr.get() == hole.start()),
                "{error}"
            );
            let report = mirror.migrate_to_device(memory.range()).unwrap();
            assert_eq!((report.migrated(), report.skipped), (29, 3));
            assert_eq!(report.skips(), [(hole, SkipReason::Hole)]);
            assert_eq!(mirror.migrate_home(memory.range()).unwrap().migrated(), 29);
            let far = PageRange::new(0x10000, PAGE_SIZE).unwrap();
            let report = mirror.migrate_to_device(far).unwrap();
            assert_eq!(report.skips(), [(far, SkipReason::Hole)]);
            assert_eq!(mirror.migrate_home(far).unwrap().migrated(), 0);
            // SAFETY: there is nothing there.
            let failed = unsafe { mm.protect(far, Some(Access::Read)) }.unwrap_err();
            assert!(
                matches!(failed, ChangeError::World(error) if error.errno == libc::ENOMEM),
                "{failed}"
            );
            // SAFETY: the device may find nothing there.
            let failed = unsafe { mirror.launch_raw(|worker| worker.peek(0x10000 as *const u64)) };
            assert!(matches!(failed.unwrap_err().fault(), Some(DeviceFault::Hole { .. })));
        },
    );
}

#[test]
fn the_whole_address_space_may_be_named() {
    with("the_whole_address_space_may_be_named", |_, mirror| {
        let memory = Mapped::numbered(MIB);
        assert_eq!(mirror.prefetch(memory.words()).unwrap().migrated(), 256);
        assert!(mirror.migrate_home(PageRange::ALL).unwrap().migrated() >= 256);
        memory.check();
    });
}

#[test]
fn memory_without_access_stays_and_is_told() {
    with("memory_without_access_stays_and_is_told", |mm, mirror| {
        let memory = Mapped::numbered(16 * PAGE_SIZE);
        let closed = memory.pages(4, 4);
        mirror.prefetch(memory.words()).unwrap();
        // SAFETY: nobody touches these pages until they are opened again.
        unsafe { mm.protect(closed, None) }.unwrap();
        let error = mirror.fault(memory.range(), Access::Read).unwrap_err();
        assert!(
            matches!(error, FaultError::NoAccess { addr } if addr.get() == closed.start()),
            "{error}"
        );
        let report = mirror.migrate_to_device(memory.range()).unwrap();
        assert_eq!(report.skips(), [(closed, SkipReason::NoAccess)]);
        let failed = mirror.launch(memory.words(), |worker, words| words.get(worker, 4 * PAGE_SIZE / 8));
        let fault = failed.unwrap_err().fault();
        assert!(matches!(fault, Some(DeviceFault::NoAccess { addr }) if addr.get() == closed.start()));
        // SAFETY: gives the access back.
        unsafe { mm.protect(closed, Some(Access::Write)) }.unwrap();
        memory.check();
    });
}

#[test]
fn device_memory_of_nothing_or_of_more_than_there_is_is_refused() {
    apart("device_memory_of_nothing_or_of_more_than_there_is_is_refused", || {
        let mm = Mm::current().unwrap();
        let of = |memory_bytes| SoftConfig {
            memory_bytes,
            ..config()
        };
        for few in [0, 1, PAGE_SIZE - 1] {
            let error = mm.soft_device(of(few)).unwrap_err();
            assert_eq!(error, SoftError::Register(RegisterError::NoMemory(few)));
        }
        for many in [1 << 46, usize::MAX] {
            let error = mm.soft_device(of(many)).unwrap_err();
            assert!(matches!(error, SoftError::Register(RegisterError::TooMuch { asked, .. }) if asked == many));
        }
        for workers in [0, 65, 1000, usize::MAX] {
            let error = mm.soft_device(SoftConfig { workers, ..config() }).unwrap_err();
            assert_eq!(error, SoftError::Workers(workers));
            assert!(error.to_string().contains("from 1 to 64"), "{error}");
        }
    });
}

#[test]
fn a_device_of_a_single_page_works() {
    apart("a_device_of_a_single_page_works", || {
        for memory_bytes in [PAGE_SIZE, PAGE_SIZE + 1, 3 * PAGE_SIZE, 2 * MIB - 1] {
            let (_mm, device, mirror) = open(SoftConfig {
                memory_bytes,
                ..config()
            });
            assert_eq!(device.memory_pages(), (0, memory_bytes / PAGE_SIZE));
            let memory = Mapped::numbered(MIB);
            assert_eq!(device_sum(&mirror, memory.words()), memory.words().iter().sum());
            let report = mirror.prefetch(memory.words()).unwrap();
            assert!(device.memory_pages().0 <= memory_bytes / PAGE_SIZE, "{report:?}");
            memory.check();
            mirror.unregister();
            device.unregister().unwrap();
        }
    });
}

#[test]
fn mig_8_without_budget_pages_stay_and_results_are_right() {
    apart("mig_8_without_budget_pages_stay_and_results_are_right", || {
        for (budget, most) in [(0, 0), (1, 0), (7 * PAGE_SIZE, 7), (100 * PAGE_SIZE, 100)] {
            let (_mm, device, mirror) = open(SoftConfig {
                mirror_budget_bytes: Some(budget),
                ..config()
            });
            let mut memory = Mapped::numbered(MIB);
            let report = mirror.prefetch(memory.words()).unwrap();
            assert_eq!((report.migrated(), report.skipped), (most, 256 - most), "{report:?}");
            assert!(
                report
                    .skips()
                    .iter()
                    .all(|(_, reason)| *reason == SkipReason::NoDeviceMemory)
            );
            assert_eq!(device_sum(&mirror, memory.words()), memory.words().iter().sum());
            assert!(device.memory_pages().0 <= most);
            mirror
                .launch(memory.words_mut(), |worker, mut part| {
                    part.for_chunks_mut(worker, 0..part.len(), |_, piece| {
                        piece.iter_mut().for_each(|word| *word += 1);
                    })
                })
                .unwrap();
            assert!(
                memory
                    .words()
                    .iter()
                    .enumerate()
                    .all(|(at, word)| *word == apart::number(at) + 1)
            );
            mirror.unregister();
            device.unregister().unwrap();
        }
    });
}

#[test]
fn a_files_mapping_is_used_in_place() {
    with("a_files_mapping_is_used_in_place", |_, mirror| {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..MIB as u64 / 8).flat_map(|at| (at * 5).to_ne_bytes()).collect();
        file.write_all(&bytes).unwrap();
        for sharing in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
            let mut memory = Mapped::with(MIB, READ_WRITE, sharing, file.as_raw_fd());
            let report = mirror.prefetch(memory.words()).unwrap();
            assert_eq!((report.migrated(), report.skipped), (0, 256), "{report:?}");
            assert_eq!(report.skips(), [(memory.range(), SkipReason::NotAnonymous)]);
            assert_eq!(
                device_sum(mirror, memory.words()),
                (0..MIB as u64 / 8).map(|at| at * 5).sum()
            );
            mirror
                .launch(&mut memory.words_mut()[..10], |worker, mut part| {
                    part.for_chunks_mut(worker, 0..part.len(), |_, piece| piece.fill(1))
                })
                .unwrap();
            assert_eq!(memory.words()[..11].iter().sum::<u64>(), 10 + 50);
            memory.words_mut()[..10]
                .iter_mut()
                .enumerate()
                .for_each(|(at, word)| *word = at as u64 * 5);
        }
    });
}

#[test]
fn a_file_that_ends_before_its_mapping_is_a_fault_and_no_signal() {
    with(
        "a_file_that_ends_before_its_mapping_is_a_fault_and_no_signal",
        |_, mirror| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(PAGE_SIZE as u64).unwrap();
            let memory = Mapped::with(4 * PAGE_SIZE, READ_WRITE, libc::MAP_SHARED, file.as_raw_fd());
            let at = memory.start + 2 * PAGE_SIZE;
            // SAFETY: the device may find nothing there.
            let failed = unsafe { mirror.launch_raw(|worker| worker.peek(at as *const u64)) };
            let error = failed.unwrap_err();
            assert!(error.fault().is_some(), "{error}");
        },
    );
}

static COUNTER: AtomicU64 = AtomicU64::new(5);
static TABLE: [u32; 5000] = [7; 5000];

#[test]
fn the_stack_and_statics_are_memory_like_any_other() {
    with("the_stack_and_statics_are_memory_like_any_other", |_, mirror| {
        let mut on_stack = [3u64; 4000];
        let given = (&mut on_stack[..], core::slice::from_ref(&COUNTER), &TABLE[..]);
        mirror
            .launch(given, |worker, (mut part, counter, table)| {
                for at in 0..part.len() {
                    let more = table.get(worker, at)?;
                    let old = part.get(worker, at)?;
                    part.set(worker, at, old + u64::from(more))?;
                }
                counter.fetch_add(worker, 0, 1)
            })
            .unwrap();
        assert!(on_stack.iter().all(|word| *word == 10));
        assert_eq!(COUNTER.load(Ordering::Relaxed), 7);
        let report = mirror.prefetch(&TABLE[..]).unwrap();
        assert_eq!(report.migrated(), 0, "a program's own data stays: {report:?}");
        mirror.prefetch(&on_stack[..]).unwrap();
        assert!(on_stack.iter().all(|word| *word == 10));
    });
}

#[test]
fn remap_of_other_lengths_or_onto_itself_is_refused_and_changes_nothing() {
    with(
        "remap_of_other_lengths_or_onto_itself_is_refused_and_changes_nothing",
        |mm, mirror| {
            let memory = Mapped::numbered(32 * PAGE_SIZE);
            mirror.prefetch(memory.words()).unwrap();
            for (from, to) in [
                (memory.pages(0, 4), memory.pages(8, 5)),
                (memory.pages(0, 5), memory.pages(8, 4)),
                (memory.pages(0, 8), memory.pages(4, 8)),
                (memory.pages(4, 8), memory.pages(0, 8)),
                (memory.pages(3, 3), memory.pages(3, 3)),
            ] {
                // SAFETY: refused before anything happens.
                let error = unsafe { mm.remap(from, to) }.unwrap_err();
                assert_eq!(error, ChangeError::BadRemap { from, to });
            }
            assert_eq!(pages_on_device(mirror, memory.range()), 32);
            memory.check();
            // SAFETY: the second half is given up, the first one moves there.
            unsafe { mm.remap(memory.pages(0, 16), memory.pages(16, 16)) }.unwrap();
            let half = memory.words().len() / 2;
            assert!(
                memory.words()[half..]
                    .iter()
                    .enumerate()
                    .all(|(at, word)| *word == apart::number(at))
            );
            let hole = PageRange::new(memory.start, PAGE_SIZE).unwrap();
            // SAFETY: there is nothing to move.
            let error = unsafe { mm.remap(hole, memory.pages(20, 1)) }.unwrap_err();
            assert!(error.to_string().contains("mremap failed on"), "{error}");
        },
    );
}

#[test]
fn a_mirror_of_another_process_or_of_a_dead_device_is_refused() {
    apart("a_mirror_of_another_process_or_of_a_dead_device_is_refused", || {
        let (_mm, device, mirror) = open(config());
        let memory = Mapped::numbered(MIB);
        mirror.prefetch(memory.words()).unwrap();
        // SAFETY: the child makes a few calls and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let refused = mirror.prefetch(memory.words()).unwrap_err();
            let clear = refused.to_string().contains("after a fork the child opens its own");
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(if clear { 0 } else { 1 }) };
        }
        assert!(apart::wait_forked(child).success());
        device.fail();
        let refused = mirror.prefetch(memory.words()).unwrap_err();
        assert_eq!(refused.to_string(), "the mirror was released");
        let refused = mirror.launch(memory.words(), |worker, words| words.get(worker, 0));
        let released = matches!(
            refused.unwrap_err(),
            LaunchError::Device(isomem_soft::LaunchError::Released)
        );
        assert!(released);
        memory.check();
        mirror.unregister();
        device.unregister().unwrap();
    });
}

#[test]
fn placements_at_their_limits_work() {
    apart("placements_at_their_limits_work", || {
        for placement in [
            Placement::AfterAccesses(0),
            Placement::AfterAccesses(1),
            Placement::AfterAccesses(u32::MAX),
        ] {
            let (_mm, device, mirror) = open(SoftConfig { placement, ..config() });
            let memory = Mapped::numbered(MIB);
            assert_eq!(device_sum(&mirror, memory.words()), memory.words().iter().sum());
            memory.check();
            mirror.unregister();
            device.unregister().unwrap();
        }
    });
}

#[test]
fn without_privileges_it_works_or_says_how_to_get_them() {
    apart("without_privileges_it_works_or_says_how_to_get_them", || {
        // SAFETY: a plain system call, and the process is the test's own.
        assert_eq!(unsafe { libc::setuid(65534) }, 0, "{}", std::io::Error::last_os_error());
        match Mm::current() {
            Ok(mm) => {
                let device = mm.soft_device(config()).unwrap();
                let mirror = device.mirror().unwrap();
                let memory = Mapped::numbered(MIB);
                assert_eq!(device_sum(&mirror, memory.words()), memory.words().iter().sum());
                memory.check();
                mirror.unregister();
                device.unregister().unwrap();
            }
            Err(error @ OpenError::Userfaultfd { .. }) => {
                let text = error.to_string();
                for advice in ["run as root", "/dev/userfaultfd", "vm.unprivileged_userfaultfd=1"] {
                    assert!(text.contains(advice), "{text}");
                }
            }
            // A process that gave up its privileges is not dumpable: /proc/self belongs to root.
            Err(error @ OpenError::Proc { .. }) => {
                assert!(error.to_string().contains("cannot open /proc/self"), "{error}");
            }
            Err(error) => panic!("{error}"),
        }
        assert_eq!(apart::threads(2), 2, "nothing is left of the attempt");
    });
}
