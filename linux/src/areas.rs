//! Which areas of the process can migrate, can be mapped in place, or must be left alone.
//!
//! # Invariants
//! - AREA-1: what isomem's own threads stand on is excluded: its metadata and stacks, its arenas, and the data of the
//!   objects that were loaded when the world was opened (isomem's and libc's are among them).
//! - AREA-2: a part of an area is classified by itself: the kernel joins isomem's mappings with the program's where they touch.
//!
//! # Locking
//! None here; the list of segments never changes.

use allocator_api2::vec::Vec;
use isomem_core::addr::PageRange;
use isomem_core::world::{Access, Area, Backing, OutOfMetadata};

use crate::sys::maps::{Name, Vma};
use crate::sys::metadata::{self, MetadataHeap};
use crate::sys::{mapping, segments};

/// What is never mirrored.
#[derive(Debug)]
pub(crate) struct Exclusions {
    /// Segments of loaded objects and isomem's metadata, in order, disjoint.
    fixed: Vec<PageRange, MetadataHeap>,
}

impl Exclusions {
    /// Looks at what is loaded now. To be called on a thread of the program.
    pub(crate) fn new() -> Result<Self, OutOfMetadata> {
        let mut all = Vec::new_in(MetadataHeap);
        let metadata = metadata::owned_range()?;
        push(
            &mut all,
            PageRange::covering(metadata.start, metadata.len()).map_err(|_| OutOfMetadata)?,
        )?;
        let mut pushed = Ok(());
        segments::loaded(&mut |range| pushed = pushed.and_then(|()| push(&mut all, range)));
        pushed?;
        all.sort_unstable_by_key(|range| range.first_page());
        let mut fixed: Vec<PageRange, MetadataHeap> = Vec::new_in(MetadataHeap);
        for range in all {
            match fixed.last_mut() {
                Some(last) if range.first_page() <= last.end_page() => *last = last.hull(range),
                _ => push(&mut fixed, range)?,
            }
        }
        Ok(Self { fixed })
    }

    /// The first excluded pages of `range`.
    fn first_in(&self, range: PageRange) -> Option<PageRange> {
        let mut first: Option<PageRange> = None;
        let mut look = |excluded: PageRange| {
            if let Some(part) = excluded.intersect(range)
                && first.is_none_or(|first| part.first_page() < first.first_page())
            {
                first = Some(part);
            }
        };
        let from = self
            .fixed
            .partition_point(|excluded| excluded.end_page() <= range.first_page());
        if let Some(&excluded) = self.fixed.get(from) {
            look(excluded);
        }
        mapping::own_in(range, &mut look);
        first
    }

    /// Reports the part of `vma` in `range`, cut where what is excluded begins and ends (AREA-2).
    pub(crate) fn classify(&self, vma: &Vma, range: PageRange, each: &mut dyn FnMut(Area)) {
        let mut rest = vma.range.intersect(range);
        let backing = backing(vma);
        let access = access(vma);
        while let Some(part) = rest {
            let excluded = match backing {
                Backing::Excluded => Some(part),
                _ => self.first_in(part),
            };
            let before = excluded.map_or(part.page_count(), |excluded| excluded.first_page() - part.first_page());
            if before > 0 {
                each(Area {
                    range: part.take(before),
                    access,
                    backing,
                });
            }
            if let Some(excluded) = excluded {
                each(Area {
                    range: excluded,
                    access,
                    backing: Backing::Excluded,
                });
            }
            rest = part.skip(before + excluded.map_or(0, PageRange::page_count));
        }
    }
}

fn push(all: &mut Vec<PageRange, MetadataHeap>, range: PageRange) -> Result<(), OutOfMetadata> {
    all.try_reserve(1).map_err(|_| OutOfMetadata)?;
    all.push(range);
    Ok(())
}

fn access(vma: &Vma) -> Option<Access> {
    if vma.write {
        Some(Access::Write)
    } else {
        vma.read.then_some(Access::Read)
    }
}

fn backing(vma: &Vma) -> Backing {
    if vma.name == Name::Special {
        Backing::Excluded
    } else if vma.is_private_anonymous() {
        Backing::Anonymous
    } else {
        Backing::Mapped
    }
}

#[cfg(test)]
mod tests;
