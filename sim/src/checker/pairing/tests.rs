use super::super::tests::judge;
use super::*;

const fn start(subscriber: Name, pass: u64) -> Event {
    Event::Start { subscriber, pass }
}

const fn refused(subscriber: Name, pass: u64) -> Event {
    Event::Refused { subscriber, pass }
}

const fn end(subscriber: Name, pass: u64) -> Event {
    Event::End { subscriber, pass }
}

fn found(events: impl IntoIterator<Item = Event>) -> (Verdict, String) {
    let finding = judge(Pairing::default(), events).expect_err("this is not paired");
    (finding.verdict, finding.sentence)
}

#[test]
fn inv_2_each_accepted_start_with_one_end_is_accepted() {
    let events = [
        start("counter", 1),
        start("mutex", 1),
        start("counter", 2),
        refused("mutex", 2),
        end("counter", 2),
        end("mutex", 1),
        end("counter", 1),
    ];
    assert_eq!(judge(Pairing::default(), events), Ok(()));
}

#[test]
fn inv_2_a_start_without_its_end_is_found_when_all_is_over() {
    assert_eq!(
        found([start("counter", 1), refused("mutex", 1)]),
        (
            Verdict::MissingEnd,
            String::from(
                "the subscriber counter accepted the start of pass 1 and was never told its end: for it the invalidation goes on for ever"
            )
        )
    );
}

#[test]
fn inv_2_an_end_for_the_one_that_refused_is_found() {
    assert_eq!(
        found([
            start("counter", 1),
            refused("mutex", 1),
            end("counter", 1),
            end("mutex", 1)
        ]),
        (
            Verdict::UnpairedEnd,
            String::from("the subscriber mutex was told the end of pass 1, whose start it had refused")
        )
    );
}

#[test]
fn inv_2_an_end_for_the_wrong_subscriber_is_found() {
    assert_eq!(
        found([start("first", 1), refused("second", 1), end("third", 1)]),
        (
            Verdict::UnpairedEnd,
            String::from(
                "the subscriber third was told the end of pass 1, which it was never told the start of; the subscriber first, which had accepted it, still waits for that end"
            )
        )
    );
}

#[test]
fn inv_2_a_second_end_is_found() {
    assert_eq!(
        found([start("counter", 1), end("counter", 1), end("counter", 1)]),
        (
            Verdict::UnpairedEnd,
            String::from("the subscriber counter was told the end of pass 1, which it had been told the end of before")
        )
    );
}
