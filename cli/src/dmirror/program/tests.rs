use super::*;

fn image(class: u8, machine: u16, kinds: &[u32]) -> Vec<u8> {
    let mut image = vec![0; 64 + kinds.len() * 56];
    image[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1]);
    image[18..20].copy_from_slice(&machine.to_le_bytes());
    image[32] = 64;
    image[54] = 56;
    image[56] = kinds.len() as u8;
    for (index, kind) in kinds.iter().enumerate() {
        image[64 + index * 56..][..4].copy_from_slice(&kind.to_le_bytes());
    }
    image
}

#[test]
fn a_program_without_an_interpreter_is_static() {
    assert_eq!(Obstacle::of_image(&image(2, 62, &[1, 1, 6])), Some(Obstacle::Static));
    assert_eq!(Obstacle::of_image(&image(2, 62, &[6, 3, 1])), None);
}

#[test]
fn a_program_for_another_machine_is_foreign() {
    assert_eq!(Obstacle::of_image(&image(1, 3, &[3])), Some(Obstacle::Foreign));
    assert_eq!(Obstacle::of_image(&image(2, 183, &[3])), Some(Obstacle::Foreign));
}

#[test]
fn scripts_and_broken_files_are_no_obstacle() {
    assert_eq!(Obstacle::of_image(b"#!/bin/sh\n"), None);
    assert_eq!(Obstacle::of_image(b""), None);
    for len in 0..64 {
        let _ = Obstacle::of_image(&image(2, 62, &[3])[..len]);
    }
    let mut wild = image(2, 62, &[3]);
    wild[32..40].fill(0xff);
    wild[54..58].fill(0xff);
    assert_eq!(Obstacle::of_image(&wild), Some(Obstacle::Static));
}

#[test]
fn programs_are_looked_up_as_a_shell_does() {
    assert!(find(OsStr::new("sh")).is_ok_and(|path| path.is_absolute()));
    assert!(matches!(
        find(OsStr::new("no-such-program-here")),
        Err(NotFound::Name(_))
    ));
    assert!(matches!(find(OsStr::new("/no/such/program")), Err(NotFound::Path(_))));
}

#[test]
fn a_program_that_changes_who_runs_it_is_privileged() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("program");
    std::fs::write(&path, image(2, 62, &[3])).expect("written");
    let set = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("permitted");
    set(0o4755);
    assert_eq!(Obstacle::of(&path), None, "it is the caller's own");
    if std::os::unix::fs::chown(&path, Some(1), Some(1)).is_err() {
        println!("the rest is skipped: only root can give a file away");
        return;
    }
    for (mode, expected) in [
        (0o4755, Some(Obstacle::Privileged)),
        (0o2755, Some(Obstacle::Privileged)),
        (0o2745, None),
        (0o755, None),
    ] {
        set(mode);
        assert_eq!(Obstacle::of(&path), expected, "{mode:o}");
    }
}
