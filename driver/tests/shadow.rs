//! A guest's memory on live Linux, on memory of this process: it needs userfaultfd.
#![cfg(not(feature = "shuttle"))]

#[path = "../../isomem/tests/apart/mod.rs"]
mod apart;
mod live;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use isomem::{Mm, PAGE_SIZE};
use isomem_core::world::Access;
use isomem_drivers::shadow::{Guest, GuestError, MemSlot, Shadow};
use isomem_linux::Linux;

use live::{Memory, store, word};

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

fn put(guest: &mut Guest<'_, Linux>, memory: Memory, offset: usize, value: u64) -> Result<(), GuestError> {
    let gpa = GFN * PAGE_SIZE + offset;
    guest.with(gpa, 8, Access::Write, |world, pin| store(world, memory, pin, value))
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
