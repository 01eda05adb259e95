//! `run wordcount`: words and their frequencies, counted on the device in a table of atomics.
//!
//! Each worker owns the words that *start* in its share of the text and reads on past its end to finish the last one.

use super::input::{self, show, vec_for};
use super::words::{Classes, Scanner, Word};
use super::wordtable::{BLOCK, Filled, Near, OFFSET_BITS, Table, load, place};
use super::{Failure, Outcome, Progress, Session};
use crate::args::{RunArgs, WordRule};
use isomem::{Atomics, DeviceFault, Shared, Worker};
use serde::Serialize;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Text per launch, so that progress can be shown.
const WINDOW: usize = 16 << 20;
/// Most frequent words told.
const TOP: usize = 10;

#[derive(Debug, Serialize)]
struct Counted {
    words: u64,
    distinct: u64,
    top: Vec<Frequent>,
    bytes: usize,
    rule: &'static str,
    matches_cpu: bool,
}

#[derive(Debug, Serialize)]
struct Frequent {
    word: String,
    count: u64,
}

/// Words by their bytes, with how often each came.
type Counts<'a> = HashMap<&'a [u8], u64>;

/// Counts the words of the file.
pub(crate) fn run(options: &RunArgs, progress: &Progress) -> Result<Outcome, Failure> {
    let classes = Classes::of(options.words.unwrap_or(WordRule::Auto));
    progress.begin("reading");
    let text = input::read(&options.file, |done, of| progress.set(done, of))?;
    if text.len() as u64 >= 1 << OFFSET_BITS {
        return Err(Failure::TooLarge {
            path: options.file.clone(),
        });
    }
    let slots = (text.len() / 32).next_power_of_two().clamp(1 << 10, 1 << 20);
    let mut session = Session::open(options, &[text.len(), 16 * slots])?;
    progress.begin("counting on the device");
    let table = if text.is_empty() {
        Vec::new()
    } else {
        session.on_device(|session| count(session, &text, classes, slots, progress, &options.file))?
    };
    progress.begin("counting on the CPU");
    let (device, cpu, difference) = session.on_cpu(|| {
        let (device, repeated) = harvest(&table, &text, classes);
        let cpu = count_on_cpu(&text, classes);
        let difference = repeated.or_else(|| first_difference(&device, &cpu));
        (device, cpu, difference)
    });
    drop(cpu);
    let counted = summary(&device, text.len(), classes, difference.is_none());
    Ok(Outcome {
        text: tell(&counted),
        result: super::value(&counted),
        difference,
        happened: session.close()?,
    })
}

/// Fills a table, and starts again with a larger one when it gets full.
fn count(
    session: &Session,
    text: &[u8],
    classes: &'static Classes,
    mut slots: usize,
    progress: &Progress,
    path: &Path,
) -> Result<Vec<AtomicU64>, Failure> {
    loop {
        let mut table = vec_for(2 * slots + 1, path)?;
        table.resize_with(2 * slots + 1, || AtomicU64::new(0));
        if fill(session, text, classes, &table, progress)? == Filled::All {
            return Ok(table);
        }
        slots *= 4;
    }
}

fn fill(
    session: &Session,
    text: &[u8],
    classes: &'static Classes,
    table: &[AtomicU64],
    progress: &Progress,
) -> Result<Filled, Failure> {
    for start in (0..text.len()).step_by(WINDOW) {
        let len = WINDOW.min(text.len() - start);
        let filled = session.launch((text, table), |w, (text, table): (Shared<'_, u8>, Atomics<'_, u64>)| {
            let share = w.share(len);
            count_share(
                w,
                text,
                &Table::new(table),
                classes,
                start + share.start..start + share.end,
            )
        })?;
        if filled.contains(&Filled::Full) {
            return Ok(Filled::Full);
        }
        progress.set((start + len) as u64, text.len() as u64);
    }
    Ok(Filled::All)
}

/// Counts the words that start in `share`.
fn count_share(
    w: &mut Worker<'_>,
    text: Shared<'_, u8>,
    table: &Table<'_>,
    classes: &'static Classes,
    share: Range<usize>,
) -> Result<Filled, DeviceFault> {
    let mut block = [0u8; BLOCK];
    let mut at = first_start(w, text, classes, &share, &mut block)?;
    let mut scanner = Scanner::new(classes, at);
    let mut words = [Word::default(); BLOCK / 2 + 1];
    while at < text.len() && (at < share.end || scanner.is_open()) {
        // Past the share, only the word under way is ours.
        let inside = at < share.end;
        let end = if inside { share.end } else { text.len() };
        let mut piece = load(w, text, at..end.min(at + BLOCK), &mut block)?;
        if !inside && let Some(space) = piece.iter().position(|&byte| classes.is_space(byte)) {
            piece = &piece[..=space];
        }
        let mut found = 0;
        scanner.feed(piece, |word| {
            words[found] = word;
            found += 1;
        });
        let near = Near {
            start: at,
            bytes: piece,
        };
        for word in &words[..found] {
            if table.add(w, text, classes, word, near)? == Filled::Full {
                return Ok(Filled::Full);
            }
        }
        at += piece.len();
    }
    match scanner.end() {
        Some(word) => table.add(w, text, classes, &word, Near { start: at, bytes: &[] }),
        None => Ok(Filled::All),
    }
}

/// The first byte of `share` that does not go on with a word of the share before, or the share's end.
fn first_start(
    w: &mut Worker<'_>,
    text: Shared<'_, u8>,
    classes: &Classes,
    share: &Range<usize>,
    block: &mut [u8; BLOCK],
) -> Result<usize, DeviceFault> {
    if share.start == 0 || share.is_empty() || classes.is_space(text.get(w, share.start - 1)?) {
        return Ok(share.start);
    }
    for at in share.clone().step_by(BLOCK) {
        let piece = load(w, text, at..share.end.min(at + BLOCK), block)?;
        if let Some(space) = piece.iter().position(|&byte| classes.is_space(byte)) {
            return Ok(at + space);
        }
    }
    Ok(share.end)
}

/// The table's words and counts as the CPU sees them, and whether a word stands in it twice.
fn harvest<'a>(table: &[AtomicU64], text: &'a [u8], classes: &Classes) -> (Counts<'a>, Option<String>) {
    let mut counts = Counts::new();
    let mut repeated = None;
    for slot in table.chunks_exact(2) {
        let (key, count) = (slot[0].load(Relaxed), slot[1].load(Relaxed));
        if key == 0 {
            continue;
        }
        let tail = &text[place(key)..];
        let word = tail.split(|&byte| classes.is_space(byte)).next().unwrap_or(tail);
        if counts.insert(word, count).is_some() {
            repeated = Some(format!("the device has the word '{}' twice", show(word)));
        }
    }
    (counts, repeated)
}

fn count_on_cpu<'a>(text: &'a [u8], classes: &Classes) -> Counts<'a> {
    let mut counts = Counts::new();
    for run in text
        .split(|&byte| classes.is_space(byte))
        .filter(|run| classes.is_word(run))
    {
        *counts.entry(run).or_default() += 1;
    }
    counts
}

fn first_difference(device: &Counts<'_>, cpu: &Counts<'_>) -> Option<String> {
    let words = device.keys().chain(cpu.keys());
    let first = words.filter(|word| device.get(*word) != cpu.get(*word)).min()?;
    let told = |counts: &Counts<'_>| counts.get(first).copied().unwrap_or(0);
    Some(format!(
        "the word '{}' came {} times on the device, {} on the CPU",
        show(first),
        told(device),
        told(cpu)
    ))
}

fn summary(counts: &Counts<'_>, bytes: usize, classes: &Classes, matches_cpu: bool) -> Counted {
    let mut by_count: Vec<(&[u8], u64)> = counts.iter().map(|(word, count)| (*word, *count)).collect();
    by_count.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    by_count.truncate(TOP);
    Counted {
        words: counts.values().sum(),
        distinct: counts.len() as u64,
        top: by_count
            .into_iter()
            .map(|(word, count)| Frequent {
                word: show(word),
                count,
            })
            .collect(),
        bytes,
        rule: classes.name,
        matches_cpu,
    }
}

fn tell(counted: &Counted) -> String {
    let as_wc = match counted.rule {
        "c" => "as `LC_ALL=C wc -w` counts them",
        "utf8" => "as `wc -w` counts them in a UTF-8 locale",
        _ => "runs of bytes that are not white space",
    };
    let mut text = format!("{} words, {} distinct ({as_wc})\n", counted.words, counted.distinct);
    for frequent in &counted.top {
        text.push_str(&format!("{:>12}  {}\n", frequent.count, frequent.word));
    }
    text
}

#[cfg(test)]
mod tests;
