//! One figure beside its baseline.

use std::time::Instant;

use serde::Serialize;

/// One row: a figure, the baseline measured in the same run, and the bar on their ratio.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Name, stable.
    pub name: &'static str,
    /// The figure: a median over interleaved repeats.
    pub value: f64,
    /// Its unit, and the baseline's.
    pub unit: &'static str,
    /// What it is measured against.
    pub baseline_name: &'static str,
    /// The same, measured beside it.
    pub baseline: f64,
    /// value / baseline.
    pub ratio: f64,
    /// What the ratio must not exceed or, where more is better, must reach.
    pub bar: f64,
    /// Which of the two it is.
    pub better: Better,
    /// Whether it does.
    pub holds: bool,
}

/// Which ratios are good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Of what is spent: time, bytes.
    Lower,
    /// Of what is done.
    Higher,
}

impl Row {
    /// A row from repeats of both, by their medians.
    pub(crate) fn new(
        name: &'static str,
        unit: &'static str,
        bar: f64,
        value: Vec<f64>,
        baseline_name: &'static str,
        baseline: Vec<f64>,
    ) -> Self {
        let (value, baseline) = (median(value), median(baseline));
        let ratio = value / baseline;
        Self {
            name,
            value,
            unit,
            baseline_name,
            baseline,
            ratio,
            bar,
            better: Better::Lower,
            holds: ratio <= bar,
        }
    }

    /// A row of what is done in a time: its ratio must reach the bar.
    pub(crate) fn rate(
        name: &'static str,
        unit: &'static str,
        bar: f64,
        value: Vec<f64>,
        baseline_name: &'static str,
        baseline: Vec<f64>,
    ) -> Self {
        let row = Self::new(name, unit, bar, value, baseline_name, baseline);
        Self {
            better: Better::Higher,
            holds: row.ratio >= bar,
            ..row
        }
    }
}

/// The middle value; the mean of the two middle ones where there are two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "a benchmark has at least one repeat");
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        (values[middle - 1] + values[middle]) / 2.0
    }
}

/// Nanoseconds that `work` takes.
pub(crate) fn time<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let began = Instant::now();
    let done = work();
    (began.elapsed().as_secs_f64() * 1e9, done)
}
