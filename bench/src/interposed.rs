//! What the interposed level costs. The object must be there when a program starts, so this program runs itself again with it.

use std::path::PathBuf;
use std::process::Command;

use isomem::Exactness;

use crate::BenchError;
use crate::levels::{allocate, row, unmap_plain};
use crate::row::Row;
use crate::sys::unmap_by_libc;

pub(crate) const NAMES: [&str; 2] = ["unmap_interposed", "malloc_interposed"];
const OBJECT: &str = "libisomem_preload.so";

/// Measures here, where the object is loaded, or in this program with the object.
pub(crate) fn rows() -> Result<Vec<Row>, BenchError> {
    if isomem_linux::interposed::is_there() {
        let unmap = |_: &_| crate::levels::unmap_each(unmap_by_libc);
        return Ok(vec![
            row(NAMES[0], 60.0, Exactness::Interposed, unmap_plain, unmap)?,
            row(NAMES[1], 1.1, Exactness::Interposed, allocate, |_| allocate())?,
        ]);
    }
    let Some(object) = object() else {
        eprintln!("skipped: {OBJECT} is not beside this program; `cargo build --release` puts it there");
        return Ok(vec![]);
    };
    let measured = Command::new(std::env::current_exe()?)
        .args(["bench", "--json"])
        .args(NAMES)
        .env("LD_PRELOAD", object)
        .output()?;
    let failed = || BenchError::Isomem(String::from_utf8_lossy(&measured.stderr).into());
    let rows: serde_json::Value = serde_json::from_slice(&measured.stdout).map_err(|_| failed())?;
    NAMES
        .iter()
        .enumerate()
        .map(|(index, &name)| {
            let number = |field| rows[index][field].as_f64().ok_or_else(failed);
            let (value, baseline) = (vec![number("value")?], vec![number("baseline")?]);
            Ok(Row::new(
                name,
                "ns/call",
                number("bar")?,
                value,
                "the same call, plain",
                baseline,
            ))
        })
        .collect()
}

fn object() -> Option<PathBuf> {
    let object = std::env::current_exe().ok()?.with_file_name(OBJECT);
    object.exists().then_some(object)
}
