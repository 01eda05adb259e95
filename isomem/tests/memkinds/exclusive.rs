//! MIG-11: pages that a device has for itself.

use isomem::{Access, MemoryKind, PAGE_SIZE, PageState, SkipReason, VirtAddr};
use isomem_core::migrate::Keep;
use isomem_core::mirror::table::Flags;

use crate::apart::{MIB, Mapped, apart, number, wait_forked};
use crate::rig::{gpu, gpu_of, is_exclusive_here, load, open, rw};

const KINDS: [MemoryKind; 2] = [MemoryKind::Private, MemoryKind::Coherent];

#[test]
fn mig_11_a_cpu_access_takes_its_page_back_and_no_other() {
    apart(
        "exclusive::mig_11_a_cpu_access_takes_its_page_back_and_no_other",
        || {
            let mm = open();
            for kind in KINDS {
                let device = gpu(&mm, "device", kind);
                let memory = Mapped::numbered(MIB);
                let taken = device.mirror.exclusive(memory.pages(0, 64)).unwrap();
                assert_eq!((taken.moved, taken.skipped), (64, 0), "{taken:?}");
                assert_eq!(device.mirror.exclusive_pages(memory.range()).unwrap(), 64);
                assert_eq!(device.count(memory.range(), is_exclusive_here), 64);
                assert_eq!(device.used(), 64);
                let at = |page: usize| VirtAddr::new(memory.start + page * PAGE_SIZE).unwrap();
                let entry = |page| device.mirror.state().table().get(at(page)).map(|leaf| leaf.entry);
                let flags = Flags::EXCLUSIVE | Flags::DEVICE | Flags::WRITE;
                assert!((0..64).all(|page| entry(page).unwrap().flags().has(flags)));
                assert!(entry(64).is_none());
                // The device works on it, and reads and writes by range faults change nothing about that.
                let mut slot = device.slot();
                device.add(&mut slot, memory.start + 5 * PAGE_SIZE, 1);
                device.mirror.fault(memory.pages(0, 64), Access::Write).unwrap();
                assert_eq!(device.mirror.exclusive_pages(memory.range()).unwrap(), 64);
                // The CPU takes one page back.
                assert_eq!(load(memory.start + 5 * PAGE_SIZE), number(5 * 512) + 1);
                assert_eq!(device.mirror.exclusive_pages(memory.range()).unwrap(), 63);
                assert!(entry(5).is_none() && entry(6).unwrap().flags().has(flags));
                let again = device.mirror.exclusive(memory.pages(0, 64)).unwrap();
                assert_eq!((again.moved, again.already), (1, 63), "{again:?}");
                let ended = device.mirror.end_exclusive(memory.pages(0, 32)).unwrap();
                assert_eq!((ended.moved, device.used()), (32, 32));
                device.add(&mut slot, memory.start + 5 * PAGE_SIZE, u64::MAX);
                drop(slot);
                memory.check();
                assert_eq!(device.mirror.exclusive_pages(memory.range()).unwrap(), 0);
                device.wait_used(0);
            }
        },
    );
}

#[test]
fn mig_11_pages_are_taken_from_wherever_they_are() {
    apart("exclusive::mig_11_pages_are_taken_from_wherever_they_are", || {
        let mm = open();
        let other = gpu(&mm, "other", MemoryKind::Private);
        let claiming = gpu(&mm, "claiming", MemoryKind::Coherent);
        for kind in KINDS {
            let device = gpu(&mm, "device", kind);
            let memory = Mapped::numbered(MIB);
            device.mirror.migrate_to_device(memory.pages(0, 50)).unwrap();
            other.mirror.migrate_to_device(memory.pages(50, 50)).unwrap();
            claiming.mirror.migrate_to_device(memory.pages(100, 50)).unwrap();
            let taken = device.mirror.exclusive(memory.range()).unwrap();
            assert_eq!(
                (taken.migrated(), taken.from_device, taken.skipped),
                (256, 100, 0),
                "{taken:?}"
            );
            assert_eq!((device.used(), other.used(), claiming.used()), (256, 0, 0));
            assert_eq!(device.mirror.exclusive_pages(memory.range()).unwrap(), 256);
            // For the migration that the device's pages would make, they are there already.
            let sent = device.mirror.migrate_to_device(memory.range()).unwrap();
            assert_eq!((sent.already, sent.migrated()), (256, 0));
            // Untouched pages are zeroes.
            let fresh = rw(MIB);
            assert_eq!(device.mirror.exclusive(fresh.range()).unwrap().zeroed, 256);
            assert!(device.words(&fresh).iter().all(|word| *word == 0));
            assert_eq!(
                device.mirror.exclusive_pages(fresh.range()).unwrap(),
                256,
                "reading keeps it"
            );
            memory.check();
            assert_eq!(device.mirror.exclusive_pages(memory.range()).unwrap(), 0);
        }
    });
}

#[test]
fn mig_11_what_cannot_be_had_exclusively_is_refused_with_a_reason() {
    apart(
        "exclusive::mig_11_what_cannot_be_had_exclusively_is_refused_with_a_reason",
        || {
            let mm = open();
            let device = gpu(&mm, "device", MemoryKind::Private);
            let memory = Mapped::numbered(MIB);
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            let shared = Mapped::with(MIB, libc::PROT_READ | libc::PROT_WRITE, flags, -1);
            // SAFETY: pages of the mapping just made, which nobody else knows; each call is like its manual page says.
            unsafe {
                let page = |index: usize| (memory.start + index * PAGE_SIZE) as *mut libc::c_void;
                assert_eq!(libc::munmap(page(10), PAGE_SIZE), 0);
                assert_eq!(libc::mprotect(page(20), PAGE_SIZE, libc::PROT_NONE), 0);
                assert_eq!(libc::mprotect(page(30), PAGE_SIZE, libc::PROT_READ), 0);
            }
            let taken = device.mirror.exclusive(memory.range()).unwrap();
            assert_eq!((taken.moved, taken.skipped), (253, 3));
            let first = memory.range().first_page();
            let skips: Vec<_> = taken
                .skips()
                .iter()
                .map(|(run, why)| (run.first_page() - first, *why))
                .collect();
            assert_eq!(
                skips,
                [
                    (10, SkipReason::Hole),
                    (20, SkipReason::NoAccess),
                    (30, SkipReason::ReadOnly)
                ]
            );
            let taken = device.mirror.exclusive(shared.range()).unwrap();
            assert_eq!((taken.migrated(), taken.skips()[0].1), (0, SkipReason::NotAnonymous));
            // A page that is the device's already becomes read-only there: it is not taken either.
            let owned = Mapped::numbered(MIB);
            device.mirror.migrate_to_device(owned.range()).unwrap();
            // SAFETY: the pages stay readable.
            unsafe { mm.protect(owned.range(), Some(Access::Read)) }.unwrap();
            assert_eq!(
                device.mirror.exclusive(owned.range()).unwrap().skips()[0].1,
                SkipReason::ReadOnly
            );
            owned.check();
        },
    );
}

/// Takes 64 pages exclusively, lets `end` do something about them, and expects that none is exclusive any more and nothing else has changed.
fn ends(kind: MemoryKind, end: impl FnOnce(&isomem::Mm, &crate::rig::Gpu, &Mapped)) {
    let mm = open();
    let device = gpu(&mm, "device", kind);
    let memory = Mapped::numbered(MIB);
    device.mirror.exclusive(memory.pages(0, 64)).unwrap();
    end(&mm, &device, &memory);
    assert_eq!(device.mirror.exclusive_pages(memory.range()).unwrap(), 0);
    let flagged = |entry: isomem_core::mirror::table::Entry| entry.flags().has(Flags::EXCLUSIVE);
    let table = device.mirror.state().table();
    assert!(!table.iter(memory.range()).any(|(_, entry)| flagged(entry)));
    memory.check();
    device.wait_used(0);
}

#[test]
fn mig_11_a_fork_ends_it_and_both_sides_see_the_data() {
    apart("exclusive::mig_11_a_fork_ends_it_and_both_sides_see_the_data", || {
        for kind in KINDS {
            ends(kind, |_, device, memory| {
                let mut slot = device.slot();
                device.add(&mut slot, memory.start, 10);
                // SAFETY: the child only compares, and ends.
                let child = unsafe { libc::fork() };
                if child == 0 {
                    let right = memory.words()[0] == number(0) + 10 && memory.words()[512] == number(512);
                    // SAFETY: ends the child without running anything of the parent's.
                    unsafe { libc::_exit(i32::from(!right)) };
                }
                assert!(wait_forked(child).success());
                device.add(&mut slot, memory.start, 10_u64.wrapping_neg());
            });
        }
    });
}

#[test]
fn mig_11_mprotect_ends_it_and_its_right_holds() {
    apart("exclusive::mig_11_mprotect_ends_it_and_its_right_holds", || {
        for kind in KINDS {
            ends(kind, |mm, device, memory| {
                // SAFETY: the pages stay readable.
                unsafe { mm.protect(memory.range(), Some(Access::Read)) }.unwrap();
                let refused = device.mirror.fault(memory.pages(0, 1), Access::Write);
                assert!(matches!(refused, Err(isomem::FaultError::ReadOnly { .. })));
            });
            // Without isomem's knowledge it comes home with the next access.
            ends(kind, |_, _, memory| {
                let at = memory.start as *mut libc::c_void;
                // SAFETY: the pages stay readable.
                assert_eq!(unsafe { libc::mprotect(at, MIB, libc::PROT_READ) }, 0);
                memory.check();
            });
        }
    });
}

#[test]
fn mig_11_other_devices_evictions_and_requests_end_it() {
    apart("exclusive::mig_11_other_devices_evictions_and_requests_end_it", || {
        for kind in KINDS {
            ends(kind, |mm, _, memory| {
                let other = gpu(mm, "other", MemoryKind::Private);
                let faulted = other.mirror.fault(memory.range(), Access::Read).unwrap();
                assert_eq!((faulted.pages, faulted.on_device), (256, 0));
            });
            ends(kind, |mm, device, memory| {
                let other = gpu(mm, "other", MemoryKind::Private);
                let sent = other.mirror.migrate_to_device(memory.range()).unwrap();
                assert_eq!((sent.from_device, device.used()), (64, 0));
            });
            ends(kind, |_, device, _| {
                assert_eq!(device.handle.evict_all().unwrap().moved, 64);
            });
            ends(kind, |_, device, memory| {
                let kept = device
                    .mirror
                    .migrate_home_with(memory.range(), Keep::Exclusive)
                    .unwrap();
                assert_eq!(kept.migrated(), 0);
                assert_eq!(device.mirror.exclusive_pages(memory.range()).unwrap(), 64);
                assert_eq!(device.mirror.migrate_home(memory.range()).unwrap().moved, 64);
            });
            ends(kind, |_, device, _| assert_eq!(device.handle.fail(), 0));
        }
    });
}

#[test]
fn mig_5_remap_discard_and_unmap_end_it_page_by_page() {
    apart("exclusive::mig_5_remap_discard_and_unmap_end_it_page_by_page", || {
        let mm = open();
        for kind in KINDS {
            let device = gpu(&mm, "device", kind);
            let memory = Mapped::numbered(MIB);
            let elsewhere = rw(MIB);
            device.mirror.exclusive(memory.range()).unwrap();
            let page = |index: usize| (memory.start + index * PAGE_SIZE) as *mut libc::c_void;
            // SAFETY: the test's own pages, used below as the calls left them.
            unsafe {
                mm.discard_pages(memory.pages(0, 16)).unwrap();
                mm.remap(memory.pages(16, 16), elsewhere.pages(0, 16)).unwrap();
                mm.unmap(memory.pages(32, 16)).unwrap();
                assert_eq!(device.mirror.exclusive_pages(memory.range()).unwrap(), 208);
                assert_eq!(libc::madvise(page(48), 16 * PAGE_SIZE, libc::MADV_DONTNEED), 0);
                device.wait_used(192);
                assert_eq!(libc::munmap(page(64), 16 * PAGE_SIZE), 0);
                device.wait_used(176);
                let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                let (len, to) = (16 * PAGE_SIZE, elsewhere.start + 16 * PAGE_SIZE);
                assert_eq!(libc::mremap(page(80), len, len, flags, to).addr(), to);
                device.wait_used(160);
            }
            assert_eq!(device.mirror.exclusive_pages(memory.range()).unwrap(), 160);
            assert_eq!(device.count(memory.range(), is_exclusive_here), 160);
            assert_eq!((memory.words()[0], memory.words()[48 * 512]), (0, 0));
            assert_eq!(elsewhere.words()[0], number(16 * 512));
            assert_eq!(elsewhere.words()[16 * 512], number(80 * 512));
            assert_eq!(memory.words()[96 * 512], number(96 * 512));
        }
    });
}

#[test]
fn mig_7_more_exclusive_pages_than_memory_end_the_oldest() {
    apart(
        "exclusive::mig_7_more_exclusive_pages_than_memory_end_the_oldest",
        || {
            let mm = open();
            for kind in KINDS {
                let device = gpu_of(&mm, "small", kind, 600);
                let memory = Mapped::numbered(8 * MIB);
                let taken = device.mirror.exclusive(memory.range()).unwrap();
                assert_eq!(taken.skipped, 0, "{taken:?}");
                let here = device.mirror.exclusive_pages(memory.range()).unwrap();
                assert!(here > 0 && here <= 600, "{here}");
                device.wait_used(here);
                memory.check();
            }
        },
    );
}

#[test]
fn mig_6_a_part_of_a_huge_page_can_be_exclusive() {
    apart("exclusive::mig_6_a_part_of_a_huge_page_can_be_exclusive", || {
        let mm = open();
        let device = gpu(&mm, "device", MemoryKind::Private);
        let mut memory = rw(8 * MIB);
        // SAFETY: advice about the mapping just made.
        unsafe { libc::madvise(memory.start as *mut _, memory.len_bytes, libc::MADV_HUGEPAGE) };
        memory.number();
        device.mirror.migrate_to_device(memory.range()).unwrap();
        let taken = device.mirror.exclusive(memory.pages(700, 600)).unwrap();
        assert_eq!((taken.in_place, taken.moved), (600, 0), "{taken:?}");
        let ended = device.mirror.end_exclusive(memory.range()).unwrap();
        assert_eq!(device.mirror.exclusive_pages(memory.range()).unwrap(), 0);
        assert!(ended.moved >= 600, "{ended:?}");
        let away = |state: &PageState| matches!(state, PageState::Device { .. });
        assert_eq!(device.count(memory.range(), away), device.used());
        memory.check();
    });
}
