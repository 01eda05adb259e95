//! The network card on live memory: what it copies and adds is there, while the program changes everything about that memory.
#![cfg(not(feature = "shuttle"))]

#[path = "../../isomem/tests/apart/mod.rs"]
mod apart;
#[path = "live/mod.rs"]
mod live;

use isomem::{Access, Mm};
use isomem_core::bus::AtomicOp;
use isomem_drivers::odp::{Advice, Key, Nic, OdpError, Queue, Segment, Work};
use isomem_linux::Linux;

use apart::{MIB, Mapped, apart};
use live::{PAGE, Random, anywhere, rw};

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
fn odp_2_nothing_is_written_once_a_region_is_deregistered() {
    with_nic(
        "odp_2_nothing_is_written_once_a_region_is_deregistered",
        |_, nic, _, queue| {
            let memory = rw(PAGE);
            for round in 0..300 {
                let key = nic.register(anywhere(), Some(memory.range()), Access::Write).unwrap();
                (0..8).for_each(|id| queue.post(id, add(key, memory.start)).unwrap());
                nic.deregister(key).unwrap();
                let seen = live::load_at(memory.start);
                while let Some(completion) = queue.wait().unwrap() {
                    let result = completion.result;
                    let gone = result == Err(OdpError::NoRegion(key)) || result == Err(OdpError::Flushed);
                    assert!(result.is_ok() || gone, "{result:?}");
                }
                queue.reset().unwrap();
                assert_eq!(live::load_at(memory.start), seen, "round {round}");
            }
        },
    );
}
