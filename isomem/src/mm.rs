//! The process's own address space, as a program has it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use isomem_core::addr::VirtAddr;
use isomem_core::mm::Advised;
use isomem_core::world::World;
use isomem_linux::pager::Pagers;
use isomem_linux::sys::per_process::PerProcess;
use isomem_linux::{Exact, ExactError, Exactness, Interposed, Linux, OpenError};
use isomem_soft::{SoftConfig, SoftError};

use crate::device::SoftDevice;

pub use isomem_core::mm::ChangeError;
pub use isomem_core::stats::{Latency, Stats};

/// What [`Mm::current`] gave out last. A fork's child has one of its own.
static CURRENT: PerProcess<Opening> = PerProcess::new(Opening::default);

/// There are never two address spaces open at the same time: the kernel lets an area be watched only once, and one that goes ends the level of
/// exactness.
#[derive(Default)]
struct Opening {
    last: Mutex<Last>,
    /// It is gone.
    closed: Condvar,
}

#[derive(Default)]
struct Last {
    opened: Weak<Opened>,
    /// It was opened, and has not gone entirely, although nobody may have it any more.
    is_there: bool,
}

impl Opening {
    fn lock(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives what is open, or opens it by `open`. Waits for one that is just going.
    fn get_or_open(&self, open: impl FnOnce() -> Result<Opened, OpenError>) -> Result<Mm, OpenError> {
        let mut last = self.lock();
        loop {
            if let Some(opened) = last.opened.upgrade() {
                return Ok(Mm(opened));
            }
            if !last.is_there {
                break;
            }
            last = self.closed.wait(last).unwrap_or_else(PoisonError::into_inner);
        }
        let opened = Arc::new(open()?);
        last.opened = Arc::downgrade(&opened);
        last.is_there = true;
        Ok(Mm(opened))
    }
}

/// Says, when it is dropped, that an address space is gone.
#[derive(Debug)]
struct Gone;

impl Drop for Gone {
    fn drop(&mut self) {
        if let Some(opening) = CURRENT.get() {
            opening.lock().is_there = false;
            opening.closed.notify_all();
        }
    }
}

/// This process's address space, opened to devices. Clones are handles to the same.
///
/// When the last handle, device and mirror is gone, isomem's threads end and the memory is as if it had never been there.
#[derive(Debug, Clone)]
pub struct Mm(Arc<Opened>);

/// The protocol's handle to this process.
pub(crate) type Core = isomem_core::mm::Mm<Linux>;

#[derive(Debug)]
struct Opened {
    core: Core,
    exactness: Exactness,
    /// Taken when the handle goes.
    pagers: Option<Pagers<Core>>,
    /// The same.
    told: Told,
    /// Dropped last: the descriptors are closed by then.
    gone: Option<Gone>,
}

/// Who tells of the program's own changes.
#[derive(Debug)]
enum Told {
    /// Nobody, or nobody any more.
    No,
    Interposed(#[allow(dead_code, reason = "held to be dropped")] Interposed),
    Exact(#[allow(dead_code, reason = "held to be dropped")] Exact),
}

impl Opened {
    fn new(pagers: usize, exactness: Exactness) -> Result<Self, OpenError> {
        let core = Core::new(Linux::open()?)?;
        let pagers = Pagers::start(core.clone(), pagers)?;
        let told = match exactness {
            Exactness::Cooperative => Told::No,
            Exactness::Interposed => Told::Interposed(Interposed::start(&core)?),
            Exactness::Exact(windows) => Told::Exact(Exact::start(&core, windows)?),
        };
        Ok(Self {
            core,
            exactness,
            pagers: Some(pagers),
            told,
            gone: Some(Gone),
        })
    }
}

impl Opened {
    /// As the environment says, which children inherit as they inherit the filter of their parent's calls.
    fn as_told(pagers: usize) -> Result<Self, OpenError> {
        let asked = Exactness::from_environment()?;
        let opened = Self::new(pagers, asked);
        if opened.as_ref().err() != Some(&OpenError::Exact(ExactError::Taken)) {
            return opened;
        }
        let below = if isomem_linux::interposed::is_there() {
            Exactness::Interposed
        } else {
            Exactness::Cooperative
        };
        Self::new(pagers, below)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let (pagers, told) = (self.pagers.take(), core::mem::replace(&mut self.told, Told::No));
        if !self.core.world().is_current() {
            // In a fork's child the threads are not there to be joined, and the handle that they would have dropped keeps the rest.
            core::mem::forget((pagers, told, self.gone.take()));
            return;
        }
        // Calls that are being served need the pagers.
        drop(told);
        // Pages come home while there is still somebody who serves faults.
        self.core.exit();
        drop(pagers);
    }
}

/// How an address space is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Builder {
    pagers: Option<usize>,
    exactness: Option<Exactness>,
}

impl Builder {
    /// Threads that serve CPU faults on migrated pages.
    #[must_use]
    pub fn pagers(mut self, count: usize) -> Self {
        self.pagers = Some(count);
        self
    }

    /// How surely devices are to be told of changes before they are made (WLD-2); by default what `ISOMEM_EXACTNESS` names, else
    /// [`Exactness::Cooperative`]. A process whose calls are held by its parent gets the next level below the exact one, if only the environment
    /// asked for that: children inherit it. [`Mm::exactness`] says which it is. See docs/exactness.md for what each level costs, and what none can
    /// see.
    #[must_use]
    pub fn exactness(mut self, level: Exactness) -> Self {
        self.exactness = Some(level);
        self
    }

    /// Opens this process's address space; one that is open already is returned as it is.
    ///
    /// # Errors
    /// No userfaultfd, for want of privileges or in an old kernel; the error says how to get it. Nothing is left behind.
    pub fn open(self) -> Result<Mm, OpenError> {
        let opening = CURRENT.get_or_make().map_err(|errno| OpenError::Map {
            errno: errno.raw_os_error(),
        })?;
        opening.get_or_open(|| {
            let pagers = self.pagers.unwrap_or_else(Pagers::<Core>::default_count);
            match self.exactness {
                Some(exactness) => Opened::new(pagers, exactness),
                None => Opened::as_told(pagers),
            }
        })
    }
}

impl Mm {
    /// Opens this process's address space to devices, or returns the one that is open.
    ///
    /// A fork's child gets its own (LIFE-6).
    ///
    /// # Errors
    /// See [`Builder::open`].
    pub fn current() -> Result<Self, OpenError> {
        Builder::default().open()
    }

    /// The same with choices.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Adds a software device (LIFE-1).
    pub fn soft_device(&self, config: SoftConfig) -> Result<SoftDevice, SoftError> {
        Ok(SoftDevice::new(
            isomem_soft::SoftDevice::new(self.core(), config)?,
            self.clone(),
        ))
    }

    /// Counts of what happened so far, and how long faults took.
    pub fn stats(&self) -> Stats {
        self.core().stats()
    }

    /// What was said of the page at `addr` by [`Mirror::advise`](crate::Mirror::advise).
    pub fn advised(&self, addr: VirtAddr) -> Advised {
        self.core().advised(addr)
    }

    /// How surely devices are told of changes: the level that this address space was opened at.
    pub fn exactness(&self) -> Exactness {
        self.0.exactness
    }

    /// The protocol's own handle, for drivers.
    pub fn core(&self) -> &isomem_core::mm::Mm<Linux> {
        &self.0.core
    }
}
