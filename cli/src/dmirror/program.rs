//! The program to be run: where it is, and whether a preloaded object can reach it.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// There is no such program.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotFound {
    /// A path was given.
    #[error("there is no program {}", .0.display())]
    Path(PathBuf),
    /// A name was given.
    #[error("there is no program {} in PATH; for one in this folder write ./{}", .0.display(), .0.display())]
    Name(PathBuf),
}

/// Looks a program up as a shell does.
pub(super) fn find(name: &OsStr) -> Result<PathBuf, NotFound> {
    let path = PathBuf::from(name);
    if name.as_encoded_bytes().contains(&b'/') {
        return if path.exists() {
            Ok(path)
        } else {
            Err(NotFound::Path(path))
        };
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .map(|folder| folder.join(&path))
        .find(|candidate| is_executable(candidate))
        .ok_or(NotFound::Name(path))
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Why a program will not see the devices. It is run all the same: what it starts may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// Nobody loads objects for it.
    Static,
    /// It runs with privileges that its caller does not choose.
    Privileged,
    /// It is for another machine, or for 32 bits.
    Foreign,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Static => "it is linked statically, so nothing can be loaded into it: it will not find the devices",
            Self::Privileged => "it is set-user-ID or has capabilities of its own, so the system loads nothing into it: it will not find the devices",
            Self::Foreign => "it is no program for 64-bit x86: it will not find the devices",
        })
    }
}

impl Obstacle {
    pub(super) fn of(path: &Path) -> Option<Self> {
        if is_privileged(path) {
            return Some(Self::Privileged);
        }
        let mut start = Vec::new();
        File::open(path).ok()?.take(64 << 10).read_to_end(&mut start).ok()?;
        Self::of_image(&start)
    }

    /// From the first bytes of the file. What is no ELF file is a script, whose interpreter may well be reached.
    fn of_image(image: &[u8]) -> Option<Self> {
        const INTERPRETER: u32 = 3;
        if !image.starts_with(b"\x7fELF") {
            return None;
        }
        let is_ours = image.get(4) == Some(&2) && image.get(5) == Some(&1) && number::<2>(image, 18) == Some(62);
        if !is_ours {
            return Some(Self::Foreign);
        }
        let table = number::<8>(image, 32)? as usize;
        let (size, count) = (number::<2>(image, 54)? as usize, number::<2>(image, 56)? as usize);
        let mut kinds = (0..count).map(|index| number::<4>(image, table.saturating_add(index * size)));
        if kinds.any(|kind| kind == Some(u64::from(INTERPRETER))) {
            None
        } else {
            Some(Self::Static)
        }
    }
}

/// Whether running it changes who the process is: the kernel tells the dynamic linker, which then loads nothing that the caller names.
fn is_privileged(path: &Path) -> bool {
    let Ok(found) = path.metadata() else { return false };
    let mode = found.permissions().mode();
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let changes_user = mode & 0o4000 != 0 && found.uid() != uid.as_raw();
    // Without the right to execute for the group the bit means something else.
    let changes_group = mode & 0o2010 == 0o2010 && found.gid() != gid.as_raw();
    let gains = !uid.is_root() && rustix::fs::getxattr(path, c"security.capability", &mut [0_u8; 64]).is_ok();
    changes_user || changes_group || gains
}

/// `N` bytes at `at`, little-endian.
fn number<const N: usize>(image: &[u8], at: usize) -> Option<u64> {
    let mut bytes = [0; 8];
    bytes[..N].copy_from_slice(image.get(at..at.checked_add(N)?)?);
    Some(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests;
