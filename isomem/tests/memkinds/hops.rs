//! MIG-10: from one device to another.

use isomem::{Access, MemoryKind, PAGE_SIZE, PageState, SkipReason};
use isomem_core::migrate::Elsewhere;

use crate::apart::{MIB, Mapped, apart};
use crate::rig::{came_home, gpu, gpu_of, is_coherent_here, open, rw};

fn is_private_here(state: &PageState) -> bool {
    matches!(state, PageState::Device { local: true, .. })
}

#[test]
fn mig_10_pages_go_from_device_to_device_without_coming_home() {
    apart(
        "hops::mig_10_pages_go_from_device_to_device_without_coming_home",
        || {
            let mm = open();
            let (one, two) = (
                gpu(&mm, "one", MemoryKind::Private),
                gpu(&mm, "two", MemoryKind::Private),
            );
            let memory = Mapped::numbered(MIB);
            one.mirror.migrate_to_device(memory.pages(0, 200)).unwrap();
            one.mirror.fault(memory.pages(0, 200), Access::Write).unwrap();
            let sent = two.mirror.migrate_to_device(memory.range()).unwrap();
            assert_eq!((sent.moved, sent.from_device, sent.skipped), (256, 200, 0), "{sent:?}");
            assert_eq!((one.used(), two.used()), (0, 256));
            assert_eq!(came_home(&mm.stats()), 0);
            assert_eq!(mm.stats().pages_between_devices, 200);
            let entries = |of: &crate::rig::Gpu| of.mirror.state().table().iter(memory.range()).count();
            assert_eq!(entries(&one), 0, "both mirrors were told");
            assert_eq!(two.count(memory.range(), is_private_here), 256);
            // Back again, in part, and with entries of the second in the way.
            two.mirror.fault(memory.range(), Access::Write).unwrap();
            let back = one.mirror.migrate_to_device(memory.pages(50, 10)).unwrap();
            assert_eq!((back.from_device, one.used(), two.used()), (10, 10, 246));
            assert_eq!(
                two.words(&memory),
                (0..memory.words().len()).map(crate::apart::number).collect::<Vec<_>>()
            );
            memory.check();
        },
    );
}

#[test]
fn mig_6_a_huge_page_goes_from_device_to_device_whole() {
    apart("hops::mig_6_a_huge_page_goes_from_device_to_device_whole", || {
        let mm = open();
        let (one, two) = (
            gpu(&mm, "one", MemoryKind::Private),
            gpu(&mm, "two", MemoryKind::Private),
        );
        let mut memory = rw(8 * MIB);
        // SAFETY: advice about the mapping just made.
        unsafe { libc::madvise(memory.start as *mut _, memory.len_bytes, libc::MADV_HUGEPAGE) };
        memory.number();
        let huge = |state: &PageState| matches!(state, PageState::System { huge: true, .. });
        let whole = one.count(memory.range(), huge);
        if whole == 0 {
            println!("skipped: the kernel gives no huge pages; transparent_hugepage=madvise would");
            return;
        }
        one.mirror.migrate_to_device(memory.range()).unwrap();
        let huge = |state: &PageState| {
            matches!(
                state,
                PageState::Device {
                    local: true,
                    huge: true,
                    ..
                }
            )
        };
        assert_eq!(one.count(memory.range(), huge), whole);
        let sent = two.mirror.migrate_to_device(memory.range()).unwrap();
        assert_eq!((sent.from_device, one.used()), (2048, 0), "{sent:?}");
        assert_eq!(two.count(memory.range(), huge), whole);
        two.mirror.migrate_home(memory.range()).unwrap();
        let huge = |state: &PageState| matches!(state, PageState::System { huge: true, .. });
        assert_eq!(two.count(memory.range(), huge), whole, "it was never split");
        memory.check();
    });
}

#[test]
fn mig_10_every_pair_of_kinds_works_both_ways() {
    apart("hops::mig_10_every_pair_of_kinds_works_both_ways", || {
        let mm = open();
        let kinds = [MemoryKind::Private, MemoryKind::Coherent];
        let gpus = kinds.map(|kind| [gpu(&mm, "one", kind), gpu(&mm, "two", kind)]);
        let memory = Mapped::numbered(MIB);
        let [[a, b], [c, d]] = &gpus;
        for (from, to) in [(a, b), (a, c), (c, a), (c, d), (d, b), (b, a)] {
            from.mirror.migrate_to_device(memory.range()).unwrap();
            let sent = to.mirror.migrate_to_device(memory.range()).unwrap();
            assert_eq!((sent.migrated(), sent.from_device), (256, 256), "{sent:?}");
            assert_eq!((from.used(), to.used()), (0, 256));
            let right = (0..memory.words().len()).map(crate::apart::number);
            assert!(to.words(&memory).into_iter().eq(right));
        }
        memory.check();
        gpus.iter().flatten().for_each(|gpu| gpu.wait_used(0));
    });
}

#[test]
fn mig_10_pages_on_other_devices_can_be_left_there() {
    apart("hops::mig_10_pages_on_other_devices_can_be_left_there", || {
        let mm = open();
        let (one, two) = (
            gpu(&mm, "one", MemoryKind::Private),
            gpu(&mm, "two", MemoryKind::Private),
        );
        let claiming = gpu(&mm, "claiming", MemoryKind::Coherent);
        let memory = Mapped::numbered(MIB);
        one.mirror.migrate_to_device(memory.pages(0, 100)).unwrap();
        claiming.mirror.migrate_to_device(memory.pages(100, 100)).unwrap();
        let sent = two
            .mirror
            .migrate_to_device_with(memory.range(), Elsewhere::Leave)
            .unwrap();
        assert_eq!((sent.migrated(), sent.from_device, sent.skipped), (56, 0, 200));
        assert!(
            sent.skips().iter().all(|(_, why)| *why == SkipReason::OnOtherDevice),
            "{sent:?}"
        );
        assert_eq!((one.used(), claiming.used(), two.used()), (100, 100, 56));
        let sent = claiming
            .mirror
            .migrate_to_device_with(memory.range(), Elsewhere::Leave)
            .unwrap();
        assert_eq!((sent.already, sent.skipped), (100, 156), "{sent:?}");
        memory.check();
    });
}

#[test]
fn mig_7_hops_onto_a_full_device_evict_and_go_on() {
    apart("hops::mig_7_hops_onto_a_full_device_evict_and_go_on", || {
        let mm = open();
        let large = gpu(&mm, "large", MemoryKind::Private);
        let small = gpu_of(&mm, "small", MemoryKind::Private, 700);
        let coherent = gpu_of(&mm, "coherent", MemoryKind::Coherent, 500);
        let memory = Mapped::numbered(8 * MIB);
        for _ in 0..2 {
            large.mirror.migrate_to_device(memory.range()).unwrap();
            assert_eq!(large.used(), 2048);
            for (gpu, room) in [(&small, 700), (&coherent, 500)] {
                let sent = gpu.mirror.migrate_to_device(memory.range()).unwrap();
                assert_eq!(sent.skipped, 0, "{sent:?}");
                assert!(gpu.used() <= room, "{} of {room} pages", gpu.used());
            }
            let here = coherent.count(memory.range(), is_coherent_here);
            assert_eq!(here, coherent.used());
        }
        memory.check();
        large.wait_used(0);
        small.wait_used(0);
        assert!(mm.stats().evictions > 0);
        assert_eq!(PAGE_SIZE * 2048, memory.len_bytes);
    });
}
