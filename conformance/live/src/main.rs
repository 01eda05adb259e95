//! The conformance cases in a live process: `isomem dmirror -- isomem-conformance`, or alone on a kernel that has the driver.
//!
//! Each case runs in a child of its own. Exit status: 0 none failed, 1 some failed, 2 bad usage.

mod ends;
mod live;

use std::process::ExitCode;

use isomem_conformance::{Case, Failure, Kernel, all};
use live::{Live, run_apart};

const HELP: &str = "\
Usage: isomem-conformance [--list] [--on-kernel] [NAME...]

  --list       only name the cases
  --on-kernel  leave out what the kernel's own driver is known to do differently, or to crash on
  --end HOW    only send pages to devices and then end in one of the ways that tests/ends.rs tries
  NAME         run these, or those whose name contains NAME  [all]
";

fn main() -> ExitCode {
    let mut names = Vec::new();
    let (mut list, mut on_kernel) = (false, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--list" => list = true,
            "--on-kernel" => on_kernel = true,
            "--end" => return ends::end(&arguments.next().unwrap_or_default()).unwrap_or(ExitCode::from(2)),
            "--after-exec" => return ends::after_exec(&arguments.next().unwrap_or_default()),
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
