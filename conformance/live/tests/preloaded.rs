//! The cases, in processes that have the devices by the preloaded object (DRV-2).

use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_isomem-conformance");

/// The shared object, which cargo makes for this package and leaves beside the test.
fn object() -> PathBuf {
    let test = std::env::current_exe().expect("the test has a path");
    let object = test.with_file_name("libisomem_preload.so");
    assert!(object.exists(), "{} was not built", object.display());
    object
}

fn every_case_holds(level: &str) {
    let output = Command::new(PROGRAM)
        .env("LD_PRELOAD", object())
        .env("ISOMEM_EXACTNESS", level)
        .output()
        .expect("the program runs");
    let table = String::from_utf8_lossy(&output.stdout);
    println!("{table}");
    assert!(
        output.status.success(),
        "{table}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn drv_2_every_case_holds_at_the_interposed_level() {
    every_case_holds("interposed");
}

#[test]
fn drv_2_every_case_holds_at_the_exact_level() {
    every_case_holds("exact");
}

#[test]
fn without_the_object_there_is_no_device() {
    if Path::new("/dev/hmm_dmirror0").exists() {
        println!("skipped: this kernel has the driver itself");
        return;
    }
    let output = Command::new(PROGRAM)
        .arg("open_close")
        .output()
        .expect("the program runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("FAIL"));
}
