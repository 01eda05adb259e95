//! Changes the address space in every way while a device uses it, and checks what the device sees.
//!
//! `cargo run --release --example torture -- --level exact --seconds 60`
//!
//! Ends with status 1 when the device saw what was no longer there, when something was lost, and at the exact level when a change slipped past.

#[path = "../tests/torture/mod.rs"]
mod torture;

use std::process::ExitCode;

use isomem::{Exactness, Windows};

fn main() -> ExitCode {
    let (mut level, mut seconds, mut threads, mut seed) = (Exactness::Exact(Windows::EVERYWHERE), 10.0, 3, 1);
    let mut deeds = None;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().unwrap_or_default();
        let understood = match word.as_str() {
            "--seconds" => value.parse().map(|value| seconds = value).is_ok(),
            "--threads" => value.parse().map(|value| threads = value).is_ok(),
            "--deeds" => value
                .parse()
                .map(|value: usize| deeds = Some(value.clamp(1, torture::ALL_DEEDS)))
                .is_ok(),
            "--seed" => value.parse().map(|value| seed = value).is_ok(),
            "--level" => [
                Exactness::Cooperative,
                Exactness::Interposed,
                Exactness::Exact(Windows::EVERYWHERE),
            ]
            .into_iter()
            .find(|known| known.name() == value)
            .map(|found| level = found)
            .is_some(),
            _ => false,
        };
        if !understood {
            eprintln!(
                "torture: {word} {value}? It takes --level cooperative|interposed|exact, --seconds, --threads, --deeds and --seed"
            );
            return ExitCode::from(2);
        }
    }
    let deeds = deeds.unwrap_or(match level {
        Exactness::Cooperative => torture::LATE_DEEDS,
        _ => torture::ALL_DEEDS,
    });
    let report = torture::torture(level, deeds, seconds, threads, seed);
    println!("{report:#?}");
    let told = matches!(level, Exactness::Cooperative) || (report.stale == 0 && report.lost == 0);
    let exact = !matches!(level, Exactness::Exact(_)) || report.late == 0;
    ExitCode::from(u8::from(!(told && exact)))
}
