//! What happened in a run, for people and for programs, and how it gets to them.

use isomem::Stats;
use serde::Serialize;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::time::Duration;

/// What happened in a run. Times are in nanoseconds unless the name says otherwise.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Happened {
    workers: usize,
    device_memory_bytes: usize,
    placement: String,
    device_faults: u64,
    device_fault_p50_ns: u64,
    device_fault_p99_ns: u64,
    cpu_faults: u64,
    cpu_fault_p50_ns: u64,
    cpu_fault_p99_ns: u64,
    pages_to_device: u64,
    pages_home_by_fault: u64,
    pages_home_by_eviction: u64,
    pages_home_by_request: u64,
    pages_duplicated: u64,
    duplicates_collapsed: u64,
    pages_skipped: u64,
    thrash_detected: u64,
    thrash_throttled: u64,
    thrash_mapped_in_place: u64,
    bytes_moved: u64,
    bytes_copied: u64,
    invalidations: u64,
    retries: u64,
    collisions: u64,
    recalls: u64,
    late_events: u64,
    metadata_bytes: u64,
    device_ms: f64,
    cpu_ms: f64,
}

impl Happened {
    /// Before anything happened.
    pub(crate) fn new(device_memory_bytes: usize, workers: usize, placement: String) -> Self {
        Self {
            workers,
            device_memory_bytes,
            placement,
            ..Self::default()
        }
    }

    /// With what the address space counted, and the time that the device and the CPU took.
    pub(crate) fn with(self, stats: &Stats, on_device: Duration, on_cpu: Duration) -> Self {
        Self {
            device_faults: stats.device_faults,
            device_fault_p50_ns: stats.device_fault_ns.p50,
            device_fault_p99_ns: stats.device_fault_ns.p99,
            cpu_faults: stats.cpu_faults,
            cpu_fault_p50_ns: stats.cpu_fault_ns.p50,
            cpu_fault_p99_ns: stats.cpu_fault_ns.p99,
            pages_to_device: stats.pages_to_device,
            pages_home_by_fault: stats.pages_home_by_fault,
            pages_home_by_eviction: stats.pages_home_by_eviction,
            pages_home_by_request: stats.pages_home_by_request,
            pages_duplicated: stats.pages_duplicated,
            duplicates_collapsed: stats.duplicates_collapsed,
            pages_skipped: stats.pages_skipped,
            thrash_detected: stats.thrash_detected,
            thrash_throttled: stats.thrash_throttled,
            thrash_mapped_in_place: stats.thrash_mapped_in_place,
            bytes_moved: stats.bytes_moved,
            bytes_copied: stats.bytes_copied,
            invalidations: stats.invalidations,
            retries: stats.retries,
            collisions: stats.collisions,
            recalls: stats.recalls,
            late_events: stats.late_removed + stats.late_unmapped + stats.late_remapped + stats.late_forked,
            metadata_bytes: stats.metadata_bytes,
            device_ms: on_device.as_secs_f64() * 1e3,
            cpu_ms: on_cpu.as_secs_f64() * 1e3,
            ..self
        }
    }
}

impl fmt::Display for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = Bytes(self.device_memory_bytes as u64);
        writeln!(
            f,
            "What happened ({} workers, {memory} of device memory, {})",
            self.workers, self.placement
        )?;
        let latency = |p50, p99| format!("p50 {}, p99 {}", Nanos(p50), Nanos(p99));
        let mut row = |name: &str, count: u64, note: &str| {
            writeln!(f, "{}", format!("  {name:<26}{count:>12}  {note}").trim_end())
        };
        row(
            "device faults",
            self.device_faults,
            &latency(self.device_fault_p50_ns, self.device_fault_p99_ns),
        )?;
        row(
            "CPU faults",
            self.cpu_faults,
            &latency(self.cpu_fault_p50_ns, self.cpu_fault_p99_ns),
        )?;
        row("pages to the device", self.pages_to_device, "")?;
        row(
            "pages home by fault",
            self.pages_home_by_fault,
            "the CPU touched them, or their neighbours",
        )?;
        row(
            "pages home by eviction",
            self.pages_home_by_eviction,
            "the device's memory was full",
        )?;
        row("pages home by request", self.pages_home_by_request, "")?;
        row(
            "pages on both sides",
            self.pages_duplicated,
            &format!("{} until a write, or on request", self.duplicates_collapsed),
        )?;
        row("pages left where they were", self.pages_skipped, "")?;
        let damped = format!(
            "misses waited {} times, and were mapped in place {} times",
            self.thrash_throttled, self.thrash_mapped_in_place
        );
        row("blocks that thrashed", self.thrash_detected, &damped)?;
        row("bytes moved", self.bytes_moved, "without a copy")?;
        row("bytes copied", self.bytes_copied, "")?;
        row("invalidations", self.invalidations, "")?;
        row("retries", self.retries, &format!("{} collisions", self.collisions))?;
        row("recalls", self.recalls, "the device met a page that had gone home")?;
        row(
            "late events",
            self.late_events,
            "changes the device learnt of only afterwards",
        )?;
        row("bytes of isomem's tables", self.metadata_bytes, "")?;
        let (device, cpu) = (Nanos((self.device_ms * 1e6) as u64), Nanos((self.cpu_ms * 1e6) as u64));
        writeln!(
            f,
            "  time on the device {device}, on the CPU with the pages' way home {cpu}"
        )
    }
}

/// Bytes for people.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.into_iter().find(|(shift, _)| self.0 >> shift > 0) {
            Some((shift, unit)) if self.0.is_multiple_of(1 << shift) => write!(f, "{} {unit}", self.0 >> shift),
            Some((shift, unit)) => write!(f, "{:.1} {unit}", self.0 as f64 / (1u64 << shift) as f64),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// A time for people.
struct Nanos(u64);

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ns = self.0 as f64;
        match self.0 {
            0 => f.write_str("-"),
            1..1_000 => write!(f, "{ns} ns"),
            1_000..1_000_000 => write!(f, "{:.1} us", ns / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{:.1} ms", ns / 1e6),
            _ => write!(f, "{:.2} s", ns / 1e9),
        }
    }
}

/// One JSON value and a newline.
pub(crate) fn json(value: &impl Serialize) -> String {
    // Our own types hold no map with keys that JSON lacks, so there is nothing to fail.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

/// Writes to stdout. A reader that went away is no failure of ours, and nobody is left to tell.
pub(crate) fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("cannot write to standard output: {error}"));
            ExitCode::from(crate::FAILED)
        }
    }
}

/// Writes to stderr, if anybody listens.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "isomem: {text}");
}

#[cfg(test)]
mod tests;
