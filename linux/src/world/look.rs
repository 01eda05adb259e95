//! What drivers that stand in for the kernel's ask of the process beyond what the core asks.

use isomem_core::addr::PageRange;
use rustix::io::Errno;

use super::Linux;
use crate::sys::maps::Vma;

impl Linux {
    /// The areas that overlap `range`, whole, in address order.
    pub fn vmas(&self, range: PageRange, each: &mut dyn FnMut(Vma)) -> Result<(), Errno> {
        self.maps.in_range(range, each)
    }

    /// The pages of `range` that are present and still those of the file behind the mapping, or of shared memory.
    pub fn file_pages(&self, range: PageRange, each: &mut dyn FnMut(PageRange)) -> Result<(), Errno> {
        self.pagemap.file_pages(range, each)
    }
}
