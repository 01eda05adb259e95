//! EXCLUSIVE and CHECK_EXCLUSIVE.

use isomem_core::world::Access;
use isomem_dmirror::Request;
use rustix::io::Errno;

use crate::bench::{Bench, Outcome, same};
use crate::machine::{Backing, Machine};

super::cases! {
    Same exclusive_populates_and_returns_what_is_there
    Same a_cpu_access_takes_its_page_back
    Same a_device_read_keeps_exclusivity_and_a_write_ends_it
    Same exclusive_pulls_device_pages_back
    Same what_cannot_be_exclusive_is_busy
    Same exclusive_pages_do_not_migrate
    Same protection_ends_exclusivity
    Same fork_ends_exclusivity
    Same check_of_nothing_is_no_error
}

fn check<M: Machine>(bench: &Bench<'_, M>, device: M::Device, buffer: crate::bench::Buffer) -> Result<(), Errno> {
    bench.ask(device, Request::CheckExclusive, buffer).map(|_| ())
}

fn exclusive_populates_and_returns_what_is_there<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.untouched(70)?;
    let done = bench.ask(device, Request::Exclusive, buffer)?;
    same("the words", done.words(), vec![0; 70])?;
    same("the check", check(bench, device, buffer), Err(Errno::PERM))?;
    let filled = bench.filled(70, 5)?;
    bench.takes(device, filled, 5)?;
    bench.takes(device, filled, 5)?;
    bench.holds(filled, 5)
}

fn a_cpu_access_takes_its_page_back<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(8, 5)?;
    bench.takes(device, buffer, 5)?;
    same("the check", check(bench, device, buffer.part(3, 1)), Err(Errno::PERM))?;
    bench.holds(buffer, 5)?;
    same("the check", check(bench, device, buffer), Ok(()))?;
    bench.looks(device, buffer, &[2; 8])
}

fn a_device_read_keeps_exclusivity_and_a_write_ends_it<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(8, 5)?;
    bench.takes(device, buffer, 5)?;
    let done = bench.ask(device, Request::Read, buffer)?;
    same("faults of a read", done.counts.faults, 0)?;
    same("the check", check(bench, device, buffer), Err(Errno::PERM))?;
    same("faults of a write", bench.write(device, buffer, 90)?.counts.faults, 1)?;
    same("the check", check(bench, device, buffer), Ok(()))?;
    bench.holds(buffer, 90)
}

fn exclusive_pulls_device_pages_back<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let (device, other) = (bench.open(0)?, bench.open(1)?);
    let buffer = bench.filled(8, 5)?;
    bench.sends(device, buffer.part(0, 4), 5)?;
    bench.sends(other, buffer.part(4, 4), 9)?;
    bench.takes(device, buffer, 5)?;
    bench.looks(device, buffer, &[0; 8])?;
    bench.looks(other, buffer, &[0; 8])?;
    bench.holds(buffer, 5)
}

fn what_cannot_be_exclusive_is_busy<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let shared = bench.map(2, Backing::SharedAnonymous, Some(Access::Write))?;
    bench.fill(shared, 1);
    bench.fails(device, Request::Exclusive, shared, Errno::BUSY)?;
    let read_only = bench.filled(2, 1)?;
    bench.protect(read_only, Some(Access::Read));
    bench.fails(device, Request::Exclusive, read_only, Errno::BUSY)?;
    let buffer = bench.filled(66, 1)?;
    bench.unmap(buffer.part(65, 1));
    bench.fails(device, Request::Exclusive, buffer, Errno::BUSY)?;
    same(
        "the check of the first chunk",
        check(bench, device, buffer.part(0, 64)),
        Err(Errno::PERM),
    )?;
    bench.holds(buffer.part(0, 65), 1)
}

fn exclusive_pages_do_not_migrate<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(4, 5)?;
    bench.takes(device, buffer, 5)?;
    bench.sends(device, buffer, 5)?;
    bench.looks(device, buffer, &[0; 4])?;
    let counts = bench.ask(device, Request::MigrateToSystem, buffer)?.counts;
    same("pages that came back", counts.cpages, 0)?;
    same("the check", check(bench, device, buffer), Err(Errno::PERM))?;
    bench.holds(buffer, 5)
}

fn protection_ends_exclusivity<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(4, 5)?;
    bench.takes(device, buffer, 5)?;
    bench.protect(buffer, Some(Access::Read));
    same("a write", bench.write(device, buffer, 9).err(), Some(Errno::PERM))?;
    bench.holds(buffer, 5)?;
    bench.protect(buffer, Some(Access::Write));
    bench.write(device, buffer, 9)?;
    bench.holds(buffer, 9)
}

fn fork_ends_exclusivity<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(4, 5)?;
    bench.takes(device, buffer, 5)?;
    let child = |machine: &M| {
        let bench = Bench::new(machine);
        bench.holds(buffer, 5)?;
        bench.fill(buffer, 70);
        bench.holds(buffer, 70)
    };
    bench.machine.in_child(&child)?;
    bench.holds(buffer, 5)?;
    same("the check", check(bench, device, buffer), Ok(()))
}

fn check_of_nothing_is_no_error<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(2, 5)?;
    bench.unmap(buffer);
    same("the check", check(bench, device, buffer), Ok(()))
}
