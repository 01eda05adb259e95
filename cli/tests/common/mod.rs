//! What the tests of the program share.

#![allow(dead_code, reason = "each test program uses its part")]

use serde_json::Value;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

pub(crate) fn isomem<A: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = A>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_isomem"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the program runs")
}

pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub(crate) fn put(&self, name: &str, data: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, data).expect("written");
        path
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Runs with `--json`, asks for success, and gives the object back.
pub(crate) fn run_json(kernel: &str, file: &Path, more: &[&str]) -> Value {
    let file = file.to_str().expect("a plain name");
    let output = isomem(["run", kernel, file, "--json", "--quiet"].iter().chain(more));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{kernel} {file} {more:?}: {said}");
    let object: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(object["kernel"], kernel);
    assert_eq!(object["result"]["matches_cpu"], true);
    object
}

/// A small generator: the tests' data is the same each time.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
}

pub(crate) fn wc(file: &Path, locale: &str) -> u64 {
    let output = Command::new("wc")
        .arg("-w")
        .arg(file)
        .env("LC_ALL", locale)
        .output()
        .expect("wc runs");
    let text = String::from_utf8(output.stdout).expect("text");
    text.split_ascii_whitespace()
        .next()
        .expect("a count")
        .parse()
        .expect("a number")
}

/// The rule that this machine's wc follows in the C locale: it changed in coreutils 9.5.
pub(crate) fn c_rule() -> &'static str {
    let files = Files::new();
    if wc(&files.put("probe", b"\x01"), "C") == 0 {
        "c"
    } else {
        "posix"
    }
}

pub(crate) fn some_text(words: usize, vocabulary: u64) -> String {
    let (mut random, mut text) = (Random(7), String::new());
    for _ in 0..words {
        let end = if random.next() % 11 == 0 { '\n' } else { ' ' };
        write!(text, "w{}{end}", random.next() % vocabulary).expect("a string grows");
    }
    text
}
