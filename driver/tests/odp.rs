//! The network card on live memory: what it copies and adds is there, while the program changes everything about that memory.
#![cfg(not(feature = "shuttle"))]

#[path = "../../isomem/tests/apart/mod.rs"]
mod apart;
#[path = "live/mod.rs"]
mod live;

use std::thread;

use isomem::{Access, Mm};
use isomem_core::bus::AtomicOp;
use isomem_core::mirror::copy::ReachError;
use isomem_core::mirror::range::FaultError;
use isomem_core::mm::EntryError;
use isomem_drivers::odp::{Advice, Key, Nic, OdpError, Queue, Segment, Work};
use isomem_linux::Linux;

use apart::{MIB, Mapped, apart};
use live::{PAGE, Random, anywhere, in_child, map_again, rw, word};

const REQUESTS: u64 = 2_000;

/// A card with its implicit region and a queue.
fn with_nic(test: &str, story: impl FnOnce(&Mm, &Nic<Linux>, Key, &Queue<Linux>)) {
    apart(test, || {
        let mm = Mm::current().expect("these tests need userfaultfd: run them as root");
        let nic = Nic::open(mm.core()).unwrap();
        let key = nic.register(anywhere(), None, Access::Write).unwrap();
        let queue = nic.queue().unwrap();
        story(&mm, &nic, key, &queue);
        drop(queue);
        nic.close().unwrap();
    });
}

fn at(key: Key, addr: usize, len_bytes: usize) -> Segment {
    Segment { key, addr, len_bytes }
}

fn add(key: Key, addr: usize) -> Work {
    let op = AtomicOp::Add(1);
    Work::Atomic {
        at: at(key, addr, 8),
        op,
    }
}

fn one(queue: &Queue<Linux>, work: Work) -> Result<u64, OdpError> {
    queue.post(1, work)?;
    queue
        .wait()
        .map(|completion| completion.expect("it was posted").result)?
}

#[test]
fn drv_1_a_scan_and_random_copies_arrive() {
    with_nic("drv_1_a_scan_and_random_copies_arrive", |_, nic, key, queue| {
        let (from, to) = (Mapped::numbered(4 * MIB), rw(4 * MIB));
        let whole = |memory: &Mapped| at(key, memory.start, memory.len_bytes);
        let reached = nic.advise(Advice::Resident, &[whole(&from), whole(&to)]);
        assert_eq!(reached, Ok(4 * MIB / PAGE), "what the program touched, and no more");
        let (source, target) = (whole(&from), whole(&to));
        let copied = one(
            queue,
            Work::Copy {
                from: source,
                to: target,
            },
        );
        assert_eq!(copied, Ok(4 * MIB as u64));
        assert_eq!(from.words(), to.words());
        let mut random = Random(7);
        for _ in 0..200 {
            let (a, b, len) = (random.below(MIB), random.below(MIB), 1 + random.below(20_000));
            let (source, target) = (at(key, from.start + a, len), at(key, to.start + b, len));
            assert_eq!(
                one(
                    queue,
                    Work::Copy {
                        from: source,
                        to: target
                    }
                ),
                Ok(len as u64)
            );
            let bytes = |memory: &Mapped| {
                memory
                    .words()
                    .iter()
                    .flat_map(|word| word.to_ne_bytes())
                    .collect::<Vec<u8>>()
            };
            assert_eq!(bytes(&from)[a..a + len], bytes(&to)[b..b + len]);
        }
    });
}

#[test]
fn drv_1_program_and_card_add_to_the_same_words_while_they_are_migrated() {
    const NAME: &str = "drv_1_program_and_card_add_to_the_same_words_while_they_are_migrated";
    with_nic(NAME, |mm, _, key, queue| {
        let memory = rw(4 * PAGE);
        let other = mm.soft_device(isomem::SoftConfig::default()).unwrap();
        let mirror = other.mirror().unwrap();
        let addr = |round: u64| memory.start + (round as usize % 4) * PAGE;
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..REQUESTS {
                    word(addr(round)).fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                }
            });
            scope.spawn(|| {
                for _ in 0..50 {
                    mirror.migrate_to_device(memory.range()).unwrap();
                }
            });
            for round in 0..REQUESTS {
                one(queue, add(key, addr(round))).unwrap();
            }
        });
        let sum: u64 = (0..4).map(|page| live::load(addr(page))).sum();
        assert_eq!(sum, 2 * REQUESTS, "adds are missing");
    });
}

#[test]
fn odp_3_memory_is_unmapped_and_mapped_again_under_load() {
    with_nic(
        "odp_3_memory_is_unmapped_and_mapped_again_under_load",
        |mm, _, key, queue| {
            let memory = rw(2 * PAGE);
            thread::scope(|scope| {
                scope.spawn(|| {
                    for _ in 0..200 {
                        mm.core().unmap(memory.pages(1, 1)).unwrap();
                        map_again(memory.pages(1, 1));
                    }
                });
                for round in 0..REQUESTS {
                    let page = memory.start + (round as usize % 2) * PAGE;
                    match one(queue, add(key, page)) {
                        Ok(_) => {}
                        Err(OdpError::Reach(ReachError::Fault(
                            FaultError::Hole { .. } | FaultError::NoAccess { .. },
                        ))) => {
                            queue.reset().unwrap();
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            });
            assert_eq!(
                live::load(memory.start),
                REQUESTS / 2,
                "the page that stayed has them all"
            );
        },
    );
}

#[test]
fn odp_2_nothing_is_written_once_a_region_is_deregistered() {
    with_nic(
        "odp_2_nothing_is_written_once_a_region_is_deregistered",
        |_, nic, _, queue| {
            let memory = rw(PAGE);
            for round in 0..300 {
                let key = nic.register(anywhere(), Some(memory.range()), Access::Write).unwrap();
                (0..8).for_each(|id| queue.post(id, add(key, memory.start)).unwrap());
                nic.deregister(key).unwrap();
                let seen = live::load(memory.start);
                while let Some(completion) = queue.wait().unwrap() {
                    let result = completion.result;
                    let gone = result == Err(OdpError::NoRegion(key)) || result == Err(OdpError::Flushed);
                    assert!(result.is_ok() || gone, "{result:?}");
                }
                queue.reset().unwrap();
                assert_eq!(live::load(memory.start), seen, "round {round}");
            }
        },
    );
}

#[test]
fn life_6_a_childs_requests_are_refused_under_load() {
    with_nic(
        "life_6_a_childs_requests_are_refused_under_load",
        |_, nic, key, queue| {
            let memory = rw(PAGE);
            for _ in 0..20 {
                (0..8).for_each(|id| queue.post(id, add(key, memory.start)).unwrap());
                let wrong = Err(OdpError::Entry(EntryError::WrongAddressSpace));
                let status = in_child(|| {
                    let refused = [
                        queue.post(9, add(key, memory.start)) == wrong,
                        nic.deregister(key) == wrong,
                        queue.wait().map(drop) == wrong,
                    ];
                    u8::from(refused != [true; 3])
                });
                assert_eq!(status, 0);
                for _ in 0..8 {
                    queue.wait().unwrap().unwrap().result.unwrap();
                }
            }
            assert_eq!(live::load(memory.start), 20 * 8);
        },
    );
}

#[test]
fn life_3_requests_complete_when_the_address_space_exits_under_load() {
    const NAME: &str = "life_3_requests_complete_when_the_address_space_exits_under_load";
    with_nic(NAME, |mm, _, key, queue| {
        let memory = rw(PAGE);
        let (mut done, mut failed) = (0, 0);
        thread::scope(|scope| {
            scope.spawn(|| mm.core().exit());
            // However late that comes.
            while failed == 0 {
                (0..8).for_each(|id| queue.post(id, add(key, memory.start)).unwrap());
                while let Some(completion) = queue.wait().unwrap() {
                    done += u64::from(completion.result.is_ok());
                    failed += u64::from(completion.result.is_err());
                }
            }
        });
        assert_eq!(live::load(memory.start), done, "what failed has added nothing");
        let last = one(queue, add(key, memory.start));
        assert_eq!(last, Err(OdpError::Flushed));
    });
}
