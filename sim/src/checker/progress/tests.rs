use super::super::tests::{By, judge};
use super::*;

const ATTEMPT: Event = Event::Attempt { what: "the fault" };
const ARRIVED: Event = Event::Arrived { what: "the fault" };

#[test]
fn flt_3_who_arrives_within_the_bound_is_accepted() {
    let round = || core::iter::repeat_n(ATTEMPT, BOUND as usize).chain([ARRIVED]);
    assert_eq!(judge(Progress::default(), round().chain(round())), Ok(()));
}

#[test]
fn flt_3_threads_and_things_are_counted_apart() {
    let mut checker = Progress::within(1);
    for by in [By(0, "one"), By(1, "other")] {
        assert_eq!(by.step(&mut checker, ATTEMPT), Ok(()));
        let another = Event::Attempt { what: "the lock" };
        assert_eq!(by.step(&mut checker, another), Ok(()));
    }
}

#[test]
fn flt_3_who_tries_for_ever_is_found() {
    let found = judge(Progress::default(), core::iter::repeat_n(ATTEMPT, BOUND as usize + 1));
    assert_eq!(
        found,
        Err(Finding::new(
            Verdict::NoProgress,
            "thread worker has tried the fault 9 times and not got there: nothing bounds how often it is thrown back"
        ))
    );
}
