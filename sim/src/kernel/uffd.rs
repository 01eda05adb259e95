//! What userfaultfd offers to who serves faults: watch areas, read messages, fill, move, copy, protect.
//!
//! Each call answers how many pages it did from the front, and the error that stopped it, as the ioctls do.

use isomem_core::addr::PageRange;
use isomem_core::world::{Access, Area, Backing, Pte as Seen, PteRun};

use crate::journal::{Event, Frame};
use crate::kernel::access::one;
use crate::kernel::frame::ZERO;
use crate::kernel::space::{Present, Pte, Swapped, Vma};
use crate::kernel::{Channel, Copies, Errno, Msg, Process, Site, State, WORDS, Wait, Words};

/// Pages done, and why not all.
pub type Progress = (usize, Option<Errno>);

/// What is behind pages of zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zeroes {
    /// The page that all share, until they write.
    Shared,
    /// Frames of their own: for a device that writes without asking the CPU's page table.
    Own,
}

impl Process {
    /// From now on missing pages of `range` are reported (UFFDIO_REGISTER).
    pub fn track(&self, range: PageRange, channel: Channel) -> Result<(), Errno> {
        let _mmap = self.mmap_lock().write();
        let mut state = self.lock();
        state.check(Site::Track)?;
        let space = state.space(self.pid());
        if !space.is_mapped(range) {
            return Err(Errno::INVAL);
        }
        space.edit(range, |vma| vma.tracked = Some(channel));
        Ok(())
    }

    /// No longer (UFFDIO_UNREGISTER); who waits there tries again.
    pub fn untrack(&self, range: PageRange) -> Result<(), Errno> {
        let mmap = self.mmap_lock().write();
        let mut state = self.lock();
        let space = state.space(self.pid());
        space.edit(range, |vma| vma.tracked = None);
        for (_, pte) in space.ptes.range_mut(range.first_page()..range.end_page()) {
            if let Pte::Present(present) = pte {
                present.protected = false;
            }
        }
        drop(state);
        drop(mmap);
        self.wake_pages(range);
        Ok(())
    }

    /// Threads that wait for pages of `range` try again (UFFDIO_WAKE).
    pub fn wake_pages(&self, range: PageRange) {
        let (pid, pages) = (self.pid(), range.first_page()..range.end_page());
        self.kernel()
            .wake(|wait| matches!(wait, Wait::Page(of, page) if of == pid && pages.contains(&page)));
    }

    /// Somebody reads this channel from now on.
    pub fn attach_reader(&self, channel: Channel) {
        self.lock().space(self.pid()).queue(channel).has_reader = true;
    }

    /// Nobody does any more: who waits for a read goes on, and nothing is told.
    pub fn detach_reader(&self, channel: Channel) {
        self.lock().space(self.pid()).queue(channel).has_reader = false;
        let pid = self.pid();
        self.kernel()
            .wake(|wait| matches!(wait, Wait::Event(of, _) if of == pid));
    }

    /// Waits until there is something to read, or [`Process::nudge`] was called.
    pub fn wait_messages(&self, channel: Channel) {
        let pid = self.pid();
        let mut state = self.lock();
        let queue = state.space(pid).queue(channel);
        if core::mem::take(&mut queue.nudged) || !queue.faults.is_empty() || !queue.events.is_empty() {
            return;
        }
        let number = state.wait(Wait::Messages(pid, channel));
        drop(state);
        self.kernel().sleep(number);
        self.lock().space(pid).queue(channel).nudged = false;
    }

    /// Lets the reader of the channel return from its wait.
    pub fn nudge(&self, channel: Channel) {
        self.lock().space(self.pid()).queue(channel).nudged = true;
        let pid = self.pid();
        self.kernel().wake(|wait| wait == Wait::Messages(pid, channel));
    }

    /// Reads all messages that are there, faults before events. Who waited for an event to be read goes on.
    pub fn read_messages(&self, channel: Channel) -> Vec<Msg> {
        self.kernel().point();
        let pid = self.pid();
        let mut state = self.lock();
        let queue = state.space(pid).queue(channel);
        let last = queue.events.back().map(|(number, _)| *number);
        let mut messages: Vec<Msg> = queue.faults.drain(..).collect();
        messages.extend(queue.events.drain(..).map(|(_, message)| message));
        drop(state);
        if let Some(last) = last {
            self.kernel()
                .wake(|wait| matches!(wait, Wait::Event(of, number) if of == pid && number <= last));
        }
        messages
    }

    /// Stops watching a child's areas.
    pub fn release_child(&self, pid: usize) {
        let mut state = self.lock();
        state.space(pid).vmas.iter_mut().for_each(|vma| vma.tracked = None);
        drop(state);
        self.kernel()
            .wake(|wait| matches!(wait, Wait::Page(of, _) if of == pid));
    }

    /// Gives a child what its parent has at page `from`, unless it has a page there (a late fork's repair).
    pub fn copy_to_child(&self, from: usize, pid: usize, to: usize) {
        self.kernel().point();
        let mut state = self.lock();
        let Some(Pte::Present(present)) = state.space(self.pid()).pte(from) else {
            return;
        };
        if state.space(pid).vma(to).is_none() || state.space(pid).pte(to).is_some() {
            return;
        }
        let words = *state.frames.words(present.frame);
        let frame = state.frames.allocate(self.journal(), words);
        state.set(pid, to, frame, true);
    }

    /// Puts zeroes at holes, and wakes (UFFDIO_ZEROPAGE, or UFFDIO_COPY where each is to have a frame of its own).
    pub fn zeropage(&self, range: PageRange, channel: Channel, zeroes: Zeroes) -> Progress {
        let _mmap = self.mmap_lock().read();
        self.page_by_page(range, |state, page| {
            state.check(Site::Zero)?;
            state.check_target(self.pid(), page, channel)?;
            match zeroes {
                Zeroes::Shared => state.set(self.pid(), page, ZERO, false),
                Zeroes::Own => {
                    let frame = state.frames.allocate(self.journal(), Words::default());
                    state.set(self.pid(), page, frame, true);
                }
            }
            Ok(())
        })
    }

    /// Makes holes an error for who touches them, and wakes (UFFDIO_POISON).
    pub fn poison(&self, range: PageRange, channel: Channel) -> Progress {
        let _mmap = self.mmap_lock().read();
        self.page_by_page(range, |state, page| {
            state.check_target(self.pid(), page, channel)?;
            state.space(self.pid()).ptes.insert(page, Pte::Poison);
            Ok(())
        })
    }

    /// Relinks pages, and wakes who waits for them at their new place (UFFDIO_MOVE). `zeroes` says what becomes of the page of zeroes.
    pub fn move_pages(&self, from: PageRange, to: PageRange, channel: Channel, zeroes: Zeroes) -> Progress {
        let _mmap = self.mmap_lock().read();
        let source = |page: usize| page - to.first_page() + from.first_page();
        self.page_by_page(to, |state, page| {
            state.check(Site::Move)?;
            state.move_page(self, source(page), page, channel, zeroes)
        })
    }

    /// Copies pages, and wakes who waits for the copies (UFFDIO_COPY). What is not there at the source is faulted in, and so waited for if the source
    /// is watched; EFAULT where that is not allowed.
    pub fn copy_pages(&self, from: PageRange, to: PageRange, channel: Channel, copies: Copies) -> Progress {
        let mut done = 0;
        for (source, target) in (from.first_page()..).zip(to.first_page()..to.end_page()) {
            if let Err(errno) = self.copy_page(source, target, channel, copies) {
                return (done, Some(errno));
            }
            self.wake_pages(one(target));
            done += 1;
        }
        (done, None)
    }

    fn copy_page(&self, from: usize, to: usize, channel: Channel, copies: Copies) -> Result<(), Errno> {
        {
            let mut state = self.lock();
            state.check(Site::Copy)?;
            state.check_target(self.pid(), to, channel)?;
        }
        loop {
            let mmap = self.mmap_lock().read();
            if let Some(words) = self.copied_words(from) {
                return self.enter_copy(words, from, to, channel, copies);
            }
            drop(mmap);
            self.fault(from, Access::Read).map_err(|_| Errno::FAULT)?;
        }
    }

    /// SIMK-3. `None` where the source is not there.
    fn copied_words(&self, from: usize) -> Option<Words> {
        let mut words = Words::default();
        for (index, word) in words.iter_mut().enumerate().take(WORDS) {
            self.kernel().point();
            let mut state = self.lock();
            let frame = state.translate(self.pid(), from, Access::Read)?;
            *word = state.frames.words(frame)[index];
        }
        Some(words)
    }

    fn enter_copy(&self, words: Words, from: usize, to: usize, channel: Channel, copies: Copies) -> Result<(), Errno> {
        self.kernel().point();
        let (pid, mut state) = (self.pid(), self.lock());
        state.check(Site::Allocate)?;
        state.check_target(pid, to, channel)?;
        let writable = state.space(pid).vma(to).is_some_and(Vma::is_writable);
        let frame = state.frames.allocate(self.journal(), words);
        state.set(pid, to, frame, writable);
        if copies == Copies::Protected
            && let Some(Pte::Present(present)) = state.space(pid).ptes.get_mut(&to)
        {
            present.protected = true;
        }
        if copies == Copies::Protected && channel == Channel::Program {
            self.tell_duplicate(&mut state, from, to, frame);
        }
        Ok(())
    }

    fn tell_duplicate(&self, state: &mut State, from: usize, to: usize, home: Frame) {
        let Some(Pte::Present(Present { frame: away, .. })) = state.space(self.pid()).pte(from) else {
            return;
        };
        if away == ZERO {
            // Nobody's, written by nobody, and there for ever.
            return;
        }
        let words = state.frames.words(away).iter().zip(state.frames.words(home));
        let differs = words.clone().position(|(away, home)| away != home);
        let page = self.told(to) as u64;
        self.journal().record(Event::Duplicated {
            page,
            home,
            away,
            differs,
        });
    }

    /// Write-protects the pages that are there, or no longer, and then wakes (UFFDIO_WRITEPROTECT).
    pub fn write_protect(&self, range: PageRange, on: bool, channel: Channel) -> Result<(), Errno> {
        let mmap = self.mmap_lock().read();
        self.kernel().point();
        let mut state = self.lock();
        state.check(Site::Protect)?;
        let space = state.space(self.pid());
        if space.queue(channel).changing > 0 {
            return Err(Errno::AGAIN);
        }
        let tracked = space.parts(range).iter().all(|vma| vma.tracked == Some(channel));
        if !tracked || !space.is_mapped(range) {
            return Err(Errno::NOENT);
        }
        for (_, pte) in space.ptes.range_mut(range.first_page()..range.end_page()) {
            match pte {
                Pte::Present(present) => present.protected = on,
                Pte::Swap(swapped) => swapped.protected = on,
                Pte::Poison => {}
            }
        }
        drop(state);
        drop(mmap);
        if !on {
            self.wake_pages(range);
        }
        Ok(())
    }

    /// Drops what is in an arena; nothing is told.
    pub fn scrub(&self, range: PageRange) {
        let _mmap = self.mmap_lock().read();
        self.kernel().point();
        let mut state = self.lock();
        for page in state.space(self.pid()).present(range) {
            state.zap(self.journal(), self.pid(), page);
        }
    }

    /// Address space for an arena, tracked and not inherited.
    pub fn reserve_arena(&self, page_count: usize) -> PageRange {
        let mut state = self.lock();
        let space = state.space(self.pid());
        let range = PageRange::from_pages(space.next_arena, page_count).expect("the simulator's addresses are small");
        space.next_arena += page_count;
        space.vmas.push(Vma {
            range,
            access: Some(Access::Write),
            backing: Backing::Excluded,
            tracked: Some(Channel::Arena),
            private: true,
        });
        range
    }

    /// Gives it back.
    pub fn release_arena(&self, range: PageRange) {
        self.scrub(range);
        self.lock().space(self.pid()).cut(range);
    }

    /// The areas of `range` (PROCMAP_QUERY).
    pub fn areas(&self, range: PageRange) -> Vec<Area> {
        self.kernel().point();
        let parts = self.lock().space(self.pid()).parts(range);
        let area = |vma: Vma| Area {
            range: vma.range,
            access: vma.access,
            backing: vma.backing,
        };
        parts.into_iter().map(area).collect()
    }

    /// The page table over `range` (PAGEMAP_SCAN).
    pub fn scan(&self, range: PageRange) -> Vec<PteRun> {
        self.kernel().point();
        let mut state = self.lock();
        let space = state.space(self.pid());
        let mut runs: Vec<PteRun> = Vec::new();
        let mut next = range.first_page();
        let mut push = |first: usize, end: usize, pte: Seen| {
            let Some(range) = PageRange::from_pages(first, end.saturating_sub(first)) else {
                return;
            };
            match runs.last_mut() {
                Some(last) if last.pte == pte => last.range = last.range.hull(range),
                _ => runs.push(PteRun { range, pte }),
            }
        };
        for (&page, pte) in space.ptes.range(range.first_page()..range.end_page()) {
            push(next, page, Seen::None);
            let seen = match *pte {
                Pte::Swap(_) => Seen::Swapped,
                Pte::Poison => Seen::Swapped,
                Pte::Present(Present { frame, huge, .. }) => Seen::Present {
                    zero: frame == ZERO,
                    huge,
                },
            };
            push(page, page + 1, seen);
            next = page + 1;
        }
        push(next, range.end_page(), Seen::None);
        runs
    }

    fn page_by_page(&self, range: PageRange, mut step: impl FnMut(&mut State, usize) -> Result<(), Errno>) -> Progress {
        let mut done = 0;
        for page in range.first_page()..range.end_page() {
            self.kernel().point();
            let made = step(&mut self.lock(), page);
            if let Err(errno) = made {
                return (done, Some(errno));
            }
            self.wake_pages(one(page));
            done += 1;
        }
        (done, None)
    }
}

impl State {
    /// Whether something can be put at `page` through the channel.
    fn check_target(&mut self, pid: usize, page: usize, channel: Channel) -> Result<(), Errno> {
        let space = self.space(pid);
        if space.queue(channel).changing > 0 {
            return Err(Errno::AGAIN);
        }
        if space.vma(page).is_none_or(|vma| vma.tracked != Some(channel)) {
            return Err(Errno::NOENT);
        }
        if space.pte(page).is_some() {
            return Err(Errno::EXIST);
        }
        Ok(())
    }

    fn move_page(
        &mut self,
        process: &Process,
        from: usize,
        to: usize,
        channel: Channel,
        zeroes: Zeroes,
    ) -> Result<(), Errno> {
        let pid = process.pid();
        self.check_areas(pid, from, to, channel)?;
        self.check_target(pid, to, channel)?;
        let space = self.space(pid);
        let pte = space.pte(from).ok_or(Errno::NOENT)?;
        let writable = space.vma(to).is_some_and(Vma::is_writable);
        let moved = match pte {
            Pte::Poison => return Err(Errno::BUSY),
            Pte::Swap(swapped) => Pte::Swap(Swapped {
                protected: false,
                ..swapped
            }),
            Pte::Present(present) if present.frame == ZERO && zeroes == Zeroes::Own => Pte::Present(Present {
                frame: self.frames.allocate(process.journal(), Words::default()),
                writable,
                ..present
            }),
            Pte::Present(present) if present.frame == ZERO => Pte::Present(Present {
                writable: false,
                ..present
            }),
            Pte::Present(present) => {
                let shared = self.frames.is_shared(present.frame) || self.frames.is_pinned(present.frame);
                if shared || present.protected {
                    return Err(Errno::BUSY);
                }
                Pte::Present(Present { writable, ..present })
            }
        };
        let space = self.space(pid);
        space.ptes.remove(&from);
        space.ptes.insert(to, moved);
        Ok(())
    }

    /// Both areas must be there and alike, and the target's tracked.
    fn check_areas(&mut self, pid: usize, from: usize, to: usize, channel: Channel) -> Result<(), Errno> {
        let space = self.space(pid);
        if space.queue(channel).changing > 0 {
            return Err(Errno::AGAIN);
        }
        let (Some(source), Some(target)) = (space.vma(from), space.vma(to)) else {
            return Err(Errno::NOENT);
        };
        let private = |vma: &Vma| vma.backing != Backing::Mapped;
        if source.access != target.access || !private(source) || !private(target) || target.tracked != Some(channel) {
            return Err(Errno::INVAL);
        }
        Ok(())
    }
}
