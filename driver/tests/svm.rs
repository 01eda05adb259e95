//! The GPU on live memory: lanes that use plain addresses, while the program changes everything about the memory there.
#![cfg(not(feature = "shuttle"))]

#[path = "../../isomem/tests/apart/mod.rs"]
mod apart;
#[path = "live/mod.rs"]
mod live;

use isomem::{Access, MemoryKind, Mm};
use isomem_core::mirror::copy::ReachError;
use isomem_core::mirror::range::FaultError;
use isomem_core::mm::MemoryConfig;
use isomem_drivers::svm::{Context, Home, Svm};
use isomem_linux::Linux;

use apart::{MIB, Mapped, apart};
use live::{PAGE, Random, anywhere, rw};

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
