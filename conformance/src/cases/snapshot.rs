//! SNAPSHOT.

use isomem_core::world::Access;
use isomem_dmirror::Request;

use crate::bench::{Bench, Failure, Outcome, same};
use crate::machine::{Backing, Machine};

super::cases! {
    Same a_snapshot_tells_areas_and_pages_apart
    Same a_snapshot_brings_nothing_in
    Same a_private_page_is_seen_by_its_device_only
    Same a_coherent_page_is_seen_by_all
    Same exclusive_pages_look_unpopulated
    Same a_mapping_of_the_device_is_readable
    Same huge_pool_pages_are_told
}

fn a_snapshot_tells_areas_and_pages_apart<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.untouched(7)?;
    bench.machine.load(buffer.page(2));
    bench.machine.store(buffer.page(3), 1);
    bench.machine.store(buffer.page(4), 1);
    bench.protect(buffer.part(2, 2), Some(Access::Read));
    bench.protect(buffer.part(0, 1), None);
    bench.unmap(buffer.part(1, 1));
    bench.looks(device, buffer, &[0xff, 0xff, 0x11, 1, 2, 0, 0])
}

fn a_snapshot_brings_nothing_in<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.untouched(200)?;
    for _ in 0..2 {
        let done = bench.ask(device, Request::Snapshot, buffer)?;
        same("the faults", done.counts.faults, 0)?;
        bench.looks(device, buffer, &[0; 200])?;
    }
    Ok(())
}

fn a_private_page_is_seen_by_its_device_only<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let (own, other, coherent) = (bench.open(0)?, bench.open(1)?, bench.open(2)?);
    let buffer = bench.filled(3, 1)?;
    bench.sends(own, buffer.part(1, 1), 2)?;
    bench.looks(own, buffer, &[2, 0x22, 2])?;
    bench.looks(other, buffer, &[2, 0, 2])?;
    bench.looks(coherent, buffer, &[2, 0, 2])?;
    let sibling = bench.open(0)?;
    bench.looks(sibling, buffer, &[2, 0x22, 2])
}

fn a_coherent_page_is_seen_by_all<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let (own, other) = (bench.open(2)?, bench.open(3)?);
    let buffer = bench.filled(4, 1)?;
    bench.protect(buffer.part(3, 1), Some(Access::Read));
    bench.sends(own, buffer.part(1, 3), 2)?;
    bench.looks(own, buffer, &[2, 0x42, 0x42, 0x41])?;
    bench.looks(other, buffer, &[2, 0x52, 0x52, 0x51])?;
    bench.reads(other, buffer, 1)?;
    bench.looks(own, buffer, &[2, 0x42, 0x42, 0x41])
}

fn exclusive_pages_look_unpopulated<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(4, 1)?;
    bench.takes(device, buffer.part(1, 2), 2)?;
    bench.looks(device, buffer, &[2, 0, 0, 2])
}

fn a_mapping_of_the_device_is_readable<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let addr = bench.machine.map_device(device, 4096)?;
    let mapped = crate::bench::Buffer { addr, pages: 1 };
    bench.looks(device, mapped, &[1])?;
    bench.reads(device, mapped, 0)
}

fn huge_pool_pages_are_told<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let pool = bench
        .map(512, Backing::Hugetlb, Some(Access::Write))
        .map_err(|_| Failure::Skipped("no huge pages are reserved".into()))?;
    bench.looks(device, pool, &[0; 512])?;
    bench.fill(pool, 1);
    bench.looks(device, pool, &[6; 512])?;
    bench.protect(pool, Some(Access::Read));
    bench.looks(device, pool, &[5; 512])
}
