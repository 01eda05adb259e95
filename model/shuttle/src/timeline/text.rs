//! The picture for a terminal.

use std::fmt::Write as _;

use super::wrap::wrap;
use super::{Kind, Timeline};

/// Columns narrower than this cannot be read; then lines grow instead.
const MIN_COLUMN: usize = 12;
/// Wider columns are harder to read.
const MAX_COLUMN: usize = 48;
/// Room for the row's number and mark.
const MARGIN: usize = 6;

/// The picture, wrapped to `width` characters, with the checkers' sentence at its end.
pub fn text(timeline: &Timeline, width: usize) -> String {
    let columns = timeline.threads.len().max(1);
    let column = (width.saturating_sub(MARGIN) / columns).clamp(MIN_COLUMN, MAX_COLUMN);
    let mut out = String::new();
    line(&mut out, "", &timeline.threads, column);
    let rules = vec!["-".repeat(column - 2); timeline.threads.len()];
    line(&mut out, "", &rules, column);
    for (index, row) in timeline.rows.iter().enumerate() {
        let mark = if row.decides || row.kind == Kind::Stuck {
            '>'
        } else {
            ' '
        };
        for (part, words) in wrap(&row.words, column - 2).into_iter().enumerate() {
            let number = if part == 0 {
                (index + 1).to_string()
            } else {
                String::new()
            };
            let mut cells = vec![String::new(); timeline.threads.len()];
            cells[row.thread] = words;
            line(&mut out, &format!("{mark}{number:>3}"), &cells, column);
        }
    }
    if let Some(finding) = &timeline.finding {
        out.push('\n');
        for line in wrap(
            &format!("{}: {}", finding.verdict, finding.sentence),
            width.max(MIN_COLUMN),
        ) {
            // A `String` takes whatever is written to it.
            let _ = writeln!(out, "{line}");
        }
    }
    out
}

/// Text in lines of at most `width` characters.
pub fn paragraph(text: &str, width: usize) -> String {
    wrap(text, width.max(MIN_COLUMN)).join("\n")
}

fn line(out: &mut String, margin: &str, cells: &[String], column: usize) {
    let mut line = format!("{margin:<MARGIN$}");
    for cell in cells {
        let _ = write!(line, "{cell:<column$}");
    }
    let _ = writeln!(out, "{}", line.trim_end());
}
