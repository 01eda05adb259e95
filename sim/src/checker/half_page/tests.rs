use super::super::tests::{GPU, judge};
use super::*;

fn saw(words: &[u64]) -> Event {
    Event::SawPage {
        actor: GPU,
        page: 3,
        words: words.to_vec(),
    }
}

#[test]
fn mig_3_a_whole_page_is_accepted() {
    assert_eq!(judge(HalfPage, [saw(&[1, 1, 1, 1]), saw(&[2, 2]), saw(&[])]), Ok(()));
}

#[test]
fn mig_3_half_a_page_is_found() {
    assert_eq!(
        judge(HalfPage, [saw(&[1, 1, 1, 1]), saw(&[2, 2, 1, 1])]),
        Err(Finding::new(
            Verdict::HalfPage,
            "the device gpu saw half of page 3: its word 0 was 2 while its word 2 was 1"
        ))
    );
}
