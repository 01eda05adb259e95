//! `isomem dmirror` as people use it.

mod common;

use common::{Files, isomem};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

fn ends(args: &[&str], code: i32, about: &str) {
    let output = isomem(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(said.contains(about), "{args:?} does not tell about {about:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn drv_2_the_programs_exit_code_arguments_and_output_are_passed_on() {
    let output = isomem(["dmirror", "--", "sh", "-c", "echo \"$0 $1\"; exit 7", "--help", "-x"]);
    assert_eq!(
        output.status.code(),
        Some(7),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.stdout, b"--help -x\n");
}

#[test]
fn drv_2_the_object_is_loaded_before_what_is_preloaded_already() {
    let output = isomem(["dmirror", "--", "sh", "-c", "echo $LD_PRELOAD"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("libisomem_preload.so"), "{said}");
}

#[test]
fn a_program_that_cannot_be_run_is_told_clearly() {
    let files = Files::new();
    let plain = files.put("plain", b"no program");
    ends(&["dmirror", "--", "no-such-program-here"], 127, "no-such-program-here");
    ends(&["dmirror", "--", "/no/such/program"], 127, "/no/such/program");
    ends(
        &["dmirror", "--", plain.to_str().expect("a plain name")],
        126,
        "cannot be run",
    );
}

#[test]
fn a_static_program_is_warned_of_and_run() {
    let files = Files::new();
    // A program without an interpreter whose only instructions are exit(3).
    let code = [0xb8, 60, 0, 0, 0, 0xbf, 3, 0, 0, 0, 0x0f, 0x05];
    let mut image = vec![0_u8; 0x78];
    image[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
    image[6] = 1;
    image[16] = 2;
    image[18] = 62;
    image[20] = 1;
    image[24..32].copy_from_slice(&0x40_0078_u64.to_le_bytes());
    image[32] = 64;
    image[52] = 64;
    image[54] = 56;
    image[56] = 1;
    image[64] = 1;
    image[68] = 5;
    image[80..88].copy_from_slice(&0x40_0000_u64.to_le_bytes());
    image[88..96].copy_from_slice(&0x40_0000_u64.to_le_bytes());
    image[96..104].copy_from_slice(&0x84_u64.to_le_bytes());
    image[104..112].copy_from_slice(&0x84_u64.to_le_bytes());
    image[112..120].copy_from_slice(&0x1000_u64.to_le_bytes());
    image.extend_from_slice(&code);
    let path = files.put("static", &image);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("made executable");
    ends(
        &["dmirror", "--", path.to_str().expect("a plain name")],
        3,
        "statically",
    );
}

#[test]
fn drv_2_it_works_from_another_folder_and_from_where_it_is_installed() {
    let program = Path::new(env!("CARGO_BIN_EXE_isomem"));
    let built = program.with_file_name("deps").join("libisomem_preload.so");
    let files = Files::new();
    for (isomem, object) in [
        (files.path("bin/isomem"), files.path("lib/isomem/libisomem_preload.so")),
        (files.path("flat/isomem"), files.path("flat/libisomem_preload.so")),
    ] {
        for (from, to) in [(program, &isomem), (&built, &object)] {
            std::fs::create_dir_all(to.parent().expect("a folder")).expect("made");
            std::fs::copy(from, to).expect("copied");
        }
        let output = Command::new(&isomem)
            .args(["dmirror", "--", "sh", "-c", "echo $LD_PRELOAD"])
            .current_dir("/")
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let object = object.canonicalize().expect("it is there");
        assert!(said.starts_with(object.to_str().expect("a plain name")), "{said}");
        std::fs::remove_file(&object).expect("removed");
        let output = Command::new(&isomem)
            .args(["dmirror", "--", "true"])
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("libisomem_preload.so is missing"), "{said}");
    }
}

#[test]
fn drv_2_the_object_may_be_named() {
    let named = |path: &Path| {
        Command::new(env!("CARGO_BIN_EXE_isomem"))
            .args(["dmirror", "--", "sh", "-c", "echo $LD_PRELOAD"])
            .env("ISOMEM_PRELOAD", path)
            .output()
            .expect("it runs")
    };
    let files = Files::new();
    let built = Path::new(env!("CARGO_BIN_EXE_isomem")).with_file_name("deps/libisomem_preload.so");
    let elsewhere = files.path("mine.so");
    std::fs::copy(built, &elsewhere).expect("copied");
    let said = named(&elsewhere).stdout;
    assert!(String::from_utf8_lossy(&said).contains("mine.so"));
    let output = named(&files.path("other.so"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("ISOMEM_PRELOAD names"), "{said}");
    let spaced = files.put("a b.so", b"");
    let said = String::from_utf8_lossy(&named(&spaced).stderr).into_owned();
    assert!(said.contains("colon or space"), "{said}");
}

#[test]
fn drv_2_a_program_that_is_killed_is_seen_so() {
    for (command, signal) in [("kill -SEGV $$", 11), ("kill -KILL $$", 9)] {
        let output = isomem(["dmirror", "--", "sh", "-c", command]);
        assert_eq!(output.status.signal(), Some(signal), "{command}");
    }
}

#[test]
fn drv_2_an_ordinary_c_program_has_the_devices() {
    let files = Files::new();
    let tour = files.path("tour");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../driver/dmirror/examples/tour.c");
    let Ok(built) = Command::new("cc").args([source, "-o"]).arg(&tour).status() else {
        println!("skipped: there is no C compiler (`cc`)");
        return;
    };
    assert!(built.success());
    let tour = tour.to_str().expect("a plain name");
    for level in ["interposed", "exact"] {
        let output = Command::new(env!("CARGO_BIN_EXE_isomem"))
            .args(["dmirror", "--", tour])
            .env("ISOMEM_EXACTNESS", level)
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{level}: {said}{errors}");
        let expected = "sent 4 pages\non the device: 4 of 4\nfaults of a device write: 0\npage 3, by the device\npage 3 is at home\n";
        assert_eq!(said, expected, "{level}");
    }
    let alone = Command::new(tour).output().expect("it runs");
    assert!(!alone.status.success() || Path::new("/dev/hmm_dmirror0").exists());
}

#[test]
fn help_has_examples_and_the_exit_statuses() {
    let output = isomem(["dmirror", "--help"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    for part in [
        "isomem dmirror -- ./hmm-tests",
        "ISOMEM_EXACTNESS",
        "ISOMEM_PRELOAD",
        "126",
        "127",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}

#[test]
fn bad_usage_exits_with_2() {
    ends(&["dmirror"], 2, "Usage");
    ends(&["dmirror", "--"], 2, "Usage");
}
