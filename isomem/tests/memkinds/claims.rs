//! MIG-10: memory that the CPU maps, too. A page that goes there is claimed, and stays where it is.

use isomem::{Access, MemoryKind, PAGE_SIZE, PageState, SkipReason, VirtAddr};
use isomem_core::mirror::table::Flags;

use crate::apart::{MIB, Mapped, apart, wait_forked};
use crate::rig::{came_home, gpu, gpu_of, is_coherent_here, open, rw};

#[test]
fn mig_10_a_coherent_page_is_the_devices_and_the_cpu_reaches_it_without_a_fault() {
    apart(
        "claims::mig_10_a_coherent_page_is_the_devices_and_the_cpu_reaches_it_without_a_fault",
        || {
            let mm = open();
            let (device, other) = (
                gpu(&mm, "coherent", MemoryKind::Coherent),
                gpu(&mm, "other", MemoryKind::Coherent),
            );
            let memory = Mapped::numbered(MIB);
            let sent = device.mirror.migrate_to_device(memory.range()).unwrap();
            assert_eq!(
                (sent.in_place, sent.migrated(), sent.skipped),
                (256, 256, 0),
                "{sent:?}"
            );
            assert_eq!(device.used(), 256);
            assert_eq!(device.count(memory.range(), is_coherent_here), 256);
            let remote = |state: &PageState| {
                matches!(
                    state,
                    PageState::Coherent {
                        local: false,
                        access: Access::Write,
                        ..
                    }
                )
            };
            assert_eq!(other.count(memory.range(), remote), 256);
            memory.check();
            assert_eq!(mm.stats().cpu_faults, 0, "the CPU has these pages");
            assert_eq!(device.used(), 256, "a touch by the CPU ends nothing");

            let faulted = device.mirror.fault(memory.range(), Access::Write).unwrap();
            assert_eq!((faulted.pages, faulted.on_device), (256, 256));
            let leaf = |of: &crate::rig::Gpu| {
                let table = of.mirror.state().table();
                table.get(VirtAddr::new(memory.start).unwrap()).unwrap().entry
            };
            assert!(leaf(&device).flags().has(Flags::DEVICE | Flags::WRITE));
            assert_eq!(leaf(&device).addr().0, memory.start as u64);
            let faulted = other.mirror.fault(memory.range(), Access::Read).unwrap();
            assert_eq!((faulted.pages, faulted.on_device), (256, 0));
            assert!(!leaf(&other).is_device());
            assert_eq!(other.words(&memory), memory.words());

            let again = device.mirror.migrate_to_device(memory.range()).unwrap();
            assert_eq!((again.already, again.migrated()), (256, 0));
            let home = device.mirror.migrate_home(memory.range()).unwrap();
            assert_eq!((home.in_place, home.moved, device.used()), (256, 0, 0));
            assert!(device.mirror.state().table().iter(memory.range()).next().is_none());
            memory.check();
        },
    );
}

#[test]
fn mig_10_untouched_pages_are_populated_and_what_cannot_be_claimed_is_reported() {
    apart(
        "claims::mig_10_untouched_pages_are_populated_and_what_cannot_be_claimed_is_reported",
        || {
            let mm = open();
            let device = gpu(&mm, "coherent", MemoryKind::Coherent);
            let mut memory = rw(MIB);
            // SAFETY: pages of the mapping just made, which nobody else knows; each call is like its manual page says.
            unsafe {
                let page = |index: usize| (memory.start + index * PAGE_SIZE) as *mut libc::c_void;
                assert_eq!(libc::munmap(page(10), PAGE_SIZE), 0);
                assert_eq!(libc::mprotect(page(20), PAGE_SIZE, libc::PROT_NONE), 0);
                assert_eq!(libc::mprotect(page(40), PAGE_SIZE, libc::PROT_READ), 0);
            }
            let sent = device.mirror.migrate_to_device(memory.range()).unwrap();
            assert_eq!((sent.in_place, sent.skipped, device.used()), (254, 2, 254), "{sent:?}");
            let reasons: Vec<_> = sent.skips().iter().map(|(_, why)| *why).collect();
            assert_eq!(reasons, [SkipReason::Hole, SkipReason::NoAccess]);
            let read_only = |state: &PageState| {
                matches!(
                    state,
                    PageState::Coherent {
                        access: Access::Read,
                        ..
                    }
                )
            };
            assert_eq!(device.count(memory.range(), read_only), 1);
            assert_eq!(device.count(memory.range(), is_coherent_here), 254);
            memory.words_mut()[0] = 7;
            assert_eq!((memory.words()[0], memory.words()[512]), (7, 0));
            assert_eq!(mm.stats().cpu_faults_untouched, 0, "they were populated");
        },
    );
}

#[test]
fn mig_8_capacity_and_budget_hold_for_claims() {
    apart("claims::mig_8_capacity_and_budget_hold_for_claims", || {
        let mm = open();
        let device = gpu_of(&mm, "small", MemoryKind::Coherent, 600);
        let memory = Mapped::numbered(8 * MIB);
        for pass in 0..3 {
            let sent = device.mirror.migrate_to_device(memory.range()).unwrap();
            assert_eq!(sent.skipped, 0, "{sent:?}");
            assert!(device.used() <= 600, "pass {pass}: {}", device.used());
            assert_eq!(device.count(memory.range(), is_coherent_here), device.used());
        }
        assert!(mm.stats().evictions > 0, "the least recently used claims made room");
        memory.check();
        let emptied = device.handle.evict_all().unwrap();
        assert_eq!((emptied.skipped, device.used()), (0, 0));
    });
}

#[test]
fn mig_4_a_forks_child_has_ordinary_memory_and_the_parents_claims_end() {
    apart(
        "claims::mig_4_a_forks_child_has_ordinary_memory_and_the_parents_claims_end",
        || {
            let mm = open();
            let device = gpu(&mm, "coherent", MemoryKind::Coherent);
            let mut memory = Mapped::numbered(MIB);
            device.mirror.migrate_to_device(memory.range()).unwrap();
            // SAFETY: the child compares and writes memory of its own, and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let right = memory
                    .words()
                    .iter()
                    .enumerate()
                    .all(|(i, word)| *word == i as u64 * 3 + 1);
                memory.words_mut()[0] = 99;
                // SAFETY: ends the child without running anything of the parent's.
                unsafe { libc::_exit(i32::from(!right)) };
            }
            assert!(wait_forked(child).success());
            // Whoever writes first gets frames of his own, which are none of the device's.
            assert_eq!(device.used(), 0);
            assert_eq!(device.count(memory.range(), is_coherent_here), 0);
            memory.check();
            memory.words_mut()[1] = 5;
            assert_eq!(device.words(&memory)[1], 5);
        },
    );
}

#[test]
fn mig_5_changes_end_claims_page_by_page_and_protection_does_not() {
    apart(
        "claims::mig_5_changes_end_claims_page_by_page_and_protection_does_not",
        || {
            let mm = open();
            let device = gpu(&mm, "coherent", MemoryKind::Coherent);
            let memory = Mapped::numbered(MIB);
            let elsewhere = rw(MIB);
            device.mirror.migrate_to_device(memory.range()).unwrap();
            device.mirror.fault(memory.range(), Access::Write).unwrap();
            // SAFETY: the test's own pages, used below as the calls left them.
            unsafe {
                mm.protect(memory.pages(0, 16), Some(Access::Read)).unwrap();
                assert_eq!(device.used(), 256);
                let refused = device.mirror.fault(memory.pages(0, 1), Access::Write);
                assert!(matches!(refused, Err(isomem::FaultError::ReadOnly { .. })));
                assert_eq!(
                    device
                        .mirror
                        .fault(memory.pages(0, 16), Access::Read)
                        .unwrap()
                        .on_device,
                    16
                );
                mm.discard_pages(memory.pages(16, 16)).unwrap();
                assert_eq!(device.used(), 240);
                mm.remap(memory.pages(32, 16), elsewhere.pages(0, 16)).unwrap();
                assert_eq!(device.used(), 224);
                mm.unmap(memory.pages(64, 64)).unwrap();
                assert_eq!(device.used(), 160);
            }
            assert_eq!(elsewhere.words()[0], 32 * 512 * 3 + 1);
            assert_eq!(memory.words()[16 * 512], 0);
            assert_eq!(memory.words()[128 * 512], 128 * 512 * 3 + 1);
            assert_eq!(device.count(memory.range(), is_coherent_here), 160);
        },
    );
}

#[test]
fn mig_5_changes_behind_isomems_back_end_claims() {
    apart("claims::mig_5_changes_behind_isomems_back_end_claims", || {
        let mm = open();
        let device = gpu(&mm, "coherent", MemoryKind::Coherent);
        let memory = Mapped::numbered(MIB);
        let elsewhere = rw(MIB);
        device.mirror.migrate_to_device(memory.range()).unwrap();
        let page = |index: usize| (memory.start + index * PAGE_SIZE) as *mut libc::c_void;
        // SAFETY: the test's own pages; each call is like its manual page says.
        unsafe {
            assert_eq!(libc::madvise(page(0), 16 * PAGE_SIZE, libc::MADV_DONTNEED), 0);
            device.wait_used(240);
            assert_eq!(libc::munmap(page(64), 64 * PAGE_SIZE), 0);
            device.wait_used(176);
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            let len = 16 * PAGE_SIZE;
            assert_eq!(
                libc::mremap(page(32), len, len, flags, elsewhere.start).addr(),
                elsewhere.start
            );
            device.wait_used(160);
        }
        assert_eq!(elsewhere.words()[0], 32 * 512 * 3 + 1);
        assert_eq!(device.count(memory.range(), is_coherent_here), 160);
        assert_eq!(memory.words()[0], 0);
    });
}

#[test]
fn life_7_a_device_that_fails_or_goes_loses_its_claims_and_nothing_else() {
    apart(
        "claims::life_7_a_device_that_fails_or_goes_loses_its_claims_and_nothing_else",
        || {
            let mm = open();
            let (failing, going) = (
                gpu(&mm, "failing", MemoryKind::Coherent),
                gpu(&mm, "going", MemoryKind::Coherent),
            );
            let memory = Mapped::numbered(2 * MIB);
            failing.mirror.migrate_to_device(memory.pages(0, 256)).unwrap();
            going.mirror.migrate_to_device(memory.pages(256, 256)).unwrap();
            assert_eq!((failing.handle.fail(), failing.used()), (0, 0));
            assert!(failing.mirror.migrate_to_device(memory.pages(0, 1)).is_err());
            let crate::rig::Gpu { handle, mirror, .. } = going;
            mirror.unregister().unwrap();
            handle.unregister().unwrap();
            let system = |state: &PageState| matches!(state, PageState::System { .. });
            assert_eq!(failing.count(memory.range(), system), 512);
            memory.check();
            assert_eq!(mm.stats().cpu_faults, 0);
            assert_eq!(came_home(&mm.stats()), 512);
        },
    );
}
