use super::super::tests::{GPU, judge};
use super::*;

const fn mapped(actor: Actor, frame: Frame) -> Event {
    Event::Mapped { actor, page: 3, frame }
}

const fn taken(actor: Actor, frame: Frame) -> Event {
    Event::Taken { actor, page: 3, frame }
}

const fn touched(actor: Actor, frame: Frame) -> Event {
    Event::Touched { actor, page: 3, frame }
}

const fn freed(frame: Frame) -> Event {
    Event::Freed { frame }
}

fn stale(events: impl IntoIterator<Item = Event>) -> String {
    let finding = judge(StaleAccess::default(), events).expect_err("this is stale");
    assert_eq!(finding.verdict, Verdict::StaleAccess);
    finding.sentence
}

#[test]
fn chk_1_what_is_mapped_may_be_touched() {
    let events = [
        mapped(Actor::Cpu, 17),
        mapped(GPU, 17),
        touched(GPU, 17),
        taken(GPU, 17),
        touched(Actor::Cpu, 17),
        mapped(GPU, 17),
        touched(GPU, 17),
        taken(GPU, 17),
        taken(Actor::Cpu, 17),
        freed(17),
        mapped(GPU, 18),
        touched(GPU, 18),
    ];
    assert_eq!(judge(StaleAccess::default(), events), Ok(()));
}

#[test]
fn chk_1_a_touch_after_an_accepted_invalidation_is_stale() {
    assert_eq!(
        stale([mapped(GPU, 17), taken(GPU, 17), touched(GPU, 17)]),
        "the device gpu touched page 3 after an invalidation it accepted had taken that page's frame 17 away"
    );
    assert_eq!(
        stale([mapped(GPU, 17), taken(GPU, 17), freed(17), touched(GPU, 17)]),
        "the device gpu touched page 3 after an invalidation it accepted had taken that page's frame 17 away; the frame had gone back to the kernel"
    );
}

#[test]
fn chk_1_an_entry_that_was_entered_too_late_is_stale() {
    assert_eq!(
        stale([freed(17), mapped(GPU, 17), touched(GPU, 17)]),
        "the device gpu touched page 3 through an entry for frame 17, which had gone back to the kernel"
    );
}

#[test]
fn chk_1_a_kept_translation_is_stale() {
    assert_eq!(
        stale([mapped(GPU, 17), mapped(GPU, 18), touched(GPU, 17)]),
        "the device gpu touched frame 17 for page 3, though its page table has frame 18 there"
    );
    assert_eq!(
        stale([mapped(GPU, 17), touched(Actor::Cpu, 17)]),
        "the CPU touched frame 17 for page 3, where its page table never had it"
    );
}
