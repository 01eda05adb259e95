//! Who reads, who writes, and what that makes of a duplicate.

use std::io::{Read, Write};

use isomem::{Access, MemoryKind, PAGE_SIZE, SoftConfig, VirtAddr};
use isomem_core::mirror::table::Flags;
use isomem_core::mm::Advice;

use crate::apart::{self, MIB, Mapped, apart, device_sum, number};
use crate::rig::{came_home, gpu, gpu_of, is_coherent_here, is_exclusive_here, load, open, rw, word};
use crate::shared::{
    PAGES, expect, expect_shared, faults, is_duplicate, is_on_device, is_system, peek, share, share_with,
};

#[test]
fn mig_12_both_sides_read_without_a_fault() {
    apart("sides::mig_12_both_sides_read_without_a_fault", || {
        let mm = open();
        let (device, memory) = share(&mm);
        let before = faults(&mm);
        assert_eq!(mm.stats().pages_duplicated, PAGES as u64);
        assert_eq!(came_home(&mm.stats()), 0, "the device keeps its pages");
        let expected: Vec<u64> = memory.words().to_vec();
        for _ in 0..3 {
            assert!(device.words(&memory) == expected);
            memory.check();
        }
        assert_eq!(faults(&mm), before);
        expect_shared(&device, memory.range(), PAGES);
        let faulted = device.mirror.fault(memory.range(), Access::Read).unwrap();
        assert_eq!(
            (faulted.pages, faulted.on_device),
            (PAGES, PAGES),
            "it reads its own memory"
        );
        let table = device.mirror.state().table();
        for page in 0..PAGES {
            let at = VirtAddr::new(memory.start + page * PAGE_SIZE).unwrap();
            let flags = table.get(at).unwrap().entry.flags();
            assert!(
                flags.has(Flags::DEVICE) && !flags.has(Flags::WRITE),
                "page {page}: {flags:?}"
            );
        }
        assert_eq!(mm.stats().duplicates_collapsed, 0);
    });
}

#[test]
fn mig_12_without_advice_a_read_brings_home() {
    apart("sides::mig_12_without_advice_a_read_brings_home", || {
        let mm = open();
        let device = gpu(&mm, "device", MemoryKind::Private);
        let memory = Mapped::numbered(MIB);
        device.mirror.advise(memory.pages(64, 64), Advice::ReadMostly).unwrap();
        device.mirror.migrate_to_device(memory.range()).unwrap();
        memory.check();
        expect_shared(&device, memory.pages(64, 64), 64);
        device.wait_used(64);
        assert_eq!(device.count(memory.range(), is_system), PAGES - 64);
        // Taken back, it holds for what is placed from then on.
        device.mirror.advise(memory.range(), Advice::ReadWrite).unwrap();
        expect_shared(&device, memory.range(), 64);
        device.mirror.migrate_home(memory.range()).unwrap();
        device.mirror.migrate_to_device(memory.range()).unwrap();
        memory.check();
        device.wait_used(0);
        assert_eq!(mm.stats().pages_duplicated, 64);
    });
}

#[test]
fn mig_12_a_cpus_write_collapses_its_page_and_no_other() {
    apart("sides::mig_12_a_cpus_write_collapses_its_page_and_no_other", || {
        let mm = open();
        let (device, mut memory) = share(&mm);
        device.mirror.fault(memory.range(), Access::Read).unwrap();
        memory.words_mut()[7 * 512] = 5;
        let at = |page: usize| VirtAddr::new(memory.start + page * PAGE_SIZE).unwrap();
        let table = device.mirror.state().table();
        assert!(table.get(at(7)).is_none() && table.get(at(8)).is_some());
        expect_shared(&device, memory.range(), PAGES - 1);
        device.wait_used(PAGES - 1);
        assert_eq!(device.count(memory.pages(7, 1), is_system), 1);
        assert_eq!(mm.stats().duplicates_collapsed, 1);
        assert_eq!(device.words(&memory)[7 * 512], 5);
        // Written again, it costs nothing more.
        memory.words_mut()[7 * 512] = number(7 * 512);
        assert_eq!(mm.stats().duplicates_collapsed, 1);
        // And it can go and be shared again.
        share_with(&device, &memory);
        // Writers that go on in order are served some pages at a time.
        memory.number();
        device.wait_used(0);
        let served = mm.stats().cpu_faults;
        assert!(served < 4 * PAGES as u64, "{served} faults");
        memory.check();
    });
}

#[test]
fn mig_12_a_devices_write_collapses_its_page_and_no_other() {
    apart("sides::mig_12_a_devices_write_collapses_its_page_and_no_other", || {
        let mm = open();
        let (device, memory) = share(&mm);
        let mut slot = device.slot();
        let addr = memory.start + 9 * PAGE_SIZE;
        assert_eq!(peek(&device, &mut slot, addr), number(9 * 512));
        device.add(&mut slot, addr, 1);
        assert_eq!(load(addr), number(9 * 512) + 1);
        assert_eq!(peek(&device, &mut slot, addr), number(9 * 512) + 1);
        expect_shared(&device, memory.range(), PAGES - 1);
        device.add(&mut slot, addr, u64::MAX);
        memory.check();
    });
}

#[test]
fn mig_12_a_software_device_takes_what_it_writes_and_shares_what_it_reads() {
    apart(
        "sides::mig_12_a_software_device_takes_what_it_writes_and_shares_what_it_reads",
        || {
            let (mm, device, mirror) = apart::open(SoftConfig {
                memory_bytes: 8 * MIB,
                ..apart::config()
            });
            let mut memory = Mapped::numbered(MIB);
            let helper = gpu(&mm, "advising", MemoryKind::Private);
            helper.mirror.advise(memory.range(), Advice::ReadMostly).unwrap();
            let sum: u64 = (0..memory.words().len()).map(number).sum();
            for _ in 0..3 {
                assert_eq!(device_sum(&mirror, memory.words()), sum);
                memory.check();
            }
            expect_shared(&helper, memory.range(), PAGES);
            mirror
                .launch(memory.words_mut(), |worker, mut words| {
                    words.for_chunks_mut(worker, 0..words.len(), |_, piece| {
                        piece.iter_mut().for_each(|word| *word += 1);
                    })
                })
                .unwrap();
            assert_eq!(
                helper.count(memory.range(), is_on_device),
                PAGES,
                "no write is made at home"
            );
            assert!(
                memory
                    .words()
                    .iter()
                    .enumerate()
                    .all(|(at, word)| *word == number(at) + 1)
            );
            expect_shared(&helper, memory.range(), PAGES);
            drop((mirror, device));
        },
    );
}

#[test]
fn mig_2_and_12_system_calls_read_duplicates_and_collapse_what_they_write() {
    apart(
        "sides::mig_2_and_12_system_calls_read_duplicates_and_collapse_what_they_write",
        || {
            let mm = open();
            let (device, mut memory) = share(&mm);
            let (mut reader, mut writer) = std::io::pipe().unwrap();
            let at = memory.start as *mut u8;
            // SAFETY: the mapping's first four pages.
            let bytes = unsafe { core::slice::from_raw_parts_mut(at, 4 * PAGE_SIZE) };
            writer.write_all(bytes).unwrap();
            expect_shared(&device, memory.range(), PAGES);
            let mut sent = vec![0; 4 * PAGE_SIZE];
            reader.read_exact(&mut sent).unwrap();
            assert!(sent == bytes);
            writer.write_all(&vec![7; 2 * PAGE_SIZE]).unwrap();
            reader.read_exact(&mut bytes[..2 * PAGE_SIZE]).unwrap();
            expect(&device, memory.pages(0, 2), is_system, 2);
            assert!(
                device.count(memory.range(), is_duplicate) >= PAGES - 8,
                "writes go on in order"
            );
            assert_eq!(device.words(&memory)[512], u64::from_ne_bytes([7; 8]));
            assert_eq!(device.words(&memory)[1024], number(1024));
            memory.number();
        },
    );
}

#[test]
fn mig_12_other_devices_read_at_home_and_take_pages_that_are_no_duplicates_then() {
    apart(
        "sides::mig_12_other_devices_read_at_home_and_take_pages_that_are_no_duplicates_then",
        || {
            let mm = open();
            let (device, memory) = share(&mm);
            let other = gpu(&mm, "other", MemoryKind::Private);
            let faulted = other.mirror.fault(memory.range(), Access::Read).unwrap();
            assert_eq!((faulted.pages, faulted.on_device), (PAGES, 0));
            assert!(other.words(&memory) == memory.words());
            expect_shared(&device, memory.range(), PAGES);
            let at = VirtAddr::new(memory.start).unwrap();
            let entry = other.mirror.state().table().get(at).unwrap().entry;
            assert!(!entry.is_writable() && !entry.is_device());
            let mut slot = other.slot();
            other.add(&mut slot, memory.start, 3);
            assert_eq!(load(memory.start), number(0) + 3);
            assert_eq!(peek(&device, &mut device.slot(), memory.start), number(0) + 3);
            other.add(&mut slot, memory.start, 3_u64.wrapping_neg());
            drop(slot);
            expect_shared(&device, memory.range(), PAGES - 1);
            let sent = other.mirror.migrate_to_device(memory.range()).unwrap();
            assert_eq!((sent.migrated(), sent.skipped), (PAGES, 0), "{sent:?}");
            assert_eq!((device.used(), other.used()), (0, PAGES));
            memory.check();
            expect_shared(&other, memory.range(), PAGES);
            let coherent = gpu(&mm, "coherent", MemoryKind::Coherent);
            let sent = coherent.mirror.migrate_to_device(memory.range()).unwrap();
            assert_eq!((sent.migrated(), other.used()), (PAGES, 0), "{sent:?}");
            assert_eq!(coherent.count(memory.range(), is_coherent_here), PAGES);
            memory.check();
        },
    );
}

#[test]
fn mig_11_and_12_duplicates_end_before_pages_are_taken_exclusively() {
    apart(
        "sides::mig_11_and_12_duplicates_end_before_pages_are_taken_exclusively",
        || {
            let mm = open();
            let (device, memory) = share(&mm);
            let other = gpu(&mm, "other", MemoryKind::Private);
            let taken = other.mirror.exclusive(memory.pages(0, 64)).unwrap();
            assert_eq!((taken.moved, taken.skipped), (64, 0), "{taken:?}");
            let taken = device.mirror.exclusive(memory.range()).unwrap();
            assert_eq!((taken.migrated(), taken.skipped), (PAGES, 0), "{taken:?}");
            assert_eq!(device.count(memory.range(), is_exclusive_here), PAGES);
            assert_eq!((device.used(), other.used()), (PAGES, 0));
            // Nothing that is exclusive is shared.
            memory.check();
            device.wait_used(0);
            expect_shared(&device, memory.range(), 0);
        },
    );
}

#[test]
fn mig_7_and_12_a_small_device_gives_duplicates_up_without_moving_them() {
    apart(
        "sides::mig_7_and_12_a_small_device_gives_duplicates_up_without_moving_them",
        || {
            let mm = open();
            let device = gpu_of(&mm, "small", MemoryKind::Private, 600);
            let memory = Mapped::numbered(8 * MIB);
            device.mirror.advise(memory.range(), Advice::ReadMostly).unwrap();
            for pass in 0..3 {
                for part in 0..8 {
                    let range = memory.pages(part * 256, 256);
                    let sent = device.mirror.migrate_to_device(range).unwrap();
                    assert_eq!(sent.skipped, 0, "{sent:?}");
                    assert!((0..256).all(|page| {
                        let at = (part * 256 + page) * 512;
                        memory.words()[at] == number(at)
                    }));
                    expect_shared(&device, range, 256);
                    assert!(device.used() <= 600, "pass {pass}: {}", device.used());
                }
            }
            let stats = mm.stats();
            assert!(stats.evictions > 0 && stats.duplicates_collapsed > 0);
            assert_eq!(came_home(&stats), 0, "they were at home");
            assert_eq!(device.handle.evict_all().unwrap().skipped, 0);
            assert_eq!(device.used(), 0);
            memory.check();
        },
    );
}

#[test]
fn mig_6_and_12_parts_of_a_huge_page_are_shared() {
    apart("sides::mig_6_and_12_parts_of_a_huge_page_are_shared", || {
        let mm = open();
        let device = gpu(&mm, "device", MemoryKind::Private);
        let mut memory = rw(8 * MIB);
        // SAFETY: advice about the mapping just made.
        unsafe { libc::madvise(memory.start as *mut _, memory.len_bytes, libc::MADV_HUGEPAGE) };
        memory.number();
        device.mirror.advise(memory.range(), Advice::ReadMostly).unwrap();
        device.mirror.migrate_to_device(memory.range()).unwrap();
        assert_eq!(load(memory.start + 700 * PAGE_SIZE), number(700 * 512));
        expect_shared(&device, memory.range(), 1);
        assert!(device.words(&memory) == (0..MIB).map(number).collect::<Vec<_>>());
        word(memory.start + 700 * PAGE_SIZE).store(1, std::sync::atomic::Ordering::SeqCst);
        assert_eq!(device.words(&memory)[700 * 512], 1);
        word(memory.start + 700 * PAGE_SIZE).store(number(700 * 512), std::sync::atomic::Ordering::SeqCst);
        memory.check();
        let pages = memory.len_bytes / PAGE_SIZE;
        expect_shared(&device, memory.range(), pages - 1);
        let home = device.mirror.migrate_home(memory.range()).unwrap();
        assert_eq!((home.skipped, device.used()), (0, 0), "{home:?}");
        memory.check();
    });
}
