//! What happens to the address space while pages are duplicates.

use isomem::{Access, Mm, PAGE_SIZE};

use crate::apart::{MIB, Mapped, apart, number, wait_forked};
use crate::rig::{Gpu, gpu, load, open, rw};
use crate::shared::{PAGES, expect_shared, is_system, share, share_with};

/// Shares memory, lets `end` do something about it, and expects that the device has nothing of it any more, and that nothing has changed.
fn ends(end: impl FnOnce(&Mm, &Gpu, &Mapped)) {
    let mm = open();
    let (device, mut memory) = share(&mm);
    end(&mm, &device, &memory);
    device.wait_used(0);
    expect_shared(&device, memory.range(), 0);
    assert!(
        device
            .mirror
            .state()
            .table()
            .iter(memory.range())
            .all(|(_, entry)| !entry.is_device())
    );
    memory.check();
    // The CPU writes as ever, and nobody is asked.
    memory.words_mut()[0] = 1;
    memory.number();
    memory.check();
}

#[test]
fn mig_12_requests_evictions_and_the_end_of_the_device_end_it() {
    apart(
        "changes::mig_12_requests_evictions_and_the_end_of_the_device_end_it",
        || {
            ends(|mm, device, memory| {
                let home = device.mirror.migrate_home(memory.range()).unwrap();
                assert_eq!((home.in_place, home.moved, home.copied), (PAGES, 0, 0), "{home:?}");
                assert_eq!(mm.stats().duplicates_collapsed, PAGES as u64);
            });
            ends(|_, device, _| assert_eq!(device.handle.evict_all().unwrap().skipped, 0));
            ends(|_, device, _| assert_eq!(device.handle.fail(), 0));
            ends(|mm, _, _| mm.core().exit());
            let mm = open();
            let (device, memory) = share(&mm);
            let Gpu { handle, mirror, .. } = device;
            mirror.unregister().unwrap();
            handle.unregister().unwrap();
            memory.check();
            let other = gpu(&mm, "other", isomem::MemoryKind::Private);
            assert_eq!(other.count(memory.range(), is_system), PAGES);
        },
    );
}

#[test]
fn mig_4_and_12_after_a_fork_both_sides_have_the_data() {
    apart("changes::mig_4_and_12_after_a_fork_both_sides_have_the_data", || {
        let child_of = |memory: &Mapped, child: i32| {
            if child == 0 {
                let right = memory.words().iter().enumerate().all(|(at, word)| *word == number(at));
                let at = memory.start as *mut u64;
                // SAFETY: memory of the child's own.
                unsafe { at.write_volatile(99) };
                let right = right && load(memory.start) == 99 && load(memory.start + 8) == number(1);
                // SAFETY: ends the child without running anything of the parent's.
                unsafe { libc::_exit(i32::from(!right)) };
            }
            assert!(wait_forked(child).success());
        };
        ends(|_, _, memory| {
            // SAFETY: the child compares and writes memory of its own, and ends.
            child_of(memory, unsafe { libc::fork() });
        });
        // By the bare system call: the parent's side stays as it is, and so does the device's.
        let mm = open();
        let (device, mut memory) = share(&mm);
        for round in 0..20 {
            // SAFETY: as above.
            let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as i32 };
            child_of(&memory, child);
            expect_shared(&device, memory.range(), PAGES - round);
            // What the parent writes then it has for itself, and the device sees it.
            let at = round * 11 * 512;
            memory.words_mut()[at] = 7;
            assert_eq!(device.words(&memory)[at], 7);
            memory.words_mut()[at] = number(at);
        }
        memory.check();
        share_with(&device, &memory);
    });
}

#[test]
fn mig_5_and_12_announced_changes_end_it_page_by_page() {
    apart("changes::mig_5_and_12_announced_changes_end_it_page_by_page", || {
        let mm = open();
        let (device, memory) = share(&mm);
        let elsewhere = rw(MIB);
        // SAFETY: the test's own pages, used below as the calls left them.
        unsafe {
            mm.discard_pages(memory.pages(0, 16)).unwrap();
            assert_eq!(device.used(), PAGES - 16);
            mm.remap(memory.pages(16, 16), elsewhere.pages(0, 16)).unwrap();
            assert_eq!(device.used(), PAGES - 32);
            mm.unmap(memory.pages(32, 16)).unwrap();
            assert_eq!(device.used(), PAGES - 48);
            mm.protect(memory.pages(48, 16), Some(Access::Read)).unwrap();
            assert_eq!(device.used(), PAGES - 64);
        }
        expect_shared(&device, memory.pages(64, PAGES - 64), PAGES - 64);
        assert_eq!(memory.words()[0], 0);
        assert_eq!(elsewhere.words()[0], number(16 * 512));
        // What is read-only is shared as well: it is copied both ways, and nobody writes.
        device.mirror.migrate_to_device(memory.pages(48, 16)).unwrap();
        assert_eq!(memory.words()[48 * 512], number(48 * 512));
        expect_shared(&device, memory.pages(48, 1), 1);
        // SAFETY: as above.
        unsafe { mm.protect(memory.pages(48, 16), Some(Access::Write)) }.unwrap();
        assert_eq!(memory.words()[63 * 512], number(63 * 512));
    });
}

#[test]
fn mig_5_and_12_changes_behind_isomems_back_end_it() {
    apart("changes::mig_5_and_12_changes_behind_isomems_back_end_it", || {
        let mm = open();
        let (device, mut memory) = share(&mm);
        let mut elsewhere = rw(MIB);
        let page = |index: usize| (memory.start + index * PAGE_SIZE) as *mut libc::c_void;
        let len = 16 * PAGE_SIZE;
        // SAFETY: the test's own pages; each call is like its manual page says.
        unsafe {
            assert_eq!(libc::madvise(page(0), len, libc::MADV_DONTNEED), 0);
            device.wait_used(PAGES - 16);
            assert_eq!(libc::munmap(page(16), len), 0);
            device.wait_used(PAGES - 32);
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            assert_eq!(
                libc::mremap(page(32), len, len, flags, elsewhere.start).addr(),
                elsewhere.start
            );
            device.wait_used(PAGES - 48);
            assert_eq!(libc::madvise(page(48), len, libc::MADV_FREE), 0);
            device.wait_used(PAGES - 64);
            // Nobody hears of this one; the duplicates stay what they are.
            assert_eq!(libc::mprotect(page(64), len, libc::PROT_NONE), 0);
            assert_eq!(libc::mprotect(page(64), len, libc::PROT_READ | libc::PROT_WRITE), 0);
        }
        assert_eq!(memory.words()[0], 0);
        memory.words_mut()[0] = 4;
        assert_eq!(elsewhere.words()[0], number(32 * 512));
        for page in 0..16 {
            elsewhere.words_mut()[page * 512] = 3;
            assert_eq!(elsewhere.words()[page * 512 + 1], number((32 + page) * 512 + 1));
        }
        assert_eq!(device.words(&elsewhere)[512], 3);
        memory.words_mut()[48 * 512] = 5;
        assert_eq!(memory.words()[48 * 512], 5);
        expect_shared(&device, memory.pages(64, PAGES - 64), PAGES - 64);
        memory.words_mut()[64 * 512] = 6;
        let rest = Mapped {
            start: memory.start + 48 * PAGE_SIZE,
            len_bytes: (PAGES - 48) * PAGE_SIZE,
        };
        assert_eq!(device.words(&rest)[16 * 512], 6);
        core::mem::forget(rest);
    });
}

#[test]
fn life_5_and_12_nothing_is_left_of_duplicates_when_the_last_handle_goes() {
    apart(
        "changes::life_5_and_12_nothing_is_left_of_duplicates_when_the_last_handle_goes",
        || {
            let mm = open();
            let (device, mut memory) = share(&mm);
            drop(device);
            drop(mm);
            memory.check();
            memory.number();
            // And the process ends with some: the kernel tidies up.
            let mm = open();
            let (device, memory) = share(&mm);
            core::mem::forget((mm, device, memory));
        },
    );
}
