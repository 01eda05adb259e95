//! Schedules that broke a design once break it again: one is kept for each design that fails.
//!
//! A story that is told differently no longer takes its schedule. Then find another one, and look at the picture of it:
//! `cargo run --release -p isomem-check -- SCENARIO --save model/shuttle/schedules`.

use std::path::{Path, PathBuf};

use isomem_check::explore::{Choices, replay};
use isomem_check::saved::Saved;
use isomem_check::scenario::{ALL, Design, Scenario};
use isomem_sim::checker::Verdict;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schedules")
}

fn failing() -> impl Iterator<Item = (&'static Scenario, &'static Design)> {
    let all = ALL
        .iter()
        .flat_map(|scenario| scenario.designs.iter().map(move |design| (*scenario, design)));
    all.filter(|(_, design)| design.expected != Verdict::Holds)
}

fn file(scenario: &str, design: &str) -> PathBuf {
    folder().join(format!("{}.json", Saved::stem(scenario, design)))
}

#[test]
fn prf_2_kept_schedules_break_the_designs_that_they_broke() {
    let mut strayed = Vec::new();
    for (scenario, design) in failing() {
        let file = file(scenario.name, design.name);
        let saved = Saved::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert_eq!(
            (saved.scenario.as_str(), saved.design.as_str()),
            (scenario.name, design.name)
        );
        assert_eq!(saved.verdict, design.expected.words(), "{}", file.display());
        let choices: Choices = saved.schedule.parse().expect("a schedule");
        let again = replay(design, &choices);
        if again.verdict() != design.expected || again.strayed || again.choices != choices {
            strayed.push(format!("{} ends with: {}", file.display(), again.verdict()));
        }
    }
    assert!(strayed.is_empty(), "told differently now:\n{}", strayed.join("\n"));
}

#[test]
fn each_kept_schedule_is_of_a_design_that_there_is() {
    let known: Vec<PathBuf> = failing()
        .map(|(scenario, design)| file(scenario.name, design.name))
        .collect();
    for entry in std::fs::read_dir(folder()).expect("the folder") {
        let path = entry.expect("an entry").path();
        assert!(known.contains(&path), "{} is of no design that fails", path.display());
    }
}
