//! Leaves out rows that say what others said already.

use super::{Kind, Row, Shown};

/// More rows than this are too many to look at: the middle is left out.
const MAX_ROWS: usize = 64;
/// A round of somebody who tries again has at most so many rows.
const MAX_ROUND: usize = 12;

/// What is left of the rows: similar notes in a row are one, of rounds that repeat there are the first and the last, and of too many rows
/// there are the first and the last ones.
pub(super) fn folded(rows: &[Shown]) -> Vec<Shown> {
    without_middle(without_rounds(without_similar(rows)))
}

/// Whether the rows differ in nothing but numbers.
fn similar(one: &Row, other: &Row) -> bool {
    let plain = |row: &Row| row.words.replace(|letter: char| letter.is_ascii_digit(), "");
    one.thread == other.thread && one.kind == other.kind && (one.words == other.words || plain(one) == plain(other))
}

/// Three or more notes that differ in numbers only, as when a page is copied word by word, become the first of them, with how many more there are.
fn without_similar(rows: &[Shown]) -> Vec<Shown> {
    let same = |one: &Shown, next: &Shown| one.0.kind == Kind::Note && similar(&one.0, &next.0);
    let one = |run: &[Shown]| {
        let (Row { words, .. }, (first, _)) = &run[0];
        let words = format!("{words} ({} more like it)", run.len() - 1);
        let row = Row {
            words,
            ..run[0].0.clone()
        };
        vec![(row, (*first, run[run.len() - 1].1.1))]
    };
    let runs = rows.chunk_by(same);
    runs.flat_map(|run| if run.len() > 2 { one(run) } else { run.to_vec() })
        .collect()
}

/// Rounds of somebody who tries again and again, of which the first and the last are enough.
fn without_rounds(mut rows: Vec<Shown>) -> Vec<Shown> {
    let mut from = 0;
    while from < rows.len() {
        if let Some((length, rounds)) = rounds_at(&rows[from..]) {
            let (begin, end) = (from + length, from + length * (rounds - 1));
            let gap = gap(&rows[begin..end], format!("({} more rounds like it)", rounds - 2));
            rows.splice(begin..end, [gap]);
            from = begin + length;
        }
        from += 1;
    }
    rows
}

/// How long a round is that begins here, and how many there are, if there are enough of them to leave some out.
fn rounds_at(rows: &[Shown]) -> Option<(usize, usize)> {
    let is_told = |(row, _): &Shown| matches!(row.kind, Kind::Note | Kind::Event);
    let rounds = |length: usize| {
        let same = |at: &usize| is_told(&rows[*at]) && similar(&rows[*at].0, &rows[*at + length].0);
        let matching = (0..rows.len().saturating_sub(length)).take_while(same).count();
        1 + matching / length
    };
    let all = (2..=MAX_ROUND).map(|length| (length, rounds(length)));
    all.into_iter()
        .find(|(length, rounds)| length * rounds.saturating_sub(2) > 1)
}

fn without_middle(mut rows: Vec<Shown>) -> Vec<Shown> {
    if rows.len() > MAX_ROWS {
        let middle = MAX_ROWS / 2..rows.len() - MAX_ROWS / 2;
        let gap = gap(&rows[middle.clone()], format!("({} more steps)", middle.len()));
        rows.splice(middle, [gap]);
    }
    rows
}

/// Stands for these rows, of which there is at least one.
fn gap(rows: &[Shown], words: String) -> Shown {
    let (first, last) = (&rows[0], &rows[rows.len() - 1]);
    let row = Row {
        thread: first.0.thread,
        words,
        kind: Kind::Gap,
        decides: false,
    };
    (row, (first.1.0, last.1.1))
}
