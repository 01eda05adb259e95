use super::*;

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

#[test]
fn arguments_go_to_the_checker_as_they_are() {
    let args = words(&["--json", "fault", "--seed=7", "--help"]);
    let command = command(&OsString::from("cargo"), Path::new("/src"), &args, Progress::Hidden);
    let given: Vec<_> = command
        .get_args()
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    let before = [
        "run",
        "--release",
        "--locked",
        "--quiet",
        "--manifest-path",
        "/src/Cargo.toml",
        "--package",
        "isomem-check",
        "--",
    ];
    assert_eq!(given[..before.len()], before);
    assert_eq!(given[before.len()..], ["--json", "fault", "--seed=7", "--help"]);
    assert!(
        command.get_current_dir().is_none(),
        "files are named from where the person is"
    );
}

#[test]
fn cargo_tells_how_far_it_is_only_where_somebody_looks() {
    let command = command(&OsString::from("cargo"), Path::new("/src"), &[], Progress::Shown);
    assert!(command.get_args().all(|arg| arg != "--quiet"));
}

#[test]
fn the_checker_is_where_it_is_looked_for() {
    let manifest = std::fs::read_to_string(source_tree().join(MANIFEST)).expect("the checker's manifest");
    assert!(manifest.contains(&format!("name = \"{PACKAGE}\"")));
}

#[test]
fn what_to_type_instead_is_said_in_full() {
    let typed = by_hand(&words(&["--design", "shipped"]));
    assert_eq!(
        typed,
        "cargo run --release --locked --package isomem-check -- --design shipped"
    );
}

#[test]
fn a_checker_that_cannot_be_run_is_exit_1() {
    use std::os::unix::process::ExitStatusExt;
    let code = |raw| format!("{:?}", ended(ExitStatus::from_raw(raw), &[]));
    let wanted = |code: u8| format!("{:?}", ExitCode::from(code));
    // 101 is cargo's own, and 9 alone in it is the signal that ended it.
    assert_eq!([0, 1 << 8, 2 << 8, 101 << 8, 9].map(code), [0, 1, 2, 1, 1].map(wanted));
}
