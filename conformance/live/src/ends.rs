//! Programs that end while pages are on a device: well, badly, in the middle of commands, or by becoming another program.
//!
//! `isomem-conformance --end HOW` is such a program; `tests/ends.rs` looks at what is left of it.

use core::ffi::c_int;
use std::os::unix::process::CommandExt;
use std::process::{Command as Program, ExitCode};

use isomem_conformance::{Backing, Failure, Machine};
use isomem_core::world::Access;
use isomem_dmirror::{Command, Request};
use rustix::io::Errno;

use crate::live::Live;

const PAGES: usize = 512;

/// Ends the program, or answers its status.
type Way = fn(&Away) -> ExitCode;

/// How programs end, by the name that `--end` takes.
const WAYS: [(&str, Way); 10] = [
    ("return", |_| ExitCode::SUCCESS),
    ("exit-in-thread", exit_in_thread),
    ("abort", |_| std::process::abort()),
    ("segv", touch_nothing),
    ("segv-in-commands", segv_in_commands),
    ("commands", commands_for_ever),
    ("handled-segv", handled_segv),
    ("close-range", close_everything),
    ("exec", exec_another),
    ("opener-killed", opener_killed),
];

/// Does what `--end HOW` says; `None` where there is no such way.
pub(crate) fn end(how: &str) -> Option<ExitCode> {
    let (_, way) = WAYS.iter().find(|(name, _)| *name == how)?;
    Some(match Away::new() {
        Ok(away) => way(&away),
        Err(failure) => failed(&failure),
    })
}

fn failed(failure: &dyn core::fmt::Debug) -> ExitCode {
    eprintln!("{failure:?}");
    ExitCode::FAILURE
}

/// Pages on a private and on a coherent device, the numbers 1, 2 .. in them.
struct Away {
    device: c_int,
    other: c_int,
    addr: usize,
    data: usize,
}

impl Away {
    fn new() -> Result<Self, Failure> {
        let (device, other) = (Live.open(0)?, Live.open(2)?);
        let map = || Live.map(PAGES << 12, Backing::Anonymous, Some(Access::Write));
        let away = Self {
            device,
            other,
            addr: map()?,
            data: map()?,
        };
        (0..PAGES).for_each(|page| Live.store(away.addr + (page << 12), page as u64 + 1));
        away.give(Request::MigrateToDevice, away.device, 0..PAGES / 2)?;
        away.give(Request::MigrateToDevice, away.other, PAGES / 2..PAGES)?;
        Ok(away)
    }

    fn give(&self, request: Request, device: c_int, pages: core::ops::Range<usize>) -> Result<(), Errno> {
        let mut command = Command {
            addr: (self.addr + (pages.start << 12)) as u64,
            ptr: (self.data + (pages.start << 12)) as u64,
            npages: pages.len() as u64,
            ..Command::default()
        };
        Live.command(device, request.ioctl(), &mut command)
    }

    /// Commands that send pages away and fetch them, over and over.
    fn commands(&self) -> ! {
        println!("ready");
        loop {
            for request in Request::ALL {
                // What is on the other device, or exclusive, is an error; the pages are moved about all the same.
                let _ = self.give(request, self.device, 0..PAGES);
                let _ = self.give(request, self.other, 0..PAGES);
            }
        }
    }
}

fn exit_in_thread(away: &Away) -> ExitCode {
    std::thread::scope(|scope| {
        scope.spawn(|| away.commands());
        scope.spawn(|| {
            Live.pause();
            std::process::exit(5)
        });
    });
    ExitCode::FAILURE
}

/// At an address where nothing is mapped.
fn touch_nothing(_: &Away) -> ExitCode {
    Live.load(1 << 46);
    ExitCode::FAILURE
}

fn segv_in_commands(away: &Away) -> ExitCode {
    std::thread::scope(|scope| {
        scope.spawn(|| away.commands());
        Live.pause();
        touch_nothing(away)
    })
}

fn commands_for_ever(away: &Away) -> ExitCode {
    away.commands()
}

/// What a garbage collector does: protects pages, and opens them again in the handler of the fault.
fn handled_segv(away: &Away) -> ExitCode {
    Live.on_fault_allow(away.addr, PAGES << 12);
    for round in 0..8 {
        Live.protect(away.addr, PAGES << 12, None);
        for page in 0..PAGES {
            let found = Live.load(away.addr + (page << 12));
            if found != page as u64 + 1 {
                return failed(&format!("round {round}: page {page} has {found}"));
            }
        }
        let sent = away.give(Request::MigrateToDevice, away.device, 0..PAGES / 2);
        if let Err(errno) = sent {
            return failed(&errno);
        }
    }
    ExitCode::SUCCESS
}

/// What a program does that becomes a daemon; then it finds its pages where it left them.
fn close_everything(away: &Away) -> ExitCode {
    Live.close_from(3);
    for page in 0..PAGES {
        let found = Live.load(away.addr + (page << 12));
        if found != page as u64 + 1 {
            return failed(&format!("page {page} has {found}"));
        }
    }
    match away.give(Request::Read, away.device, 0..1) {
        Err(Errno::BADF) => ExitCode::SUCCESS,
        other => failed(&other),
    }
}

fn exec_another(away: &Away) -> ExitCode {
    let error = Program::new("/proc/self/exe")
        .arg("--after-exec")
        .arg(away.device.to_string())
        .exec();
    failed(&error)
}

/// The program that was executed: the descriptor came along, and what it stood for is gone.
pub(crate) fn after_exec(device: &str) -> ExitCode {
    let look = || -> Result<(), String> {
        let device: c_int = device.parse().map_err(|_| "no number")?;
        let (threads, _) = Live.resources();
        if threads != 1 {
            return Err(format!("{threads} threads came along"));
        }
        let give = |request: Request| {
            let map = || Live.map(1 << 12, Backing::Anonymous, Some(Access::Write));
            let mut command = Command {
                addr: map()? as u64,
                ptr: map()? as u64,
                npages: 1,
                ..Command::default()
            };
            Live.command(device, request.ioctl(), &mut command)
        };
        for request in Request::ALL {
            let expected = match request {
                Request::Read | Request::Write => Err(Errno::FAULT),
                Request::CheckExclusive | Request::Release => Ok(()),
                _ => Err(Errno::INVAL),
            };
            let found = give(request);
            if found != expected {
                return Err(format!("{request:?} is {found:?}, expected {expected:?}"));
            }
        }
        Live.close(device).map_err(|errno| errno.to_string())?;
        // And it can have devices of its own.
        Away::new().map(drop).map_err(|failure| format!("{failure:?}"))
    };
    match look() {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => failed(&what),
    }
}

/// A child goes on giving commands through what it inherited, while the opener is killed.
fn opener_killed(away: &Away) -> ExitCode {
    let parent = rustix::process::getpid();
    let heir = Live.fork_beside(&|| {
        println!("ready");
        loop {
            let found = away.give(Request::Read, away.device, 0..PAGES);
            if rustix::process::getppid() == Some(parent) {
                continue;
            }
            // The one that was under way may have been served, and so may have found the opener's pages anywhere.
            return match (found, away.give(Request::Read, away.device, 0..PAGES)) {
                (_, Err(Errno::FAULT)) => println!("heir: well"),
                other => println!("heir: {other:?}"),
            };
        }
    });
    match heir {
        Ok(()) => away.commands(),
        Err(errno) => failed(&errno),
    }
}
