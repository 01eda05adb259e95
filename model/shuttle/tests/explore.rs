//! What exploration finds, that it finds it again, and that it says so in as few steps as can be.

#![allow(dead_code, reason = "each test program uses its part of the toys")]

mod toys;

use std::time::Duration;

use isomem_check::explore::{Budget, Choices, Exploration, explore, replay};
use isomem_check::scenario::Design;
use isomem_sim::checker::Verdict;

fn budget(iterations: usize, seed: u64) -> Budget {
    Budget {
        iterations,
        seed,
        time: None,
    }
}

fn explored(design: &'static Design, seed: u64) -> Exploration {
    explore(design, &budget(3_000, seed)).unwrap_or_else(|fickle| panic!("{}: {fickle:?}", design.name))
}

fn all() -> impl Iterator<Item = &'static Design> {
    let toys = [&toys::LOCKS, &toys::COUNTER, &toys::SLEEPER, &toys::ENDS];
    toys.into_iter().flat_map(|scenario| scenario.designs)
}

#[test]
fn prf_2_every_failure_is_found_whatever_the_seed_and_what_holds_holds() {
    for design in all() {
        for seed in [0, 1, 42, u64::MAX] {
            assert_eq!(explored(design, seed).verdict(), design.expected, "{}", design.name);
        }
    }
}

#[test]
fn a_finding_comes_again_with_its_schedule() {
    for design in all().filter(|design| design.expected != Verdict::Holds) {
        let found = explored(design, 0).found.expect("found");
        let text = found.choices.to_string();
        let again = replay(design, &text.parse::<Choices>().expect("a schedule"));
        assert!(!again.strayed, "{}", design.name);
        assert_eq!(again.record.finding, found.record.finding, "{}", design.name);
        assert_eq!(again.choices.to_string(), text);
    }
}

#[test]
fn the_same_seed_means_the_same_schedule() {
    let design = &toys::COUNTER.designs[0];
    let [one, two] = [7, 7].map(|seed| explored(design, seed).found.expect("found").choices);
    assert_eq!(one, two);
}

#[test]
fn a_schedule_for_the_picture_is_short() {
    let found = explored(&toys::LOCKS.designs[0], 0).found.expect("found");
    // The story starts both; one takes its lock; the other takes its own and waits; the first waits; the story waits.
    assert!(found.choices.turns().len() <= 5, "{}", found.choices);
    let found = explored(&toys::COUNTER.designs[0], 0).found.expect("found");
    assert!(found.choices.turns().len() <= 6, "{}", found.choices);
}

#[test]
fn what_is_tried_exhaustively_is_said() {
    let shipped = &toys::LOCKS.designs[1];
    let exploration = explored(shipped, 0);
    assert_eq!(exploration.schedules, 3_000);
    assert!(exploration.tried.preemptions >= Some(1), "{:?}", exploration.tried);
    assert_eq!(exploration.tried.schedules(), 3_000);
    assert_eq!(exploration.tried.threads, 3, "the story's own, left and right");
}

#[test]
fn time_ends_an_exploration() {
    let short = Budget {
        time: Some(Duration::from_millis(20)),
        ..budget(usize::MAX, 0)
    };
    let exploration = explore(&toys::COUNTER.designs[1], &short).expect("it holds");
    assert_eq!(exploration.verdict(), Verdict::Holds);
    assert!(exploration.schedules > 0);
}

#[test]
fn a_panic_is_told_with_its_words() {
    let found = explored(&toys::ENDS.designs[0], 0).found.expect("found");
    let sentence = found.record.finding.expect("a finding").sentence;
    assert!(sentence.contains("the flag is up"), "{sentence}");
}

#[test]
fn a_schedule_that_no_longer_fits_is_told_as_far_as_it_goes() {
    let again = replay(&toys::LOCKS.designs[1], &"0*3 7*2 2*900".parse().expect("a schedule"));
    assert!(again.strayed);
    assert_eq!(again.verdict(), Verdict::Holds);
    assert!("0*3 x".parse::<Choices>().is_err());
    assert!("0*0".parse::<Choices>().is_err());
}
