//! The checker's program; `isomem check` builds and runs it.
//!
//! Exit status: 0 every verdict is the expected one, 1 one is not, 2 the command line makes no sense.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind};
use std::process::ExitCode;

use clap::Parser;
use isomem_check::args::Args;
use isomem_check::program::{self, Problem};
use isomem_check::scenario;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Nobody is left to tell when the pipe is closed.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match program::run(scenario::ALL, &args, &mut io::stdout().lock()) {
        Ok(code) => ExitCode::from(code),
        // A reader that went away is no failure of ours.
        Err(Problem::Output(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("isomem check: {problem}");
            ExitCode::from(problem.exit_code())
        }
    }
}
