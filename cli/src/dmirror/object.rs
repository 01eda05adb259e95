//! The shared object: beside this program, or built into that place from the source tree.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

const NAME: &str = "libisomem_preload.so";

/// Why there is no object to load.
#[derive(Debug, thiserror::Error)]
pub(super) enum Missing {
    /// This program's own path is unknown.
    #[error("cannot tell where this program lies: {0}")]
    Lost(#[source] io::Error),
    /// Neither the object nor the sources.
    #[error("{} is missing; it belongs beside this program (`cargo build --release` puts it there)", .0.display())]
    NoSources(PathBuf),
    /// The build could not be started.
    #[error("{} is missing, and cargo could not be run to build it: {source}", .object.display())]
    NoCargo {
        /// The object.
        object: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The build failed.
    #[error("{} is missing, and building it failed ({status})", .object.display())]
    Failed {
        /// The object.
        object: PathBuf,
        /// How cargo ended.
        status: ExitStatus,
    },
    /// The dynamic linker takes a list.
    #[error("{} cannot be preloaded, because of the colon or space in its path", .0.display())]
    BadPath(PathBuf),
}

/// The object's path. Builds it if it is not there: `cargo run` builds this program alone.
pub(super) fn find() -> Result<PathBuf, Missing> {
    let program = std::env::current_exe().map_err(Missing::Lost)?;
    let folder = program.parent().unwrap_or(Path::new("/"));
    let object = folder.join(NAME);
    if object
        .as_os_str()
        .as_bytes()
        .iter()
        .any(|byte| b": \t\n".contains(byte))
    {
        return Err(Missing::BadPath(object));
    }
    if !object.exists() {
        build(folder, &object)?;
    }
    Ok(object)
}

fn build(folder: &Path, object: &Path) -> Result<(), Missing> {
    let missing = || object.to_path_buf();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../preload/Cargo.toml");
    let (Some(profile), Some(target), true) = (folder.file_name(), folder.parent(), sources.exists()) else {
        return Err(Missing::NoSources(missing()));
    };
    eprintln!("isomem: building {} (once)", object.display());
    let profile = if profile == "debug" { "dev".as_ref() } else { profile };
    let status = Command::new("cargo")
        .args(["build", "--quiet", "--manifest-path"])
        .arg(&sources)
        .arg("--target-dir")
        .arg(target)
        .arg("--profile")
        .arg(profile)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .map_err(|source| Missing::NoCargo {
            object: missing(),
            source,
        })?;
    if !status.success() || !object.exists() {
        return Err(Missing::Failed {
            object: missing(),
            status,
        });
    }
    Ok(())
}
