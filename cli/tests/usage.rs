//! Exit codes, messages and output of the program as people use it.

mod common;

use common::{Files, isomem, some_text};
use serde_json::Value;
use std::process::{Command, Stdio};

fn refused(args: &[&str], code: i32, about: &str) {
    let output = isomem(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(output.stdout.is_empty(), "{args:?} printed a result");
    assert!(said.contains(about), "{args:?} does not tell about {about:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn bad_input_fails_with_a_clear_word() {
    let files = Files::new();
    let path = |name: &str, data: &[u8]| files.put(name, data).to_str().expect("a plain name").to_owned();
    let (empty, binary) = (path("empty", b""), path("binary", b"\x7fELF\x00\x01\xff\n\x00"));
    refused(&["run", "wordcount", "/no/such/file"], 1, "/no/such/file");
    refused(&["run", "wordcount", "/"], 1, "directory");
    refused(&["run", "sort", "/dev/zero"], 1, "/dev/zero");
    refused(&["run", "sort", &empty], 1, "no number and no line");
    refused(&["run", "bfs", &empty], 1, "no edge");
    refused(&["run", "bfs", &binary], 1, "line 1");
    refused(&["run", "bfs", &path("edges", b"# c\n1 2\n1 two\n")], 1, "line 3");
    refused(
        &["run", "bfs", &path("edge", b"1 2\n"), "--root", "7"],
        1,
        "no vertex 7",
    );
    refused(&["run", "sort", &path("n", b"1\nx\n"), "--as", "integers"], 1, "line 2");
    refused(
        &["run", "sort", &path("m", b"2\n1\n"), "--output", "/no/such/folder/out"],
        1,
        "/no/such/folder/out",
    );
}

#[test]
fn bad_usage_exits_with_2() {
    refused(&[], 2, "Usage");
    refused(&["run", "juggle", "f"], 2, "wordcount");
    refused(
        &["run", "sort", "f", "--device-memory", "0"],
        2,
        "device without memory",
    );
    refused(&["run", "sort", "f", "--device-memory", "lots"], 2, "64M");
    refused(&["run", "sort", "f", "--workers", "0"], 2, "workers");
    refused(&["run", "sort", "f", "--placement", "after:0"], 2, "after:N");
    refused(&["run", "sort", "f", "--root", "1"], 2, "run bfs");
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let files = Files::new();
    let text = files.put("text", some_text(1000, 50));
    let mut child = Command::new(env!("CARGO_BIN_EXE_isomem"))
        .args(["run", "wordcount"])
        .arg(text)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_report_is_for_people() {
    let files = Files::new();
    let output = isomem([
        "run",
        "wordcount",
        files.put("text", "a b a").to_str().unwrap(),
        "--words",
        "c",
    ]);
    let text = String::from_utf8(output.stdout).expect("text");
    for part in [
        "3 words, 2 distinct",
        "LC_ALL=C wc -w",
        "device faults",
        "pages home by fault",
        "late events",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
}

#[test]
fn doctor_tells_what_is_there() {
    let output = isomem(["doctor", "--json"]);
    let object: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert!(object["checks"].as_array().is_some_and(|checks| !checks.is_empty()));
    assert_eq!(object["can_run"], output.status.code() == Some(0));
    let text = String::from_utf8(isomem(["doctor"]).stdout).expect("text");
    assert!(text.contains("userfaultfd") && text.contains("cooperative"), "{text}");
}
