use super::super::tests::{GPU, judge};
use super::*;

const ADDR: u64 = 0x3000;

const fn write(actor: Actor, value: u64) -> Event {
    Event::Write {
        actor,
        addr: ADDR,
        value,
        frame: None,
    }
}

const fn read(actor: Actor, value: u64) -> Event {
    Event::Read {
        actor,
        addr: ADDR,
        value,
    }
}

const fn discarded(start: u64, end: u64) -> Event {
    Event::Discarded { start, end }
}

fn found(events: impl IntoIterator<Item = Event>) -> (Verdict, String) {
    let finding = judge(LostWrite::default(), events).expect_err("a read went wrong");
    (finding.verdict, finding.sentence)
}

#[test]
fn mig_3_reads_that_see_the_latest_write_are_accepted() {
    let events = [
        read(GPU, 0),
        write(Actor::Cpu, 1),
        read(GPU, 1),
        write(GPU, 2),
        read(Actor::Cpu, 2),
        discarded(ADDR + 8, ADDR + 16),
        read(Actor::Cpu, 2),
        discarded(ADDR, ADDR + 8),
        read(GPU, 0),
        write(Actor::Cpu, 3),
        read(GPU, 3),
    ];
    assert_eq!(judge(LostWrite::default(), events), Ok(()));
}

#[test]
fn mig_3_an_actor_that_misses_its_own_write_has_lost_it() {
    assert_eq!(
        found([write(Actor::Cpu, 1), write(Actor::Cpu, 2), read(Actor::Cpu, 1)]),
        (
            Verdict::LostWrite,
            String::from("the CPU had written 2 at 0x3000 and then read the older 1 there: its write is gone")
        )
    );
}

#[test]
fn mig_9_zero_without_a_discard_is_a_lost_write_to_whomever_reads_it() {
    for reader in [Actor::Cpu, GPU] {
        let (verdict, sentence) = found([write(GPU, 2), read(reader, 0)]);
        assert_eq!(verdict, Verdict::LostWrite);
        assert_eq!(
            sentence,
            format!(
                "{} read 0 at 0x3000, where the device gpu had written 2 and nobody had thrown it away: the write is gone",
                who(reader)
            )
        );
    }
}

#[test]
fn mig_3_an_old_copy_of_what_another_wrote_is_stale() {
    assert_eq!(
        found([write(Actor::Cpu, 1), write(GPU, 2), read(Actor::Cpu, 1)]),
        (
            Verdict::StaleData,
            String::from("the CPU read 1 at 0x3000 after the device gpu had overwritten it with 2")
        )
    );
}

#[test]
fn mig_3_what_was_thrown_away_is_stale() {
    assert_eq!(
        found([write(Actor::Cpu, 1), discarded(0, 0x10000), read(GPU, 1)]),
        (
            Verdict::StaleData,
            String::from("the device gpu read 1 at 0x3000 after it had been thrown away")
        )
    );
}

#[test]
fn mig_3_what_nobody_wrote_is_stale() {
    let sentence = String::from("the CPU read 7 at 0x3000, which nobody had written there");
    assert_eq!(found([read(Actor::Cpu, 7)]), (Verdict::StaleData, sentence.clone()));
    assert_eq!(
        found([write(Actor::Cpu, 1), read(Actor::Cpu, 7)]),
        (Verdict::StaleData, sentence)
    );
}

const fn discarding() -> Event {
    Event::Discarding {
        start: ADDR,
        end: ADDR + 8,
    }
}

#[test]
fn mig_3_while_a_discard_is_under_way_a_word_may_be_old_or_zero() {
    let events = [
        write(GPU, 1),
        discarding(),
        read(GPU, 1),
        read(GPU, 0),
        write(GPU, 2),
        read(Actor::Cpu, 2),
        discarded(ADDR, ADDR + 8),
        read(GPU, 0),
    ];
    assert_eq!(judge(LostWrite::default(), events), Ok(()));
}

#[test]
fn mig_3_what_a_discard_has_made_zero_does_not_come_back() {
    let (verdict, sentence) = found([write(GPU, 1), discarding(), read(GPU, 0), read(GPU, 1)]);
    assert_eq!(verdict, Verdict::StaleData);
    assert_eq!(
        sentence,
        "the device gpu read 1 at 0x3000 after it had been thrown away"
    );
}

#[test]
fn mig_9_zero_after_a_discard_is_over_is_a_lost_write() {
    let (verdict, _) = found([discarding(), discarded(ADDR, ADDR + 8), write(GPU, 1), read(GPU, 0)]);
    assert_eq!(verdict, Verdict::LostWrite);
}
