//! `isomem run`: a kernel over a file's data, on the device and then on the CPU, and what happened meanwhile.

mod bfs;
mod graph;
mod input;
mod merge;
mod progress;
mod session;
mod sort;
mod wordcount;
mod words;
mod wordtable;

use crate::args::{Kernel, RunArgs};
use crate::report::{self, Happened};
use progress::Progress;
use serde::Serialize;
use session::Session;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("cannot read {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot write {path}: {source}", path = path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{path} is a device, not a file: copy what you need of it to a file first", path = path.display())]
    NotAFile { path: PathBuf },
    #[error("{path} does not fit into memory", path = path.display())]
    TooLarge { path: PathBuf },
    #[error("{path} holds {what}", path = path.display())]
    Nothing { path: PathBuf, what: &'static str },
    #[error("{path}, line {line}: {what}", path = path.display())]
    Malformed { path: PathBuf, line: usize, what: String },
    #[error("{path} has no vertex {root}; leave --root out to start from the first edge", path = path.display())]
    NoSuchVertex { path: PathBuf, root: u64 },
    #[error(
        "cannot open this process's memory to a device: {0}\nrun `isomem doctor` to see what is lacking and how to fix it"
    )]
    Open(String),
    #[error("cannot set up the device: {0}")]
    Device(String),
    #[error("the device gave up: {0}")]
    Launch(String),
}

/// A result, and what it took.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// For the reader, whole lines.
    pub(crate) text: String,
    pub(crate) result: serde_json::Value,
    /// The first thing in which the device's result differs from the CPU's.
    pub(crate) difference: Option<String>,
    pub(crate) happened: Happened,
}

#[derive(Debug, Serialize)]
struct Printed<'a> {
    kernel: &'static str,
    file: String,
    result: &'a serde_json::Value,
    stats: &'a Happened,
}

/// Runs, compares and prints.
pub(crate) fn main(options: &RunArgs) -> ExitCode {
    let progress = Progress::new(options.quiet);
    let done = match options.kernel {
        Kernel::Wordcount => wordcount::run(options, &progress),
        Kernel::Sort => sort::run(options, &progress),
        Kernel::Bfs => bfs::run(options, &progress),
    };
    progress.finish();
    match done {
        Ok(outcome) => print(options, &outcome),
        Err(failure) => {
            report::complain(&failure.to_string());
            ExitCode::from(crate::FAILED)
        }
    }
}

fn print(options: &RunArgs, outcome: &Outcome) -> ExitCode {
    let file = options.file.display().to_string();
    let printed = Printed {
        kernel: options.kernel.name(),
        file,
        result: &outcome.result,
        stats: &outcome.happened,
    };
    let text = if options.json {
        report::json(&printed)
    } else {
        let verdict = if outcome.difference.is_none() {
            "The CPU's own result is the same.\n"
        } else {
            ""
        };
        format!(
            "{} {}: {}{verdict}\n{}",
            printed.kernel, printed.file, outcome.text, outcome.happened
        )
    };
    let status = report::print(&text);
    match &outcome.difference {
        None => status,
        Some(difference) => {
            report::complain(&format!("the device's result is wrong: {difference}"));
            ExitCode::from(crate::FAILED)
        }
    }
}

/// A result as JSON; ours hold nothing that JSON cannot.
fn value(result: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(result).unwrap_or_default()
}

/// An error with its causes, on one line.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
