//! isomem's benchmarks. Every row measures its own baseline in the same run, interleaved, and compares medians: the machines are
//! shared and noisy, so only ratios mean anything.
//!
//! Run them by `isomem bench [NAME...]`, in a release build.

mod bare;
mod device;
mod drivers;
mod idle;
mod interposed;
mod levels;
mod migrate;
mod rig;
mod row;
mod sys;
mod touch;

pub use row::{Better, Row};

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
    /// A name for all of them.
    name: Option<&'static str>,
    rows: &'static [&'static str],
    measure: fn() -> Result<Vec<Row>, BenchError>,
}

const GROUPS: &[Group] = &[
    Group {
        name: None,
        rows: &["migrate_4k_move", "migrate_4k_memcpy", "home_4k_move"],
        measure: migrate::small,
    },
    Group {
        name: None,
        rows: &["migrate_2m_move", "home_2m_move"],
        measure: migrate::huge,
    },
    Group {
        name: None,
        rows: &["touch_order"],
        measure: touch::order,
    },
    Group {
        name: None,
        rows: &["touch_random"],
        measure: touch::random,
    },
    Group {
        name: None,
        rows: &["touch_two_threads"],
        measure: touch::two_threads,
    },
    Group {
        name: None,
        rows: &["scan_device", "scan_in_place"],
        measure: device::scans,
    },
    Group {
        name: None,
        rows: &["device_fault"],
        measure: device::faults,
    },
    Group {
        name: None,
        rows: &["snapshot"],
        measure: device::snapshot,
    },
    Group {
        name: None,
        rows: &["idle_compute", "idle_fault"],
        measure: idle::rows,
    },
    Group {
        name: None,
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
        name: None,
        rows: &interposed::NAMES,
        measure: interposed::rows,
    },
    Group {
        name: Some("drivers"),
        rows: &["svm", "svm_two"],
        measure: drivers::svm,
    },
    Group {
        name: Some("drivers"),
        rows: &["userptr", "userptr_two"],
        measure: drivers::userptr,
    },
    Group {
        name: Some("drivers"),
        rows: &["shadow", "shadow_two"],
        measure: drivers::shadow,
    },
    Group {
        name: Some("drivers"),
        rows: &["odp", "odp_two"],
        measure: drivers::odp,
    },
    Group {
        name: Some("drivers"),
        rows: &["engines", "engines_two"],
        measure: drivers::engines,
    },
    Group {
        name: None,
        rows: &["metadata"],
        measure: device::metadata,
    },
];

/// The rows' names, in the order in which they are measured.
pub fn names() -> impl Iterator<Item = &'static str> {
    GROUPS.iter().flat_map(|group| group.rows).copied()
}

fn is_known(name: &str) -> bool {
    let groups = GROUPS.iter().filter_map(|group| group.name);
    names().chain(groups).any(|known| known == name)
}

/// Measures the rows named, by their own names or their group's, or all when none is, and hands each to `each` when it is ready. `starting` is told what is being measured.
///
/// Takes about a second a row. Nothing is measured when a name is unknown.
pub fn run(
    wanted: &[String],
    mut starting: impl FnMut(&'static str),
    mut each: impl FnMut(Row),
) -> Result<(), BenchError> {
    if let Some(unknown) = wanted.iter().find(|name| !is_known(name)) {
        return Err(BenchError::Unknown(unknown.clone()));
    }
    let is_wanted = |group: &Group, name: &str| {
        let by = |wanted: &String| wanted == name || group.name.is_some_and(|all| all == wanted);
        wanted.is_empty() || wanted.iter().any(by)
    };
    for group in GROUPS
        .iter()
        .filter(|group| group.rows.iter().any(|name| is_wanted(group, name)))
    {
        starting(group.rows[0]);
        (group.measure)()?
            .into_iter()
            .filter(|row| is_wanted(group, row.name))
            .for_each(&mut each);
    }
    Ok(())
}
