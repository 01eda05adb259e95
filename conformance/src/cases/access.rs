//! READ and WRITE.

use isomem_core::world::Access;
use isomem_dmirror::{Counts, Request};
use rustix::io::Errno;

use crate::bench::{Bench, Outcome, numbers, same};
use crate::machine::{Backing, Machine};

super::cases! {
    Same the_first_read_faults_once_and_the_next_not_at_all
    Same a_write_faults_once_also_over_many_chunks
    Same a_write_after_a_read_of_zero_pages_faults
    Same a_read_of_untouched_memory_maps_the_zero_page
    Same a_write_to_a_read_only_area_is_not_permitted
    Same a_read_of_a_hole_or_of_nothing_permitted_is_a_fault
    Same a_failed_read_leaves_finished_chunks_in_the_table
    Same a_failed_write_across_a_hole_wrote_nothing
    Same a_device_reads_and_writes_files_in_place
    Same what_the_cpu_writes_the_device_reads
    Same a_private_file_is_copied_when_the_device_writes
}

fn the_first_read_faults_once_and_the_next_not_at_all<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(200, 10)?;
    for faults in [1, 0, 0] {
        let done = bench.ask(device, Request::Read, buffer)?;
        same("the counts", done.counts, Counts { cpages: 200, faults })?;
        same("what the device read", done.words(), numbers(10, 200))?;
    }
    let second = bench.open(0)?;
    let done = bench.ask(second, Request::Read, buffer)?;
    same("faults through a second open", done.counts.faults, 1)
}

fn a_write_faults_once_also_over_many_chunks<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.untouched(300)?;
    for (from, faults) in [(7, 1), (9, 0)] {
        let done = bench.write(device, buffer, from)?;
        same("the counts", done.counts, Counts { cpages: 300, faults })?;
        bench.holds(buffer, from)?;
    }
    Ok(())
}

fn a_write_after_a_read_of_zero_pages_faults<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.untouched(8)?;
    same("a read", bench.ask(device, Request::Read, buffer)?.words(), vec![0; 8])?;
    same("faults of a write", bench.write(device, buffer, 3)?.counts.faults, 1)?;
    bench.holds(buffer, 3)?;
    bench.reads(device, buffer, 3)
}

fn a_read_of_untouched_memory_maps_the_zero_page<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.untouched(3)?;
    bench.looks(device, buffer, &[0; 3])?;
    bench.ask(device, Request::Read, buffer.part(1, 1))?;
    bench.looks(device, buffer, &[0, 0x11, 0])
}

fn a_write_to_a_read_only_area_is_not_permitted<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(4, 1)?;
    bench.protect(buffer, Some(Access::Read));
    same("a write", bench.write(device, buffer, 50).err(), Some(Errno::PERM))?;
    bench.holds(buffer, 1)?;
    bench.reads(device, buffer, 1)?;
    same(
        "a write after a read",
        bench.write(device, buffer, 50).err(),
        Some(Errno::PERM),
    )?;
    bench.protect(buffer, Some(Access::Write));
    bench.write(device, buffer, 50)?;
    bench.holds(buffer, 50)
}

fn a_read_of_a_hole_or_of_nothing_permitted_is_a_fault<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(3, 1)?;
    bench.protect(buffer.part(1, 1), None);
    bench.fails(device, Request::Read, buffer, Errno::FAULT)?;
    same("a write", bench.write(device, buffer, 9).err(), Some(Errno::FAULT))?;
    bench.unmap(buffer.part(1, 1));
    bench.fails(device, Request::Read, buffer, Errno::FAULT)?;
    same("a write", bench.write(device, buffer, 9).err(), Some(Errno::FAULT))?;
    bench.holds(buffer.part(0, 1), 1)?;
    bench.holds(buffer.part(2, 1), 3)
}

fn a_failed_read_leaves_finished_chunks_in_the_table<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(130, 1)?;
    bench.unmap(buffer.part(129, 1));
    bench.fails(device, Request::Read, buffer, Errno::FAULT)?;
    let done = bench.ask(device, Request::Read, buffer.part(0, 128))?;
    same("faults", done.counts.faults, 0)
}

fn a_failed_write_across_a_hole_wrote_nothing<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(100, 1)?;
    bench.unmap(buffer.part(99, 1));
    same("a write", bench.write(device, buffer, 900).err(), Some(Errno::FAULT))?;
    bench.holds(buffer.part(0, 99), 1)
}

fn a_device_reads_and_writes_files_in_place<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let file = bench.map(6, Backing::SharedFile, Some(Access::Write))?;
    bench.reads(device, file, 0)?;
    bench.write(device, file, 40)?;
    bench.holds(file, 40)?;
    let shared = bench.map(6, Backing::SharedAnonymous, Some(Access::Write))?;
    bench.write(device, shared, 60)?;
    let check = |machine: &M| Bench::new(machine).holds(shared, 60);
    bench.machine.in_child(&check)
}

fn what_the_cpu_writes_the_device_reads<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(16, 1)?;
    for from in [1, 100, 200] {
        bench.fill(buffer, from);
        bench.reads(device, buffer, from)?;
        bench.write(device, buffer, from + 50)?;
        bench.holds(buffer, from + 50)?;
    }
    Ok(())
}

fn a_private_file_is_copied_when_the_device_writes<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let file = bench.map(4, Backing::PrivateFile, Some(Access::Write))?;
    bench.reads(device, file, 0)?;
    bench.looks(device, file, &[1; 4])?;
    bench.write(device, file.part(1, 2), 70)?;
    bench.looks(device, file, &[1, 2, 2, 1])?;
    same(
        "the words",
        bench.ask(device, Request::Read, file)?.words(),
        vec![0, 70, 71, 3],
    )
}
