use super::{NOTE_BYTES, PanicNote};

#[test]
fn a_long_message_is_cut_between_characters() {
    assert_eq!(PanicNote::new(3, "short").message(), "short");
    let long = "é".repeat(NOTE_BYTES);
    for skip in 0..2 {
        let message = format!("{}{long}", "x".repeat(skip));
        let note = PanicNote::new(3, &message);
        assert!(message.starts_with(note.message()) && note.message().len() >= NOTE_BYTES - 1);
    }
}
