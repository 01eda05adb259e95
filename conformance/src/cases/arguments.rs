//! Bad input: ranges, numbers, pointers, counts, descriptors.

use isomem_core::addr::{PAGE_SIZE, USER_END};
use isomem_core::world::Access;
use isomem_dmirror::{Command, Request};
use rustix::io::Errno;

use crate::bench::{Bench, Buffer, Outcome, same};
use crate::machine::{Backing, Machine};

super::cases! {
    Same bad_ranges_are_invalid_for_every_command
    Same unknown_numbers_and_sizes_are_invalid
    Same a_bad_command_pointer_is_a_fault
    Same a_bad_data_pointer_is_a_fault
    Same errors_leave_the_command_as_it_was
    Same absurd_counts_are_refused
    Same addresses_outside_user_space_are_holes
    Same a_closed_descriptor_is_bad
    Same there_is_no_fifth_device
    Same the_program_gets_an_answer_that_lies_in_the_range_itself
}

fn bad_ranges_are_invalid_for_every_command<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let good = bench.filled(4, 0)?;
    let addr = good.addr as u64;
    let bad = [
        (addr + 1, 1),
        (addr + 8, 1),
        (addr, 0),
        (addr, u64::MAX),
        (addr, 1 << 52),
        (u64::MAX - 4095, 1),
        (u64::MAX - 8191, 2),
        (u64::MAX, 1),
    ];
    for request in Request::ALL {
        for (addr, npages) in bad {
            let mut command = Command {
                addr,
                npages,
                ..Command::default()
            };
            let result = bench.machine.command(device, request.ioctl(), &mut command);
            same(
                &format!("{request:?} of {npages:#x} at {addr:#x}"),
                result,
                Err(Errno::INVAL),
            )?;
        }
    }
    bench.holds(good, 0)
}

fn unknown_numbers_and_sizes_are_invalid<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let good = bench.filled(1, 5)?;
    let read = Request::Read.ioctl();
    for number in [read + 8, read + 0xff, read ^ 1 << 16, read ^ 3 << 30, read + 0x100, 0] {
        let mut command = Command {
            addr: good.addr as u64,
            npages: 1,
            ..Command::default()
        };
        let result = bench.machine.command(device, number, &mut command);
        same(&format!("the answer to {number:#x}"), result, Err(Errno::INVAL))?;
    }
    bench.reads(device, good, 5)
}

fn a_bad_command_pointer_is_a_fault<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let edge = bench.untouched(2)?;
    bench.unmap(edge.part(1, 1));
    let none = bench.map(1, Backing::Anonymous, None)?;
    for request in Request::ALL {
        for at in [0, 8, edge.page(1) - 16, none.addr, USER_END, usize::MAX - 7] {
            let result = bench.machine.command_at(device, request.ioctl(), at);
            same(
                &format!("{request:?} with a command at {at:#x}"),
                result,
                Err(Errno::FAULT),
            )?;
        }
    }
    Ok(())
}

fn a_bad_data_pointer_is_a_fault<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let good = bench.filled(2, 1)?;
    let edge = bench.untouched(2)?;
    bench.unmap(edge.part(1, 1));
    let read_only = bench.map(2, Backing::Anonymous, Some(Access::Read))?;
    let want_data = [
        Request::Read,
        Request::Write,
        Request::MigrateToDevice,
        Request::Snapshot,
        Request::Exclusive,
    ];
    for request in want_data {
        for ptr in [0, edge.page(1), edge.page(1) - 1, USER_END, usize::MAX - 1] {
            let mut command = command(good, ptr);
            let result = bench.machine.command(device, request.ioctl(), &mut command);
            same(&format!("{request:?} with data at {ptr:#x}"), result, Err(Errno::FAULT))?;
        }
        if request != Request::Write {
            let mut command = command(good, read_only.addr);
            let result = bench.machine.command(device, request.ioctl(), &mut command);
            same(&format!("{request:?} to read-only data"), result, Err(Errno::FAULT))?;
        }
    }
    bench.holds(good, 1)
}

fn command(buffer: Buffer, ptr: usize) -> Command {
    Command {
        addr: buffer.addr as u64,
        ptr: ptr as u64,
        npages: buffer.pages as u64,
        ..Command::default()
    }
}

fn errors_leave_the_command_as_it_was<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let hole = bench.untouched(1)?;
    bench.unmap(hole);
    let before = Command {
        cpages: 77,
        faults: 88,
        ..command(hole, hole.addr)
    };
    let mut after = before;
    let result = bench.machine.command(device, Request::Read.ioctl(), &mut after);
    same("READ of a hole", result, Err(Errno::FAULT))?;
    same("the command", after, before)
}

fn absurd_counts_are_refused<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let good = bench.filled(1, 0)?;
    for request in [Request::Read, Request::Write] {
        let mut command = Command {
            npages: 1 << 34,
            ..command(good, good.addr)
        };
        let result = bench.machine.command(device, request.ioctl(), &mut command);
        same(&format!("{request:?} of 64 TiB"), result, Err(Errno::NOMEM))?;
    }
    bench.holds(good, 0)
}

fn addresses_outside_user_space_are_holes<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let beyond = Buffer {
        addr: USER_END,
        pages: 2,
    };
    bench.fails(device, Request::Read, beyond, Errno::FAULT)?;
    bench.fails(device, Request::Write, beyond, Errno::FAULT)?;
    bench.fails(device, Request::MigrateToDevice, beyond, Errno::INVAL)?;
    bench.fails(device, Request::MigrateToSystem, beyond, Errno::INVAL)?;
    let kernels = Buffer {
        addr: !0 << 40,
        pages: 1,
    };
    bench.fails(device, Request::Read, kernels, Errno::FAULT)
}

fn a_closed_descriptor_is_bad<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let good = bench.filled(1, 0)?;
    bench.machine.close(device)?;
    for request in Request::ALL {
        bench.fails(device, request, good, Errno::BADF)?;
    }
    same("a second close", bench.machine.close(device), Err(Errno::BADF))
}

fn there_is_no_fifth_device<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    same("opening device 4", bench.machine.open(4).err(), Some(Errno::NOENT))
}

fn the_program_gets_an_answer_that_lies_in_the_range_itself<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let good = bench.filled(8, 3)?;
    let mut command = command(good, good.addr);
    bench
        .machine
        .command(device, Request::MigrateToDevice.ioctl(), &mut command)?;
    same("pages", command.cpages, 8)?;
    same("bytes of a page", PAGE_SIZE, 4096)?;
    bench.holds(good, 3)
}
