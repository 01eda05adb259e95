//! Opens, duplicates, forks, and ends.

use isomem_dmirror::Request;
use rustix::io::Errno;

use crate::bench::{Bench, Buffer, Outcome, same};
use crate::machine::Machine;

super::cases! {
    Same each_open_has_a_table_of_its_own
    Same closing_brings_every_page_of_the_device_home
    Same the_last_duplicate_is_the_one_that_closes
    Same a_device_can_be_opened_again_and_again
    Same closing_leaves_no_thread_and_no_descriptor
    Same a_child_has_its_own_address_space
    Same an_inherited_descriptor_works_on_the_opener
    Same a_descriptor_whose_opener_is_gone_says_so
    Same a_child_that_dies_with_pages_on_the_device_leaves_the_parent_well
}

fn each_open_has_a_table_of_its_own<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let (first, second) = (bench.open(0)?, bench.open(0)?);
    let buffer = bench.filled(4, 1)?;
    bench.reads(first, buffer, 1)?;
    same("faults", bench.ask(second, Request::Read, buffer)?.counts.faults, 1)?;
    bench.sends(first, buffer, 1)?;
    same("faults", bench.ask(second, Request::Read, buffer)?.counts.faults, 1)?;
    bench.reads(second, buffer, 1)
}

fn closing_brings_every_page_of_the_device_home<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let (first, second) = (bench.open(0)?, bench.open(0)?);
    let buffer = bench.filled(8, 1)?;
    bench.sends(first, buffer, 1)?;
    bench.machine.close(second)?;
    bench.looks(first, buffer, &[2; 8])?;
    bench.reads(first, buffer, 1)?;
    bench.sends(first, buffer, 1)?;
    bench.machine.close(first)?;
    bench.holds(buffer, 1)
}

fn the_last_duplicate_is_the_one_that_closes<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let twin = bench.machine.duplicate(device)?;
    let buffer = bench.filled(8, 1)?;
    bench.sends(device, buffer, 1)?;
    bench.machine.close(device)?;
    bench.looks(twin, buffer, &[0x22; 8])?;
    bench.reads(twin, buffer, 1)?;
    bench.machine.close(twin)?;
    bench.holds(buffer, 1)
}

fn a_device_can_be_opened_again_and_again<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let buffer = bench.filled(8, 1)?;
    for round in 0..10 {
        let device = bench.open(round % 4)?;
        bench.sends(device, buffer, 1)?;
        bench.reads(device, buffer, 1)?;
        bench.machine.close(device)?;
    }
    bench.holds(buffer, 1)
}

fn closing_leaves_no_thread_and_no_descriptor<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let buffer = bench.filled(8, 1)?;
    let mut before = None;
    for _ in 0..20 {
        let (one, other) = (bench.open(0)?, bench.open(2)?);
        bench.sends(one, buffer, 1)?;
        bench.fails(
            other,
            Request::Read,
            Buffer {
                addr: 1 << 46,
                pages: 1,
            },
            Errno::FAULT,
        )?;
        bench.machine.close(one)?;
        bench.machine.close(other)?;
        // Some threads end by themselves shortly after.
        let mut now = bench.machine.resources();
        for _ in 0..100 {
            if before.is_none_or(|before| now <= before) {
                break;
            }
            bench.machine.pause();
            now = bench.machine.resources();
        }
        let first = *before.get_or_insert(now);
        same("threads and descriptors", now.max(first), first)?;
    }
    bench.holds(buffer, 1)
}

fn a_child_has_its_own_address_space<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(100, 1)?;
    bench.sends(device, buffer, 1)?;
    let child = |machine: &M| {
        let bench = Bench::new(machine);
        let own = bench.open(0)?;
        bench.reads(own, buffer, 1)?;
        bench.write(own, buffer, 700)?;
        bench.holds(buffer, 700)?;
        bench.sends(own, buffer, 700)?;
        bench.holds(buffer, 700)?;
        Ok(bench.machine.close(own)?)
    };
    bench.machine.in_child(&child)?;
    bench.holds(buffer, 1)?;
    bench.reads(device, buffer, 1)
}

fn an_inherited_descriptor_works_on_the_opener<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(100, 1)?;
    let child = |machine: &M| {
        let bench = Bench::new(machine);
        bench.fill(buffer, 500);
        // The opener's contents, though the child's own differ.
        bench.reads(device, buffer, 1)?;
        bench.write(device, buffer, 40)?;
        bench.sends(device, buffer, 40)?;
        bench.looks(device, buffer.part(0, 2), &[0x22; 2])?;
        bench.fails(
            device,
            Request::Read,
            Buffer {
                addr: 1 << 46,
                pages: 1,
            },
            Errno::FAULT,
        )?;
        bench.holds(buffer, 500)?;
        Ok(bench.machine.close(device)?)
    };
    bench.machine.in_child(&child)?;
    bench.looks(device, buffer.part(0, 2), &[0x22; 2])?;
    bench.holds(buffer, 40)
}

fn a_descriptor_whose_opener_is_gone_says_so<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let buffer = bench.filled(4, 1)?;
    let opener = |machine: &M| {
        let bench = Bench::new(machine);
        let device = bench.open(0)?;
        bench.sends(device, buffer, 1)?;
        Ok(device)
    };
    let heir = |machine: &M, device: M::Device| {
        let bench = Bench::new(machine);
        for request in [Request::Read, Request::Write] {
            bench.fails(device, request, buffer, Errno::FAULT)?;
        }
        let others = [
            Request::MigrateToDevice,
            Request::MigrateToSystem,
            Request::Snapshot,
            Request::Exclusive,
        ];
        for request in others {
            bench.fails(device, request, buffer, Errno::INVAL)?;
        }
        for request in [Request::CheckExclusive, Request::Release] {
            bench.ask(device, request, buffer)?;
        }
        bench.holds(buffer, 1)
    };
    bench.machine.after_opener(&opener, &heir)
}

fn a_child_that_dies_with_pages_on_the_device_leaves_the_parent_well<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(16, 1)?;
    for _ in 0..3 {
        let child = |machine: &M| {
            let bench = Bench::new(machine);
            let own = bench.open(0)?;
            bench.sends(own, buffer, 1)
        };
        let parent = |machine: &M| {
            let bench = Bench::new(machine);
            bench.sends(device, buffer, 1)?;
            bench.holds(buffer, 1)
        };
        bench.machine.beside_child(&child, &parent)?;
        bench.reads(device, buffer, 1)?;
    }
    Ok(())
}
