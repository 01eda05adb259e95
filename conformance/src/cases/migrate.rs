//! MIGRATE_TO_DEV, MIGRATE_TO_SYS, RELEASE.

use isomem_core::addr::BLOCK_SIZE;
use isomem_core::world::Access;
use isomem_dmirror::{Counts, Request};
use rustix::io::Errno;

use crate::bench::{Bench, Failure, Outcome, numbers, same};
use crate::machine::{Backing, Machine};

super::cases! {
    Same untouched_and_zero_pages_migrate_as_zeroes
    Same read_only_pages_migrate
    Same holes_and_protected_areas_do_not_migrate
    Same chunks_before_a_hole_have_moved
    Same shared_memory_does_not_migrate_but_may_be_mapped
    Same pages_that_are_there_already_are_no_error
    Same pages_of_another_device_do_not_come
    Same locked_pages_migrate
    Same a_huge_page_migrates
    Same huge_pool_pages_do_not_migrate
    Same a_touch_brings_a_private_page_home_and_leaves_a_coherent_one
    Same migrate_to_system_counts_what_came_back
    Same migrate_to_system_leaves_other_devices_alone
    Same migrate_to_system_ignores_the_data_pointer
    Same release_evicts_everything
    Same the_device_writes_what_it_has
    Same mixed_places_migrate_together
    Differs pages_of_a_private_file_are_mapped_in_place
}

fn untouched_and_zero_pages_migrate_as_zeroes<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    for minor in [0, 2] {
        let device = bench.open(minor)?;
        let buffer = bench.untouched(4)?;
        same("an untouched word", bench.machine.load(buffer.page(1)), 0)?;
        let done = bench.ask(device, Request::MigrateToDevice, buffer)?;
        same("the words", done.words(), vec![0; 4])?;
        let there = if minor == 0 { 0x22 } else { 0x42 };
        bench.looks(device, buffer, &[there; 4])?;
        bench.write(device, buffer, 30)?;
        bench.holds(buffer, 30)?;
    }
    Ok(())
}

fn read_only_pages_migrate<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(4, 1)?;
    bench.protect(buffer, Some(Access::Read));
    bench.sends(device, buffer, 1)?;
    bench.looks(device, buffer, &[0x21; 4])?;
    bench.holds(buffer, 1)
}

fn holes_and_protected_areas_do_not_migrate<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(4, 1)?;
    bench.protect(buffer.part(2, 1), None);
    bench.unmap(buffer.part(1, 1));
    for part in [buffer.part(1, 1), buffer.part(2, 1), buffer] {
        bench.fails(device, Request::MigrateToSystem, part, Errno::INVAL)?;
        bench.fails(device, Request::MigrateToDevice, part, Errno::INVAL)?;
    }
    bench.looks(device, buffer, &[0x22, 0xff, 0xff, 2])
}

fn chunks_before_a_hole_have_moved<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(130, 1)?;
    bench.unmap(buffer.part(128, 1));
    bench.fails(device, Request::MigrateToDevice, buffer, Errno::INVAL)?;
    let mut expected = vec![0x22; 130];
    expected[128] = 0xff;
    expected[129] = 2;
    bench.looks(device, buffer, &expected)?;
    bench.holds(buffer.part(0, 128), 1)
}

fn shared_memory_does_not_migrate_but_may_be_mapped<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let shared = bench.map(4, Backing::SharedAnonymous, Some(Access::Write))?;
    bench.fill(shared, 1);
    bench.fails(device, Request::MigrateToDevice, shared, Errno::NOENT)?;
    bench.reads(device, shared, 1)?;
    bench.sends(device, shared, 1)?;
    bench.looks(device, shared, &[2; 4])
}

fn pages_that_are_there_already_are_no_error<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    for minor in [0, 2] {
        let device = bench.open(minor)?;
        let buffer = bench.filled(70, 1)?;
        bench.sends(device, buffer, 1)?;
        bench.sends(device, buffer, 1)?;
        bench.holds(buffer, 1)?;
    }
    Ok(())
}

fn pages_of_another_device_do_not_come<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    for (first, second, seen) in [(0, 1, 0), (2, 3, 0x52)] {
        let (first, second) = (bench.open(first)?, bench.open(second)?);
        let buffer = bench.filled(4, 1)?;
        bench.sends(first, buffer.part(0, 2), 1)?;
        bench.fails(second, Request::MigrateToDevice, buffer, Errno::NOENT)?;
        let there = bench.ask(second, Request::Snapshot, buffer)?;
        same("pages of the first device", &there.bytes()[..2], &[seen; 2])?;
        same("pages that did come", there.bytes()[2] & 0x62, there.bytes()[3])?;
        bench.holds(buffer, 1)?;
    }
    Ok(())
}

fn locked_pages_migrate<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(4, 1)?;
    bench.machine.lock(buffer.addr, buffer.len_bytes());
    bench.sends(device, buffer, 1)?;
    bench.holds(buffer, 1)
}

fn a_huge_page_migrates<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let twice = bench.untouched(1024)?;
    let first = (twice.addr.next_multiple_of(BLOCK_SIZE) - twice.addr) / 4096;
    let block = twice.part(first, 512);
    bench.machine.advise_huge(block.addr, block.len_bytes());
    bench.fill(block, 1);
    bench.sends(device, block, 1)?;
    let there = bench.ask(device, Request::Snapshot, block)?;
    same("the kind of the first page", there.bytes()[0] & !4, 0x22)?;
    bench.holds(block, 1)
}

fn huge_pool_pages_do_not_migrate<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let pool = bench
        .map(512, Backing::Hugetlb, Some(Access::Write))
        .map_err(|_| Failure::Skipped("no huge pages are reserved".into()))?;
    bench.fill(pool, 1);
    bench.fails(device, Request::MigrateToDevice, pool, Errno::INVAL)?;
    bench.fails(device, Request::MigrateToSystem, pool, Errno::INVAL)?;
    bench.fails(device, Request::Exclusive, pool, Errno::BUSY)?;
    bench.reads(device, pool, 1)?;
    bench.looks(device, pool, &[6; 512])
}

fn a_touch_brings_a_private_page_home_and_leaves_a_coherent_one<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    for (minor, there, touched) in [(0, 0x22, 2), (2, 0x42, 0x42)] {
        let device = bench.open(minor)?;
        let buffer = bench.filled(64, 1)?;
        bench.sends(device, buffer, 1)?;
        bench.looks(device, buffer.part(63, 1), &[there])?;
        bench.machine.store(buffer.page(0), 1);
        bench.looks(device, buffer.part(0, 1), &[touched])?;
        bench.reads(device, buffer, 1)?;
    }
    Ok(())
}

fn migrate_to_system_counts_what_came_back<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    for minor in [0, 2] {
        let device = bench.open(minor)?;
        let buffer = bench.filled(100, 1)?;
        let back = |expected: u64| {
            let counts = bench.ask(device, Request::MigrateToSystem, buffer)?.counts;
            let cpages = expected;
            same("the counts", counts, Counts { cpages, faults: 0 })
        };
        back(0)?;
        bench.sends(device, buffer.part(10, 70), 11)?;
        back(70)?;
        back(0)?;
        bench.looks(device, buffer.part(10, 2), &[2, 2])?;
        bench.holds(buffer, 1)?;
    }
    Ok(())
}

fn migrate_to_system_leaves_other_devices_alone<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let (first, second) = (bench.open(0)?, bench.open(1)?);
    let buffer = bench.filled(4, 1)?;
    bench.sends(first, buffer, 1)?;
    let counts = bench.ask(second, Request::MigrateToSystem, buffer)?.counts;
    same("pages that came back", counts.cpages, 0)?;
    bench.looks(first, buffer, &[0x22; 4])
}

fn migrate_to_system_ignores_the_data_pointer<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(4, 1)?;
    bench.sends(device, buffer, 1)?;
    let mut command = isomem_dmirror::Command {
        addr: buffer.addr as u64,
        ptr: 8,
        npages: 4,
        ..Default::default()
    };
    bench
        .machine
        .command(device, Request::MigrateToSystem.ioctl(), &mut command)?;
    same("pages that came back", command.cpages, 4)
}

fn release_evicts_everything<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    for minor in [0, 2] {
        let device = bench.open(minor)?;
        let (one, other) = (bench.filled(70, 1)?, bench.filled(8, 500)?);
        bench.sends(device, one, 1)?;
        bench.sends(device, other, 500)?;
        let counts = bench.ask(device, Request::Release, one.part(0, 1))?.counts;
        same("the counts", counts, Counts::default())?;
        bench.looks(device, other, &[2; 8])?;
        bench.looks(device, one, &[2; 70])?;
        bench.holds(one, 1)?;
        bench.sends(device, one, 1)?;
    }
    Ok(())
}

fn the_device_writes_what_it_has<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    for minor in [0, 2] {
        let device = bench.open(minor)?;
        let buffer = bench.filled(20, 1)?;
        bench.sends(device, buffer, 1)?;
        same("faults", bench.write(device, buffer, 300)?.counts.faults, 0)?;
        bench.reads(device, buffer, 300)?;
        bench.holds(buffer, 300)?;
    }
    Ok(())
}

fn mixed_places_migrate_together<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let buffer = bench.filled(128, 1)?;
    bench.sends(device, buffer, 1)?;
    for index in (0..128).step_by(3) {
        bench.machine.store(buffer.page(index), 1 + index as u64);
    }
    bench.sends(device, buffer, 1)?;
    same(
        "what is there",
        bench.ask(device, Request::Read, buffer)?.words(),
        numbers(1, 128),
    )?;
    bench.holds(buffer, 1)
}

fn pages_of_a_private_file_are_mapped_in_place<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let file = bench.map(4, Backing::PrivateFile, Some(Access::Write))?;
    bench.fails(device, Request::MigrateToDevice, file, Errno::NOENT)?;
    bench.fill(file, 20);
    bench.sends(device, file, 20)?;
    bench.looks(device, file, &[2; 4])
}
