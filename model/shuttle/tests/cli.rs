//! The command line as people and programs use it, with toy scenarios.

#![allow(dead_code, reason = "each test program uses its part of the toys")]

mod toys;

use std::fs;
use std::path::Path;

use clap::Parser;
use isomem_check::args::Args;
use isomem_check::program::{Problem, run};
use isomem_check::scenario::Scenario;
use serde_json::Value;
use tempfile::TempDir;

/// The toys without those that take long or print something.
static GOOD: [&Scenario; 3] = [&toys::LOCKS, &toys::COUNTER, &toys::SLEEPER];

struct Said {
    code: u8,
    out: String,
    folder: TempDir,
}

fn check(all: &[&'static Scenario], args: &[&str]) -> Result<Said, Problem> {
    let folder = tempfile::tempdir().expect("a folder");
    let pictures = folder.path().join("pictures");
    let fixed = ["isomem check", "--iterations", "2000", "--pictures"];
    let path = pictures.to_str().expect("a plain name");
    let args = fixed.iter().copied().chain([path]).chain(args.iter().copied());
    let args = Args::try_parse_from(args).expect("a good command line");
    let mut out = Vec::new();
    let code = run(all, &args, &mut out)?;
    let out = String::from_utf8(out).expect("text");
    Ok(Said { code, out, folder })
}

fn replayed(all: &[&'static Scenario], file: &Path) -> (u8, String) {
    let file = file.to_str().expect("a plain name");
    let args = Args::try_parse_from(["isomem check", "--replay", file]).expect("a good command line");
    let mut out = Vec::new();
    let code = run(all, &args, &mut out).expect("it can be told");
    (code, String::from_utf8(out).expect("text"))
}

#[test]
fn prf_2_table_says_what_was_found_and_what_was_expected() {
    let said = check(&GOOD, &[]).expect("it runs");
    assert_eq!(said.code, 0, "{}", said.out);
    for part in [
        "two-locks",
        "crossed",
        "deadlock",
        "lost write",
        "shipped",
        "holds",
        "Every verdict is the expected one.",
    ] {
        assert!(said.out.contains(part), "{part:?} is missing in\n{}", said.out);
    }
    assert!(!said.out.contains("not as expected"), "{}", said.out);
}

#[test]
fn json_is_an_array_of_rows() {
    let said = check(&GOOD, &["--json", "counter"]).expect("it runs");
    let rows: Value = serde_json::from_str(&said.out).expect("JSON and nothing else");
    let rows = rows.as_array().expect("an array");
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert_eq!(row["scenario"], "counter");
        assert_eq!(row["verdict"], row["expected"]);
        assert!(row["design"].is_string());
        assert!(row["schedules"].as_u64() > Some(0));
    }
    assert_eq!(rows[0]["verdict"], "lost write");
    assert_eq!(rows[1]["schedules"], 2_000);
}

#[test]
fn a_verdict_that_is_not_expected_is_exit_1() {
    let said = check(&[&toys::WRONG], &[]).expect("it runs");
    assert_eq!(said.code, 1);
    assert!(said.out.contains("<-- not as expected"), "{}", said.out);
    assert!(
        said.out.contains("One verdict is not the expected one."),
        "{}",
        said.out
    );
}

#[test]
fn unknown_names_are_exit_2_with_those_that_there_are() {
    let problem = check(&GOOD, &["nowhere"]).err().expect("refused");
    assert_eq!(problem.exit_code(), 2);
    assert_eq!(
        problem.to_string(),
        "there is no scenario \"nowhere\"; there are: counter, sleeper, two-locks"
    );
    let problem = check(&GOOD, &["counter", "--design", "crossed"])
        .err()
        .expect("refused");
    assert_eq!(problem.exit_code(), 2);
    assert!(
        problem.to_string().ends_with("there are: shipped, two-steps"),
        "{problem}"
    );
    for line in [
        ["isomem check", "--iterations", "0"],
        ["isomem check", "--seed", "x"],
        ["isomem check", "--jobs", "0"],
    ] {
        assert_eq!(
            Args::try_parse_from(line).err().map(|error| error.exit_code()),
            Some(2),
            "{line:?}"
        );
    }
}

#[test]
fn a_failing_design_is_told_as_a_timeline() {
    let said = check(&GOOD, &["--design", "crossed"]).expect("it runs");
    for part in [
        "left",
        "right",
        "wants \u{201c}a\u{201d}",
        "has \u{201c}b\u{201d}",
        "deadlock: ",
    ] {
        assert!(said.out.contains(part), "{part:?} is missing in\n{}", said.out);
    }
}

#[test]
fn pages_stand_alone_and_escape_what_stories_say() {
    let said = check(&GOOD, &["counter"]).expect("it runs");
    let folder = said.folder.path().join("pictures");
    let page = fs::read_to_string(folder.join("counter-two-steps.html")).expect("a page");
    assert!(page.contains("&amp; went on: &lt;b&gt;quickly&lt;/b&gt;"), "{page}");
    assert!(page.contains("It does &lt;what&gt; its name says."));
    assert!(!page.contains("<b>quickly"));
    for part in [
        "<svg ",
        "An addition is gone.",
        "--replay",
        "prefers-color-scheme: dark",
    ] {
        assert!(page.contains(part), "{part:?} is missing");
    }
    // The name of SVG's own namespace is no address that is fetched.
    let elsewhere = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!elsewhere.contains("http") && !elsewhere.contains("<script") && !elsewhere.contains("src="));
    let index = fs::read_to_string(folder.join("index.html")).expect("an index");
    assert!(index.contains("href=\"counter-two-steps.html\""));
}

#[test]
fn prf_2_a_saved_schedule_is_told_again() {
    let said = check(&GOOD, &[]).expect("it runs");
    let file = said.folder.path().join("pictures/two-locks-crossed.json");
    let (code, out) = replayed(&GOOD, &file);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("deadlock: "), "{out}");
    // A schedule of a story that is told differently now is said to be one.
    let changed = fs::read_to_string(&file)
        .expect("it is there")
        .replace("crossed", "shipped");
    fs::write(&file, changed).expect("written");
    let (_, out) = replayed(&GOOD, &file);
    assert!(out.contains("no longer takes this schedule"), "{out}");
}

#[test]
fn a_file_that_is_no_schedule_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("schedule.json");
    let refused = |text: &str| {
        fs::write(&file, text).expect("written");
        let args = ["isomem check", "--replay", file.to_str().expect("a plain name")];
        let args = Args::try_parse_from(args).expect("a good command line");
        run(&GOOD, &args, &mut Vec::new())
            .err()
            .map(|problem| problem.exit_code())
    };
    assert_eq!(refused("{}"), Some(1));
    let saved = |scenario: &str, schedule: &str| {
        format!(
            r#"{{"scenario":"{scenario}","design":"crossed","verdict":"deadlock","seed":1,"schedule":"{schedule}"}}"#
        )
    };
    assert_eq!(refused(&saved("two-locks", "0*x")), Some(1));
    assert_eq!(refused(&saved("nowhere", "0")), Some(2));
}

#[test]
fn the_list_says_what_there_is() {
    let said = check(&GOOD, &["--list"]).expect("it runs");
    for part in [
        "two-locks  (toy)",
        "Two threads need the same two locks.",
        "must be: deadlock",
        "must be: holds",
    ] {
        assert!(said.out.contains(part), "{part:?} is missing in\n{}", said.out);
    }
    assert!(!said.folder.path().join("pictures").exists());
}
