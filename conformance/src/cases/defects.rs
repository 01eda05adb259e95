//! What the kernel's driver gets wrong. Here it is to be right.

use isomem_core::world::Access;
use isomem_dmirror::Request;
use rustix::io::Errno;

use crate::bench::{Bench, Buffer, Outcome, numbers, same};
use crate::machine::Machine;

super::cases! {
    Defect a_read_after_the_cpu_took_some_pages
    Defect a_read_after_protection_changed
    Defect a_read_after_the_mapping_moved
    Defect a_read_after_a_fork
    Defect a_read_through_a_second_descriptor
    Defect the_page_after_a_change_keeps_its_entry
    Defect a_read_of_the_page_after_a_change
    Defect migrate_to_system_through_a_second_descriptor
    Defect a_write_to_a_read_only_page_on_the_device
    Defect migrating_again_after_protection_changed_there_and_back
    Defect discarded_pages_on_the_device_are_zeroes
}

/// Eight pages on a private device.
fn on_device<M: Machine>(bench: &Bench<'_, M>) -> Result<(M::Device, Buffer), crate::bench::Failure> {
    let device = bench.open(0)?;
    let buffer = bench.filled(8, 1)?;
    bench.sends(device, buffer, 1)?;
    Ok((device, buffer))
}

fn a_read_after_the_cpu_took_some_pages<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let (device, buffer) = on_device(bench)?;
    bench.machine.store(buffer.page(3), 4);
    bench.reads(device, buffer, 1)?;
    bench.machine.load(buffer.page(0));
    bench.reads(device, buffer, 1)
}

fn a_read_after_protection_changed<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let (device, buffer) = on_device(bench)?;
    bench.protect(buffer.part(2, 4), Some(Access::Read));
    bench.reads(device, buffer, 1)?;
    bench.protect(buffer, None);
    bench.fails(device, Request::Read, buffer, Errno::FAULT)?;
    bench.protect(buffer, Some(Access::Write));
    bench.reads(device, buffer, 1)?;
    bench.holds(buffer, 1)
}

fn a_read_after_the_mapping_moved<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let (device, buffer) = on_device(bench)?;
    let moved = Buffer {
        addr: bench.machine.remap(buffer.addr, buffer.len_bytes()),
        ..buffer
    };
    bench.fails(device, Request::Read, buffer, Errno::FAULT)?;
    bench.reads(device, moved, 1)?;
    bench.holds(moved, 1)
}

fn a_read_after_a_fork<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let (device, buffer) = on_device(bench)?;
    let child = |machine: &M| Bench::new(machine).holds(buffer, 1);
    bench.machine.in_child(&child)?;
    bench.reads(device, buffer, 1)?;
    bench.write(device, buffer, 30)?;
    bench.holds(buffer, 30)
}

fn a_read_through_a_second_descriptor<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let (device, buffer) = on_device(bench)?;
    let second = bench.open(0)?;
    bench.reads(second, buffer, 1)?;
    bench.write(second, buffer, 60)?;
    bench.reads(device, buffer, 60)?;
    bench.holds(buffer, 60)
}

fn the_page_after_a_change_keeps_its_entry<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(8, 1)?;
    bench.reads(device, buffer, 1)?;
    bench.machine.discard(buffer.page(2), 2 * 4096);
    let done = bench.ask(device, Request::Read, buffer.part(4, 4))?;
    same("faults of a read behind the change", done.counts.faults, 0)?;
    let done = bench.ask(device, Request::Read, buffer.part(0, 2))?;
    same("faults of a read before the change", done.counts.faults, 0)?;
    let done = bench.ask(device, Request::Read, buffer)?;
    same("what is there", done.words(), vec![1, 2, 0, 0, 5, 6, 7, 8])
}

fn a_read_of_the_page_after_a_change<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let (device, buffer) = on_device(bench)?;
    bench.machine.discard(buffer.page(2), 2 * 4096);
    bench.looks(device, buffer.part(4, 1), &[0x22])?;
    let done = bench.ask(device, Request::Read, buffer.part(4, 4))?;
    same("faults", done.counts.faults, 0)?;
    same("what is there", done.words(), numbers(5, 4))?;
    bench.unmap(buffer.part(0, 4));
    bench.reads(device, buffer.part(4, 4), 5)?;
    bench.holds(buffer.part(4, 4), 5)
}

fn migrate_to_system_through_a_second_descriptor<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let (device, buffer) = on_device(bench)?;
    let second = bench.open(0)?;
    let counts = bench.ask(second, Request::MigrateToSystem, buffer)?.counts;
    same("pages that came back", counts.cpages, 8)?;
    bench.fill(buffer, 77);
    bench.reads(device, buffer, 77)
}

fn a_write_to_a_read_only_page_on_the_device<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(8, 1)?;
    bench.protect(buffer, Some(Access::Read));
    bench.sends(device, buffer, 1)?;
    same("a write", bench.write(device, buffer, 9).err(), Some(Errno::PERM))?;
    bench.reads(device, buffer, 1)?;
    bench.holds(buffer, 1)
}

fn migrating_again_after_protection_changed_there_and_back<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let (device, buffer) = on_device(bench)?;
    bench.protect(buffer, Some(Access::Read));
    bench.protect(buffer, Some(Access::Write));
    bench.sends(device, buffer, 1)?;
    bench.holds(buffer, 1)
}

fn discarded_pages_on_the_device_are_zeroes<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let (device, buffer) = on_device(bench)?;
    bench.machine.discard(buffer.page(0), 4 * 4096);
    let expected: Vec<u64> = [0; 4].into_iter().chain(numbers(5, 4)).collect();
    same(
        "what is there",
        bench.ask(device, Request::Read, buffer)?.words(),
        expected,
    )
}
