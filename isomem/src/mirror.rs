//! A device's view of the process: launches, and the verbs that say where memory should be.

use std::sync::Mutex;

use bytemuck::Pod;
use isomem_core::addr::{PAGE_SIZE, PageRange, RangeError};
use isomem_core::migrate::MigrateError;
use isomem_core::mirror::range::{FaultError, Faulted};
use isomem_core::mm::{Advice, AdviseError, EntryError};
use isomem_core::world::{Access, World};
use isomem_linux::Linux;
use isomem_soft::{DeviceFault, PanicNote, SoftMirror};

use crate::args::Args;
use crate::mm::{ChangeError, Mm};
use crate::raw;
use crate::worker::{Scratch, SoftWorker, Worker};

/// Where isomem keeps what is its own.
type Meta = <Linux as World>::Meta;

/// What a migration did, page by page where pages stayed.
pub type Report = isomem_core::migrate::Report<Meta>;

/// Where pages are, in runs.
pub type Snapshot = isomem_core::mirror::range::Snapshot<Meta>;

/// Why a launch did not happen, or did not end well.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The device did not run the kernel on every worker, or it panicked.
    #[error(transparent)]
    Device(#[from] isomem_soft::LaunchError),
    /// The kernel returned an error on a worker; the others ran to their end. It is the first one by the workers' numbers.
    #[error("the kernel failed on worker {worker}: {fault}")]
    Kernel {
        /// The worker.
        worker: usize,
        /// What the kernel returned.
        fault: DeviceFault,
    },
}

impl LaunchError {
    /// The panic, if that is what ended the launch.
    pub fn panic(&self) -> Option<&PanicNote> {
        match self {
            Self::Device(isomem_soft::LaunchError::Panicked(note)) => Some(note),
            _ => None,
        }
    }

    /// The device fault that the kernel returned, if that is what ended the launch.
    pub fn fault(&self) -> Option<DeviceFault> {
        match self {
            Self::Kernel { fault, .. } => Some(*fault),
            _ => None,
        }
    }
}

/// Why a verb over a slice did nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerbError {
    /// The slice is empty.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The migration was refused as a whole.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// The memory could not be changed.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The advice was not taken.
    #[error(transparent)]
    Advise(#[from] AdviseError),
}

/// A software device's view of this process's memory. Dropping it unregisters it.
#[derive(Debug)]
pub struct Mirror {
    soft: SoftMirror<Linux>,
    mm: Mm,
}

impl Mirror {
    pub(crate) fn new(soft: SoftMirror<Linux>, mm: Mm) -> Self {
        Self { soft, mm }
    }

    /// Runs `kernel` once on every worker of the device and waits for all of them. Returns what it returned on each, by the workers' numbers.
    ///
    /// `args` are slices that the kernel works on where they are, by reference: see [`Args`]. They stay borrowed during the launch, so that the
    /// CPU cannot change what the device reads, nor look at what it writes. Launches of several threads run one after another.
    ///
    /// # Errors
    /// [`LaunchError::Kernel`] with the first worker's error if the kernel returned any; what it wrote until then stays written.
    /// [`LaunchError::Device`] when it panicked, the mirror is dead, or the caller is itself a kernel or a callback.
    pub fn launch<A, R, F>(&self, mut args: A, kernel: F) -> Result<Vec<R>, LaunchError>
    where
        A: Args,
        R: Send,
        F: for<'k> Fn(&mut Worker<'k>, A::Handle<'k>) -> Result<R, DeviceFault> + Sync,
    {
        let raw = args.raw();
        let results: Vec<Mutex<Option<Result<R, DeviceFault>>>> =
            (0..self.workers()).map(|_| Mutex::new(None)).collect();
        let run_one = |soft: SoftWorker<'_>| {
            let (index, count) = (soft.index(), soft.count());
            let mut scratch = Scratch::new();
            let mut worker = Worker {
                soft,
                scratch: &mut scratch,
            };
            let result = kernel(&mut worker, A::handle(raw, index, count));
            if let Ok(mut slot) = results[index].lock() {
                *slot = Some(result);
            }
        };
        raw::run(&self.soft, &run_one)?;
        // The borrow of the arguments ends here, not earlier.
        drop(args);
        collect(results)
    }

    /// Workers that run a launch.
    pub fn workers(&self) -> usize {
        self.soft.workers()
    }

    /// Sends the pages of `memory` to the device ahead of time (MIG-13). Pages that cannot go stay, and the report says why.
    ///
    /// Whole pages move, so neighbours of the slice on its first and last page go too; that changes nothing for the program.
    pub fn prefetch<T>(&self, memory: &[T]) -> Result<Report, VerbError> {
        Ok(self.soft.migrate_to_device(pages(memory)?)?)
    }

    /// Brings the pages of `memory` home from the device ahead of time.
    pub fn bring_home<T>(&self, memory: &[T]) -> Result<Report, VerbError> {
        Ok(self.soft.migrate_home(pages(memory)?)?)
    }

    /// Says something about `memory`: how it is used, or where it is best (MIG-13). It holds for pages that are placed from now on; none is moved, and
    /// nothing but speed depends on it.
    ///
    /// Whole pages have advice, so neighbours of the slice on its first and last page get it, too. It stays until it is taken back, or the
    /// memory is unmapped or moved to other addresses: take it back before a slice on the heap is freed. Where [`Mirror::prefetch`] or
    /// [`Mirror::bring_home`] say otherwise, they are obeyed.
    ///
    /// ```
    /// use isomem::{Advice, Mm, SoftConfig};
    ///
    /// let mm = Mm::current()?;
    /// let device = mm.soft_device(SoftConfig::default())?;
    /// let mirror = device.mirror()?;
    /// let mailbox = vec![7u64; 4096];
    /// // The CPU looks at it all the time: the device is to reach it where it is.
    /// mirror.advise(&mailbox, Advice::PreferHome)?;
    /// mirror.launch(&mailbox[..], |worker, mailbox| mailbox.get(worker, 100))?;
    /// assert_eq!(mm.stats().pages_to_device, 0);
    /// mirror.advise(&mailbox, Advice::PreferAnywhere)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// What both sides read can be on both, also where it comes from the heap:
    ///
    /// ```
    /// use isomem::{Advice, Mm, SoftConfig};
    ///
    /// let mm = Mm::current()?;
    /// let device = mm.soft_device(SoftConfig::default())?;
    /// let mirror = device.mirror()?;
    /// let mut table = vec![1u64; 1 << 16];
    /// mirror.advise(&table, Advice::ReadMostly)?;
    /// mirror.launch(&table[..], |worker, table| table.get(worker, 9))?;
    /// // The CPU gets copies, and the device keeps its pages: from here on both read without a fault.
    /// assert_eq!(table.iter().sum::<u64>(), 1 << 16);
    /// assert!(mm.stats().pages_duplicated > 0);
    /// // A write ends that for its page, before it is made.
    /// table[9] = 2;
    /// let seen = mirror.launch(&table[..], |worker, table| table.get(worker, 9))?;
    /// assert!(seen.iter().all(|word| *word == 2));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "madvise")]
    #[doc(alias = "cudaMemAdvise")]
    pub fn advise<T>(&self, memory: &[T], advice: Advice) -> Result<(), VerbError> {
        Ok(self.soft.advise(pages(memory)?, advice)?)
    }

    /// Says something about the pages of `range`, as [`Mirror::advise`] does for a slice.
    pub fn advise_pages(&self, range: PageRange, advice: Advice) -> Result<(), AdviseError> {
        self.soft.advise(range, advice)
    }

    /// Sends the pages of `range` to the device, as [`Mirror::prefetch`] does for a slice.
    pub fn migrate_to_device(&self, range: PageRange) -> Result<Report, MigrateError> {
        self.soft.migrate_to_device(range)
    }

    /// Brings the pages of `range` home from the device.
    pub fn migrate_home(&self, range: PageRange) -> Result<Report, MigrateError> {
        self.soft.migrate_home(range)
    }

    /// Takes the pages of `range` for the device alone, for atomic operations that no CPU can come between (MIG-11). A CPU access takes its page
    /// back, and so does whatever else changes the page; [`Mirror::exclusive_pages`] tells what is left.
    ///
    /// Pages that cannot be had stay, and the report says why.
    #[doc(alias = "make_device_exclusive_range")]
    pub fn exclusive(&self, range: PageRange) -> Result<Report, MigrateError> {
        self.soft.exclusive(range)
    }

    /// Ends what [`Mirror::exclusive`] began: the exclusive pages of `range` come home.
    pub fn end_exclusive(&self, range: PageRange) -> Result<Report, MigrateError> {
        self.soft.end_exclusive(range)
    }

    /// How many pages of `range` the device has exclusively at this moment.
    pub fn exclusive_pages(&self, range: PageRange) -> Result<usize, EntryError> {
        self.soft.exclusive_pages(range)
    }

    /// Brings the pages of `range` in as if the device had touched each, and enters them in its page table where they are (FLT-1).
    ///
    /// # Errors
    /// The first address that the device cannot access so, and why; pages before it are in (FLT-4).
    #[doc(alias = "hmm_range_fault")]
    pub fn fault(&self, range: PageRange, access: Access) -> Result<Faulted, FaultError> {
        self.soft.fault(range, access)
    }

    /// Tells where the pages of `range` are, in runs, and touches none.
    #[doc(alias = "hmm_range_snapshot")]
    pub fn snapshot(&self, range: PageRange) -> Result<Snapshot, FaultError> {
        self.soft.snapshot(range)
    }

    /// Drops the contents of `memory`, wherever they are: whole pages are given back, and read as zeroes (or as the file's bytes) when they are
    /// touched next (MIG-13). Elements on partial pages at the ends are set to zero.
    pub fn discard<T: Pod>(&self, memory: &mut [T]) -> Result<(), VerbError> {
        let bytes = pages(memory)?;
        let (start, end) = (memory.as_ptr().addr(), memory.as_ptr().addr() + size_of_val(memory));
        let whole = start.next_multiple_of(PAGE_SIZE)..end / PAGE_SIZE * PAGE_SIZE;
        if whole.is_empty() {
            memory.fill(T::zeroed());
            return Ok(());
        }
        debug_assert!(bytes.start() <= whole.start && whole.end <= bytes.end());
        let size = size_of::<T>();
        memory[..(whole.start - start).div_ceil(size)].fill(T::zeroed());
        memory[(whole.end - start) / size..].fill(T::zeroed());
        raw::discard_borrowed(&self.mm, memory, PageRange::new(whole.start, whole.len())?)?;
        Ok(())
    }

    /// Whether launches are refused: the device failed, or the address space is gone.
    pub fn is_released(&self) -> bool {
        self.soft.is_released()
    }

    /// Ends the mirror (LIFE-2). The pages on the device stay there until the CPU touches them or the device is unregistered.
    pub fn unregister(self) {
        self.soft.unregister();
    }
}

fn collect<R>(results: Vec<Mutex<Option<Result<R, DeviceFault>>>>) -> Result<Vec<R>, LaunchError> {
    let results = results.into_iter().enumerate().map(|(worker, slot)| {
        let result = slot.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Without a panic every worker has left its result; a worker that did not run was reported by the device.
        result
            .unwrap_or(Err(DeviceFault::Released))
            .map_err(|fault| LaunchError::Kernel { worker, fault })
    });
    results.collect()
}

fn pages<T>(memory: &[T]) -> Result<PageRange, RangeError> {
    PageRange::covering(memory.as_ptr().addr(), size_of_val(memory))
}
