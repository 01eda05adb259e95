//! What this process has open.
//!
//! ```text
//! parent                              fork's child
//! opens: its Mm, its devices          inherits the descriptor, but not what it stands for
//! ioctl: served here                  ioctl: asks the opener
//! .                                   opens: an Mm of its own
//! ```

use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicUsize, Ordering};
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};

use isomem_dmirror::{Dmirror, File, MINORS, Request};
use isomem_linux::sys::mapping::ForkMark;
use isomem_linux::{Linux, OpenError};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::data::{fetch, get, put, store};
use crate::host::Host;
use crate::placeholder::{Far, Identity, pair};
use crate::server::Server;

/// An address space with its devices. Dropped with its last open.
pub(crate) struct Live {
    dmirror: Dmirror<Linux, Host>,
    // Dropped last: pages come home while there is still somebody who serves faults.
    _mm: isomem::Mm,
}

/// One open of a device.
pub(crate) struct Open {
    pub(crate) file: File<Linux, Host>,
}

struct Entry {
    far: Far,
    open: Arc<Open>,
}

#[derive(Default)]
struct Table {
    entries: Vec<Entry>,
    /// Closed, but a command is still under way through it.
    ended: Vec<Entry>,
    live: Option<Arc<Live>>,
    /// Serves those who inherited a descriptor; ends with the last entry.
    server: Option<Server>,
}

/// The state of one process; a fork's child makes a new one, and leaves this alone.
pub(crate) struct Process {
    pid: u32,
    /// Tells a fork's child, where it reads as not here, from one of `vfork`, which shares this memory.
    mark: ForkMark,
    count: AtomicUsize,
    /// Held while devices are opened and ended, so that who closed one finds it closed, and an address space is gone before the next is opened.
    /// Taken before `table`.
    ending: Mutex<()>,
    /// The thread that holds `table`. What it does meanwhile with descriptors of this object's own (closing one, say) comes by the interposed
    /// functions as well.
    holder: AtomicI32,
    table: Mutex<Table>,
}

static CURRENT: AtomicPtr<Process> = AtomicPtr::new(core::ptr::null_mut());
static AT_FORK: Once = Once::new();

/// Whose state [`CURRENT`] is.
enum Whose {
    /// The calling process's.
    Ours(&'static Process),
    /// A parent's, before the caller was forked; or there is none.
    Nobodys,
    /// A parent's whose memory the caller shares, until it execs.
    Borrowed,
}

fn whose() -> Whose {
    // Acquire pairs with the Release in `make`.
    let current = CURRENT.load(Ordering::Acquire);
    // SAFETY: null, or a box that was leaked.
    let Some(process) = (unsafe { current.as_ref() }) else {
        return Whose::Nobodys;
    };
    if process.pid == std::process::id() {
        return Whose::Ours(process);
    }
    if process.mark.is_here() {
        Whose::Borrowed
    } else {
        Whose::Nobodys
    }
}

/// The calling process's state, if it has opened a device and not closed the last.
pub(crate) fn open_here() -> Option<&'static Process> {
    if CURRENT.load(Ordering::Relaxed).is_null() {
        return None;
    }
    match whose() {
        // Relaxed: who opened a device in this thread or told this thread of it is ordered before.
        Whose::Ours(process) if process.count.load(Ordering::Relaxed) > 0 => {
            // Relaxed: a thread sees its own number, or another's.
            (process.holder.load(Ordering::Relaxed) != this_thread()).then_some(process)
        }
        _ => None,
    }
}

fn make() -> Result<&'static Process, Errno> {
    match whose() {
        Whose::Ours(process) => return Ok(process),
        // Memory is the parent's, descriptors are not: nothing can be opened here that the parent would not take for its own.
        Whose::Borrowed => return Err(Errno::NXIO),
        Whose::Nobodys => leave_parent(),
    }
    AT_FORK.call_once(|| {
        // SAFETY: the function has the right type and stays for ever.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
    let old = CURRENT.load(Ordering::Acquire);
    let made = Box::into_raw(Box::new(Process {
        pid: std::process::id(),
        mark: ForkMark::new()?,
        count: AtomicUsize::new(0),
        ending: Mutex::new(()),
        holder: AtomicI32::new(0),
        table: Mutex::new(Table::default()),
    }));
    // Release pairs with the Acquire in `whose`. Who loses the race leaks a few bytes and a page, once.
    let _ = CURRENT.compare_exchange(old, made, Ordering::AcqRel, Ordering::Acquire);
    match whose() {
        Whose::Ours(process) => Ok(process),
        _ => Err(Errno::NXIO),
    }
}

/// A fork's child must not keep the opener's ends open: they tell others that the opener lives.
extern "C" fn in_child() {
    // SAFETY: null, or a box that was leaked; this is the child's copy.
    let Some(parents) = (unsafe { CURRENT.load(Ordering::Acquire).as_ref() }) else {
        return;
    };
    if let Ok(table) = parents.table.try_lock() {
        table.entries.iter().for_each(|entry| entry.far.close_copy());
        // Never unlocked, never used again: the opens belong to the parent.
        core::mem::forget(table);
    }
    CURRENT.store(core::ptr::null_mut(), Ordering::Release);
}

/// The same for a child that was forked without the C library's knowing.
pub(crate) fn leave_parent() {
    if !CURRENT.load(Ordering::Acquire).is_null() && matches!(whose(), Whose::Nobodys) {
        in_child();
    }
}

/// Signals are blocked while this lives.
pub(crate) struct Quiet(libc::sigset_t);

impl Quiet {
    pub(crate) fn new() -> Self {
        let mut all = core::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the call writes the set.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        let mut before = core::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `all` was filled; the call writes `before`.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
        // SAFETY: written by the call, which fails only for a bad first argument.
        Self(unsafe { before.assume_init() })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // SAFETY: the set is the one that was in force before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, core::ptr::null_mut()) };
    }
}

/// The table, with signals blocked.
struct Held<'p> {
    holder: &'p AtomicI32,
    table: MutexGuard<'p, Table>,
    // Dropped last.
    _quiet: Quiet,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.holder.store(0, Ordering::Relaxed);
    }
}

impl core::ops::Deref for Held<'_> {
    type Target = Table;

    fn deref(&self) -> &Table {
        &self.table
    }
}

impl core::ops::DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Table {
        &mut self.table
    }
}

fn this_thread() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

impl Process {
    fn lock(&self) -> Held<'_> {
        let quiet = Quiet::new();
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        self.holder.store(this_thread(), Ordering::Relaxed);
        Held {
            holder: &self.holder,
            table,
            _quiet: quiet,
        }
    }

    /// The open that `fd` belongs to.
    pub(crate) fn find(&self, fd: RawFd) -> Option<Arc<Open>> {
        let identity = Identity::of(fd)?;
        let table = self.lock();
        let entry = table.entries.iter().find(|entry| entry.far.identity == identity)?;
        Some(entry.open.clone())
    }

    /// Every open with its far end. Does not keep the opens: who closes the last descriptor ends them there and then.
    pub(crate) fn all(&self) -> Vec<(Arc<OwnedFd>, Weak<Open>)> {
        let table = self.lock();
        let each = |entry: &Entry| (entry.far.fd(), Arc::downgrade(&entry.open));
        table.entries.iter().map(each).collect()
    }

    /// Whether `fd` is a device's.
    pub(crate) fn has(&self, fd: RawFd) -> bool {
        self.find(fd).is_some()
    }

    /// Closes the program's descriptors of devices in this range, and brings home what was on them.
    pub(crate) fn close_devices(&self, first: u32, last: u32) {
        let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
            return;
        };
        let numbers = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let ours: Vec<RawFd> = numbers
            .filter(|fd: &RawFd| (first..=last).contains(&fd.cast_unsigned()) && self.has(*fd))
            .collect();
        for fd in ours {
            // SAFETY: the program has asked for it to be closed.
            unsafe { rustix::io::close(fd) };
        }
        self.sweep();
    }

    /// Ends the opens whose last descriptor is closed and that no command goes through any more.
    pub(crate) fn sweep(&self) {
        let _quiet = Quiet::new();
        let _one_at_a_time = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        let (gone, live) = self.take_ended();
        // Pages come home and threads end without the table's lock.
        drop(gone);
        drop(live);
    }

    fn take_ended(&self) -> (Vec<Entry>, Option<Arc<Live>>) {
        let mut held = self.lock();
        let table = &mut *held;
        while let Some(index) = table.entries.iter().position(|entry| entry.far.is_hung_up()) {
            table.ended.push(table.entries.swap_remove(index));
        }
        // Nobody finds an ended one any more, so a count of 1 stays.
        let (gone, ended) = core::mem::take(&mut table.ended)
            .into_iter()
            .partition(|entry| Arc::strong_count(&entry.open) == 1);
        table.ended = ended;
        let count = table.entries.len() + table.ended.len();
        self.count.store(count, Ordering::Relaxed);
        match &table.server {
            Some(server) if count > 0 => server.look(),
            _ => table.server = None,
        }
        let live = if count == 0 { table.live.take() } else { None };
        (gone, live)
    }

    /// Does what `ioctl` does, where `fd` is a device that this process opened.
    pub(crate) fn ioctl(&self, fd: RawFd, number: u32, at: usize) -> Option<Result<(), Errno>> {
        let open = self.find(fd)?;
        let result = open.ioctl(number, at);
        drop(open);
        if !self.lock().ended.is_empty() {
            self.sweep();
        }
        Some(result)
    }
}

/// Opens device `minor` for the calling process; the answer is the descriptor.
pub(crate) fn open(minor: usize, flags: SocketFlags) -> Result<RawFd, Errno> {
    debug_assert!(minor < MINORS);
    let process = make()?;
    let _quiet = Quiet::new();
    let _one_at_a_time = process.ending.lock().unwrap_or_else(PoisonError::into_inner);
    let mut table = process.lock();
    let live = match &table.live {
        Some(live) => live.clone(),
        None => table.live.insert(Arc::new(live()?)).clone(),
    };
    let file = live.dmirror.open(minor).map_err(|error| {
        complain(&error);
        Errno::NOMEM
    })?;
    let (program, far) = pair(flags)?;
    table.entries.push(Entry {
        far,
        open: Arc::new(Open { file }),
    });
    let count = table.entries.len() + table.ended.len();
    process.count.store(count, Ordering::Relaxed);
    match &table.server {
        Some(server) => server.look(),
        // Without it only those who inherit the descriptor go unserved.
        None => table.server = Server::start(process).ok(),
    }
    Ok(program.into_raw_fd())
}

fn live() -> Result<Live, Errno> {
    let mm = open_mm().map_err(|error| {
        complain(&error);
        Errno::NXIO
    })?;
    let core = mm.core().clone();
    Ok(Live {
        dmirror: Dmirror::new(core.clone(), Host(core)),
        _mm: mm,
    })
}

/// At the level that the environment names, else the interposed one.
fn open_mm() -> Result<isomem::Mm, OpenError> {
    let builder = isomem::Mm::builder();
    match std::env::var_os("ISOMEM_EXACTNESS") {
        Some(_) => builder.open(),
        None => builder.exactness(isomem::Exactness::Interposed).open(),
    }
}

fn complain(error: &dyn core::fmt::Display) {
    eprintln!("isomem: the device cannot be opened: {error}");
}

impl Open {
    /// What `ioctl` does with a request and a pointer to a command.
    pub(crate) fn ioctl(&self, number: u32, at: usize) -> Result<(), Errno> {
        let command = fetch(at)?;
        command.target()?;
        let request = Request::from_ioctl(number).ok_or(Errno::INVAL)?;
        let data = command.ptr as usize;
        let counts = self
            .file
            .ioctl(request, &command, |out| get(data, out), |bytes| put(data, bytes))?;
        store(at, &command.answered(counts))
    }
}
