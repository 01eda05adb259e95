use super::*;

#[test]
fn a_sequential_stream_doubles_its_window_up_to_a_block() {
    let streams = Streams::new();
    let mut page = 1000;
    let mut windows = Vec::new();
    for _ in 0..12 {
        let window = streams.window(page);
        streams.note(page, window);
        windows.push(window);
        page += window;
    }
    assert_eq!(windows[..6], [1, 2, 4, 8, 16, 32]);
    assert_eq!(windows[11], PAGES_PER_BLOCK);
}

#[test]
fn random_access_brings_one_page_and_does_not_disturb_a_stream_at_once() {
    let streams = Streams::new();
    streams.note(1000, 8);
    for page in [5, 9_000, 77, 123_456] {
        assert_eq!(streams.window(page), 1);
        streams.note(page, 1);
    }
    assert_eq!(streams.window(1008), 16);
}
