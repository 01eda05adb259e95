//! The GPU on live memory: lanes that use plain addresses, while the program changes everything about the memory there.
#![cfg(not(feature = "shuttle"))]

#[path = "../../isomem/tests/apart/mod.rs"]
mod apart;
#[path = "live/mod.rs"]
mod live;

use std::sync::atomic::Ordering;
use std::thread;

use isomem::{Access, MemoryKind, Mm};
use isomem_core::bus::AtomicOp;
use isomem_core::mirror::copy::ReachError;
use isomem_core::mirror::range::FaultError;
use isomem_core::mm::{EntryError, MemoryConfig};
use isomem_drivers::svm::{Context, Home, Lane, Svm, SvmError};
use isomem_linux::Linux;

use apart::{MIB, Mapped, apart};
use live::{PAGE, Random, anywhere, in_child, map_again, rw, word};

const ADDS: u64 = 2_000;

/// A GPU with 1 MiB of memory, and two contexts: one takes pages, the other maps them in place.
fn with_svm(test: &str, story: impl FnOnce(&Mm, &Svm<Linux>, &[Context<Linux>; 2])) {
    apart(test, || {
        let mm = Mm::current().expect("these tests need userfaultfd: run them as root");
        let config = MemoryConfig {
            name: "svm",
            capacity_bytes: MIB,
            mirror_budget_bytes: None,
            kind: MemoryKind::Private,
        };
        let device = mm.core().register(config).unwrap();
        let svm = Svm::new(mm.core()).unwrap();
        let contexts = [Home::Device, Home::InPlace].map(|home| svm.open(&device, home).unwrap());
        story(&mm, &svm, &contexts);
        drop(contexts);
        // Nobody has a mirror of it any more: not the fault thread either.
        device.unregister().unwrap();
        drop(svm);
    });
}

/// Adds to the first words of `pages` pages in turn.
fn adding(start: usize, pages: usize) -> impl FnOnce(&mut Lane<'_, Linux>) -> Result<(), ReachError> + Send {
    let window = anywhere();
    move |lane| {
        for round in 0..ADDS as usize {
            lane.atomic(&window, start + round % pages * PAGE, AtomicOp::Add(1))?;
        }
        Ok(())
    }
}

fn sum(memory: &Mapped) -> u64 {
    (0..memory.len_bytes / PAGE)
        .map(|page| live::load(memory.start + page * PAGE))
        .sum()
}

#[test]
fn drv_1_lanes_scan_more_than_the_gpu_has_and_access_at_random() {
    const NAME: &str = "drv_1_lanes_scan_more_than_the_gpu_has_and_access_at_random";
    with_svm(NAME, |mm, svm, contexts| {
        let memory = Mapped::numbered(4 * MIB);
        let (start, count) = (memory.start, 4 * MIB / 8);
        let expected: u64 = memory.words().iter().fold(0, |sum, word| sum.wrapping_add(*word));
        for context in contexts {
            let window = anywhere();
            let scan = context.launch(move |lane| {
                let mut sum = 0u64;
                for index in 0..count {
                    sum = sum.wrapping_add(lane.load(&window, start + index * 8)?);
                }
                assert_eq!(sum, expected);
                let mut random = Random(11);
                for round in 0..2_000 {
                    let at = start + random.below(count) * 8;
                    lane.store(&window, at, round)?;
                    assert_eq!(lane.load(&window, at)?, round);
                    let before = lane.load(&window, at)?;
                    lane.store(&window, at, before)?;
                }
                // As it was: the next context scans it, too.
                let mut random = Random(11);
                for _ in 0..2_000 {
                    let index = random.below(count);
                    lane.store(&window, start + index * 8, apart::number(index))?;
                }
                Ok(())
            });
            assert_eq!(scan.unwrap().wait(), Ok(()));
        }
        assert!(
            memory
                .words()
                .iter()
                .enumerate()
                .all(|(index, word)| *word == apart::number(index))
        );
        let stats = mm.stats();
        assert!(stats.pages_to_device > 0 && stats.evictions > 0, "{stats:?}");
        assert!(svm.served().misses >= svm.served().ranges && svm.served().cancelled == 0);
    });
}

#[test]
fn drv_1_program_and_lanes_of_both_contexts_add_to_the_same_words() {
    with_svm(
        "drv_1_program_and_lanes_of_both_contexts_add_to_the_same_words",
        |_, _, contexts| {
            let memory = rw(4 * PAGE);
            let items: Vec<_> = (0..4)
                .map(|index| contexts[index % 2].launch(adding(memory.start, 4)).unwrap())
                .collect();
            for round in 0..ADDS as usize {
                word(memory.start + round % 4 * PAGE).fetch_add(1, Ordering::SeqCst);
            }
            items.into_iter().for_each(|item| assert_eq!(item.wait(), Ok(())));
            assert_eq!(sum(&memory), 5 * ADDS, "adds are missing");
        },
    );
}

#[test]
fn svm_2_a_lane_that_leaves_memory_gets_its_sigsegv_and_the_others_go_on() {
    const NAME: &str = "svm_2_a_lane_that_leaves_memory_gets_its_sigsegv_and_the_others_go_on";
    with_svm(NAME, |mm, svm, contexts| {
        let memory = rw(3 * PAGE);
        mm.core().protect(memory.pages(1, 1), Some(Access::Read)).unwrap();
        let (window, start) = (anywhere(), memory.start);
        let store = |page: usize| {
            contexts[0]
                .launch(move |lane| lane.store(&window, start + page * PAGE, 5))
                .unwrap()
        };
        let items = [store(0), store(1), store(2)];
        let nowhere = contexts[1]
            .launch(move |lane| lane.load(&window, PAGE).map(drop))
            .unwrap();
        let [first, second, third] = items.map(|item| item.wait());
        assert_eq!((first, third), (Ok(()), Ok(())));
        assert!(matches!(second, Err(ReachError::Fault(FaultError::ReadOnly { addr })) if addr.get() == start + PAGE));
        assert!(matches!(
            nowhere.wait(),
            Err(ReachError::Fault(FaultError::Hole { .. }))
        ));
        assert_eq!(svm.served().cancelled, 2);
    });
}

#[test]
fn inv_5_memory_is_unmapped_and_mapped_again_under_load() {
    with_svm(
        "inv_5_memory_is_unmapped_and_mapped_again_under_load",
        |mm, _, contexts| {
            let memory = rw(2 * PAGE);
            let (window, start) = (anywhere(), memory.start);
            let items = contexts.each_ref().map(|context| {
                let stays = context.launch(adding(start, 1)).unwrap();
                let comes_and_goes = context.launch(move |lane| {
                    for _ in 0..ADDS {
                        match lane.atomic(&window, start + PAGE, AtomicOp::Add(1)) {
                            Ok(_) | Err(ReachError::Fault(FaultError::Hole { .. } | FaultError::NoAccess { .. })) => {}
                            Err(error) => return Err(error),
                        }
                    }
                    Ok(())
                });
                [stays, comes_and_goes.unwrap()]
            });
            for _ in 0..200 {
                mm.core().unmap(memory.pages(1, 1)).unwrap();
                map_again(memory.pages(1, 1));
            }
            items
                .into_iter()
                .flatten()
                .for_each(|item| assert_eq!(item.wait(), Ok(())));
            assert_eq!(live::load(start), 2 * ADDS, "the page that stayed has them all");
        },
    );
}

#[test]
fn life_6_forks_under_load_lose_nothing_and_a_child_may_not_launch() {
    with_svm(
        "life_6_forks_under_load_lose_nothing_and_a_child_may_not_launch",
        |_, _, contexts| {
            let memory = rw(2 * PAGE);
            let items = contexts
                .each_ref()
                .map(|context| context.launch(adding(memory.start, 2)).unwrap());
            for _ in 0..10 {
                let status = in_child(|| {
                    let refused = contexts[0].launch(|_| Ok(())).err();
                    u8::from(refused != Some(SvmError::Entry(EntryError::WrongAddressSpace)))
                });
                assert_eq!(status, 0);
            }
            items.into_iter().for_each(|item| assert_eq!(item.wait(), Ok(())));
            assert_eq!(sum(&memory), 2 * ADDS);
        },
    );
}

#[test]
fn life_3_lanes_end_when_the_address_space_exits_under_load() {
    with_svm(
        "life_3_lanes_end_when_the_address_space_exits_under_load",
        |mm, _, contexts| {
            let memory = rw(2 * PAGE);
            let items = contexts
                .each_ref()
                .map(|context| context.launch(adding(memory.start, 2)).unwrap());
            thread::scope(|scope| {
                scope.spawn(|| mm.core().exit());
            });
            for item in items {
                let ended = item.wait();
                let released = ended == Err(ReachError::Fault(FaultError::Released));
                assert!(ended == Ok(()) || released, "{ended:?}");
            }
            let late = contexts[0].launch(adding(memory.start, 2)).unwrap().wait();
            assert_eq!(late, Err(ReachError::Fault(FaultError::Released)));
        },
    );
}
