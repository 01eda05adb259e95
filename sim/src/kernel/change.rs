//! System calls that change an address space, and the events that tell of them.
//!
//! A program's change is told to who reads the userfaultfd: of contents before they go, of mappings after; the caller waits until it was *read*.
//! `Origin::Own` marks the changes that isomem itself makes, which its pager need not act upon.

use isomem_core::addr::PageRange;
use isomem_core::notifier::{Blocking, Cause};
use isomem_core::world::{Access, Backing};

use crate::journal::Event;
use crate::kernel::space::{Present, Pte, Swapped, Vma};
use crate::kernel::{Channel, Errno, Msg, Process, Site, Wait, address, told};

/// Who makes a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The program, past isomem.
    Program,
    /// isomem, for the program: the devices were told.
    Own,
}

impl Process {
    /// Maps `range`, replacing what is there (MAP_FIXED).
    pub fn mmap(&self, range: PageRange, access: Option<Access>, backing: Backing) {
        let vma = Vma {
            range,
            access,
            backing,
            tracked: None,
            private: false,
        };
        self.map_vma(vma);
    }

    /// Maps anonymous memory, readable and writable.
    pub fn mmap_anonymous(&self, range: PageRange) {
        self.mmap(range, Some(Access::Write), Backing::Anonymous);
    }

    /// The same, unless something is there (MAP_FIXED_NOREPLACE).
    pub fn mmap_unless_taken(&self, range: PageRange) -> Result<(), Errno> {
        let _mmap = self.mmap_lock().write();
        self.kernel().point();
        let mut state = self.lock();
        let space = state.space(self.pid());
        if !space.parts(range).is_empty() {
            return Err(Errno::EXIST);
        }
        space.vmas.push(Vma::anonymous(range));
        Ok(())
    }

    fn map_vma(&self, vma: Vma) {
        let mmap = self.mmap_lock().write();
        let told = self.remove(vma.range, Some(vma));
        drop(mmap);
        self.tell_unmapped(told, Origin::Program);
    }

    /// Unmaps `range`.
    pub fn munmap(&self, range: PageRange, origin: Origin) {
        let mmap = self.mmap_lock().write();
        let told = self.remove(range, None);
        drop(mmap);
        self.tell_unmapped(told, origin);
    }

    /// Takes the mapping of `range` away, and puts `new` in its place. Says of which parts events are due.
    fn remove(&self, range: PageRange, new: Option<Vma>) -> Vec<PageRange> {
        let told = self.begin(range);
        if !self.lock().space(self.pid()).parts(range).is_empty() {
            let _ = self.notified(range, Cause::Unmap, Blocking::May, || self.zap_pages(range));
        }
        let mut state = self.lock();
        let space = state.space(self.pid());
        space.cut(range);
        space.vmas.extend(new);
        told
    }

    fn tell_unmapped(&self, told: Vec<PageRange>, origin: Origin) {
        for part in told {
            self.tell(Msg::Unmapped(part, origin));
        }
    }

    /// Zaps page by page.
    fn zap_pages(&self, range: PageRange) {
        let mut next = range.first_page();
        while next < range.end_page() {
            self.kernel().point();
            let mut state = self.lock();
            next = state.discard_step(self.journal(), self.pid(), next..range.end_page());
        }
    }

    /// The parts of `range` that are tracked and whose reader must be told of a change; from here on filling calls are refused (SIMK-4).
    fn begin(&self, range: PageRange) -> Vec<PageRange> {
        let mut state = self.lock();
        let space = state.space(self.pid());
        if !space.program.has_reader {
            return Vec::new();
        }
        let tracked = |vma: &Vma| vma.tracked == Some(Channel::Program);
        let parts = space.parts(range);
        let told: Vec<_> = parts.iter().filter(|vma| tracked(vma)).map(|vma| vma.range).collect();
        space.program.changing += told.len() as u32;
        told
    }

    /// Sends an event and waits until it is read. Ends one change that was begun.
    fn tell(&self, message: Msg) {
        let pid = self.pid();
        let mut state = self.lock();
        let program = &mut state.space(pid).program;
        if program.has_reader {
            program.last_event += 1;
            let number = program.last_event;
            program.events.push_back((number, message));
            let waiter = state.wait(Wait::Event(pid, number));
            drop(state);
            self.kernel().wake(|wait| wait == Wait::Messages(pid, Channel::Program));
            self.kernel().sleep(waiter);
            state = self.lock();
        }
        state.space(pid).program.changing -= 1;
    }

    /// Drops the contents of `range` (MADV_DONTNEED).
    pub fn discard(&self, range: PageRange, origin: Origin) -> Result<(), Errno> {
        self.lock().check(Site::Discard)?;
        if !self.lock().space(self.pid()).is_mapped(range) {
            return Err(Errno::NOMEM);
        }
        // What is told of goes when it is told, or later: the reader drops what is away.
        self.journal().record(Event::Discarding {
            start: address(self.told(range.first_page()), 0),
            end: address(self.told(range.end_page()), 0),
        });
        // Without the lock of the address space, which the reader may need.
        for part in self.begin(range) {
            self.tell(Msg::Removed(part, origin));
        }
        let _mmap = self.mmap_lock().read();
        let _ = self.notified(range, Cause::Clear, Blocking::May, || self.zap_pages(range));
        Ok(())
    }

    /// The same for pages whose contents were copied elsewhere: the program's history goes on with the copy.
    pub fn drop_copied(&self, range: PageRange) -> Result<(), Errno> {
        self.lock().check(Site::Discard)?;
        for part in self.begin(range) {
            self.tell(Msg::Removed(part, Origin::Own));
        }
        let _mmap = self.mmap_lock().read();
        for page in range.first_page()..range.end_page() {
            self.kernel().point();
            self.lock().zap(self.journal(), self.pid(), page);
        }
        Ok(())
    }

    /// Sets what the program may do in `range`. No event tells of it.
    pub fn protect(&self, range: PageRange, access: Option<Access>) -> Result<(), Errno> {
        let _mmap = self.mmap_lock().write();
        if !self.lock().space(self.pid()).is_mapped(range) {
            return Err(Errno::NOMEM);
        }
        self.kernel().point();
        let _ = self.notified(range, Cause::ProtectArea, Blocking::May, || {
            let mut state = self.lock();
            let space = state.space(self.pid());
            space.edit(range, |vma| vma.access = access);
            for page in space.present(range) {
                if let Some(Pte::Present(present)) = space.ptes.get_mut(&page)
                    && access != Some(Access::Write)
                {
                    present.writable = false;
                }
            }
        });
        Ok(())
    }

    /// Moves the mapping `from` to `to`, of the same length, replacing what is there.
    pub fn mremap(&self, from: PageRange, to: PageRange, origin: Origin) -> Result<(), Errno> {
        let mmap = self.mmap_lock().write();
        if from.page_count() != to.page_count() || from.overlaps(to) {
            return Err(Errno::INVAL);
        }
        if !self.lock().space(self.pid()).is_mapped(from) {
            return Err(Errno::FAULT);
        }
        let replaced = self.remove(to, None);
        let told = self.begin(from);
        let _ = self.notified(from, Cause::Unmap, Blocking::May, || self.relocate(from, to));
        drop(mmap);
        self.tell_unmapped(replaced, origin);
        for part in told {
            let skip = part.first_page() - from.first_page();
            let target = to.skip(skip).expect("a part of the range").take(part.page_count());
            self.tell(Msg::Remapped(part, target, origin));
        }
        Ok(())
    }

    fn relocate(&self, from: PageRange, to: PageRange) {
        let mut state = self.lock();
        let space = state.space(self.pid());
        let shift = |page: usize| page - from.first_page() + to.first_page();
        let moved = space.parts(from);
        space.cut(from);
        space.vmas.extend(moved.into_iter().map(|vma| {
            let first = shift(vma.range.first_page());
            let range = PageRange::from_pages(first, vma.range.page_count()).expect("as long as before");
            Vma { range, ..vma }
        }));
        drop(state);
        for page in from.first_page()..from.end_page() {
            self.kernel().point();
            self.relocate_page(page, shift(page));
        }
    }

    fn relocate_page(&self, from: usize, to: usize) {
        let mut state = self.lock();
        let pte = state.space(self.pid()).ptes.remove(&from);
        let words = state.shadow.get(&self.told(from)).copied();
        for page in [from, to] {
            state.forget(self.journal(), self.told(page)..self.told(page + 1));
        }
        if let Some(pte) = pte {
            state.space(self.pid()).ptes.insert(to, pte);
        }
        // For the history, the values are written anew at their new place: also those that are away and follow later.
        if let Some(words) = words {
            state.inherit(self.journal(), self.told(to), words);
        }
    }

    /// Makes a child with a copy of the address space, page by page, copy-on-write.
    pub fn fork(&self, origin: Origin) -> Self {
        let child = self.kernel().process_with(None);
        let mmap = self.mmap_lock().write();
        let told = self.fork_areas(&child);
        let whole = self
            .lock()
            .space(self.pid())
            .vmas
            .iter()
            .map(|vma| vma.range)
            .reduce(PageRange::hull);
        if let Some(whole) = whole {
            let _ = self.notified(whole, Cause::ProtectPage, Blocking::May, || {
                // For the child's page table.
                self.kernel().allocate_may_sleep();
                // Looked up in a statement of its own: each page takes the lock again.
                let pages = self.lock().pages_of(self.pid(), whole);
                for page in pages {
                    self.kernel().point();
                    self.fork_page(&child, page);
                }
            });
        }
        drop(mmap);
        if told {
            self.tell(Msg::Forked(child.pid(), origin));
        }
        child
    }

    /// Gives the child its areas. Says whether an event is due: then they are tracked, until the reader lets go of them.
    fn fork_areas(&self, child: &Self) -> bool {
        let mut state = self.lock();
        let space = state.space(self.pid());
        let mut vmas: Vec<Vma> = space.vmas.iter().filter(|vma| !vma.private).copied().collect();
        let tracked = vmas.iter().any(|vma| vma.tracked == Some(Channel::Program));
        let told = tracked && space.program.has_reader;
        if told {
            space.program.changing += 1;
        } else {
            vmas.iter_mut().for_each(|vma| vma.tracked = None);
        }
        state.space(child.pid()).vmas = vmas;
        told
    }

    fn fork_page(&self, child: &Self, page: usize) {
        let mut state = self.lock();
        let (pid, to) = (self.pid(), child.pid());
        if state.space(to).vma(page).is_none() {
            return;
        }
        if let Some(words) = state.shadow.get(&self.told(page)).copied() {
            state.inherit(self.journal(), child.told(page), words);
        }
        match state.space(pid).pte(page) {
            Some(Pte::Present(present)) if state.frames.is_pinned(present.frame) => {
                // The device goes on with the parent's.
                let words = *state.frames.words(present.frame);
                let frame = state.frames.allocate(self.journal(), words);
                state.set(to, page, frame, false);
            }
            Some(Pte::Present(present)) => {
                let shared = Present {
                    writable: false,
                    ..present
                };
                state.frames.map(present.frame);
                state.space(pid).ptes.insert(page, Pte::Present(shared));
                let protected = false;
                state
                    .space(to)
                    .ptes
                    .insert(page, Pte::Present(Present { protected, ..shared }));
            }
            Some(Pte::Swap(swapped)) => {
                let words = state.swap[&swapped.slot];
                let slot = state.swap_slot(self.journal(), words);
                let protected = false;
                state
                    .space(to)
                    .ptes
                    .insert(page, Pte::Swap(Swapped { slot, protected }));
            }
            Some(Pte::Poison) | None => {}
        }
    }

    /// Ends the process: everything it maps goes. Threads that wait for its pages go on, and fail; so does who faults from here on (Linux:
    /// mmget_not_zero).
    pub fn exit(&self) {
        self.lock().space(self.pid()).alive = false;
        if let Some(notifier) = &self.0.notifier {
            notifier.release();
        }
        let _mmap = self.mmap_lock().write();
        self.kernel().point();
        let mut state = self.lock();
        let pages = state.space(self.pid()).present(PageRange::ALL);
        pages
            .into_iter()
            .for_each(|page| state.zap(self.journal(), self.pid(), page));
        state.forget(self.journal(), self.told(0)..told(self.pid() + 1, 0));
        let space = state.space(self.pid());
        space.vmas.clear();
        space.program.has_reader = false;
        drop(state);
        let pid = self.pid();
        self.kernel().wake(|wait| match wait {
            Wait::Page(of, _) | Wait::Event(of, _) => of == pid,
            Wait::Messages(..) => false,
        });
    }

    /// Takes one entry out, with its contents.
    pub(super) fn zap_one(&self, page: usize) {
        let mut state = self.lock();
        state.discard_step(self.journal(), self.pid(), page..page + 1);
    }
}
