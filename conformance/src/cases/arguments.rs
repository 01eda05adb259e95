//! Bad input: ranges, numbers, pointers, counts, descriptors.

use isomem_core::addr::{PAGE_SIZE, USER_END};
use isomem_core::world::Access;
use isomem_dmirror::{Command, Request};
use rustix::io::Errno;

use crate::bench::{Bench, Buffer, Outcome, same};
use crate::machine::{Backing, Machine};

super::cases! {
    Same a_descriptor_of_something_else_has_no_such_command
    Same the_command_may_lie_anywhere
    Same a_command_in_read_only_memory_is_a_fault
    Same bad_input_leaves_no_thread_and_no_descriptor
    Same closing_while_a_command_is_under_way
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

/// Tries something here, and then in a child through the descriptor that it inherits: there the opener does what the child asks for.
fn here_and_in_an_heir<M: Machine>(bench: &Bench<'_, M>, body: impl Fn(&Bench<'_, M>) -> Outcome) -> Outcome {
    body(bench)?;
    bench.machine.in_child(&|machine: &M| body(&Bench::new(machine)))
}

fn a_descriptor_of_something_else_has_no_such_command<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let good = bench.filled(2, 1)?;
    let foreign = bench.machine.foreign()?;
    here_and_in_an_heir(bench, |bench| {
        for (other, errno) in &foreign {
            for request in Request::ALL {
                bench.fails(*other, request, good, *errno)?;
            }
        }
        Ok(())
    })?;
    bench.reads(device, good, 1)
}

/// A command as it lies in the program's memory.
fn lay<M: Machine>(bench: &Bench<'_, M>, at: usize, command: &Command) {
    let Command {
        addr,
        ptr,
        npages,
        cpages,
        faults,
    } = *command;
    for (index, word) in [addr, ptr, npages, cpages, faults].into_iter().enumerate() {
        bench.machine.store(at + index * 8, word);
    }
}

fn the_command_may_lie_anywhere<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let good = bench.filled(3, 20)?;
    let (place, data) = (bench.filled(2, 0)?, bench.filled(3, 0)?);
    // Aligned, across two pages, on no boundary.
    for at in [place.addr, place.page(1) - 16, place.page(1) - 19] {
        lay(bench, at, &command(good, data.addr));
        bench.machine.command_at(device, Request::Read.ioctl(), at)?;
        same("pages read", bench.machine.load(at + 24), 3)?;
        bench.holds(data, 20)?;
        bench.fill(data, 0);
    }
    // On the device itself, with the data.
    lay(bench, place.addr, &command(good, data.addr));
    bench.ask(device, Request::MigrateToDevice, place)?;
    bench.sends(device, data, 0)?;
    bench.machine.command_at(device, Request::Read.ioctl(), place.addr)?;
    same("pages read", bench.machine.load(place.addr + 24), 3)?;
    bench.holds(data, 20)
}

fn a_command_in_read_only_memory_is_a_fault<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let good = bench.filled(2, 1)?;
    let (place, data) = (bench.filled(1, 0)?, bench.filled(2, 0)?);
    lay(bench, place.addr, &command(good, data.addr));
    bench.protect(place, Some(Access::Read));
    here_and_in_an_heir(bench, |bench| {
        // The check has nothing to answer: pages are exclusive.
        let answering = |request: &Request| *request != Request::CheckExclusive;
        for request in Request::ALL.into_iter().filter(answering) {
            let result = bench.machine.command_at(device, request.ioctl(), place.addr);
            same(
                &format!("{request:?}, whose answer has no place"),
                result,
                Err(Errno::FAULT),
            )?;
        }
        Ok(())
    })
}

fn bad_input_leaves_no_thread_and_no_descriptor<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let (good, hole) = (bench.filled(2, 1)?, bench.untouched(2)?);
    bench.unmap(hole);
    let mut before = None;
    for _ in 0..20 {
        for request in Request::ALL {
            let empty = Buffer { pages: 0, ..good };
            bench.fails(device, request, empty, Errno::INVAL)?;
            // A hole, the data at a bad place, a command at a bad place, a number that there is not.
            let _ = bench.ask(device, request, hole);
            let _ = bench
                .machine
                .command(device, request.ioctl(), &mut command(good, hole.addr));
            let _ = bench.machine.command_at(device, request.ioctl(), hole.addr);
            let _ = bench
                .machine
                .command(device, request.ioctl() + 8, &mut command(good, good.addr));
        }
        let _ = bench.machine.open(4);
        let now = bench.machine.resources();
        let first = *before.get_or_insert(now);
        same("threads and descriptors", now, first)?;
    }
    bench.reads(device, good, 1)
}

fn closing_while_a_command_is_under_way<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let buffer = bench.filled(512, 1)?;
    for round in 0..20 {
        let device = bench.open(round % 4)?;
        let commands = |machine: &M| {
            let bench = Bench::new(machine);
            let requests = [Request::MigrateToDevice, Request::Read, Request::Exclusive];
            for request in requests.into_iter().cycle() {
                match bench.ask(device, request, buffer) {
                    Ok(_) => {}
                    // The close was in between two commands.
                    Err(Errno::BADF) => break,
                    // It brought home what the command had just sent.
                    Err(Errno::NOENT) => {}
                    Err(errno) => return same("the error", Err(errno), Ok(())),
                }
            }
            Ok(())
        };
        let close = move |machine: &M| {
            machine.pause();
            let _ = machine.close(device);
        };
        bench.machine.in_parallel(&commands, &close)?;
        bench.holds(buffer, 1)?;
    }
    Ok(())
}

fn bad_ranges_are_invalid_for_every_command<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let good = bench.filled(4, 0)?;
    here_and_in_an_heir(bench, |bench| bad_ranges(bench, device, good))
}

fn bad_ranges<M: Machine>(bench: &Bench<'_, M>, device: M::Device, good: Buffer) -> Outcome {
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
    here_and_in_an_heir(bench, |bench| {
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
    })
}

fn a_bad_command_pointer_is_a_fault<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let edge = bench.untouched(2)?;
    bench.unmap(edge.part(1, 1));
    let none = bench.map(1, Backing::Anonymous, None)?;
    here_and_in_an_heir(bench, |bench| {
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
    })
}

fn a_bad_data_pointer_is_a_fault<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let good = bench.filled(2, 1)?;
    let edge = bench.untouched(2)?;
    bench.unmap(edge.part(1, 1));
    let read_only = bench.map(2, Backing::Anonymous, Some(Access::Read))?;
    here_and_in_an_heir(bench, |bench| {
        bad_data(
            bench,
            device,
            good,
            [0, edge.page(1), edge.page(1) - 1, USER_END, usize::MAX - 1],
        )?;
        for request in WANT_DATA.into_iter().filter(|request| *request != Request::Write) {
            let result = bench
                .machine
                .command(device, request.ioctl(), &mut command(good, read_only.addr));
            same(&format!("{request:?} to read-only data"), result, Err(Errno::FAULT))?;
        }
        bench.holds(good, 1)
    })
}

const WANT_DATA: [Request; 5] = [
    Request::Read,
    Request::Write,
    Request::MigrateToDevice,
    Request::Snapshot,
    Request::Exclusive,
];

fn bad_data<M: Machine>(bench: &Bench<'_, M>, device: M::Device, good: Buffer, places: [usize; 5]) -> Outcome {
    for request in WANT_DATA {
        for ptr in places {
            let result = bench.machine.command(device, request.ioctl(), &mut command(good, ptr));
            same(&format!("{request:?} with data at {ptr:#x}"), result, Err(Errno::FAULT))?;
        }
    }
    Ok(())
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
    here_and_in_an_heir(bench, |bench| {
        let mut after = before;
        let result = bench.machine.command(device, Request::Read.ioctl(), &mut after);
        same("READ of a hole", result, Err(Errno::FAULT))?;
        same("the command", after, before)
    })
}

fn absurd_counts_are_refused<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let good = bench.filled(1, 0)?;
    here_and_in_an_heir(bench, |bench| {
        for request in [Request::Read, Request::Write] {
            let mut command = Command {
                npages: 1 << 34,
                ..command(good, good.addr)
            };
            let result = bench.machine.command(device, request.ioctl(), &mut command);
            same(&format!("{request:?} of 64 TiB"), result, Err(Errno::NOMEM))?;
        }
        bench.holds(good, 0)
    })
}

fn addresses_outside_user_space_are_holes<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let beyond = Buffer {
        addr: USER_END,
        pages: 2,
    };
    let kernels = Buffer {
        addr: !0 << 40,
        pages: 1,
    };
    here_and_in_an_heir(bench, |bench| {
        bench.fails(device, Request::Read, beyond, Errno::FAULT)?;
        bench.fails(device, Request::Write, beyond, Errno::FAULT)?;
        bench.fails(device, Request::MigrateToDevice, beyond, Errno::INVAL)?;
        bench.fails(device, Request::MigrateToSystem, beyond, Errno::INVAL)?;
        bench.fails(device, Request::Read, kernels, Errno::FAULT)
    })
}

fn a_closed_descriptor_is_bad<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    let device = bench.open(0)?;
    let good = bench.filled(1, 0)?;
    let closes = |machine: &M| {
        let bench = Bench::new(machine);
        bench.machine.close(device)?;
        for request in Request::ALL {
            bench.fails(device, request, good, Errno::BADF)?;
        }
        same("a second close", bench.machine.close(device), Err(Errno::BADF))
    };
    // What a child closes stays open for its parent.
    bench.machine.in_child(&closes)?;
    bench.reads(device, good, 0)?;
    closes(bench.machine)
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
