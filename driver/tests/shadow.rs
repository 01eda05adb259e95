//! A guest's memory on live Linux, on memory of this process: it needs userfaultfd.
#![cfg(not(feature = "shuttle"))]

mod memory;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;

use isomem::{Mm, PAGE_SIZE};
use isomem_core::mirror::range::FaultError;
use isomem_core::mm::EntryError;
use isomem_core::world::Access;
use isomem_drivers::shadow::{Guest, GuestError, MemSlot, Shadow};
use isomem_linux::Linux;

use memory::{Memory, busy, in_child, load, store, word};

const ROUNDS: u64 = 300;
/// The guest's number of its first page.
const GFN: usize = 0x100;

fn open(memory: &Memory) -> (Mm, Shadow<Linux>) {
    let mm = Mm::current().expect("these tests need userfaultfd: run them as root");
    let slot = MemSlot {
        first_gfn: GFN,
        host: memory.range(),
    };
    let machine = Shadow::new(mm.core(), &[slot]).unwrap();
    (mm, machine)
}

fn get(guest: &mut Guest<'_, Linux>, memory: Memory, offset: usize) -> Result<u64, GuestError> {
    let gpa = GFN * PAGE_SIZE + offset;
    guest.with(gpa, 8, Access::Read, |world, pin| load(world, memory, pin))
}

fn put(guest: &mut Guest<'_, Linux>, memory: Memory, offset: usize, value: u64) -> Result<(), GuestError> {
    let gpa = GFN * PAGE_SIZE + offset;
    guest.with(gpa, 8, Access::Write, |world, pin| store(world, memory, pin, value))
}

#[test]
fn drv_1_a_scan_and_random_accesses_see_the_programs_memory() {
    let memory = Memory::new(3 * 512);
    let (_mm, machine) = open(&memory);
    for page in 0..3 * 512 {
        word(memory, page * PAGE_SIZE).store(page as u64, SeqCst);
    }
    let sum =
        machine.run(move |guest| (0..3 * 512).try_fold(0, |sum, page| Ok(sum + get(guest, memory, page * PAGE_SIZE)?)));
    assert_eq!(sum, Ok((0..3 * 512).sum::<u64>()));
    let random = machine.run(move |guest| {
        let mut at = 1_usize;
        for round in 0..1000 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1) % (memory.len_bytes / 8);
            put(guest, memory, at * 8, round)?;
            assert_eq!(get(guest, memory, at * 8)?, round);
        }
        Ok(())
    });
    assert_eq!(random, Ok(()));
}

#[test]
fn drv_1_program_and_guest_produce_and_consume() {
    let memory = Memory::new(2);
    let (_mm, machine) = open(&memory);
    thread::scope(|scope| {
        scope.spawn(|| {
            machine.run(move |guest| {
                for round in 1..=ROUNDS {
                    while get(guest, memory, 0)? != round {
                        thread::yield_now();
                    }
                    put(guest, memory, PAGE_SIZE, round * 2)?;
                }
                Ok(())
            })
        });
        for round in 1..=ROUNDS {
            word(memory, 0).store(round, SeqCst);
            busy(|| word(memory, PAGE_SIZE).load(SeqCst) == round * 2);
        }
    });
}

#[test]
fn shd_3_a_guest_goes_on_through_unmap_and_remap_under_load() {
    let memory = Memory::new(4);
    let (mm, machine) = open(&memory);
    let (stop, ran) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                let done = machine.run(move |guest| {
                    for page in 0..4 {
                        put(guest, memory, page * PAGE_SIZE, 7)?;
                    }
                    Ok(())
                });
                match done {
                    Ok(()) => ran.fetch_add(1, SeqCst),
                    Err(GuestError::Fault(FaultError::Hole { .. })) => 0,
                    Err(error) => panic!("{error}"),
                };
            }
        });
        for round in 0..ROUNDS {
            if round % 2 == 0 {
                mm.core().unmap(memory.range()).unwrap();
                memory.map_again();
            } else {
                mm.core().discard(memory.range()).unwrap();
            }
            if round % 16 == 0 {
                let before = ran.load(SeqCst);
                busy(|| ran.load(SeqCst) > before);
            }
        }
        stop.store(true, SeqCst);
    });
    mm.core().unmap(memory.range()).unwrap();
    assert_eq!(machine.entries(), 0);
}

#[test]
fn life_6_a_forks_child_is_refused_and_the_guest_runs_on_through_forks() {
    let memory = Memory::new(2);
    let (_mm, machine) = open(&memory);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            while !stop.load(SeqCst) {
                round += 1;
                let seen = machine.run(move |guest| {
                    put(guest, memory, 0, round)?;
                    get(guest, memory, 0)
                });
                assert_eq!(seen, Ok(round));
            }
        });
        for _ in 0..10 {
            let refused = in_child(|| {
                let refused = machine.run(move |guest| get(guest, memory, 0));
                refused == Err(GuestError::Fault(EntryError::WrongAddressSpace.into()))
            });
            assert!(refused);
        }
        stop.store(true, SeqCst);
    });
}

/// Live migration of a machine: rounds that copy what the log names while the guest writes, then a last one with the guest stopped.
#[test]
fn shd_4_copying_what_the_log_names_makes_a_whole_copy() {
    const PAGES: usize = 64;
    let memory = Memory::new(PAGES);
    let (_mm, machine) = open(&memory);
    let (stop, mut copy) = (AtomicBool::new(false), [0; PAGES]);
    let mut pass = |machine: &Shadow<Linux>| {
        let log = machine.collect_dirty(GFN, PAGES).unwrap();
        for &gfn in &log {
            copy[gfn - GFN] = word(memory, (gfn - GFN) * PAGE_SIZE).load(SeqCst);
        }
        log.len()
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0_u64;
            while !stop.load(SeqCst) {
                number += 1;
                let page = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize % PAGES;
                machine
                    .run(move |guest| put(guest, memory, page * PAGE_SIZE, number))
                    .unwrap();
            }
        });
        let mut copied = 0;
        while copied < 1000 {
            copied += pass(&machine);
        }
        stop.store(true, SeqCst);
    });
    pass(&machine);
    let there: Vec<u64> = (0..PAGES)
        .map(|page| word(memory, page * PAGE_SIZE).load(SeqCst))
        .collect();
    assert_eq!(copy.to_vec(), there);
}
