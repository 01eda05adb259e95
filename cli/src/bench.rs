//! `isomem bench`: measures, and prints each row as soon as it is there.

use std::process::ExitCode;

use isomem_bench::{BenchError, Row};

use crate::args::BenchArgs;
use crate::report::{complain, json, print};

/// Measures the rows named, or all. Fails only when something could not be measured: a missed bar is a figure, and says so.
pub(crate) fn main(options: &BenchArgs) -> ExitCode {
    if options.list {
        return print(
            &isomem_bench::names()
                .map(|name| format!("{name}\n"))
                .collect::<String>(),
        );
    }
    if cfg!(debug_assertions) {
        complain("this is a debug build; the figures mean nothing. Use `cargo run --release -- bench`.");
    }
    let mut rows = Vec::new();
    if !options.json {
        print(&heading());
    }
    let measured = isomem_bench::run(
        &options.names,
        |_| {},
        |row| {
            if !options.json {
                print(&line(&row));
            }
            rows.push(row);
        },
    );
    match measured {
        Ok(()) => {
            if options.json {
                print(&json(&rows))
            } else {
                ExitCode::SUCCESS
            }
        }
        Err(error @ BenchError::Unknown(_)) => {
            complain(&error.to_string());
            ExitCode::from(crate::BAD_USAGE)
        }
        Err(error) => {
            complain(&format!(
                "the benchmark stopped: {error}; `isomem doctor` tells what this machine gives"
            ));
            ExitCode::from(crate::FAILED)
        }
    }
}

fn heading() -> String {
    format!(
        "{:<18} {:>12} {:<9} {:>12}  {:<24} {:>7} {:>7}",
        "row", "value", "unit", "baseline", "", "ratio", "bar"
    ) + "\n"
}

fn line(row: &Row) -> String {
    format!(
        "{:<18} {:>12.1} {:<9} {:>12.1}  {:<24} {:>7.4} {:>7.4} {}\n",
        row.name,
        row.value,
        row.unit,
        row.baseline,
        row.baseline_name,
        row.ratio,
        row.bar,
        if row.holds { "holds" } else { "MISSED" }
    )
}
