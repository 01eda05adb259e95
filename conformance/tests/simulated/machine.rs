//! A process of the simulated kernel as a machine, with the test driver's devices.
//!
//! A thread belongs to the process that it acts for at the moment.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use isomem_conformance::{Backing, Failure, Machine, Outcome};
use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::mm::Mm;
use isomem_core::world::{self, Access};
use isomem_dmirror::{Command, Dmirror, File, MINORS, Place, Request};
use isomem_sim::checker;
use isomem_sim::journal::{Actor, Journal};
use isomem_sim::kernel::{Kernel, Origin, Process, WORDS};
use isomem_sim::world::{Arenas, Pager, SimWorld};
use rustix::io::Errno;

use crate::host::{Host, WORD};

/// The program's pages; above are those of the arenas.
const PAGES: core::ops::Range<usize> = 512..1 << 16;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One open of a device; without a file when its opener is gone.
struct Open {
    opener: Process,
    file: Mutex<Option<Arc<File<SimWorld, Host>>>>,
}

impl Open {
    /// Closes it, as the opener would.
    fn end(&self) {
        let _acting = act_for(&self.opener);
        drop(lock(&self.file).take());
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.end();
    }
}

std::thread_local! {
    static ACTING: core::cell::RefCell<Vec<Process>> = const { core::cell::RefCell::new(Vec::new()) };
}

/// The calling thread acts for a process while this lives.
struct Acting;

fn act_for(process: &Process) -> Acting {
    process.enter();
    ACTING.with(|acting| acting.borrow_mut().push(process.clone()));
    Acting
}

impl Drop for Acting {
    fn drop(&mut self) {
        ACTING.with(|acting| {
            let mut acting = acting.borrow_mut();
            acting.pop();
            if let Some(before) = acting.last() {
                before.enter();
            }
        });
    }
}

/// A process's own isomem, from its first open on.
struct Live {
    mm: Mm<SimWorld>,
    dmirror: Dmirror<SimWorld, Host>,
    pager: Pager,
}

#[derive(Clone)]
enum Descriptor {
    Device(Arc<Open>),
    Other,
}

struct Shared {
    journal: Journal,
    kernel: Kernel,
    next_page: AtomicUsize,
}

/// A process.
pub(crate) struct Simulated {
    shared: Arc<Shared>,
    process: Process,
    descriptors: Mutex<BTreeMap<usize, Descriptor>>,
    opened: Mutex<Vec<Weak<Open>>>,
    live: Mutex<Option<Live>>,
}

impl Simulated {
    pub(crate) fn new() -> Self {
        let journal = Journal::new(checker::all(), true);
        let kernel = Kernel::new(&journal);
        let process = kernel.process();
        let shared = Arc::new(Shared {
            journal,
            kernel,
            next_page: AtomicUsize::new(PAGES.start),
        });
        Self::of(shared, process, BTreeMap::new())
    }

    fn of(shared: Arc<Shared>, process: Process, descriptors: BTreeMap<usize, Descriptor>) -> Self {
        Self {
            shared,
            process,
            descriptors: Mutex::new(descriptors),
            opened: Mutex::default(),
            live: Mutex::default(),
        }
    }

    /// The process ends; then the checkers say what they found.
    pub(crate) fn shut_down(&self) -> Outcome {
        self.exit();
        match self.shared.journal.finish().finding {
            None => Ok(()),
            Some(finding) => Err(Failure::Wrong(format!("{:?}: {}", finding.verdict, finding.sentence))),
        }
    }

    fn exit(&self) {
        let _acting = act_for(&self.process);
        // What others inherited is of no use to them any more.
        let opened = core::mem::take(&mut *lock(&self.opened));
        opened.iter().filter_map(Weak::upgrade).for_each(|open| open.end());
        drop(core::mem::take(&mut *lock(&self.descriptors)));
        if let Some(Live { mm, dmirror, pager }) = lock(&self.live).take() {
            drop(dmirror);
            mm.exit();
            drop(pager);
        }
        self.process.exit();
    }

    fn fork(&self) -> Self {
        let mm = lock(&self.live).as_ref().map(|live| live.mm.clone());
        let process = match mm {
            None => self.process.fork(Origin::Program),
            Some(mm) => {
                mm.fork_prepare();
                let child = self.process.fork(Origin::Own);
                // The parent's pager lets go of the child's areas after it has read of the fork. When it has read of another one it has: as a program that
                // finds its areas watched by somebody else tries again, which the simulator does not tell apart.
                self.process.fork(Origin::Own).exit();
                mm.fork_done();
                child
            }
        };
        Self::of(self.shared.clone(), process, lock(&self.descriptors).clone())
    }

    /// Runs `body` as a child and ends the child.
    fn as_child<R>(&self, body: impl FnOnce(&Self) -> R) -> R {
        let child = self.fork();
        let acting = act_for(&child.process);
        let result = body(&child);
        drop(acting);
        child.exit();
        result
    }

    fn change(
        &self,
        addr: usize,
        len_bytes: usize,
        told: impl FnOnce(&Mm<SimWorld>, PageRange),
        untold: impl FnOnce(PageRange),
    ) {
        let Some(range) = PageRange::from_pages(addr / PAGE_SIZE, len_bytes.div_ceil(PAGE_SIZE)) else {
            return;
        };
        let mm = lock(&self.live).as_ref().map(|live| live.mm.clone());
        match mm {
            Some(mm) => told(&mm, range),
            None => untold(range),
        }
    }

    fn room(&self, len_bytes: usize) -> Result<PageRange, Errno> {
        let pages = len_bytes.div_ceil(PAGE_SIZE);
        // A hole behind each mapping.
        let first = self.shared.next_page.fetch_add(pages + 1, Ordering::Relaxed);
        PageRange::from_pages(first, pages)
            .filter(|range| range.end_page() <= PAGES.end)
            .ok_or(Errno::NOMEM)
    }

    fn add(&self, descriptor: Descriptor) -> usize {
        let mut descriptors = lock(&self.descriptors);
        let free = (3..).find(|fd| !descriptors.contains_key(fd)).unwrap_or(0);
        descriptors.insert(free, descriptor);
        free
    }

    fn get(&self, addr: u64, out: &mut [u8]) -> Result<(), Errno> {
        let place = own(addr, out.len())?;
        match Host(self.process.clone()).load(Actor::Cpu, place, out) {
            bytes if bytes == out.len() => Ok(()),
            _ => Err(Errno::FAULT),
        }
    }

    fn put(&self, addr: u64, from: &[u8]) -> Result<(), Errno> {
        let place = own(addr, from.len())?;
        match Host(self.process.clone()).store(Actor::Cpu, place, from) {
            bytes if bytes == from.len() => Ok(()),
            _ => Err(Errno::FAULT),
        }
    }

    fn device(&self, fd: usize) -> Result<Arc<Open>, Errno> {
        match lock(&self.descriptors).get(&fd) {
            Some(Descriptor::Device(open)) => Ok(open.clone()),
            Some(Descriptor::Other) => Err(Errno::NOTTY),
            None => Err(Errno::BADF),
        }
    }

    fn perform(
        &self,
        fd: usize,
        number: u32,
        command: &Command,
        give: impl FnOnce(&mut [u8]) -> Result<(), Errno>,
        take: impl FnOnce(&[u8]) -> Result<(), Errno>,
    ) -> Result<Command, Errno> {
        let open = self.device(fd)?;
        command.target()?;
        let request = Request::from_ioctl(number).ok_or(Errno::INVAL)?;
        let file = lock(&open.file).clone();
        let counts = match file {
            None => request.without_mm()?,
            Some(file) => {
                let _acting = act_for(&open.opener);
                file.ioctl(request, command, give, take)?
            }
        };
        Ok(command.answered(counts))
    }
}

/// The program's own memory at `addr`.
fn own(addr: u64, len_bytes: usize) -> Result<Place, Errno> {
    let first = usize::try_from(addr).map_err(|_| Errno::FAULT)?;
    let end = first.checked_add(len_bytes).ok_or(Errno::FAULT)?;
    match end.div_ceil(PAGE_SIZE) <= PAGES.end {
        true => Ok(Place {
            addr: first,
            known_as: first,
        }),
        false => Err(Errno::FAULT),
    }
}

impl Machine for Simulated {
    type Device = usize;

    fn open(&self, minor: usize) -> Result<usize, Errno> {
        if minor >= MINORS {
            return Err(Errno::NOENT);
        }
        let mut live = lock(&self.live);
        let live = match &mut *live {
            Some(live) => live,
            none => {
                let mm = Mm::new(SimWorld::new(&self.process)).map_err(|_| Errno::NOMEM)?;
                let pager = Pager::start(&mm, &self.shared.journal, Arenas::Served);
                let dmirror = Dmirror::new(mm.clone(), Host(self.process.clone()));
                none.insert(Live { mm, dmirror, pager })
            }
        };
        let file = live.dmirror.open(minor).map_err(|_| Errno::NOMEM)?;
        let open = Arc::new(Open {
            opener: self.process.clone(),
            file: Mutex::new(Some(Arc::new(file))),
        });
        lock(&self.opened).push(Arc::downgrade(&open));
        Ok(self.add(Descriptor::Device(open)))
    }

    fn duplicate(&self, device: usize) -> Result<usize, Errno> {
        let open = self.device(device)?;
        Ok(self.add(Descriptor::Device(open)))
    }

    fn close(&self, device: usize) -> Result<(), Errno> {
        let closed = lock(&self.descriptors).remove(&device);
        closed.map(drop).ok_or(Errno::BADF)
    }

    fn foreign(&self) -> Result<Vec<(usize, Errno)>, Errno> {
        Ok(vec![
            (self.add(Descriptor::Other), Errno::NOTTY),
            (usize::MAX, Errno::BADF),
        ])
    }

    fn command(&self, device: usize, number: u32, command: &mut Command) -> Result<(), Errno> {
        let ptr = command.ptr;
        let (give, take) = (|out: &mut [u8]| self.get(ptr, out), |bytes: &[u8]| self.put(ptr, bytes));
        *command = self.perform(device, number, command, give, take)?;
        Ok(())
    }

    fn command_with(&self, device: usize, number: u32, command: &mut Command, data: &mut [u8]) -> Result<(), Errno> {
        let data = core::cell::RefCell::new(data);
        let give = |out: &mut [u8]| {
            out.copy_from_slice(&data.borrow()[..out.len()]);
            Ok(())
        };
        let take = |bytes: &[u8]| {
            data.borrow_mut()[..bytes.len()].copy_from_slice(bytes);
            Ok(())
        };
        *command = self.perform(device, number, command, give, take)?;
        Ok(())
    }

    fn command_at(&self, device: usize, number: u32, at: usize) -> Result<(), Errno> {
        self.device(device)?;
        let mut bytes = [0; size_of::<Command>()];
        self.get(at as u64, &mut bytes)?;
        let word = |index: usize| u64::from_ne_bytes(bytes[index * WORD..][..WORD].try_into().expect("a word"));
        let mut command = Command {
            addr: word(0),
            ptr: word(1),
            npages: word(2),
            cpages: word(3),
            faults: word(4),
        };
        self.command(device, number, &mut command)?;
        let words = [
            command.addr,
            command.ptr,
            command.npages,
            command.cpages,
            command.faults,
        ];
        self.put(at as u64, words.map(u64::to_ne_bytes).as_flattened())
    }

    fn map_device(&self, _: usize, _: usize) -> Result<usize, Errno> {
        Err(Errno::OPNOTSUPP)
    }

    fn map(&self, len_bytes: usize, backing: Backing, access: Option<Access>) -> Result<usize, Errno> {
        let backing = match backing {
            Backing::Anonymous => world::Backing::Anonymous,
            Backing::SharedAnonymous => world::Backing::Mapped,
            Backing::PrivateFile | Backing::SharedFile | Backing::Hugetlb => return Err(Errno::OPNOTSUPP),
        };
        let range = self.room(len_bytes)?;
        self.process.mmap(range, access, backing);
        Ok(range.start())
    }

    fn unmap(&self, addr: usize, len_bytes: usize) {
        self.change(
            addr,
            len_bytes,
            |mm, range| mm.unmap(range).expect("unmapped"),
            |range| self.process.munmap(range, Origin::Program),
        );
    }

    fn protect(&self, addr: usize, len_bytes: usize, access: Option<Access>) {
        self.change(
            addr,
            len_bytes,
            |mm, range| mm.protect(range, access).expect("protected"),
            |range| self.process.protect(range, access).expect("protected"),
        );
    }

    fn discard(&self, addr: usize, len_bytes: usize) {
        self.change(
            addr,
            len_bytes,
            |mm, range| mm.discard(range).expect("discarded"),
            |range| self.process.discard(range, Origin::Program).expect("discarded"),
        );
    }

    fn remap(&self, addr: usize, len_bytes: usize) -> usize {
        let to = self.room(len_bytes).expect("there is room");
        self.change(
            addr,
            len_bytes,
            |mm, range| mm.remap(range, to).expect("moved"),
            |range| self.process.mremap(range, to, Origin::Program).expect("moved"),
        );
        to.start()
    }

    fn lock(&self, _: usize, _: usize) {}

    fn advise_huge(&self, _: usize, _: usize) {}

    fn load(&self, addr: usize) -> u64 {
        let word = addr % PAGE_SIZE / WORD;
        match word < WORDS {
            true => self.process.read(addr / PAGE_SIZE, word).unwrap_or(0),
            false => 0,
        }
    }

    fn store(&self, addr: usize, value: u64) {
        let word = addr % PAGE_SIZE / WORD;
        if word < WORDS {
            let _ = self.process.write(addr / PAGE_SIZE, word, value);
        }
    }

    fn resources(&self) -> (usize, usize) {
        let opened = lock(&self.opened);
        let open = opened.iter().filter(|open| open.strong_count() > 0).count();
        (open, lock(&self.descriptors).len())
    }

    fn pause(&self) {
        self.shared.kernel.pause(1);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }

    fn in_child(&self, body: &dyn Fn(&Self) -> Outcome) -> Outcome {
        self.as_child(body)
    }

    fn beside_child(&self, body: &dyn Fn(&Self) -> Outcome, meanwhile: &dyn Fn(&Self) -> Outcome) -> Outcome {
        self.as_child(|child| {
            body(child)?;
            let _acting = act_for(&self.process);
            meanwhile(self)
        })
    }

    fn after_opener(
        &self,
        opener: &dyn Fn(&Self) -> Result<usize, Failure>,
        heir: &dyn Fn(&Self, usize) -> Outcome,
    ) -> Outcome {
        let (child, device) = self.as_child(|child| {
            let device = opener(child)?;
            Ok::<_, Failure>((child.fork(), device))
        })?;
        let acting = act_for(&child.process);
        let outcome = heir(&child, device);
        drop(acting);
        child.exit();
        outcome
    }

    fn in_parallel(&self, main: &dyn Fn(&Self) -> Outcome, beside: &(dyn Fn(&Self) + Sync)) -> Outcome {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _acting = act_for(&self.process);
                beside(self);
            });
            main(self)
        })
    }
}
