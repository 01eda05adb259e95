//! isomem's benchmarks. Every row measures its own baseline in the same run, interleaved, and compares medians: the machines are
//! shared and noisy, so only ratios mean anything.
//!
//! Run them by `isomem bench [NAME...]`, in a release build.

mod bare;
mod device;
mod idle;
mod interposed;
mod levels;
mod migrate;
mod rig;
mod row;
mod sys;
mod touch;

pub use row::Row;

/// Bytes that most rows work on.
const SIZE: usize = 64 << 20;
/// Interleaved repeats.
const REPEATS: usize = 9;

/// A benchmark that could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// No row has that name.
    #[error("there is no benchmark named {0:?}; `isomem bench --list` names them")]
    Unknown(String),
    /// isomem could not be opened or refused a call.
    #[error("{0}")]
    Isomem(Box<dyn std::error::Error + Send + Sync>),
    /// A system call of the baseline failed.
    #[error("a baseline's system call failed: {0}")]
    Io(#[from] std::io::Error),
}

impl From<rustix::io::Errno> for BenchError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// Benchmarks that are measured together, and the rows they give.
struct Group {
    rows: &'static [&'static str],
    measure: fn() -> Result<Vec<Row>, BenchError>,
}

const GROUPS: &[Group] = &[
    Group {
        rows: &["migrate_4k_move", "migrate_4k_memcpy", "home_4k_move"],
        measure: migrate::small,
    },
    Group {
        rows: &["migrate_2m_move", "home_2m_move"],
        measure: migrate::huge,
    },
    Group {
        rows: &["touch_order"],
        measure: touch::order,
    },
    Group {
        rows: &["touch_random"],
        measure: touch::random,
    },
    Group {
        rows: &["touch_two_threads"],
        measure: touch::two_threads,
    },
    Group {
        rows: &["scan_device", "scan_in_place"],
        measure: device::scans,
    },
    Group {
        rows: &["device_fault"],
        measure: device::faults,
    },
    Group {
        rows: &["snapshot"],
        measure: device::snapshot,
    },
    Group {
        rows: &["idle_compute", "idle_fault"],
        measure: idle::rows,
    },
    Group {
        rows: &[
            "unmap_api",
            "unmap_exact",
            "unmap_outside",
            "malloc_exact",
            "malloc_outside",
        ],
        measure: levels::rows,
    },
    Group {
        rows: &interposed::NAMES,
        measure: interposed::rows,
    },
    Group {
        rows: &["metadata"],
        measure: device::metadata,
    },
];

/// The rows' names, in the order in which they are measured.
pub fn names() -> impl Iterator<Item = &'static str> {
    GROUPS.iter().flat_map(|group| group.rows).copied()
}

/// Measures the rows named, or all when none is, and hands each to `each` when it is ready. `starting` is told what is being measured.
///
/// Takes about a second a row. Nothing is measured when a name is unknown.
pub fn run(
    wanted: &[String],
    mut starting: impl FnMut(&'static str),
    mut each: impl FnMut(Row),
) -> Result<(), BenchError> {
    if let Some(unknown) = wanted.iter().find(|name| !names().any(|known| known == name.as_str())) {
        return Err(BenchError::Unknown(unknown.clone()));
    }
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    for group in GROUPS
        .iter()
        .filter(|group| group.rows.iter().any(|name| is_wanted(name)))
    {
        starting(group.rows[0]);
        (group.measure)()?
            .into_iter()
            .filter(|row| is_wanted(row.name))
            .for_each(&mut each);
    }
    Ok(())
}
