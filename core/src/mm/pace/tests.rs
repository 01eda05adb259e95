use proptest::prelude::*;

use super::*;

const POLICY: ThrashPolicy = ThrashPolicy {
    residency_ns: 100,
    throttle_after: 3,
    in_place_after: 6,
    in_place_ns: 10_000,
};

fn page(index: usize) -> PageMask {
    PageMask::of(index, index + 1)
}

/// The CPU takes page 7 at `now`, and the device misses on it 10 ns later.
fn to_and_fro(pace: &mut Pace, now: u64) -> Judged {
    pace.took(page(7), now, &POLICY);
    pace.judge(7, now + 10, &POLICY)
}

#[test]
fn pace_1_pace_2_turns_are_free_then_wait_then_the_page_stays() {
    let mut pace = Pace::default();
    let seen = [0, 20, 40, 60, 80, 100].map(|now| to_and_fro(&mut pace, now));
    let verdicts = seen.map(|judged| judged.verdict);
    let wait = Verdict::GoAfter(90);
    assert_eq!(verdicts, [Verdict::Go, Verdict::Go, wait, wait, wait, Verdict::Stay]);
    let detected = seen.map(|judged| judged.detected);
    assert_eq!(detected, [false, false, true, false, false, false], "it is told once");
    assert_eq!(pace.staying(110), page(7));
    assert_eq!(pace.judge(7, 10_109, &POLICY).verdict, Verdict::Stay);
    assert_eq!(pace.judge(7, 10_110, &POLICY).verdict, Verdict::Go, "the time is over");
    assert_eq!(pace.staying(10_110), PageMask::NONE);
}

#[test]
fn pace_1_a_page_that_had_its_time_at_home_goes_and_other_pages_always_do() {
    let mut pace = Pace::default();
    for round in 0..100 {
        pace.took(page(7), round * 200, &POLICY);
        assert_eq!(
            pace.judge(8, round * 200, &POLICY).verdict,
            Verdict::Go,
            "nobody took it"
        );
        assert_eq!(pace.judge(7, round * 200 + 100, &POLICY).verdict, Verdict::Go);
    }
}

#[test]
fn pace_1_pages_that_follow_each_other_through_a_block_are_no_turns() {
    let mut pace = Pace::default();
    for index in 0..500 {
        pace.took(page(index), index as u64 * 10, &POLICY);
        assert_eq!(pace.judge(index + 8, index as u64 * 10, &POLICY).verdict, Verdict::Go);
    }
}

#[test]
fn pace_1_counting_begins_anew_after_a_quiet_time() {
    let mut pace = Pace::default();
    for round in 0..50 {
        let now = round * QUIET * 2 * POLICY.residency_ns;
        assert_eq!(to_and_fro(&mut pace, now).verdict, Verdict::Go);
        assert_eq!(to_and_fro(&mut pace, now + 20).verdict, Verdict::Go);
    }
}

#[test]
fn pace_3_off_is_off() {
    let mut pace = Pace::default();
    for now in 0..100 {
        pace.took(page(7), now, &ThrashPolicy::OFF);
        assert_eq!(pace.judge(7, now, &ThrashPolicy::OFF).verdict, Verdict::Go);
    }
    assert!(!pace.has_just_come(100, &ThrashPolicy::OFF));
}

#[test]
fn mig_7_what_just_came_to_a_thrashing_block_is_passed_by_for_its_residency() {
    let mut pace = Pace::default();
    pace.sent(0);
    assert!(!pace.has_just_come(0, &POLICY), "it does not thrash");
    for now in [0, 20, 40] {
        to_and_fro(&mut pace, now);
    }
    assert_eq!(pace.held_back(139, &POLICY), page(7));
    assert_eq!(pace.held_back(140, &POLICY), PageMask::NONE);
    pace.sent(140);
    assert!(pace.has_just_come(239, &POLICY));
    assert!(!pace.has_just_come(240, &POLICY));
}

proptest! {
    /// However the CPU and the device come along, what a page goes to and fro in less than its residency is bounded (PACE-1), and so are waits (PACE-2).
    #[test]
    fn pace_1_the_bound_holds_for_any_times(steps in proptest::collection::vec((0_u64..150, 0_u64..150), 1..400)) {
        let mut pace = Pace::default();
        let (mut now, mut quick) = (0, 0_u64);
        for (until_touch, until_miss) in steps {
            now += until_touch;
            pace.took(page(7), now, &POLICY);
            let taken = now;
            now += until_miss;
            match pace.judge(7, now, &POLICY).verdict {
                Verdict::Stay => continue,
                Verdict::Go => {}
                Verdict::GoAfter(ns) => {
                    prop_assert!(ns <= POLICY.residency_ns);
                    now += ns;
                    prop_assert!(now - taken >= POLICY.residency_ns);
                }
            }
            quick += u64::from(now - taken < POLICY.residency_ns);
        }
        // Those that do not wait: two in each burst of turns, and a burst ends by a time in place or a quiet one.
        let bursts = 1 + now / (QUIET * POLICY.residency_ns).min(POLICY.in_place_ns);
        prop_assert!(quick <= bursts * u64::from(POLICY.throttle_after - 1), "{quick} in {now} ns");
    }
}
