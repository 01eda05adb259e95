//! The conformance cases in a live process: `isomem dmirror -- isomem-conformance`, or alone on a kernel that has the driver.
//!
//! Each case runs in a child of its own. Exit status: 0 none failed, 1 some failed, 2 bad usage.

mod live;

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use isomem_conformance::{Backing, Case, Failure, Kernel, Machine, all};
use isomem_core::world::Access;
use isomem_dmirror::{Command, Request};
use live::{Live, run_apart};

const HELP: &str = "\
Usage: isomem-conformance [--list] [--on-kernel] [NAME...]

  --list       only name the cases
  --on-kernel  leave out what the kernel's own driver is known to do differently, or to crash on
  --exec       only send pages to a device and then exec this program, to list the cases
  NAME         run these, or those whose name contains NAME  [all]
";

fn main() -> ExitCode {
    let mut names = Vec::new();
    let (mut list, mut on_kernel) = (false, false);
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--list" => list = true,
            "--on-kernel" => on_kernel = true,
            "--exec" => return exec_with_pages_away(),
            "--help" | "-h" => {
                print!("{HELP}");
                return ExitCode::SUCCESS;
            }
            option if option.starts_with('-') => {
                eprintln!("unknown option {option}\n{HELP}");
                return ExitCode::from(2);
            }
            name => names.push(name.to_owned()),
        }
    }
    let wanted = |case: &Case<Live>| {
        let named = names.is_empty() || names.iter().any(|name| case.name.contains(name.as_str()));
        named && (!on_kernel || case.kernel == Kernel::Same)
    };
    let cases: Vec<Case<Live>> = all().into_iter().filter(wanted).collect();
    if cases.is_empty() {
        eprintln!("no case is named so; --list names them");
        return ExitCode::from(2);
    }
    if list {
        cases.iter().for_each(|case| println!("{}", case.name));
        return ExitCode::SUCCESS;
    }
    run(&cases)
}

/// A program may exec at any time; what is on a device goes with the address space.
fn exec_with_pages_away() -> ExitCode {
    let away = || -> Result<(), isomem_conformance::Failure> {
        let device = Live.open(0)?;
        let addr = Live.map(64 << 12, Backing::Anonymous, Some(Access::Write))?;
        let mut command = Command {
            addr: addr as u64,
            ptr: Live.map(64 << 12, Backing::Anonymous, Some(Access::Write))? as u64,
            npages: 64,
            ..Command::default()
        };
        Ok(Live.command(device, Request::MigrateToDevice.ioctl(), &mut command)?)
    };
    if let Err(failure) = away() {
        eprintln!("{failure:?}");
        return ExitCode::FAILURE;
    }
    let error = std::process::Command::new("/proc/self/exe").arg("--list").exec();
    eprintln!("exec failed: {error}");
    ExitCode::FAILURE
}

fn run(cases: &[Case<Live>]) -> ExitCode {
    let (mut failed, mut skipped) = (0, 0);
    for case in cases {
        let outcome = run_apart(&|| case.run(&Live));
        match outcome {
            Ok(()) => println!("pass  {}", case.name),
            Err(Failure::Skipped(why)) => {
                skipped += 1;
                println!("skip  {}: {why}", case.name);
            }
            Err(Failure::Wrong(what)) => {
                failed += 1;
                println!("FAIL  {}: {what}", case.name);
            }
        }
    }
    let passed = cases.len() - failed - skipped;
    println!(
        "\n{} cases: {passed} pass, {failed} fail, {skipped} skipped",
        cases.len()
    );
    ExitCode::from(u8::from(failed > 0))
}
