//! The exact level: every system call that may change what is mapped is held until devices were told (WLD-2).
//!
//! A seccomp filter holds such calls of all threads. Supervisors, threads of isomem's own, read them, tell devices, make the call in the
//! caller's stead (the address space is the same), and answer with what it returned. What the supervisors cannot make for somebody else (a
//! fork) they prepare, let go on, and end when it is over.
//!
//! # Invariants
//! - EXA-1: a filter is in force for the rest of the process and in its children, so the supervisors run for as long as the process: after the
//!   address space was closed they let everything go on.
//! - EXA-2: a supervisor never makes a held call but from the place that the filter lets pass.
//! - EXA-3: children are let go on: by the supervisors while they run, and after that by the warden ([`crate::sys::warden`]).
//! - EXA-4: while a supervisor serves an address space, that one is not closed.
//!
//! # Locking
//! `current`'s is held for a copy only. Supervisors hold nothing while they wait.
//!
//! ```text
//! program's thread                     supervisor
//! munmap: held                         .
//!   waits                              receives it
//!   .                                  start: devices lose the range; pages come home
//!   .                                  munmap, from isomem's own place
//!   .                                  end; answers with the result
//! goes on                              .
//! ```
//!
//! Linux: Documentation/userspace-api/seccomp_filter.rst, "Userspace Notification".

mod assembler;
pub(crate) mod current;
mod filter;
mod supervisor;
mod watch;

use std::sync::{Mutex, PoisonError};

use isomem_core::addr::PageRange;
use isomem_core::mm::Mm;
use isomem_core::world::Metadata;
use rustix::io::Errno;

use crate::sys::metadata::{MetaArc, MetadataHeap};
use crate::sys::per_process::PerProcess;
use crate::sys::thread::{OwnThread, SpawnError, StackSize};
use crate::sys::warden::Warden;
use crate::sys::{call, seccomp};
use crate::world::Linux;
use filter::Plan;
use supervisor::Supervisors;

/// Windows that a filter can tell apart.
pub const WINDOWS_MAX: usize = 8;

/// Threads that serve held calls: as many calls can wait for devices at the same time without holding up others.
const SUPERVISORS: usize = 8;

/// How surely devices are told of a change of the address space before it is made (WLD-2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Exactness {
    /// Of changes through isomem. Others are noticed afterwards, as far as the kernel tells, and counted.
    #[default]
    Cooperative,
    /// Also of those by the C library's functions, where the preload object is there.
    Interposed,
    /// Of every system call, also from inside the C library.
    Exact(Windows),
}

impl Exactness {
    /// Its name, as in `ISOMEM_EXACTNESS`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Cooperative => "cooperative",
            Self::Interposed => "interposed",
            Self::Exact(_) => "exact",
        }
    }

    /// The level that `ISOMEM_EXACTNESS` names; the exact one holds everywhere. Cooperative where there is no such variable.
    ///
    /// # Errors
    /// [`ExactError::UnknownLevel`].
    pub fn from_environment() -> Result<Self, ExactError> {
        let Some(name) = std::env::var_os("ISOMEM_EXACTNESS") else {
            return Ok(Self::Cooperative);
        };
        let levels = [Self::Cooperative, Self::Interposed, Self::Exact(Windows::EVERYWHERE)];
        let named = levels.into_iter().find(|level| name == level.name());
        named.ok_or(ExactError::UnknownLevel)
    }
}

/// The addresses for which the exact level holds; calls outside them run at full speed, and are not told to devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    list: [Option<PageRange>; WINDOWS_MAX],
}

impl Windows {
    /// All of the address space.
    pub const EVERYWHERE: Self = Self {
        list: [None; WINDOWS_MAX],
    };

    /// Those only. `None` where there are more than [`WINDOWS_MAX`], or none.
    pub fn only(ranges: &[PageRange]) -> Option<Self> {
        let mut list = [None; WINDOWS_MAX];
        if ranges.is_empty() || ranges.len() > WINDOWS_MAX {
            return None;
        }
        for (place, range) in list.iter_mut().zip(ranges) {
            *place = Some(*range);
        }
        Some(Self { list })
    }

    /// The ranges; none means everywhere.
    pub fn ranges(&self) -> impl Iterator<Item = PageRange> + '_ {
        self.list.iter().flatten().copied()
    }

    /// Whether every address of `other` is one of these.
    fn covers(&self, other: &Self) -> bool {
        let mine = |range: PageRange| self.ranges().any(|own| own.covers(range));
        self.ranges().next().is_none() || (other.ranges().next().is_some() && other.ranges().all(mine))
    }
}

impl Default for Windows {
    fn default() -> Self {
        Self::EVERYWHERE
    }
}

/// Why the exact level is not to be had. The process is as it was, but for `no_new_privs` where it has no privileges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExactError {
    /// Not on this processor.
    #[error("the exact level needs x86-64")]
    Architecture,
    /// The kernel or a container forbids filters, or has none.
    #[error(
        "seccomp notification is not available: {}; it needs Linux 5.19 or newer, and a container that permits seccomp(2)",
        std::io::Error::from_raw_os_error(*.errno)
    )]
    Seccomp {
        /// The raw errno.
        errno: i32,
    },
    /// A filter can be put in force only for threads that have the same filters.
    #[error(
        "a thread of the process has seccomp filters of its own; open isomem at the exact level before it gets them"
    )]
    OtherFilters,
    /// The kernel lets a process's calls be held by one listener.
    #[error(
        "the calls of this process are held already: by a container's supervisor, or because it is the child of a process that opened isomem at \
        the exact level; open it at another level"
    )]
    Taken,
    /// The filter cannot grow.
    #[error("the process was opened at the exact level before, for other windows, and these cannot change")]
    OtherWindows,
    /// There is no preloaded object.
    #[error("the interposed level needs the preload object: run the program with LD_PRELOAD=libisomem_preload.so")]
    NoPreload,
    /// The environment names no level.
    #[error("ISOMEM_EXACTNESS is none of `cooperative`, `interposed` and `exact`")]
    UnknownLevel,
    /// A thread of isomem's own did not start.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// Something else failed.
    #[error("{call} failed: {}", std::io::Error::from_raw_os_error(*.errno))]
    Failed {
        /// What.
        call: &'static str,
        /// The raw errno.
        errno: i32,
    },
}

impl ExactError {
    fn of_install(errno: Errno) -> Self {
        match errno {
            Errno::SRCH => Self::OtherFilters,
            Errno::BUSY => Self::Taken,
            other => Self::Seccomp {
                errno: other.raw_os_error(),
            },
        }
    }
}

/// What is in force in this process, from the first opening at the exact level on.
struct InForce {
    windows: Windows,
    supervisors: MetaArc<Supervisors>,
    has_warden: bool,
}

static IN_FORCE: PerProcess<Mutex<Option<InForce>>> = PerProcess::new(Mutex::default);

/// What is known of the exact level here, without putting it in force; for `isomem doctor`.
///
/// # Errors
/// Why it is not to be had, as far as that can be told.
pub fn probe() -> Result<(), ExactError> {
    if call::place().is_none() {
        return Err(ExactError::Architecture);
    }
    seccomp::is_known().map_err(ExactError::of_install)
}

/// Whether children can go on when this process is gone: see [`crate::sys::warden`]. `None` while the exact level is not in force.
pub fn has_warden() -> Option<bool> {
    let in_force = IN_FORCE.get()?.lock().unwrap_or_else(PoisonError::into_inner);
    in_force.as_ref().map(|force| force.has_warden)
}

/// The exact level for an address space; dropping it ends that, and waits for calls that are being served.
#[derive(Debug)]
pub struct Exact {
    supervisors: MetaArc<Supervisors>,
}

impl Exact {
    /// Puts the exact level in force for `mm`, to be called when its faults are served. Blocks until every thread of the process is under the filter.
    ///
    /// # Errors
    /// [`ExactError`].
    pub fn start(mm: &Mm<Linux>, windows: Windows) -> Result<Self, ExactError> {
        mm.world().watch_forks().map_err(|errno| ExactError::Failed {
            call: "watching forks",
            errno: errno.raw_os_error(),
        })?;
        let failed = |call| {
            move |errno: Errno| ExactError::Failed {
                call,
                errno: errno.raw_os_error(),
            }
        };
        let place = IN_FORCE.get_or_make().map_err(failed("mmap"))?;
        let mut in_force = place.lock().unwrap_or_else(PoisonError::into_inner);
        if in_force.is_none() {
            *in_force = Some(InForce::install(windows)?);
        }
        let Some(force) = in_force.as_ref().filter(|force| force.windows.covers(&windows)) else {
            return Err(ExactError::OtherWindows);
        };
        mm.world().own_changes().hold_forks();
        force.supervisors.serve(mm.clone()).map_err(failed("mmap"))?;
        Ok(Self {
            supervisors: force.supervisors.clone(),
        })
    }
}

impl Drop for Exact {
    fn drop(&mut self) {
        self.supervisors.serve_nobody();
    }
}

impl InForce {
    /// In this order: a thread that starts later has the filter from its creator, and starting one takes calls that the filter holds.
    fn install(windows: Windows) -> Result<Self, ExactError> {
        let own_place = call::place().ok_or(ExactError::Architecture)?;
        let ranges: Vec<PageRange> = windows.ranges().collect();
        let program = filter::assemble(Plan {
            windows: &ranges,
            own_place,
            heap_start: heap_start(),
        });
        let program = program.ok_or(ExactError::Seccomp { errno: libc::E2BIG })?;
        let warden = Warden::start();
        let supervisors = Supervisors::new(warden.as_ref().ok().map(Warden::notices));
        let supervisors = MetadataHeap::share(supervisors).map_err(|_| SpawnError::OutOfMetadata)?;
        for index in 0..SUPERVISORS {
            let shared = supervisors.clone();
            let thread = OwnThread::spawn(c"isomem-exact", StackSize::SYSTEM, move || {
                Supervisors::run(&shared, index);
            });
            match thread {
                // They are never joined (EXA-1).
                Ok(thread) => core::mem::forget(thread),
                Err(refused) => {
                    supervisors.dismiss();
                    return Err(refused.into());
                }
            }
        }
        let listener = install(&program).inspect_err(|_| supervisors.dismiss())?;
        // From here on this very thread may be held: nothing is allocated until the supervisors have the listener.
        let listener = supervisors.begin(listener);
        let has_warden = warden.as_ref().is_ok_and(|warden| warden.watch(listener.fd()).is_ok());
        Ok(Self {
            windows,
            supervisors,
            has_warden,
        })
    }
}

fn install(program: &[seccomp::Instruction]) -> Result<seccomp::Listener, ExactError> {
    match seccomp::install(program) {
        Err(Errno::ACCESS | Errno::PERM) => {
            seccomp::set_no_new_privileges().map_err(ExactError::of_install)?;
            seccomp::install(program).map_err(ExactError::of_install)
        }
        other => other.map_err(ExactError::of_install),
    }
}

/// Where the kernel began the heap; a smaller number, which only makes more calls held, where it does not say.
fn heap_start() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program, in parentheses, may contain anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    // Field 47 of proc_pid_stat(5); the first after the name is number 3.
    fields
        .split_whitespace()
        .nth(47 - 3)
        .and_then(|field| field.parse().ok())
        .unwrap_or(0)
}
