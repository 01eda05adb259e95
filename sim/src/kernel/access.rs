//! Loads and stores through a page table, and what the kernel does when they fault.

use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::bus::AtomicOp;
use isomem_core::notifier::{Blocking, Cause};
use isomem_core::world::Access;

use crate::journal::{Actor, Event, Frame, Journal};
use crate::kernel::frame::ZERO;
use crate::kernel::space::{Present, Pte, Swapped};
use crate::kernel::{Channel, Msg, Process, Site, State, WORDS, Wait, Words, address, told};

/// An access to one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Load it.
    Load,
    /// Store this.
    Store(u64),
    /// Add this, as one step.
    Add(u64),
    /// Any other operation in one step.
    Atomic(AtomicOp<u64>),
}

impl Op {
    /// What it needs of the page.
    pub const fn access(self) -> Access {
        match self {
            Self::Load => Access::Read,
            Self::Store(_) | Self::Add(_) => Access::Write,
            Self::Atomic(op) => op.access(),
        }
    }

    /// What it leaves where `before` was.
    fn after(self, before: u64) -> u64 {
        match self {
            Self::Load | Self::Atomic(AtomicOp::Load) => before,
            Self::Store(value) | Self::Atomic(AtomicOp::Swap(value)) => value,
            Self::Add(value) | Self::Atomic(AtomicOp::Add(value)) => before.wrapping_add(value),
            Self::Atomic(AtomicOp::And(value)) => before & value,
            Self::Atomic(AtomicOp::Or(value)) => before | value,
            Self::Atomic(AtomicOp::Xor(value)) => before ^ value,
            Self::Atomic(AtomicOp::Min(value)) => before.min(value),
            Self::Atomic(AtomicOp::Max(value)) => before.max(value),
            Self::Atomic(AtomicOp::CompareExchange { expected, new }) if before == expected => new,
            Self::Atomic(AtomicOp::CompareExchange { .. }) => before,
        }
    }
}

/// The access is not allowed: the thread would get a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segv {
    /// The page that was touched.
    pub page: usize,
}

/// What became of a fault.
enum Resolved {
    /// Try the access again.
    Retry,
    /// Somebody was asked for the page; wait under this number.
    Asked(u64, Channel),
    /// The page must be copied before it is written.
    Cow,
    Segv,
}

/// The range of one page.
pub(super) fn one(page: usize) -> PageRange {
    PageRange::from_pages(page, 1).expect("the simulator's addresses are small")
}

impl Process {
    /// Loads a word as a thread of the program does.
    pub fn read(&self, page: usize, word: usize) -> Result<u64, Segv> {
        self.access(Actor::Cpu, page, page, word, Op::Load)
    }

    /// Stores a word as a thread of the program does.
    pub fn write(&self, page: usize, word: usize, value: u64) -> Result<(), Segv> {
        self.access(Actor::Cpu, page, page, word, Op::Store(value)).map(drop)
    }

    /// Adds to a word atomically; returns the value before.
    pub fn add(&self, page: usize, word: usize, value: u64) -> Result<u64, Segv> {
        self.access(Actor::Cpu, page, page, word, Op::Add(value))
    }

    /// Reads the words of a page one after another, and tells the journal what it saw.
    pub fn read_page(&self, page: usize) -> Result<Words, Segv> {
        let mut words = Words::default();
        for (index, word) in words.iter_mut().enumerate() {
            *word = self.read(page, index)?;
        }
        self.journal().record(Event::SawPage {
            actor: Actor::Cpu,
            page: self.told(page) as u64,
            words: words.to_vec(),
        });
        Ok(words)
    }

    /// Writes `value` to each word of a page, one after another.
    pub fn write_page(&self, page: usize, value: u64) -> Result<(), Segv> {
        (0..WORDS).try_for_each(|word| self.write(page, word, value))
    }

    /// An access of `actor` through this page table, at page number `at`, to what it believes to be page `page` of the program. Waits while the page is
    /// asked for. Returns the value before.
    pub fn access(&self, actor: Actor, at: usize, page: usize, word: usize, op: Op) -> Result<u64, Segv> {
        loop {
            self.kernel().point();
            let mut state = self.lock();
            if let Some(frame) = state.translate(self.pid(), at, op.access()) {
                return Ok(state.apply(self.journal(), actor, self.told(page), frame, word, op));
            }
            drop(state);
            self.fault(at, op.access())?;
        }
    }

    /// Makes a page present, as if it had been accessed (MADV_POPULATE).
    pub fn touch(&self, page: usize, access: Access) -> Result<(), Segv> {
        loop {
            self.kernel().point();
            if self.lock().translate(self.pid(), page, access).is_some() {
                return Ok(());
            }
            self.fault(page, access)?;
        }
    }

    /// Takes a reference to the frame behind a page, bringing it in first (Linux: pin_user_pages). It stays when the mapping goes.
    pub fn pin(&self, page: usize, access: Access) -> Result<Frame, Segv> {
        loop {
            self.kernel().point();
            let mut state = self.lock();
            if let Some(frame) = state.translate(self.pid(), page, access) {
                state.frames.pin(frame);
                return Ok(frame);
            }
            drop(state);
            self.fault(page, access)?;
        }
    }

    /// The frame behind a page, if the page table has one. No fault, no reference.
    pub fn frame_at(&self, page: usize) -> Option<Frame> {
        match self.lock().space(self.pid()).pte(page)? {
            Pte::Present(present) => Some(present.frame),
            Pte::Swap(_) | Pte::Poison => None,
        }
    }

    /// The frame that an access would reach. No fault, no reference.
    pub fn frame_for(&self, page: usize, access: Access) -> Option<Frame> {
        self.kernel().point();
        self.lock().translate(self.pid(), page, access)
    }

    /// What a page holds at this moment, wherever; for a story's own look when all is quiet. `None` where there is no page.
    pub fn peek(&self, page: usize) -> Option<Words> {
        let mut state = self.lock();
        match state.space(self.pid()).pte(page)? {
            Pte::Present(present) => Some(*state.frames.words(present.frame)),
            Pte::Swap(swapped) => state.swap.get(&swapped.slot).copied(),
            Pte::Poison => None,
        }
    }

    /// Serves a fault: returns when the access is to be tried again.
    pub(super) fn fault(&self, page: usize, access: Access) -> Result<(), Segv> {
        let mmap = self.mmap_lock().read();
        // For a frame, or a page table.
        self.kernel().allocate_may_sleep();
        let resolved = self.resolve(page, access);
        match resolved {
            Resolved::Retry => Ok(()),
            Resolved::Segv => Err(Segv { page }),
            Resolved::Cow => {
                let broken = self.notified(one(page), Cause::Clear, Blocking::May, || {
                    self.lock().break_cow(self, page)
                });
                broken.unwrap_or(Ok(()))
            }
            Resolved::Asked(number, channel) => {
                // Who serves it may need the lock.
                drop(mmap);
                let pid = self.pid();
                self.kernel().wake(|wait| wait == Wait::Messages(pid, channel));
                self.kernel().sleep(number);
                Ok(())
            }
        }
    }

    fn resolve(&self, page: usize, access: Access) -> Resolved {
        let mut state = self.lock();
        let pid = self.pid();
        let space = state.space(pid);
        let Some(vma) = space.vma(page).copied() else {
            return Resolved::Segv;
        };
        if !space.alive || vma.access < Some(access) {
            return Resolved::Segv;
        }
        let write = access == Access::Write;
        match (space.pte(page), vma.tracked) {
            (None, Some(channel)) => state.ask(pid, page, access, false, channel),
            (None, None) => state.fill(self, page, access, vma.is_writable()),
            (Some(Pte::Poison), _) => Resolved::Segv,
            (Some(Pte::Swap(swapped)), _) => state.swap_in(self, page, swapped, vma.is_writable()),
            (Some(Pte::Present(present)), Some(channel)) if write && present.protected => {
                state.ask(pid, page, access, true, channel)
            }
            (Some(Pte::Present(present)), _) if write && !present.writable => {
                if state.frames.is_shared(present.frame) {
                    return Resolved::Cow;
                }
                let writable = Pte::Present(Present {
                    writable: true,
                    ..present
                });
                state.space(pid).ptes.insert(page, writable);
                Resolved::Retry
            }
            (Some(Pte::Present(_)), _) => Resolved::Retry,
        }
    }
}

impl State {
    /// The frame that an access reaches.
    pub(super) fn translate(&mut self, pid: usize, page: usize, access: Access) -> Option<Frame> {
        let space = self.space(pid);
        let Some(Pte::Present(present)) = space.pte(page) else {
            return None;
        };
        let vma = space.vma(page)?;
        let allowed = space.alive
            && vma.access >= Some(access)
            && (access == Access::Read || present.writable && !present.protected);
        allowed.then_some(present.frame)
    }

    /// Makes the access to the page (with the process's number in its upper bits), and tells.
    pub(super) fn apply(
        &mut self,
        journal: &Journal,
        actor: Actor,
        page: usize,
        frame: Frame,
        word: usize,
        op: Op,
    ) -> u64 {
        let addr = address(page, word);
        let cell = self.frames.word_mut(frame, word);
        let before = *cell;
        if !matches!(op, Op::Store(_)) {
            journal.record(Event::Read {
                actor,
                addr,
                value: before,
            });
        }
        if op.access() == Access::Read {
            return before;
        }
        let after = op.after(before);
        *cell = after;
        self.shadow.entry(page).or_default()[word] = after;
        journal.record(Event::Write {
            actor,
            addr,
            value: after,
            frame: Some(frame),
        });
        before
    }

    /// Reports a fault to who reads of it.
    fn ask(&mut self, pid: usize, page: usize, access: Access, protected: bool, channel: Channel) -> Resolved {
        let message = Msg::Fault {
            page,
            access,
            protected,
        };
        self.space(pid).queue(channel).faults.push_back(message);
        Resolved::Asked(self.wait(Wait::Page(pid, page)), channel)
    }

    /// A first touch.
    fn fill(&mut self, process: &Process, page: usize, access: Access, writable: bool) -> Resolved {
        let frame = if access == Access::Read {
            ZERO
        } else if self.check(Site::Allocate).is_err() {
            return Resolved::Segv;
        } else {
            self.frames.allocate(process.journal(), Words::default())
        };
        let writable = writable && frame != ZERO;
        self.set(process.pid(), page, frame, writable);
        Resolved::Retry
    }

    fn swap_in(&mut self, process: &Process, page: usize, swapped: Swapped, writable: bool) -> Resolved {
        if self.check(Site::Allocate).is_err() {
            return Resolved::Segv;
        }
        let words = self.free_slot(process.journal(), swapped.slot);
        let present = Present {
            frame: self.frames.allocate(process.journal(), words),
            writable,
            protected: swapped.protected,
            huge: false,
        };
        self.space(process.pid()).ptes.insert(page, Pte::Present(present));
        Resolved::Retry
    }

    /// Gives the process a copy of its own of a page that is shared, if it still is.
    pub(super) fn break_cow(&mut self, process: &Process, page: usize) -> Result<(), Segv> {
        let pid = process.pid();
        let Some(Pte::Present(present)) = self.space(pid).pte(page) else {
            return Ok(());
        };
        if present.writable || !self.frames.is_shared(present.frame) {
            return Ok(());
        }
        self.check(Site::Allocate).map_err(|_| Segv { page })?;
        let words = *self.frames.words(present.frame);
        let copy = self.frames.allocate(process.journal(), words);
        self.frames.unmap(process.journal(), present.frame);
        self.space(pid).ptes.insert(
            page,
            Pte::Present(Present {
                frame: copy,
                writable: true,
                huge: false,
                ..present
            }),
        );
        Ok(())
    }

    /// Enters a frame that the caller counted.
    pub(super) fn set(&mut self, pid: usize, page: usize, frame: Frame, writable: bool) {
        let present = Present {
            frame,
            writable,
            protected: false,
            huge: false,
        };
        self.space(pid).ptes.insert(page, Pte::Present(present));
    }

    /// Takes an entry out of the page table.
    pub(super) fn zap(&mut self, journal: &Journal, pid: usize, page: usize) {
        match self.space(pid).ptes.remove(&page) {
            Some(Pte::Present(present)) => self.frames.unmap(journal, present.frame),
            Some(Pte::Swap(swapped)) => {
                self.free_slot(journal, swapped.slot);
            }
            Some(Pte::Poison) | None => {}
        }
    }

    /// Takes out the entry of the first page of `pages`, or steps over those that have none; says where to go on. What is read there next
    /// is zero.
    pub(super) fn discard_step(&mut self, journal: &Journal, pid: usize, pages: core::ops::Range<usize>) -> usize {
        let next = self.space(pid).ptes.range(pages.clone()).next().map(|(page, _)| *page);
        let end = match next {
            Some(page) if page == pages.start => {
                self.zap(journal, pid, page);
                page + 1
            }
            Some(page) => page,
            None => pages.end,
        };
        self.forget(journal, told(pid, pages.start)..told(pid, end));
        end
    }

    /// What was in these pages is no more.
    pub(super) fn forget(&mut self, journal: &Journal, pages: core::ops::Range<usize>) {
        let shadows: Vec<usize> = self.shadow.range(pages.clone()).map(|(page, _)| *page).collect();
        for page in shadows {
            self.shadow.remove(&page);
        }
        journal.record(Event::Discarded {
            start: (pages.start * PAGE_SIZE) as u64,
            end: (pages.end * PAGE_SIZE) as u64,
        });
    }

    /// A page has these contents from now on, for its history, though nobody wrote them there.
    pub(super) fn inherit(&mut self, journal: &Journal, page: usize, words: Words) {
        for (word, value) in words.into_iter().enumerate().filter(|(_, value)| *value != 0) {
            let (actor, addr) = (Actor::Cpu, address(page, word));
            let frame = None;
            journal.record(Event::Write {
                actor,
                addr,
                value,
                frame,
            });
        }
        self.shadow.insert(page, words);
    }
}
