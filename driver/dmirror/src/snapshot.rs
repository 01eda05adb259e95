//! SNAPSHOT: what the device would find, without bringing anything in.

use isomem_core::addr::PageRange;
use isomem_core::mirror::range::PageState;
use isomem_core::world::{Access, World};
use rustix::io::Errno;

use crate::command::{Counts, Target};
use crate::file::{Data, File, errno_of};
use crate::{AreaKind, Process};

/// What a snapshot's byte says of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protection(pub u8);

impl Protection {
    /// No area, or no access.
    pub const ERROR: Self = Self(0xff);
    /// No page, or none that this device could see.
    pub const NONE: Self = Self(0);
    /// Readable.
    pub const READ: Self = Self(0x01);
    /// Readable and writable.
    pub const WRITE: Self = Self(0x02);
    /// Mapped by an entry of 2 MiB.
    pub const HUGE: Self = Self(0x04);
    /// The shared page of zeroes.
    pub const ZERO: Self = Self(0x10);
    /// In private memory of this device.
    pub const PRIVATE_LOCAL: Self = Self(0x20);
    /// In coherent memory of this device.
    pub const COHERENT_LOCAL: Self = Self(0x40);
    /// In coherent memory of another device.
    pub const COHERENT_REMOTE: Self = Self(0x50);

    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn of(access: Access) -> Self {
        match access {
            Access::Read => Self::READ,
            Access::Write => Self::WRITE,
        }
    }

    fn huge(self, huge: bool) -> Self {
        if huge { self.and(Self::HUGE) } else { self }
    }

    fn of_state(state: PageState) -> Self {
        match state {
            PageState::Hole | PageState::NoAccess => Self::ERROR,
            PageState::Zero => Self::ZERO.and(Self::READ),
            PageState::System { access, huge } => Self::of(access).huge(huge),
            PageState::Duplicate { access, .. } => Self::of(access),
            PageState::Device {
                local: true,
                access,
                huge,
                ..
            } => Self::PRIVATE_LOCAL.and(Self::of(access)).huge(huge),
            PageState::Coherent {
                local, access, huge, ..
            } => {
                let place = if local {
                    Self::COHERENT_LOCAL
                } else {
                    Self::COHERENT_REMOTE
                };
                place.and(Self::of(access)).huge(huge)
            }
            PageState::Missing | PageState::Device { .. } | PageState::Exclusive { .. } => Self::NONE,
        }
    }
}

impl<W: World, P: Process> File<W, P> {
    pub(crate) fn snapshot(&self, target: Target) -> Result<(Counts, Data<W>), Errno> {
        let mut bytes = self.data(target.npages)?;
        bytes.fill(Protection::ERROR.0);
        if let Some(range) = target.range {
            let snapshot = self.mirror.snapshot(range).map_err(|error| errno_of(&error))?;
            for (run, state) in snapshot.runs() {
                place(range, *run, &mut bytes).fill(Protection::of_state(*state).0);
            }
            self.mark_file_pages(range, &mut bytes)?;
        }
        Ok((Counts::pages(target.npages), bytes))
    }

    /// In a private mapping the CPU's entry for a page that is still the file's is read-only, whatever the area allows.
    fn mark_file_pages(&self, range: PageRange, bytes: &mut [u8]) -> Result<(), Errno> {
        let mut result = Ok(());
        let looked = self.process.areas(range, &mut |area, kind| {
            if result.is_err() || kind != AreaKind::PrivateFile {
                return;
            }
            result = self.process.file_pages(area, &mut |run| {
                for byte in place(range, run, bytes) {
                    if *byte == Protection::WRITE.0 {
                        *byte = Protection::READ.0;
                    }
                }
            });
        });
        looked.and(result)
    }
}

/// The bytes of `run` among those of `range`.
fn place(range: PageRange, run: PageRange, bytes: &mut [u8]) -> &mut [u8] {
    let first = run.first_page() - range.first_page();
    &mut bytes[first..first + run.page_count()]
}
