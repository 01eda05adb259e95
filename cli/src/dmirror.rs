//! `isomem dmirror`: runs a program with the shared object that gives it the kernel's HMM test devices.

mod object;
mod program;

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use crate::FAILED;
use crate::args::DmirrorArgs;
use program::Obstacle;

/// The exit statuses of `env` and the shells.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Returns only where the program could not be run.
pub(crate) fn main(options: &DmirrorArgs) -> ExitCode {
    let (name, arguments) = options.program.split_first().expect("the parser asks for a program");
    // The object first: without it nothing is run at all.
    let object = match object::find() {
        Ok(object) => object,
        Err(error) => {
            eprintln!("isomem: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let path = match program::find(name) {
        Ok(path) => path,
        Err(error) => {
            eprintln!("isomem: {error}");
            return ExitCode::from(NOT_FOUND);
        }
    };
    if let Some(obstacle) = Obstacle::of(&path) {
        eprintln!("isomem: {}: {obstacle}", path.display());
    }
    let mut preload = OsString::from(object);
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    let error = Command::new(&path)
        .arg0(name)
        .args(arguments)
        .env("LD_PRELOAD", preload)
        .exec();
    eprintln!("isomem: {} cannot be run: {error}", path.display());
    ExitCode::from(match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        _ => CANNOT_RUN,
    })
}
