use super::super::tests::{By, judge};
use super::*;

fn opened() -> Event {
    Event::Opened {
        what: String::from("the device"),
    }
}

fn closed() -> Event {
    Event::Closed {
        what: String::from("the device"),
    }
}

fn used() -> Event {
    Event::Used {
        what: String::from("the device"),
    }
}

#[test]
fn life_5_what_is_opened_used_and_closed_is_accepted() {
    let events = [
        opened(),
        used(),
        opened(),
        closed(),
        used(),
        closed(),
        opened(),
        used(),
        closed(),
    ];
    assert_eq!(judge(Leaks::default(), events), Ok(()));
}

#[test]
fn life_5_a_leak_is_found_when_all_is_over() {
    assert_eq!(
        judge(Leaks::default(), [opened(), opened(), closed()]),
        Err(Finding::new(
            Verdict::Leak,
            "the device, which thread worker had made, was never freed"
        ))
    );
}

#[test]
fn life_1_a_use_after_free_is_found() {
    let mut checker = Leaks::default();
    let (exit, close) = (By(0, "exit"), By(1, "close"));
    assert_eq!(close.step(&mut checker, opened()), Ok(()));
    assert_eq!(close.step(&mut checker, closed()), Ok(()));
    let sentence = "thread exit used the device after thread close had freed it";
    assert_eq!(
        exit.step(&mut checker, used()),
        Err(Finding::new(Verdict::UseAfterFree, sentence))
    );
    let sentence = "thread close used the device after it had freed it itself";
    assert_eq!(
        close.step(&mut checker, used()),
        Err(Finding::new(Verdict::UseAfterFree, sentence))
    );
}

#[test]
fn life_1_a_second_free_is_found() {
    assert_eq!(
        judge(Leaks::default(), [opened(), closed(), closed()]),
        Err(Finding::new(
            Verdict::UseAfterFree,
            "the device was freed twice, first by thread worker and then by thread worker"
        ))
    );
}

#[test]
fn life_1_what_never_existed_is_neither_used_nor_freed() {
    for (event, sentence) in [
        (used(), "thread worker used the device, which did not exist"),
        (closed(), "thread worker freed the device, which never existed"),
    ] {
        assert_eq!(
            judge(Leaks::default(), [event]),
            Err(Finding::new(Verdict::UseAfterFree, sentence))
        );
    }
}
