use super::{MSG_BYTES, Msg, Progress};
use linux_raw_sys::general as raw;
use rustix::io::Errno;

fn message(event: u32, words: [u64; 3]) -> [u8; MSG_BYTES] {
    let mut bytes = [0; MSG_BYTES];
    bytes[0] = event as u8;
    for (place, word) in bytes[8..].chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

#[test]
fn uffd_1_a_negative_progress_word_is_no_progress() {
    let progress = Progress::new(Err(Errno::NOENT), -2);
    assert_eq!(
        progress,
        Progress {
            bytes: 0,
            errno: Some(Errno::NOENT)
        }
    );
    assert_eq!(Progress::new(Err(Errno::AGAIN), 8192).bytes, 8192);
}

#[test]
fn a_fault_is_parsed_with_its_flags_and_thread() {
    let bytes = message(raw::UFFD_EVENT_PAGEFAULT, [3, 0x7000_0123, 42]);
    let Msg::Fault { addr, write, wp, tid } = Msg::parse(&bytes) else {
        panic!("not a fault")
    };
    assert_eq!((addr.get(), write, wp, tid), (0x7000_0123, true, true, 42));
}

#[test]
fn events_are_parsed_with_their_ranges() {
    let Msg::Remove(range) = Msg::parse(&message(raw::UFFD_EVENT_REMOVE, [0x1000, 0x3000, 0])) else {
        panic!()
    };
    assert_eq!((range.start(), range.end()), (0x1000, 0x3000));
    let Msg::Remap { from, to } = Msg::parse(&message(raw::UFFD_EVENT_REMAP, [0x1000, 0x9000, 0x2000])) else {
        panic!()
    };
    assert_eq!((from.start(), to.start(), to.len_bytes()), (0x1000, 0x9000, 0x2000));
}

#[test]
fn nonsense_from_the_kernel_is_other() {
    for bytes in [
        message(0x55, [0; 3]),
        message(raw::UFFD_EVENT_REMOVE, [0x3000, 0x1000, 0]),
        message(raw::UFFD_EVENT_PAGEFAULT, [0, u64::MAX, 0]),
    ] {
        assert!(matches!(Msg::parse(&bytes), Msg::Other(_)));
    }
}
