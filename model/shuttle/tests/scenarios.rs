//! Every scenario keeps its word: each design gets the verdict that its story promises, whatever the seed, and all are well told.

use std::collections::BTreeSet;

use isomem_check::explore::{Budget, explore};
use isomem_check::scenario::{ALL, Design, Scenario};
use isomem_sim::checker::Verdict;

/// Schedules of a design that must hold: a first look, for `isomem check` tells many more.
const HOLDS: usize = 300;
/// Schedules within which a design that must fail is caught, at most.
const FAILS: usize = 10_000;

fn designs() -> impl Iterator<Item = (&'static Scenario, &'static Design)> {
    let of = |scenario: &&'static Scenario| {
        scenario
            .designs
            .iter()
            .map(|design| (*scenario, design))
            .collect::<Vec<_>>()
    };
    ALL.iter().flat_map(of)
}

fn verdict(design: &'static Design, iterations: usize, seed: u64) -> (Verdict, String) {
    let budget = Budget {
        iterations,
        seed,
        time: None,
    };
    let explored = explore(design, &budget).unwrap_or_else(|fickle| panic!("{}: {fickle:?}", design.name));
    let finding = explored.found.as_ref().and_then(|found| found.record.finding.clone());
    (
        explored.verdict(),
        finding.map_or_else(String::new, |finding| finding.sentence),
    )
}

#[test]
fn prf_2_each_failing_design_is_caught_and_ours_is_not() {
    let mut wrong = Vec::new();
    for (scenario, design) in designs() {
        let iterations = if design.expected == Verdict::Holds {
            HOLDS
        } else {
            FAILS
        };
        let (verdict, sentence) = verdict(design, iterations, 1);
        if verdict != design.expected {
            wrong.push(format!("{} / {}: {verdict}: {sentence}", scenario.name, design.name));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn flt_2_the_semaphore_that_fork_and_a_shrinker_need_is_a_cycle_of_three_classes() {
    let rwsem = designs().find(|(_, design)| design.name == "rwsem-fork-shrinker");
    let (_, rwsem) = rwsem.expect("the scenario has it");
    for seed in [1, 2, 3] {
        let (verdict, sentence) = verdict(rwsem, FAILS, seed);
        assert_eq!(verdict, Verdict::LockOrder, "{sentence}");
        for class in ["userptr_sem", "reclaim", "i_mmap"] {
            assert!(sentence.contains(class), "{class} is not in: {sentence}");
        }
        assert_eq!(
            sentence.matches("holds").count(),
            3,
            "one chain for each class: {sentence}"
        );
    }
}

#[test]
fn every_scenario_ends_with_the_design_that_ships() {
    for scenario in ALL {
        let (last, before) = scenario.designs.split_last().expect("a scenario has designs");
        assert_eq!(
            (last.name, last.expected),
            ("shipped", Verdict::Holds),
            "{}",
            scenario.name
        );
        assert!(!before.is_empty(), "{} has nothing that fails", scenario.name);
        for design in before {
            assert_ne!(design.name, "shipped", "{}", scenario.name);
            assert_ne!(design.expected, Verdict::Holds, "{}", design.name);
        }
    }
}

#[test]
fn names_are_told_apart_and_can_be_typed() {
    let mut scenarios = BTreeSet::new();
    let mut failing = BTreeSet::new();
    for (scenario, design) in designs() {
        scenarios.insert(scenario.name);
        let first = design.name == "shipped" || failing.insert(design.name);
        assert!(first, "{} is there twice", design.name);
        for name in [scenario.name, design.name] {
            let can_be_typed = |letter: char| letter.is_ascii_lowercase() || letter == '-';
            assert!(name.chars().all(can_be_typed), "{name}");
        }
    }
    assert_eq!(scenarios.len(), ALL.len(), "two scenarios of one name");
}

#[test]
fn what_is_said_of_them_are_sentences() {
    let texts = designs().flat_map(|(scenario, design)| [scenario.about, design.about]);
    for text in texts {
        assert!(text.starts_with(|letter: char| letter.is_uppercase()), "{text}");
        assert!(text.ends_with('.'), "{text}");
        assert!(!text.contains("  "), "{text}");
    }
    assert!(ALL.iter().all(|scenario| !scenario.source.is_empty()));
}
