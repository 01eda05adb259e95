//! The picture as SVG: a column per thread, time runs down, bars show who holds what, arrows who waits for whom.

use std::fmt::Write as _;

use super::wrap::wrap;
use super::{Held, Kind, Row, Timeline, Wait};

const LEFT: usize = 44;
const HEAD: usize = 44;
/// Room at a column's left for bars.
const LANES: usize = 34;
const LINE: usize = 17;
const PAD: usize = 7;
const GAP: usize = 8;
/// Tenths of a pixel that a character takes at the font's size, on average and with a wide font.
const CHAR_TENTHS: usize = 73;
/// From a box's edge to its text.
const INSET: usize = 9;

/// Characters that fit into a box: fewer where many threads stand side by side.
fn chars(threads: usize) -> usize {
    match threads {
        0..=2 => 46,
        3 => 40,
        _ => 31,
    }
}

/// Where each row is.
struct Layout {
    /// How wide a column and a box in it are.
    column: usize,
    box_width: usize,
    /// Top and height.
    rows: Vec<(usize, usize)>,
    lines: Vec<Vec<String>>,
    bottom: usize,
}

impl Layout {
    fn of(rows: &[Row], threads: usize) -> Self {
        let chars = chars(threads);
        let box_width = chars * CHAR_TENTHS / 10 + 2 * INSET;
        let lines: Vec<_> = rows.iter().map(|row| wrap(&row.words, chars)).collect();
        let mut top = HEAD + GAP;
        let mut place = |lines: &Vec<String>| {
            let height = lines.len() * LINE + 2 * PAD;
            let at = (top, height);
            top += height + GAP;
            at
        };
        Self {
            column: LANES + box_width + 2 * GAP,
            box_width,
            rows: lines.iter().map(&mut place).collect(),
            lines,
            bottom: top + GAP,
        }
    }

    /// Where the column of a thread begins.
    fn left(&self, thread: usize) -> usize {
        LEFT + thread * self.column
    }

    /// Where the boxes of a thread begin and end.
    fn boxes(&self, thread: usize) -> (usize, usize) {
        let begin = self.left(thread) + LANES;
        (begin, begin + self.box_width)
    }

    fn middle(&self, row: usize) -> usize {
        let (top, height) = self.rows[row];
        top + height / 2
    }
}

/// Text that cannot be taken for markup.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // XML has no way to write most control characters.
            other if other.is_control() => out.push(' '),
            other => out.push(other),
        }
    }
    out
}

/// The whole drawing. Its classes are styled by the page around it.
pub(super) fn draw(timeline: &Timeline) -> String {
    let layout = Layout::of(&timeline.rows, timeline.threads.len());
    let width = layout.left(timeline.threads.len().max(1)) + GAP;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" aria-label=\"Timeline\" width=\"{width}\" height=\"{}\" \
         viewBox=\"0 0 {width} {}\">\n<defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"8\" \
         markerHeight=\"8\" orient=\"auto-start-reverse\"><path class=\"tip\" d=\"M0 0 L8 4 L0 8 z\"/></marker></defs>\n",
        layout.bottom, layout.bottom
    );
    for (thread, name) in timeline.threads.iter().enumerate() {
        head(&mut out, thread, name, &layout);
    }
    for held in &timeline.held {
        bar(&mut out, held, lane(&timeline.held, held), &layout);
    }
    for (index, row) in timeline.rows.iter().enumerate() {
        cell(&mut out, index, row, &layout);
    }
    for wait in &timeline.waits {
        arrow(&mut out, wait, &layout);
    }
    out.push_str("</svg>\n");
    out
}

// A `String` takes whatever is written to it, so the results below say nothing.

fn head(out: &mut String, thread: usize, name: &str, layout: &Layout) {
    let (begin, end) = layout.boxes(thread);
    let middle = begin.midpoint(end);
    let _ = writeln!(
        out,
        "<line class=\"life\" x1=\"{middle}\" y1=\"{HEAD}\" x2=\"{middle}\" y2=\"{}\"/>\n<text class=\"thread\" x=\"{begin}\" \
         y=\"28\">{}</text>",
        layout.bottom,
        escape(name)
    );
}

/// Bars of one thread that overlap stand side by side.
fn lane(all: &[Held], held: &Held) -> usize {
    let earlier = all.iter().take_while(|other| !std::ptr::eq(*other, held));
    let ends = |other: &Held| other.to.unwrap_or(usize::MAX);
    earlier
        .filter(|other| other.thread == held.thread && ends(other) > held.from)
        .count()
}

fn bar(out: &mut String, held: &Held, lane: usize, layout: &Layout) {
    let top = layout.rows[held.from].0;
    let bottom = held
        .to
        .map_or(layout.bottom - GAP, |row| layout.rows[row].0 + layout.rows[row].1);
    let x = layout.boxes(held.thread).0 - 10 - 11 * lane.min(2);
    let open = if held.to.is_none() { " open" } else { "" };
    let _ = writeln!(
        out,
        "<rect class=\"held{open}\" x=\"{x}\" y=\"{top}\" width=\"7\" height=\"{}\" rx=\"3\"><title>{} is held</title></rect>",
        bottom.saturating_sub(top),
        escape(held.name)
    );
}

fn cell(out: &mut String, index: usize, row: &Row, layout: &Layout) {
    let (top, height) = layout.rows[index];
    let x = layout.boxes(row.thread).0;
    let class = match row.kind {
        Kind::Note => "note",
        Kind::Event => "event",
        Kind::Lock => "lock",
        Kind::Stuck => "stuck",
        Kind::Gap => "gap",
    };
    let decides = if row.decides { " decides" } else { "" };
    let _ = write!(
        out,
        "<g class=\"{class}{decides}\"><text class=\"number\" x=\"{}\" y=\"{}\">{}</text><rect x=\"{x}\" y=\"{top}\" width=\"{}\" \
         height=\"{height}\" rx=\"5\"/><text>",
        LEFT - 10,
        top + PAD + LINE - 5,
        index + 1,
        layout.box_width
    );
    for (number, line) in layout.lines[index].iter().enumerate() {
        let y = top + PAD + (number + 1) * LINE - 5;
        let _ = write!(out, "<tspan x=\"{}\" y=\"{y}\">{}</tspan>", x + INSET, escape(line));
    }
    out.push_str("</text></g>\n");
}

/// From a thread that waits for ever to the one that has what it waits for.
fn arrow(out: &mut String, wait: &Wait, layout: &Layout) {
    let Some(holder) = wait.holder.filter(|holder| *holder != wait.thread) else {
        return;
    };
    let y = layout.middle(wait.row);
    let (mine, theirs) = (layout.boxes(wait.thread), layout.boxes(holder));
    // It ends at the bar of the lock. Nothing is in the way: each row has one box.
    let (from, to) = if holder > wait.thread {
        (mine.1, theirs.0 - 12)
    } else {
        (mine.0, theirs.0 - 1)
    };
    let _ = writeln!(
        out,
        "<line class=\"waits\" x1=\"{from}\" y1=\"{y}\" x2=\"{to}\" y2=\"{y}\" marker-end=\"url(#tip)\"/>"
    );
}
