//! The program `isomem`: runs real data on a software device that shares this process's memory, says what this machine
//! gives, measures, and has the protocol checked.
//!
//! Exit status: 0 success, 1 a run or a check failed, 2 the command line makes no sense.

#![forbid(unsafe_code)]

mod args;
mod bench;
mod check;
mod dmirror;
mod doctor;
mod report;
mod run;

use clap::Parser;
use std::process::ExitCode;

/// The exit status of a failed run or check.
const FAILED: u8 = 1;
/// The exit status of a command line that makes no sense.
const BAD_USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match cli.command {
        args::Command::Run(options) => match options.check() {
            Ok(()) => run::main(&options),
            Err(error) => usage(&error),
        },
        args::Command::Doctor(options) => doctor::main(&options),
        args::Command::Bench(options) => bench::main(&options),
        args::Command::Check(options) => check::main(&options),
        args::Command::Dmirror(options) => dmirror::main(&options),
    }
}

/// Help and version are successes; everything else is bad usage.
fn usage(error: &clap::Error) -> ExitCode {
    // Nobody is left to tell when the pipe is closed.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}
