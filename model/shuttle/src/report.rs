//! What was found, for people and for programs.

use std::fmt::Write as _;

use isomem_sim::checker::Verdict;
use serde::Serialize;

use crate::explore::{Choices, Tried};
use crate::scenario::{Design, Scenario};

/// What became of one design.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The scenario's name.
    pub scenario: &'static str,
    /// The design's name.
    pub design: &'static str,
    /// Schedules that were told.
    pub schedules: usize,
    /// What the checkers say.
    #[serde(serialize_with = "words")]
    pub verdict: Verdict,
    /// What they should say.
    #[serde(serialize_with = "words")]
    pub expected: Verdict,
    /// How long it took.
    pub seconds: f64,
    /// How the schedules were chosen, and their bounds.
    #[serde(flatten)]
    pub tried: Option<Tried>,
    /// The checkers' sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentence: Option<String>,
    /// The schedule that leads to it.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub schedule: Option<Choices>,
    /// Why the verdict is not to be trusted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

fn words<S: serde::Serializer>(verdict: &Verdict, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(verdict.words())
}

fn text<S: serde::Serializer>(choices: &Option<Choices>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(choices.as_ref().unwrap_or(&Choices::default()))
}

impl Row {
    /// A row without particulars.
    pub fn new((scenario, design): (&'static Scenario, &'static Design), schedules: usize, verdict: Verdict) -> Self {
        Self {
            scenario: scenario.name,
            design: design.name,
            schedules,
            verdict,
            expected: design.expected,
            seconds: 0.0,
            tried: None,
            sentence: None,
            schedule: None,
            trouble: None,
        }
    }

    /// Whether the verdict is what it should be, and to be trusted.
    pub fn is_fine(&self) -> bool {
        self.verdict == self.expected && self.trouble.is_none()
    }
}

/// The rows as a JSON array.
pub fn json(rows: &[Row]) -> String {
    // Our own types hold nothing that JSON lacks, so there is nothing to fail.
    let mut text = serde_json::to_string_pretty(rows).unwrap_or_default();
    text.push('\n');
    text
}

/// The rows as a table, and a sum below it.
pub fn table(rows: &[Row], seed: u64, seconds: f64) -> String {
    let mut cells = vec![
        ["scenario", "design", "schedules", "verdict", "expected"]
            .map(String::from)
            .to_vec(),
    ];
    cells.extend(rows.iter().map(|row| {
        let mark = if row.is_fine() { "" } else { "  <-- not as expected" };
        vec![
            row.scenario.to_owned(),
            row.design.to_owned(),
            row.schedules.to_string(),
            row.verdict.to_string(),
            format!("{}{mark}", row.expected),
        ]
    }));
    let mut out = aligned(&cells, &[2]);
    let sum = |holds: bool| {
        let rows = rows.iter().filter(|row| (row.expected == Verdict::Holds) == holds);
        rows.map(|row| row.schedules).sum::<usize>()
    };
    // A `String` takes whatever is written to it.
    let _ = writeln!(
        out,
        "\n{} schedules of designs that must hold, {} of designs that must fail; seed {seed}, {seconds:.0} s",
        sum(true),
        sum(false)
    );
    let wrong = rows.iter().filter(|row| !row.is_fine()).count();
    let _ = match wrong {
        0 => writeln!(out, "Every verdict is the expected one."),
        1 => writeln!(out, "One verdict is not the expected one."),
        _ => writeln!(out, "{wrong} verdicts are not the expected ones."),
    };
    for row in rows {
        if let Some(trouble) = &row.trouble {
            let _ = writeln!(out, "{} / {}: {trouble}", row.scenario, row.design);
        }
    }
    out
}

/// What came of a schedule that was told again.
pub fn replayed(row: &Row) -> String {
    let expected = match row.verdict == row.expected {
        true => String::from("as expected"),
        false => format!("expected: {}", row.expected),
    };
    let trouble = row
        .trouble
        .as_ref()
        .map_or_else(String::new, |trouble| format!("But {trouble}.\n"));
    format!("The schedule ends with: {}, {expected}.\n{trouble}", row.verdict)
}

/// Within which bounds the schedules were told, as a table.
pub fn bounds(rows: &[Row]) -> String {
    let heads = [
        "scenario",
        "design",
        "threads",
        "steps",
        "preemptions",
        "exhaustive",
        "random",
        "pct",
    ];
    let mut cells = vec![heads.map(String::from).to_vec()];
    cells.extend(rows.iter().filter_map(|row| {
        let tried = row.tried?;
        let complete = tried
            .preemptions
            .map_or_else(|| String::from("-"), |most| format!("all to {most}"));
        let counts = [tried.exhaustive, tried.random, tried.pct].map(|count| count.to_string());
        let mut cells = vec![
            row.scenario.to_owned(),
            row.design.to_owned(),
            tried.threads.to_string(),
            tried.steps.to_string(),
            complete,
        ];
        cells.extend(counts);
        Some(cells)
    }));
    aligned(&cells, &[2, 3, 4, 5, 6, 7])
}

/// Cells in columns; those at `numbers` end at one edge.
fn aligned(rows: &[Vec<String>], numbers: &[usize]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().enumerate().map(|(column, cell)| match widths[column] {
            width if numbers.contains(&column) => format!("{cell:>width$}"),
            width => format!("{cell:<width$}"),
        });
        // A `String` takes whatever is written to it.
        let _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    out
}

/// What there is to check.
pub fn list(chosen: &[(&'static Scenario, &'static Design)]) -> String {
    let mut out = String::new();
    let mut last = "";
    for (scenario, design) in chosen {
        if scenario.name != last {
            let _ = writeln!(out, "{}  ({})\n  {}", scenario.name, scenario.source, scenario.about);
            last = scenario.name;
        }
        let _ = writeln!(
            out,
            "    {:<28} {:<32} {}",
            design.name,
            format!("must be: {}", design.expected),
            design.about
        );
    }
    out
}
