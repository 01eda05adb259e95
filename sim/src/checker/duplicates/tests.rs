use super::super::tests::{GPU, judge};
use super::*;

const fn duplicated(home: Frame, away: Frame) -> Event {
    Event::Duplicated {
        page: 3,
        home,
        away,
        differs: None,
    }
}

const fn written(actor: Actor, frame: Frame) -> Event {
    Event::Write {
        actor,
        addr: 0x3000,
        value: 1,
        frame: Some(frame),
    }
}

fn found(events: impl IntoIterator<Item = Event>) -> String {
    let finding = judge(Duplicates::default(), events).expect_err("they differ");
    assert_eq!(finding.verdict, Verdict::Diverged);
    finding.sentence
}

#[test]
fn chk_12_a_copy_may_be_written_once_the_other_is_gone() {
    let events = [
        written(GPU, 17),
        duplicated(18, 17),
        Event::Freed { frame: 17 },
        written(Actor::Cpu, 18),
        duplicated(20, 19),
        Event::Freed { frame: 20 },
        written(GPU, 19),
        written(GPU, 21),
    ];
    assert_eq!(judge(Duplicates::default(), events), Ok(()));
}

#[test]
fn chk_12_a_write_to_either_while_both_are_there_is_found() {
    assert_eq!(
        found([duplicated(18, 17), written(Actor::Cpu, 18)]),
        "the CPU wrote frame 18 of page 3 while frame 17 was there to be read with what was before"
    );
    assert_eq!(
        found([duplicated(18, 17), Event::Freed { frame: 5 }, written(GPU, 17)]),
        "the device gpu wrote frame 17 of page 3 while frame 18 was there to be read with what was before"
    );
}

#[test]
fn chk_12_a_copy_that_was_never_the_same_is_found() {
    let event = Event::Duplicated {
        page: 3,
        home: 18,
        away: 17,
        differs: Some(2),
    };
    assert_eq!(
        found([event]),
        "page 3 was copied from frame 17 to frame 18, and they differ in word 2"
    );
}
