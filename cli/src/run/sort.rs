//! `run sort`: numbers, one per line, or else lines, sorted on the device.

use super::input::{self, lines, show, vec_for};
use super::merge::{self, Element};
use super::{Failure, Outcome, Progress, Session};
use crate::args::{RunArgs, SortAs};
use isomem::{DeviceFault, Shared, Worker};
use serde::Serialize;
use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

#[derive(Debug, Serialize)]
struct Sorted {
    sorted_as: &'static str,
    elements: usize,
    first: String,
    last: String,
    matches_cpu: bool,
}

/// What the file holds.
#[derive(Debug, PartialEq)]
enum Data {
    Integers(Vec<i64>),
    Floats(Vec<f64>),
    Lines(Vec<Line>),
}

/// A line by its first eight bytes, most significant first and filled up with zeroes, its offset and its length.
type Line = [u64; 3];

/// Sorts the file's numbers or lines.
pub(crate) fn run(options: &RunArgs, progress: &Progress) -> Result<Outcome, Failure> {
    progress.begin("reading");
    let path = &options.file;
    let text = input::read(path, |done, of| progress.set(done, of))?;
    progress.begin("parsing");
    let (data, why_lines) = parse(path, &text, options.sort_as.unwrap_or(SortAs::Auto))?;
    if let Some(reason) = why_lines.filter(|_| !options.quiet) {
        crate::report::complain(&format!("note: sorted as lines, since {reason}"));
    }
    match data {
        Data::Integers(values) => by_device(options, progress, &[], "integers", values, Ord::cmp, i64::to_string),
        Data::Floats(values) => by_device(options, progress, &[], "floats", values, f64::total_cmp, show_float),
        Data::Lines(index) => {
            let order = |a: &Line, b: &Line| line(&text, a).cmp(line(&text, b));
            by_device(options, progress, &text, "lines", index, order, |entry| {
                show(line(&text, entry))
            })
        }
    }
}

/// Shortest decimal that reads back as the same number.
fn show_float(value: &f64) -> String {
    format!("{value:?}")
}

fn line<'a>(text: &'a [u8], line: &Line) -> &'a [u8] {
    &text[line[1] as usize..][..line[2] as usize]
}

/// Sorts on the device, then on the CPU, and compares.
fn by_device<T: Element>(
    options: &RunArgs,
    progress: &Progress,
    text: &[u8],
    sorted_as: &'static str,
    mut data: Vec<T>,
    order: impl Fn(&T, &T) -> Ordering,
    tell: impl Fn(&T) -> String,
) -> Result<Outcome, Failure> {
    let mut spare = vec_for(data.len(), &options.file)?;
    spare.resize(data.len(), T::default());
    let mut by_cpu = vec_for(data.len(), &options.file)?;
    by_cpu.extend_from_slice(&data);
    let bytes = std::mem::size_of_val(&data[..]);
    let mut session = Session::open(options, &[text.len(), bytes, bytes])?;
    progress.begin("sorting on the device");
    session.on_device(|session| merge::sort(session, text, &mut data, &mut spare, progress))?;
    progress.begin("sorting on the CPU");
    let difference = session.on_cpu(|| {
        by_cpu.sort_unstable_by(&order);
        let first = data
            .iter()
            .zip(&by_cpu)
            .position(|(device, cpu)| order(device, cpu).is_ne());
        first.map(|at| {
            format!(
                "element {at} is {} there, {} on the CPU",
                tell(&data[at]),
                tell(&by_cpu[at])
            )
        })
    });
    // Pages are home before system calls look at them: without full privileges they could not.
    let happened = session.close()?;
    if let (Some(path), None) = (&options.output, &difference) {
        progress.begin("writing");
        let unwritable = |source| Failure::Write {
            path: path.clone(),
            source,
        };
        write_all(path, data.iter(), |element, out| T::write(text, element, out)).map_err(unwritable)?;
    }
    let sorted = Sorted {
        sorted_as,
        elements: data.len(),
        first: data.first().map_or_else(String::new, &tell),
        last: data.last().map_or_else(String::new, &tell),
        matches_cpu: difference.is_none(),
    };
    let text = format!(
        "{} {sorted_as}, from '{}' to '{}'\n",
        sorted.elements, sorted.first, sorted.last
    );
    Ok(Outcome {
        text,
        result: super::value(&sorted),
        difference,
        happened,
    })
}

fn write_all<T>(
    path: &Path,
    elements: impl Iterator<Item = T>,
    write: impl Fn(T, &mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    for element in elements {
        write(element, &mut out)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

impl Element for i64 {
    fn compare(_: &mut Worker<'_>, _: Shared<'_, u8>, a: &Self, b: &Self) -> Result<Ordering, DeviceFault> {
        Ok(a.cmp(b))
    }

    fn write(_: &[u8], element: &Self, out: &mut dyn Write) -> io::Result<()> {
        write!(out, "{element}")
    }
}

impl Element for f64 {
    fn compare(_: &mut Worker<'_>, _: Shared<'_, u8>, a: &Self, b: &Self) -> Result<Ordering, DeviceFault> {
        Ok(a.total_cmp(b))
    }

    fn write(_: &[u8], element: &Self, out: &mut dyn Write) -> io::Result<()> {
        write!(out, "{element:?}")
    }
}

impl Element for Line {
    fn compare(w: &mut Worker<'_>, text: Shared<'_, u8>, a: &Self, b: &Self) -> Result<Ordering, DeviceFault> {
        const PREFIX: usize = 8;
        const BLOCK: usize = 256;
        let ([a_first, a_at, a_len], [b_first, b_at, b_len]) = (*a, *b);
        let common = a_len.min(b_len) as usize;
        if a_first != b_first || common <= PREFIX {
            return Ok(a_first.cmp(&b_first).then(a_len.cmp(&b_len)));
        }
        let (mut ours, mut theirs) = ([0u8; BLOCK], [0u8; BLOCK]);
        for from in (PREFIX..common).step_by(BLOCK) {
            let len = BLOCK.min(common - from);
            let (a_from, b_from) = (a_at as usize + from, b_at as usize + from);
            text.read(w, a_from, &mut ours[..len])?;
            text.read(w, b_from, &mut theirs[..len])?;
            let order = ours[..len].cmp(&theirs[..len]);
            if order.is_ne() {
                return Ok(order);
            }
        }
        Ok(a_len.cmp(&b_len))
    }

    fn write(text: &[u8], element: &Self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(line(text, element))
    }
}

/// Reads the numbers or lines, and says why a file that begins with a number is sorted as lines all the same.
fn parse(path: &Path, text: &[u8], sort_as: SortAs) -> Result<(Data, Option<String>), Failure> {
    let malformed = |(line, what)| Failure::Malformed {
        path: path.to_owned(),
        line,
        what,
    };
    let data = match sort_as {
        SortAs::Lines => (Data::Lines(index(text)), None),
        SortAs::Integers => (Data::Integers(numbers(text, integer).map_err(malformed)?), None),
        SortAs::Floats => (Data::Floats(numbers(text, float).map_err(malformed)?), None),
        SortAs::Auto => match numbers(text, integer) {
            Ok(values) if !values.is_empty() => (Data::Integers(values), None),
            Ok(_) => (Data::Lines(index(text)), None),
            Err(_) => match numbers(text, exact_float) {
                Ok(values) => (Data::Floats(values), None),
                Err((line, what)) => (
                    Data::Lines(index(text)),
                    (line > 1).then(|| format!("line {line}: {what}")),
                ),
            },
        },
    };
    let (empty, what) = match &data.0 {
        Data::Integers(values) => (values.is_empty(), "no number"),
        Data::Floats(values) => (values.is_empty(), "no number"),
        Data::Lines(index) => (index.is_empty(), "no number and no line"),
    };
    if empty {
        Err(Failure::Nothing {
            path: path.to_owned(),
            what,
        })
    } else {
        Ok(data)
    }
}

/// The number on each line; blank lines are passed over.
fn numbers<T>(text: &[u8], parse: fn(&str) -> Option<T>) -> Result<Vec<T>, (usize, String)> {
    let mut values = Vec::new();
    for (number, line) in lines(text) {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        match std::str::from_utf8(line).ok().and_then(parse) {
            Some(value) => values.push(value),
            None => {
                return Err((
                    number,
                    format!("'{}' is not {}", show(line), std::any::type_name::<T>()),
                ));
            }
        }
    }
    Ok(values)
}

fn integer(text: &str) -> Option<i64> {
    text.parse().ok()
}

fn float(text: &str) -> Option<f64> {
    text.parse().ok().filter(|value: &f64| value.is_finite())
}

/// A float, unless it is a whole number that a float would change.
fn exact_float(text: &str) -> Option<f64> {
    let whole = text
        .trim_start_matches(['+', '-'])
        .bytes()
        .all(|byte| byte.is_ascii_digit());
    float(text).filter(|value| !whole || value.abs() < 9e15)
}

fn index(text: &[u8]) -> Vec<Line> {
    let mut offset = 0;
    lines(text)
        .map(|(_, line)| {
            let mut first = [0; 8];
            let common = line.len().min(8);
            first[..common].copy_from_slice(&line[..common]);
            let entry = [u64::from_be_bytes(first), offset, line.len() as u64];
            offset += line.len() as u64 + 1;
            entry
        })
        .collect()
}

#[cfg(test)]
mod tests;
