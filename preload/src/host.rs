//! The program as the driver sees it: its bytes, through the kernel, and what is behind its areas.

use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::mm::Mm;
use isomem_dmirror::{AreaKind, Place, Process};
use isomem_linux::Linux;
use isomem_linux::sys::maps::Vma;
use isomem_linux::sys::peek;
use rustix::io::Errno;

/// The process that this object is loaded in.
#[derive(Clone)]
pub(crate) struct Host(pub(crate) Mm<Linux>);

impl Process for Host {
    fn read(&self, place: Place, out: &mut [u8]) -> usize {
        peek::read(place.addr, out).unwrap_or(0)
    }

    fn write(&self, place: Place, from: &[u8]) -> usize {
        // SAFETY: a device entry points there, so it is memory of the program, which told the device to write it.
        unsafe { peek::write(place.addr, from) }.unwrap_or(0)
    }

    fn areas(&self, range: PageRange, each: &mut dyn FnMut(PageRange, AreaKind)) -> Result<(), Errno> {
        self.0.world().vmas(range, &mut |vma| {
            if let Some(part) = vma.range.intersect(range) {
                each(part, kind(&vma));
            }
        })
    }

    fn file_pages(&self, range: PageRange, each: &mut dyn FnMut(PageRange)) -> Result<(), Errno> {
        self.0.world().file_pages(range, each)
    }
}

fn kind(vma: &Vma) -> AreaKind {
    match vma {
        vma if vma.page_bytes > PAGE_SIZE => AreaKind::Hugetlb,
        vma if vma.shared => AreaKind::Shared,
        vma if vma.is_private_anonymous() => AreaKind::Anonymous,
        _ => AreaKind::PrivateFile,
    }
}
