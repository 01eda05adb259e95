//! `isomem dmirror` as people use it.

mod common;

use common::{Files, isomem};
use std::os::unix::fs::PermissionsExt;

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
fn bad_usage_exits_with_2() {
    ends(&["dmirror"], 2, "Usage");
    ends(&["dmirror", "--"], 2, "Usage");
}
