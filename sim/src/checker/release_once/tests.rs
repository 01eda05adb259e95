use super::super::tests::{By, judge};
use super::*;

const RELEASE: Event = Event::Release { mirror: "gpu" };
const UNREGISTERED: Event = Event::Unregistered { mirror: "gpu" };

#[test]
fn life_3_one_release_is_accepted() {
    let other = Event::Release { mirror: "nic" };
    assert_eq!(judge(ReleaseOnce::default(), [RELEASE, other, UNREGISTERED]), Ok(()));
    assert_eq!(judge(ReleaseOnce::default(), []), Ok(()));
}

#[test]
fn life_3_a_second_release_is_found() {
    let mut checker = ReleaseOnce::default();
    assert_eq!(By(0, "exit").step(&mut checker, RELEASE), Ok(()));
    let found = By(1, "close").step(&mut checker, RELEASE);
    assert_eq!(
        found,
        Err(Finding::new(
            Verdict::ReleaseCount,
            "the mirror gpu was released twice, first by thread exit and then by thread close"
        ))
    );
}

#[test]
fn life_3_no_release_is_found_when_all_is_over() {
    assert_eq!(
        judge(ReleaseOnce::default(), [UNREGISTERED]),
        Err(Finding::new(
            Verdict::ReleaseCount,
            "the mirror gpu was unregistered and never released"
        ))
    );
}
