//! Where the shared object is.
//!
//! cargo makes it whenever it builds this program, which depends on it, and leaves it in `deps` beside the program; so `cargo run` always has the one that
//! belongs to its sources. An installed program looks beside itself and in the `lib` folders next to its own.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const NAME: &str = "libisomem_preload.so";
/// Names the object where it lies elsewhere.
const VARIABLE: &str = "ISOMEM_PRELOAD";
/// From the program's own folder, in the order in which they are tried. What cargo has just built comes before what was put beside it earlier.
const FOLDERS: [&str; 4] = ["deps", ".", "../lib/isomem", "../lib"];

/// Why there is no object to load.
#[derive(Debug, thiserror::Error)]
pub(super) enum Missing {
    /// This program's own path is unknown.
    #[error("cannot tell where this program lies: {0}; name {NAME} in {VARIABLE}")]
    Lost(#[source] io::Error),
    /// The variable names nothing.
    #[error("{VARIABLE} names {}, which is no file", .0.display())]
    NotThere(PathBuf),
    /// It is in none of the places.
    #[error(
        "{NAME} is missing; it was looked for in {}. `cargo build --release` in isomem's sources makes it, as target/release/{NAME}: \
         copy it to one of these places, or name it in {VARIABLE}",
        list(.0)
    )]
    Nowhere(Vec<PathBuf>),
    /// The dynamic linker takes a list.
    #[error("{} cannot be preloaded, because of the colon or space in its path; copy it elsewhere and name it in {VARIABLE}", .0.display())]
    BadPath(PathBuf),
}

fn list(folders: &[PathBuf]) -> String {
    let names: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    names.join(", ")
}

/// The object's path, absolute.
pub(super) fn find() -> Result<PathBuf, Missing> {
    let object = match std::env::var_os(VARIABLE).filter(|name| !name.is_empty()) {
        Some(name) => named(name)?,
        None => beside(&std::env::current_exe().map_err(Missing::Lost)?)?,
    };
    let separates = |byte: &u8| b": \t\n".contains(byte);
    if object.as_os_str().as_bytes().iter().any(separates) {
        return Err(Missing::BadPath(object));
    }
    Ok(object)
}

fn named(name: OsString) -> Result<PathBuf, Missing> {
    let path = PathBuf::from(name);
    match path.canonicalize() {
        Ok(object) if object.is_file() => Ok(object),
        _ => Err(Missing::NotThere(path)),
    }
}

fn beside(program: &Path) -> Result<PathBuf, Missing> {
    let own = program.parent().unwrap_or(Path::new("/"));
    let folders = FOLDERS.map(|folder| own.join(folder));
    let found = folders.iter().find_map(|folder| {
        let object = folder.join(NAME).canonicalize().ok()?;
        object.is_file().then_some(object)
    });
    found.ok_or_else(|| Missing::Nowhere(folders.to_vec()))
}

#[cfg(test)]
mod tests;
