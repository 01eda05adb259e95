//! A guest's memory in the simulated kernel, before every checker. An access to memory that is gone is a fault of the simulated CPU, and fails the
//! story.
//!
//! On plain threads by default; `--features shuttle` tells the same stories under many schedules.

#[path = "../../sim/tests/common/mod.rs"]
mod common;
mod stories;

use std::sync::Arc;

use isomem_core::addr::PAGE_SIZE;
use isomem_core::mirror::range::FaultError;
use isomem_core::world::Access;
use isomem_drivers::shadow::{Guest, GuestError, MemSlot, OpenError, Shadow};
use isomem_sim::kernel::Op;
use isomem_sim::rig::Rig;
use isomem_sim::world::SimWorld;

use common::{Times, explore, join, spawn, value};
use stories::{ROUNDS, TIMES, touch};

const NAME: &str = "guest";
/// The guest's number of the story's first page.
const GFN: usize = 0x10;

type Machine = Shadow<SimWorld>;

fn open(rig: &Rig, pages: usize) -> Arc<Machine> {
    let host = rig.range(0, pages);
    let first_gfn = GFN;
    Arc::new(Shadow::new(rig.mm(), &[MemSlot { first_gfn, host }]).expect("the heap is large"))
}

fn close(rig: &Rig, machine: Arc<Machine>) {
    Arc::into_inner(machine).expect("nobody uses it any more").close();
    rig.shut_down();
}

/// One access of the guest to a word of page `page`.
fn access(guest: &mut Guest<'_, SimWorld>, page: usize, word: usize, op: Op) -> Result<u64, GuestError> {
    let gpa = (GFN + page) * PAGE_SIZE + word * 8;
    guest.with(gpa, 8, op.access(), |world, pin| touch(world, NAME, &pin, word, op))
}

fn one(machine: &Machine, page: usize, word: usize, op: Op) -> Result<u64, GuestError> {
    machine.run(move |guest| access(guest, page, word, op))
}

#[test]
fn shd_1_no_entry_outlives_its_page() {
    // A look that does not cover the neighbours it enters shows in one of some thousand schedules only.
    let times = Times {
        schedules: 20_000,
        ..TIMES
    };
    explore(times, |journal, _| {
        let rig = Rig::new(journal, 2);
        let machine = open(&rig, 2);
        let cpu = machine.clone();
        let threads = vec![
            spawn(&rig, "unmap", |rig| {
                for _ in 1..ROUNDS {
                    rig.unmap(0, 2).unwrap();
                    rig.map(0, 2).unwrap();
                }
                // One after the other: a miss on the second enters the first, its neighbour, too (SHD-2).
                rig.unmap(0, 1).unwrap();
                rig.unmap(1, 1).unwrap();
            }),
            spawn(&rig, "vcpu", move |_| {
                for round in 0..ROUNDS {
                    let done = one(&cpu, round % 2, 1, Op::Store(value(2, round)));
                    let hole = matches!(done, Err(GuestError::Fault(FaultError::Hole { .. })));
                    assert!(done.is_ok() || hole, "{done:?}");
                }
            }),
        ];
        join(threads);
        assert_eq!(machine.entries(), 0);
        close(&rig, machine);
    });
}

#[test]
fn inst_3_no_guest_runs_and_no_entry_stays_after_the_exit_of_the_address_space() {
    explore(TIMES, |journal, _| {
        let rig = Rig::new(journal, 1);
        let machine = open(&rig, 1);
        let cpu = machine.clone();
        let threads = vec![
            spawn(&rig, "exit", Rig::exit),
            spawn(&rig, "vcpu", move |_| {
                for round in 0..ROUNDS {
                    let done = one(&cpu, 0, 1, Op::Store(value(2, round)));
                    assert!(done.is_ok() || done == Err(FaultError::Released.into()), "{done:?}");
                }
            }),
        ];
        join(threads);
        assert_eq!(one(&machine, 0, 0, Op::Load), Err(FaultError::Released.into()));
        assert_eq!(machine.entries(), 0);
        close(&rig, machine);
    });
}

/// The guest counts a word up while another thread takes the log and copies what it names, as live migration of a machine does.
#[test]
fn shd_4_copying_what_the_log_names_makes_a_whole_copy() {
    explore(TIMES, |journal, _| {
        let rig = Rig::new(journal, 2);
        let machine = open(&rig, 2);
        let (cpu, copier) = (machine.clone(), machine.clone());
        let threads = vec![
            spawn(&rig, "vcpu", move |_| {
                for round in 0..ROUNDS {
                    for page in 0..2 {
                        let done = one(&cpu, page, 1, Op::Add(1));
                        assert_eq!(done, Ok(round as u64));
                    }
                }
            }),
            spawn(&rig, "collector", move |rig| {
                for _ in 0..ROUNDS {
                    for gfn in copier.collect_dirty(GFN, 2).unwrap() {
                        // The page's copy is its other word, so that the story's end finds it.
                        let page = gfn - GFN;
                        let seen = rig.cpu_read(page, 1);
                        rig.cpu_write(page, 2, seen);
                    }
                }
            }),
            spawn(&rig, "load", |rig| {
                for _ in 0..ROUNDS {
                    rig.migrate(0, 1);
                    rig.protect(1, 1, Some(Access::Write)).unwrap();
                }
            }),
        ];
        join(threads);
        // The last pass, with the guest stopped.
        for gfn in machine.collect_dirty(GFN, 2).unwrap() {
            let seen = rig.cpu_read(gfn - GFN, 1);
            rig.cpu_write(gfn - GFN, 2, seen);
        }
        if !rig.journal().is_decided() {
            for page in 0..2 {
                assert_eq!(
                    rig.cpu_read(page, 2),
                    ROUNDS as u64,
                    "the log forgot a write to page {page}"
                );
            }
            assert_eq!(machine.collect_dirty(GFN, 2).unwrap().len(), 0);
        }
        close(&rig, machine);
    });
}

#[test]
fn shd_4_the_log_has_what_the_guest_wrote_and_outlives_its_entries() {
    explore(
        Times {
            plain: 1,
            schedules: 50,
        },
        |journal, _| {
            let rig = Rig::new(journal, 4);
            let machine = open(&rig, 4);
            for page in 0..4 {
                one(&machine, page, 0, Op::Load).unwrap();
            }
            assert_eq!(machine.collect_dirty(GFN, 4).unwrap().len(), 0);
            one(&machine, 1, 0, Op::Store(1)).unwrap();
            one(&machine, 3, 0, Op::Store(1)).unwrap();
            rig.cpu_write(2, 0, 1);
            rig.discard(3, 1).unwrap();
            assert_eq!(machine.collect_dirty(GFN, 4).unwrap()[..], [GFN + 1, GFN + 3]);
            assert_eq!(machine.collect_dirty(GFN, 4).unwrap().len(), 0);
            one(&machine, 1, 0, Op::Store(2)).unwrap();
            assert_eq!(machine.collect_dirty(GFN, 2).unwrap()[..], [GFN + 1]);
            close(&rig, machine);
        },
    );
}

#[test]
fn shd_2_a_miss_enters_its_neighbours_and_aging_tells_who_was_used() {
    explore(
        Times {
            plain: 1,
            schedules: 50,
        },
        |journal, _| {
            let rig = Rig::new(journal, 4);
            let machine = open(&rig, 4);
            one(&machine, 0, 0, Op::Store(1)).unwrap();
            assert_eq!(machine.entries(), 1);
            one(&machine, 2, 0, Op::Load).unwrap();
            rig.protect(0, 1, Some(Access::Write)).unwrap();
            assert_eq!(machine.entries(), 1);
            one(&machine, 3, 0, Op::Load).unwrap();
            one(&machine, 0, 0, Op::Load).unwrap();
            assert_eq!(machine.entries(), 3);
            assert_eq!(machine.age(GFN, 4), Ok(3));
            one(&machine, 2, 0, Op::Load).unwrap();
            assert_eq!(machine.age(GFN, 4), Ok(1));
            assert_eq!(machine.age(GFN, 4), Ok(0));
            close(&rig, machine);
        },
    );
}

#[test]
fn shd_1_bad_slots_and_addresses_are_refused() {
    explore(Times { plain: 1, schedules: 1 }, |journal, _| {
        let rig = Rig::new(journal, 2);
        let host = rig.range(0, 2);
        let slot = |first_gfn| MemSlot { first_gfn, host };
        for bad in [&[slot(0), slot(1)][..], &[slot(0); 5]] {
            assert_eq!(Shadow::new(rig.mm(), bad).map(drop), Err(OpenError::Slots));
        }
        // The same pages twice, under different numbers.
        let twice = Arc::new(Shadow::new(rig.mm(), &[slot(GFN), slot(GFN + 4)]).unwrap());
        one(&twice, 4, 0, Op::Store(5)).unwrap();
        assert_eq!(one(&twice, 0, 0, Op::Load), Ok(5));
        assert_eq!(one(&twice, 2, 0, Op::Load), Err(GuestError::NoSlot(GFN + 2)));
        assert_eq!(twice.age(GFN, 3), Err(GuestError::NoSlot(GFN + 2)));
        assert_eq!(twice.age(GFN, 0), Err(GuestError::NoSlot(GFN)));
        rig.unmap(0, 2).unwrap();
        assert_eq!(twice.entries(), 0);
        close(&rig, twice);
    });
}
