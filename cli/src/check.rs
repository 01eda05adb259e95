//! `isomem check`: has the protocol checked under a controlled scheduler.
//!
//! The checker needs a build of the core of its own, with its locks and atomics in place of std's, so it is a program of its own. It is built by
//! cargo from the source tree that this program was built from; the first time that takes a few minutes.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use crate::args::CheckArgs;
use crate::report::complain;

/// The checker's package, and where it is in the source tree.
const PACKAGE: &str = "isomem-check";
const MANIFEST: &str = "model/shuttle/Cargo.toml";

/// Whether cargo tells how far it has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Shown,
    Hidden,
}

/// Builds the checker if need be and runs it with the same arguments, in the same folder. Its exit status is ours.
pub(crate) fn main(options: &CheckArgs) -> ExitCode {
    let root = source_tree();
    if !root.join(MANIFEST).is_file() {
        return fail(&format!(
            "`isomem check` needs isomem's source, which is not in {} any more; in a copy of it run `{}`",
            root.display(),
            by_hand(&options.args)
        ));
    }
    let progress = if io::stderr().is_terminal() {
        Progress::Shown
    } else {
        Progress::Hidden
    };
    match command(&cargo(), &root, &options.args, progress).status() {
        Ok(status) => ended(status, &options.args),
        Err(error) => fail(&format!(
            "`isomem check` needs cargo, which cannot be run: {error}; where it is installed, run `{}` in {}",
            by_hand(&options.args),
            root.display()
        )),
    }
}

/// The workspace that this program was built from.
fn source_tree() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_owned()
}

/// The cargo that runs us, or the one in the path.
fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"))
}

fn command(cargo: &OsString, root: &Path, args: &[OsString], progress: Progress) -> Command {
    let mut command = Command::new(cargo);
    command.args(["run", "--release", "--locked"]);
    if progress == Progress::Hidden {
        command.arg("--quiet");
    }
    // Not from the tree itself: names of files in the arguments are meant from here.
    command.arg("--manifest-path").arg(root.join("Cargo.toml"));
    command.args(["--package", PACKAGE, "--"]).args(args);
    command
}

/// What a person can type instead.
fn by_hand(args: &[OsString]) -> String {
    let args: String = args.iter().map(|arg| format!(" {}", arg.to_string_lossy())).collect();
    format!("cargo run --release --locked --package {PACKAGE} --{args}")
}

/// The checker's own exit status passes; cargo's, when it cannot build, does not look like one of them.
fn ended(status: ExitStatus, args: &[OsString]) -> ExitCode {
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code) if code <= crate::BAD_USAGE => ExitCode::from(code),
        _ => fail(&format!(
            "the checker was not built or did not end by itself ({status}); `{}` in {} tells more",
            by_hand(args),
            source_tree().display()
        )),
    }
}

fn fail(why: &str) -> ExitCode {
    complain(why);
    ExitCode::from(crate::FAILED)
}

#[cfg(test)]
mod tests;
