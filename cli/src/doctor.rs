//! `isomem doctor`: what this kernel and these privileges give, what each lack costs, and how to fix it.
//!
//! Exit status 0 where isomem can run, whatever is lacking, and 1 where it cannot.

mod facts;

use crate::args::DoctorArgs;
use crate::report;
use facts::{Access, Facts};
use isomem::Exactness as Exact;
use serde::Serialize;
use std::fmt::Write as _;
use std::process::ExitCode;

/// What was found out.
#[derive(Debug, Serialize)]
struct Diagnosis {
    can_run: bool,
    /// Why it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    why_not: Option<String>,
    kernel: String,
    exactness: Exactness,
    checks: Vec<Check>,
}

/// How surely a device is told of a change before it happens.
#[derive(Debug, Serialize)]
struct Exactness {
    level: &'static str,
    told_before: &'static str,
    /// Changes made elsewhere that the late detector notices, counts and repairs.
    noticed_late: Vec<&'static str>,
    not_noticed: Vec<&'static str>,
}

/// One thing that is there, or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    found: String,
    /// What the lack costs, and what to do; both empty where all is well.
    #[serde(skip_serializing_if = "str::is_empty")]
    costs: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    fix: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Lack,
}

/// Looks, and prints what it found.
pub(crate) fn main(options: &DoctorArgs) -> ExitCode {
    let facts = Facts::gather();
    let why_not = isomem::Mm::current().err().map(|error| error.to_string());
    let diagnosis = diagnose(&facts, why_not);
    let text = if options.json {
        report::json(&diagnosis)
    } else {
        tell(&diagnosis)
    };
    let printed = report::print(&text);
    if diagnosis.can_run {
        printed
    } else {
        ExitCode::from(crate::FAILED)
    }
}

fn diagnose(facts: &Facts, why_not: Option<String>) -> Diagnosis {
    Diagnosis {
        can_run: why_not.is_none(),
        why_not,
        kernel: facts.kernel.clone(),
        exactness: exactness(facts),
        checks: checks(facts),
    }
}

fn exactness(facts: &Facts) -> Exactness {
    let events = [
        (facts.event_remove, "MADV_DONTNEED, MADV_FREE, MADV_REMOVE"),
        (facts.event_unmap, "munmap, mmap over a mapping"),
        (facts.event_remap, "mremap"),
        (facts.event_fork, "fork"),
    ];
    let told = match facts.level {
        Exact::Cooperative => "unmap, protect, discard and remap through isomem; fork through libc",
        Exact::Interposed => {
            "the same, and what the program does by libc's functions, but not what libc does by itself"
        }
        Exact::Exact(_) => "every system call that changes mappings, also from inside libc, and every fork",
    };
    let exact = matches!(facts.level, Exact::Exact(_));
    let of = |there: bool| events.iter().filter(move |event| event.0 == there).map(|event| event.1);
    // What is told of beforehand slips past only by the ways that no level sees.
    let noticed_late = if exact { Vec::new() } else { of(true).collect() };
    let mut not_noticed: Vec<_> = if exact { Vec::new() } else { of(false).collect() };
    if facts.level == Exact::Cooperative {
        not_noticed.extend(["mprotect", "a file behind a mapping truncated or punched"]);
    }
    if exact {
        not_noticed.push("io_uring, other processes, 32-bit system calls: see docs/exactness.md");
    }
    Exactness {
        level: facts.level.name(),
        told_before: told,
        noticed_late,
        not_noticed,
    }
}

fn check(name: &'static str, there: bool, found: impl Into<String>, costs: &'static str, fix: &'static str) -> Check {
    let found = found.into();
    if there {
        Check {
            name,
            state: State::Ok,
            found,
            costs: "",
            fix: "",
        }
    } else {
        Check {
            name,
            state: State::Lack,
            found,
            costs,
            fix,
        }
    }
}

const NEEDS_PRIVILEGE: &str = "run as root, give the program CAP_SYS_PTRACE, make /dev/userfaultfd readable and writable \
    for this user, or set vm.unprivileged_userfaultfd=1";

fn checks(facts: &Facts) -> Vec<Check> {
    let granted = |there: bool| if there { "granted" } else { "not granted" };
    let found = |there: bool| if there { "there" } else { "not there" };
    let feature = |name, there, costs, fix| check(name, there, granted(there), costs, fix);
    let mut all = vec![
        check(
            "userfaultfd",
            facts.access != Access::None,
            facts.access.tell(),
            "isomem cannot run: it would not hear of the CPU's faults on pages that went to a device",
            NEEDS_PRIVILEGE,
        ),
        check(
            "faults in system calls",
            facts.access == Access::All,
            if facts.access == Access::All {
                "served"
            } else {
                "not served"
            },
            "read(2), write(2) and other system calls on a page that is on the device fail with EFAULT",
            NEEDS_PRIVILEGE,
        ),
        feature(
            "move",
            facts.move_,
            "every page is copied, over 20 times slower than moving it",
            "Linux 6.8 or newer",
        ),
        feature(
            "write-protect",
            facts.write_protect,
            "pages that cannot move (shared by fork, read-only, mlocked) stay where they are",
            "Linux 5.7 or newer, on x86-64 or arm64",
        ),
        feature(
            "poison",
            facts.poison,
            "a device's page that is lost is fenced by mprotect, which splits the arena's mapping",
            "Linux 6.6 or newer",
        ),
    ];
    let late = "the late detector does not see it: a device may go on with memory that is gone";
    let events = [
        ("event: contents dropped", facts.event_remove),
        ("event: unmapped", facts.event_unmap),
        ("event: moved", facts.event_remap),
    ];
    all.extend(events.map(|(name, there)| feature(name, there, late, "Linux 4.11 or newer")));
    all.extend([
        feature(
            "event: fork",
            facts.event_fork,
            "a fork that isomem was not told of leaves the child without the pages on the device",
            "run as root or with CAP_SYS_PTRACE",
        ),
        check(
            "PAGEMAP_SCAN",
            facts.pagemap_scan,
            found(facts.pagemap_scan),
            "the CPU's page table is read entry by entry, which is slower",
            "Linux 6.7 or newer",
        ),
        check(
            "PROCMAP_QUERY",
            facts.procmap_query,
            found(facts.procmap_query),
            "areas are found by reading /proc/self/maps as text, which is slower",
            "Linux 6.11 or newer",
        ),
        check(
            "exact level",
            facts.no_exact.is_none(),
            facts.no_exact.clone().unwrap_or_else(|| found(true).to_owned()),
            "changes by bare system calls, and by the C library for itself, are noticed late or not at all",
            "Linux 5.19 or newer, x86-64, and a container that permits seccomp(2)",
        ),
        check(
            "huge pages",
            facts.huge_pages != "never",
            facts.huge_pages.clone(),
            "2 MiB of memory migrate as 512 pages, not as one",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled, as root",
        ),
    ]);
    all
}

fn tell(diagnosis: &Diagnosis) -> String {
    let mut text = format!("Linux {}\n", diagnosis.kernel);
    for check in &diagnosis.checks {
        let state = if check.state == State::Ok { "ok  " } else { "LACK" };
        // A `String` takes whatever is written to it.
        let _ = writeln!(text, "  {state}  {:<24} {}", check.name, check.found);
        if check.state == State::Lack {
            let _ = writeln!(text, "        costs: {}\n        fix:   {}", check.costs, check.fix);
        }
    }
    let Exactness {
        level,
        told_before,
        noticed_late,
        not_noticed,
    } = &diagnosis.exactness;
    let _ = writeln!(text, "Exactness: {level}");
    let _ = writeln!(text, "  told before it happens   {told_before}");
    let _ = writeln!(text, "  noticed late, counted    {}", list(noticed_late));
    let _ = writeln!(text, "  not noticed              {}", list(not_noticed));
    match &diagnosis.why_not {
        None => text.push_str("isomem can run here.\n"),
        Some(reason) => {
            let _ = writeln!(text, "isomem cannot run here: {reason}");
        }
    }
    text
}

fn list(things: &[&str]) -> String {
    if things.is_empty() {
        "nothing".to_owned()
    } else {
        things.join("; ")
    }
}

#[cfg(test)]
mod tests;
