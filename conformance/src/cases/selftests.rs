//! The promises behind each of the kernel's own `hmm-tests`, by their names, in code of this project. Each runs on a private and on a
//! coherent device.

use isomem_core::addr::BLOCK_SIZE;
use isomem_core::world::Access;
use isomem_dmirror::{Counts, Request};
use rustix::io::Errno;

use crate::bench::{Bench, Buffer, Failure, Outcome, same};
use crate::machine::{Backing, Machine};

super::cases! {
    Same open_close
    Same anon_read
    Same anon_read_prot
    Same anon_write
    Same anon_write_prot
    Same anon_write_child
    Same anon_write_child_shared
    Same anon_write_huge
    Same anon_write_hugetlbfs
    Same file_read
    Same file_write
    Same migrate
    Differs migrate_file_private
    Same migrate_fault
    Same migrate_release
    Same migrate_shared
    Same migrate_multiple
    Same anon_read_multiple
    Same anon_teardown
    Same mixedmap
    Same compound
    Same exclusive
    Same exclusive_mprotect
    Same exclusive_cow
    Same hmm_gup_test
    Same hmm_cow_in_device
    Same migrate_mixed
    Same snapshot
    Same double_map
}

const PAGES: usize = 1024;
/// A private and a coherent device.
const KINDS: [usize; 2] = [0, 2];

fn each<M: Machine>(bench: &Bench<'_, M>, body: impl Fn(M::Device, usize) -> Outcome) -> Outcome {
    for minor in KINDS {
        let device = bench.open(minor)?;
        body(device, minor)?;
        bench.machine.close(device)?;
    }
    Ok(())
}

fn counted(done: &crate::bench::Done, pages: usize, faults: u64) -> Outcome {
    let cpages = pages as u64;
    same("the counts", done.counts, Counts { cpages, faults })
}

fn open_close<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |_, _| Ok(()))
}

fn anon_read<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        let buffer = bench.untouched(PAGES)?;
        bench.fill(buffer.part(2, PAGES - 2), 2);
        bench.protect(buffer, Some(Access::Read));
        bench.machine.load(buffer.page(1));
        let done = bench.ask(device, Request::Read, buffer)?;
        counted(&done, PAGES, 1)?;
        let words = done.words();
        same("untouched pages", &words[..2], &[0; 2])?;
        same("the last page", words[PAGES - 1], PAGES as u64 - 1)
    })
}

fn anon_read_prot<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        let buffer = bench.filled(PAGES, 1)?;
        bench.protect(buffer, None);
        bench.fails(device, Request::Read, buffer, Errno::FAULT)?;
        bench.protect(buffer, Some(Access::Read));
        bench.holds(buffer, 1)
    })
}

fn anon_write<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        let buffer = bench.untouched(PAGES)?;
        counted(&bench.write(device, buffer, 1)?, PAGES, 1)?;
        bench.holds(buffer, 1)
    })
}

fn anon_write_prot<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        let buffer = bench.map(PAGES, Backing::Anonymous, Some(Access::Read))?;
        counted(&bench.ask(device, Request::Read, buffer.part(0, 1))?, 1, 1)?;
        same("a write", bench.write(device, buffer, 1).err(), Some(Errno::PERM))?;
        same("the last page", bench.machine.load(buffer.page(PAGES - 1)), 0)?;
        bench.protect(buffer, Some(Access::Write));
        counted(&bench.write(device, buffer, 1)?, PAGES, 1)?;
        bench.holds(buffer, 1)
    })
}

fn write_in_child<M: Machine>(bench: &Bench<'_, M>, backing: Backing, after: u64) -> Outcome {
    each(bench, |_, _| {
        let buffer = bench.map(PAGES, backing, Some(Access::Write))?;
        bench.fill(buffer, 1);
        let child = |machine: &M| {
            let bench = Bench::new(machine);
            bench.holds(buffer, 1)?;
            let own = bench.open(0)?;
            counted(&bench.write(own, buffer, 5000)?, PAGES, 1)?;
            bench.holds(buffer, 5000)
        };
        bench.machine.in_child(&child)?;
        bench.holds(buffer, after)
    })
}

fn anon_write_child<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    write_in_child(bench, Backing::Anonymous, 1)
}

fn anon_write_child_shared<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    write_in_child(bench, Backing::SharedAnonymous, 5000)
}

fn anon_write_huge<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        let twice = bench.untouched(1024)?;
        let first = (twice.addr.next_multiple_of(BLOCK_SIZE) - twice.addr) / 4096;
        let block = twice.part(first, 512);
        bench.machine.advise_huge(block.addr, block.len_bytes());
        counted(&bench.write(device, block, 1)?, 512, 1)?;
        bench.holds(block, 1)
    })
}

fn pool<M: Machine>(bench: &Bench<'_, M>) -> Result<Buffer, Failure> {
    bench
        .map(512, Backing::Hugetlb, Some(Access::Write))
        .map_err(|_| Failure::Skipped("no huge pages are reserved".into()))
}

fn anon_write_hugetlbfs<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        let pool = pool(bench)?;
        counted(&bench.write(device, pool, 1)?, 512, 1)?;
        bench.holds(pool, 1)?;
        bench.unmap(pool);
        Ok(())
    })
}

fn file_read<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        let file = bench.map(PAGES, Backing::SharedFile, Some(Access::Read))?;
        counted(&bench.ask(device, Request::Read, file)?, PAGES, 1)?;
        bench.reads(device, file, 0)
    })
}

fn file_write<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        let file = bench.map(PAGES, Backing::SharedFile, Some(Access::Write))?;
        counted(&bench.write(device, file, 9)?, PAGES, 1)?;
        bench.holds(file, 9)
    })
}

fn migrate<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        let buffer = bench.filled(PAGES, 1)?;
        bench.sends(device, buffer, 1)
    })
}

fn migrate_file_private<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        let file = bench.map(PAGES, Backing::PrivateFile, Some(Access::Write))?;
        bench.fill(file, 7);
        bench.sends(device, file, 7)
    })
}

fn migrate_fault<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        let buffer = bench.filled(PAGES, 1)?;
        bench.sends(device, buffer, 1)?;
        bench.holds(buffer.part(0, PAGES / 2), 1)?;
        bench.sends(device, buffer, 1)
    })
}

fn migrate_release<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        let buffer = bench.filled(PAGES, 1)?;
        bench.sends(device, buffer, 1)?;
        bench.ask(device, Request::Release, buffer)?;
        bench.holds(buffer.part(0, PAGES / 2), 1)
    })
}

fn migrate_shared<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        let shared = bench.map(PAGES, Backing::SharedAnonymous, Some(Access::Write))?;
        bench.fails(device, Request::MigrateToDevice, shared, Errno::NOENT)
    })
}

fn migrate_multiple<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, minor| {
        for round in 0..10 {
            let buffer = bench.filled(PAGES, round)?;
            bench.sends(device, buffer, round)?;
            if minor == 2 {
                counted(&bench.ask(device, Request::MigrateToSystem, buffer)?, PAGES, 0)?;
            }
            bench.holds(buffer, round)?;
            bench.unmap(buffer);
        }
        Ok(())
    })
}

fn anon_read_multiple<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        for round in 0..10 {
            let buffer = bench.filled(PAGES, round)?;
            let done = bench.ask(device, Request::Read, buffer)?;
            counted(&done, PAGES, 1)?;
            same("the first word", done.words()[0], round)?;
            bench.unmap(buffer);
        }
        Ok(())
    })
}

fn anon_teardown<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        for round in 0..10 {
            let buffer = bench.filled(PAGES, round)?;
            let read = |machine: &M| match Bench::new(machine).ask(device, Request::Read, buffer) {
                Ok(done) => {
                    counted(&done, PAGES, 1)?;
                    same("what was read", done.words()[PAGES - 1], round + PAGES as u64 - 1)
                }
                Err(errno) => same("the error", errno, Errno::FAULT),
            };
            let half = buffer.part(PAGES / 2, PAGES / 2);
            bench
                .machine
                .in_parallel(&read, &move |machine: &M| machine.unmap(half.addr, half.len_bytes()))?;
            bench.unmap(buffer.part(0, PAGES / 2));
        }
        Ok(())
    })
}

fn mixedmap<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        let addr = bench.machine.map_device(device, 4096)?;
        bench.looks(device, Buffer { addr, pages: 1 }, &[1])
    })
}

fn compound<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        let pool = pool(bench)?;
        bench.fill(pool, 0);
        bench.looks(device, pool, &[6; 512])?;
        bench.protect(pool, Some(Access::Read));
        bench.looks(device, pool, &[5; 512])?;
        bench.unmap(pool);
        Ok(())
    })
}

fn exclusive<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        let buffer = bench.filled(PAGES, 1)?;
        bench.takes(device, buffer, 1)?;
        bench.holds(buffer, 1)?;
        bench.fill(buffer, 2);
        bench.holds(buffer, 2)?;
        bench.ask(device, Request::CheckExclusive, buffer)?;
        Ok(())
    })
}

fn exclusive_mprotect<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        let buffer = bench.filled(PAGES, 1)?;
        bench.takes(device, buffer, 1)?;
        bench.protect(buffer, Some(Access::Read));
        same("a write", bench.write(device, buffer, 1).err(), Some(Errno::PERM))
    })
}

fn exclusive_cow<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        let buffer = bench.filled(PAGES, 1)?;
        bench.takes(device, buffer, 1)?;
        let change = |machine: &M| {
            let bench = Bench::new(machine);
            bench.holds(buffer, 1)?;
            bench.fill(buffer, 2);
            bench.holds(buffer, 2)
        };
        bench.machine.beside_child(&change, &change)
    })
}

/// The kernel's test pins pages by a module of its own; the nearest a program can come to it is to let the kernel write them.
fn hmm_gup_test<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        let buffer = bench.filled(4, 1)?;
        bench.sends(device, buffer, 1)?;
        // The command itself is written by the kernel's copy: into a page on the device.
        let inner = bench.filled(1, 9)?;
        let mut command = isomem_dmirror::Command {
            addr: inner.addr as u64,
            ptr: buffer.page(2) as u64,
            npages: 1,
            ..Default::default()
        };
        bench.machine.command(device, Request::Read.ioctl(), &mut command)?;
        same("what the program got", bench.machine.load(buffer.page(2)), 9)?;
        bench.holds(buffer.part(0, 2), 1)
    })
}

fn hmm_cow_in_device<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    each(bench, |device, _| {
        let buffer = bench.filled(4, 1)?;
        bench.sends(device, buffer, 1)?;
        let parent = |machine: &M| {
            Bench::new(machine).fill(buffer, 50);
            Ok(())
        };
        bench.machine.beside_child(&|_| Ok(()), &parent)?;
        bench.looks(device, buffer, &[2; 4])?;
        bench.holds(buffer, 50)
    })
}

fn migrate_mixed<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    for (first, second) in [(0, 1), (2, 3)] {
        let (device0, device1) = (bench.open(first)?, bench.open(second)?);
        let all = bench.map(6, Backing::Anonymous, None)?;
        bench.fails(device1, Request::MigrateToDevice, all, Errno::INVAL)?;
        bench.unmap(all.part(1, 1));
        bench.fails(device1, Request::MigrateToDevice, all.part(0, 3), Errno::INVAL)?;
        bench.protect(all.part(2, 1), Some(Access::Read));
        bench.machine.load(all.page(2));
        bench.protect(all.part(3, 3), Some(Access::Write));
        bench.fill(all.part(3, 3), 3);
        bench.protect(all.part(3, 1), Some(Access::Read));
        let done = bench.ask(device1, Request::MigrateToDevice, all.part(2, 4))?;
        same("the words", done.words(), vec![0, 3, 4, 5])?;
        bench.fails(device0, Request::MigrateToDevice, all.part(5, 1), Errno::NOENT)?;
    }
    Ok(())
}

fn snapshot<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    for (first, second, local, remote) in [(0, 1, 0x22, 0), (2, 3, 0x42, 0x52)] {
        let (device0, device1) = (bench.open(first)?, bench.open(second)?);
        let all = bench.untouched(7)?;
        bench.machine.load(all.page(2));
        bench.fill(all.part(3, 4), 3);
        bench.protect(all.part(2, 2), Some(Access::Read));
        bench.protect(all.part(0, 1), None);
        bench.unmap(all.part(1, 1));
        bench.sends(device0, all.part(5, 1), 5)?;
        bench.sends(device1, all.part(6, 1), 6)?;
        bench.looks(device0, all, &[0xff, 0xff, 0x11, 1, 2, local, remote])?;
    }
    Ok(())
}

fn double_map<M: Machine>(bench: &Bench<'_, M>) -> Outcome {
    for (first, second) in [(0, 1), (2, 3)] {
        let (device0, device1) = (bench.open(first)?, bench.open(second)?);
        let buffer = bench.filled(6, 1)?;
        bench.protect(buffer, Some(Access::Read));
        for device in [device0, device1] {
            counted(&bench.ask(device, Request::Read, buffer)?, 6, 1)?;
        }
        bench.sends(device1, buffer, 1)?;
        let done = bench.ask(device0, Request::Read, buffer)?;
        counted(&done, 6, 1)?;
        bench.reads(device0, buffer, 1)?;
    }
    Ok(())
}
