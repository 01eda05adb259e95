use super::*;
use proptest::prelude::*;
use std::path::PathBuf;

fn ignore(_: u64, _: u64) {}

#[test]
fn a_file_is_read_whole() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let data: Vec<u8> = (0..CHUNK + 12_345).map(|i| (i % 251) as u8).collect();
    std::fs::write(file.path(), &data).expect("written");
    assert!(read(file.path(), ignore).expect("read") == data);
}

#[test]
fn what_is_no_file_is_refused_with_its_name() {
    let missing = PathBuf::from("/no/such/file");
    let said = read(&missing, ignore).expect_err("missing").to_string();
    assert!(said.contains("/no/such/file"), "{said}");
    let said = read(Path::new("/"), ignore).expect_err("a directory").to_string();
    assert!(said.contains("directory"), "{said}");
    let said = read(Path::new("/dev/zero"), ignore).expect_err("endless").to_string();
    assert!(said.contains("/dev/zero"), "{said}");
}

#[test]
fn a_file_that_says_it_is_empty_may_still_hold_something() {
    assert!(!read(Path::new("/proc/self/maps"), ignore).expect("read").is_empty());
}

#[test]
fn lines_are_those_that_newlines_end_and_what_follows() {
    let all = |text: &'static [u8]| lines(text).map(|(_, line)| line).collect::<Vec<_>>();
    assert!(all(b"").is_empty());
    assert_eq!(all(b"\n"), [b""]);
    assert_eq!(all(b"a"), [b"a"]);
    assert_eq!(all(b"a\n"), [b"a"]);
    assert_eq!(all(b"a\n\nb\n"), [&b"a"[..], b"", b"b"]);
    assert_eq!(lines(b"a\nb").map(|(number, _)| number).collect::<Vec<_>>(), [1, 2]);
}

proptest! {
    #[test]
    fn a_shown_text_is_short_and_printable(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let shown = show(&bytes);
        prop_assert!(shown.chars().count() <= 48 * 10 + 1);
        prop_assert!(!shown.chars().any(char::is_control));
    }
}
