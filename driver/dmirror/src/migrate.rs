//! MIGRATE_TO_DEV, MIGRATE_TO_SYS, EXCLUSIVE, CHECK_EXCLUSIVE: what changes where pages are, or who may touch them.

use isomem_core::addr::PageRange;
use isomem_core::migrate::{Elsewhere, Keep, MigrateError, SkipReason};
use isomem_core::mirror::range::PageState;
use isomem_core::world::{Access, World};
use rustix::io::Errno;

use crate::command::{Counts, Target, chunks};
use crate::file::{Data, File, errno_of};
use crate::{AreaKind, Process};

impl<W: World, P: Process> File<W, P> {
    pub(crate) fn migrate_to_device(&self, target: Target) -> Result<(Counts, Data<W>), Errno> {
        let (range, pieces) = self.migratable(target);
        for piece in pieces {
            self.send(piece?)?;
        }
        let range = range.ok_or(Errno::INVAL)?;
        self.read_back(range)
    }

    /// Sends pages, and enters in the device's table those that are there now.
    fn send(&self, (kind, chunk): (AreaKind, PageRange)) -> Result<(), Errno> {
        let report = self
            .mirror
            .migrate_to_device_with(chunk, Elsewhere::Leave)
            .map_err(errno_of_migration)?;
        let mut next = Some(chunk);
        for (skipped, reason) in report.skips() {
            let Some(rest) = next else { break };
            if let Some(sent) = before(rest, *skipped) {
                self.enter(sent)?;
            }
            if stays_in_place(kind, *reason) {
                self.enter_own(kind, *skipped)?;
            }
            next = after(rest, *skipped);
        }
        next.map_or(Ok(()), |sent| self.enter(sent))
    }

    fn enter(&self, range: PageRange) -> Result<(), Errno> {
        match self.mirror.fault(range, Access::Read) {
            Ok(_) => Ok(()),
            // Gone meanwhile: reading back will miss them.
            Err(error) if errno_of(&error) == Errno::FAULT => Ok(()),
            Err(error) => Err(errno_of(&error)),
        }
    }

    /// Enters pages that the kernel would move and isomem cannot: they are mapped where they are. Not those of the file itself.
    fn enter_own(&self, kind: AreaKind, range: PageRange) -> Result<(), Errno> {
        if kind != AreaKind::PrivateFile {
            return self.enter(range);
        }
        let snapshot = self.mirror.snapshot(range).map_err(|error| errno_of(&error))?;
        let mut result = Ok(());
        for (run, state) in snapshot.runs() {
            if !matches!(state, PageState::System { .. }) {
                continue;
            }
            let mut next = Some(*run);
            self.process.file_pages(*run, &mut |of_file| {
                if let Some(rest) = next {
                    if let (Ok(()), Some(own)) = (result, before(rest, of_file)) {
                        result = self.enter(own);
                    }
                    next = after(rest, of_file);
                }
            })?;
            if let (Ok(()), Some(own)) = (result, next) {
                result = self.enter(own);
            }
        }
        result
    }

    pub(crate) fn migrate_to_system(&self, target: Target) -> Result<Counts, Errno> {
        let (_, pieces) = self.migratable(target);
        let mut pages = 0;
        for piece in pieces {
            let (_, chunk) = piece?;
            let report = self.mirror.migrate_home_with(chunk, Keep::Exclusive);
            pages += report.map_err(errno_of_migration)?.migrated();
        }
        Ok(Counts::pages(pages))
    }

    pub(crate) fn exclusive(&self, target: Target) -> Result<(Counts, Data<W>), Errno> {
        let range = target.range.ok_or(Errno::BUSY)?;
        for chunk in chunks(range) {
            let report = self.mirror.exclusive(chunk).map_err(errno_of_migration)?;
            if report.skipped > 0 {
                return Err(Errno::BUSY);
            }
        }
        self.read_back(target.whole().ok_or(Errno::BUSY)?)
    }

    pub(crate) fn check_exclusive(&self, target: Target) -> Result<Counts, Errno> {
        let count = |range| self.mirror.exclusive_pages(range).map_err(|_| Errno::INVAL);
        match target.range.map_or(Ok(0), count)? {
            0 => Ok(Counts::default()),
            _ => Err(Errno::PERM),
        }
    }

    /// A device that writes by an ordinary fault lets the CPU in again.
    pub(crate) fn end_exclusive(&self, range: PageRange) -> Result<(), Errno> {
        if self.mirror.exclusive_pages(range).is_ok_and(|pages| pages > 0) {
            self.mirror.end_exclusive(range).map_err(errno_of_migration)?;
        }
        Ok(())
    }

    /// The whole of `range` from the device's table, or ENOENT.
    fn read_back(&self, range: PageRange) -> Result<(Counts, Data<W>), Errno> {
        let data = self.data(range.len_bytes())?;
        let (pages, data) = self.copy(range, 0, Access::Read, data);
        if pages < range.page_count() {
            return Err(Errno::NOENT);
        }
        Ok((Counts::pages(pages), data))
    }

    /// The pieces of at most 64 pages, within one area each, in which pages are moved. EINVAL where none may move.
    fn migratable(
        &self,
        target: Target,
    ) -> (
        Option<PageRange>,
        impl Iterator<Item = Result<(AreaKind, PageRange), Errno>> + '_,
    ) {
        let whole = target.whole();
        let mut rest = target.range;
        let mut outside = whole.is_none();
        let pieces = core::iter::from_fn(move || {
            let Some(next) = rest else {
                // What lies beyond user space is a hole.
                return core::mem::take(&mut outside).then_some(Err(Errno::INVAL));
            };
            let piece = self.piece(next);
            rest = match piece {
                Ok((_, piece)) => next.skip(piece.page_count()),
                Err(_) => None,
            };
            outside &= piece.is_ok();
            Some(piece)
        });
        (whole, pieces)
    }

    /// What can move from the first page of `range` on.
    fn piece(&self, range: PageRange) -> Result<(AreaKind, PageRange), Errno> {
        let chunk = chunks(range).next().ok_or(Errno::INVAL)?;
        let mut first = None;
        self.process
            .areas(chunk, &mut |area, kind| first = first.or(Some((area, kind))))?;
        let (piece, kind) = first
            .filter(|(area, _)| area.first_page() == chunk.first_page())
            .ok_or(Errno::INVAL)?;
        let mut readable = false;
        let world = self.mirror.state().mm().world();
        world
            .areas(piece, &mut |area| {
                readable |= area.range.contains(piece.start()) && area.access.is_some();
            })
            .map_err(|error| Errno::from_raw_os_error(error.errno))?;
        if kind == AreaKind::Hugetlb || !readable {
            return Err(Errno::INVAL);
        }
        Ok((kind, piece))
    }
}

/// Whether the kernel would move such pages, though isomem leaves them where they are.
fn stays_in_place(kind: AreaKind, reason: SkipReason) -> bool {
    match reason {
        SkipReason::Excluded | SkipReason::ThreadBlock => true,
        SkipReason::NotAnonymous => kind == AreaKind::PrivateFile,
        _ => false,
    }
}

/// The part of `range` before `part`.
fn before(range: PageRange, part: PageRange) -> Option<PageRange> {
    PageRange::from_pages(range.first_page(), part.first_page().saturating_sub(range.first_page()))
}

/// The part of `range` after `part`.
fn after(range: PageRange, part: PageRange) -> Option<PageRange> {
    range.skip(part.end_page().saturating_sub(range.first_page()))
}

fn errno_of_migration(error: MigrateError) -> Errno {
    match error {
        MigrateError::Metadata(_) => Errno::NOMEM,
        MigrateError::World(error) => Errno::from_raw_os_error(error.errno),
        _ => Errno::INVAL,
    }
}
