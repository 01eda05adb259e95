use super::super::tests::judge;
use super::*;

const UNREGISTERED: Event = Event::Unregistered { mirror: "gpu" };
const WORKS: Event = Event::Works {
    device: "gpu",
    mm: "child",
};

fn callbacks() -> [(Event, &'static str); 5] {
    let (subscriber, mirror, pass) = ("gpu", "gpu", 1);
    [
        (Event::Callback { mirror }, "a callback"),
        (Event::Release { mirror }, "the release callback"),
        (Event::Start { subscriber, pass }, "the start callback"),
        (Event::Refused { subscriber, pass }, "the start callback"),
        (Event::End { subscriber, pass }, "the end callback"),
    ]
}

#[test]
fn life_2_callbacks_before_unregister_returns_are_accepted() {
    let before = callbacks().map(|(event, _)| event);
    let other = Event::Callback { mirror: "nic" };
    let events = before.into_iter().chain([UNREGISTERED, other]);
    assert_eq!(judge(AfterUnregister::default(), events), Ok(()));
}

#[test]
fn life_2_every_callback_after_unregister_returned_is_found() {
    for (event, what) in callbacks() {
        let sentence = format!("thread worker called {what} of gpu, whose unregister had returned");
        assert_eq!(
            judge(AfterUnregister::default(), [UNREGISTERED, event]),
            Err(Finding::new(Verdict::CallbackAfterUnregister, sentence))
        );
    }
}

#[test]
fn life_3_work_on_a_living_address_space_is_accepted() {
    let events = [WORKS, Event::Died { mm: "parent" }, WORKS];
    assert_eq!(judge(AfterUnregister::default(), events), Ok(()));
}

#[test]
fn life_4_a_device_on_a_dead_address_space_is_found() {
    assert_eq!(
        judge(AfterUnregister::default(), [WORKS, Event::Died { mm: "child" }, WORKS]),
        Err(Finding::new(
            Verdict::DeadAddressSpace,
            "the device gpu works on the address space child, which is dead"
        ))
    );
}
