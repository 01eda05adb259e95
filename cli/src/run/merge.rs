//! A merge sort on the device: runs that fit a worker's stack, then merge passes from one buffer to the other.
//!
//! Every pass writes each element of the output once. A worker owns an even part of the output, finds by binary search
//! where in the two runs its part begins, and merges from there: all workers have work in every pass, the last too.

use super::{Failure, Progress, Session};
use bytemuck::Pod;
use isomem::{DeviceFault, Part, Plain, Shareable, Shared, Worker};
use std::cmp::Ordering;
use std::io::{self, Write};
use std::ops::Range;

/// Elements sorted on a worker's stack.
const RUN: usize = 512;
/// Elements that a reader or writer has at hand.
const AT_HAND: usize = 128;

/// What can be sorted.
pub(crate) trait Element: Shareable<Kind = Plain> + Pod + Default + Send {
    /// Compares; `text` is what the elements may point into.
    fn compare(w: &mut Worker<'_>, text: Shared<'_, u8>, a: &Self, b: &Self) -> Result<Ordering, DeviceFault>;

    /// Writes the element as a line without its newline.
    fn write(text: &[u8], element: &Self, out: &mut dyn Write) -> io::Result<()>;
}

/// Sorts `data` on the device, with `spare` of the same length as the other buffer; equal elements keep their order.
pub(crate) fn sort<T: Element>(
    session: &Session,
    text: &[u8],
    data: &mut Vec<T>,
    spare: &mut Vec<T>,
    progress: &Progress,
) -> Result<(), Failure> {
    let mut width = 1;
    let passes = 1 + data.len().div_ceil(RUN).next_power_of_two().ilog2();
    for pass in 0..passes {
        session.launch(
            (text, &data[..], &mut spare[..]),
            |w, (text, from, mut to): (Shared<'_, u8>, Shared<'_, T>, Part<'_, T>)| {
                if pass == 0 {
                    sort_runs(w, text, from, &mut to)
                } else {
                    merge_runs(w, text, from, &mut to, width)
                }
            },
        )?;
        std::mem::swap(data, spare);
        width = RUN << pass;
        progress.set(u64::from(pass) + 1, u64::from(passes));
    }
    Ok(())
}

/// Sorts every run that overlaps this worker's part of the output, and writes what lies in it.
fn sort_runs<T: Element>(
    w: &mut Worker<'_>,
    text: Shared<'_, u8>,
    from: Shared<'_, T>,
    to: &mut Part<'_, T>,
) -> Result<(), DeviceFault> {
    let part = to.offset()..to.offset() + to.len();
    let (mut run, mut scratch) = ([T::default(); RUN], [T::default(); RUN]);
    let mut at = part.start;
    while at < part.end {
        let start = at / RUN * RUN;
        let len = RUN.min(from.len() - start);
        from.read(w, start, &mut run[..len])?;
        sort_here(w, text, &mut run[..len], &mut scratch[..len])?;
        let end = part.end.min(start + len);
        to.write(w, at - part.start, &run[at - start..end - start])?;
        at = end;
    }
    Ok(())
}

/// Sorts on the worker's stack.
fn sort_here<T: Element>(
    w: &mut Worker<'_>,
    text: Shared<'_, u8>,
    data: &mut [T],
    scratch: &mut [T],
) -> Result<(), DeviceFault> {
    let mut width = 1;
    while width < data.len() {
        for start in (0..data.len()).step_by(2 * width) {
            let (middle, end) = ((start + width).min(data.len()), (start + 2 * width).min(data.len()));
            let (mut i, mut j) = (start, middle);
            for out in &mut scratch[start..end] {
                let left = j == end || (i < middle && T::compare(w, text, &data[i], &data[j])?.is_le());
                let next = if left { &mut i } else { &mut j };
                *out = data[*next];
                *next += 1;
            }
        }
        data.copy_from_slice(scratch);
        width *= 2;
    }
    Ok(())
}

/// Merges every pair of runs of `width` that overlaps this worker's part of the output, as far as it lies in it.
fn merge_runs<T: Element>(
    w: &mut Worker<'_>,
    text: Shared<'_, u8>,
    from: Shared<'_, T>,
    to: &mut Part<'_, T>,
    width: usize,
) -> Result<(), DeviceFault> {
    let part = to.offset()..to.offset() + to.len();
    let mut at = part.start;
    while at < part.end {
        let start = at / (2 * width) * (2 * width);
        let (middle, end) = ((start + width).min(from.len()), (start + 2 * width).min(from.len()));
        let stop = part.end.min(end);
        let pair = Pair {
            left: start..middle,
            right: middle..end,
        };
        let (i, j) = pair.split(w, text, from, at - start)?;
        let (k, l) = pair.split(w, text, from, stop - start)?;
        merge(
            w,
            text,
            [Reader::new(from, i..k), Reader::new(from, j..l)],
            to,
            at - part.start,
        )?;
        at = stop;
    }
    Ok(())
}

/// Two neighbouring runs.
struct Pair {
    left: Range<usize>,
    right: Range<usize>,
}

impl Pair {
    /// Where in the two runs the first `count` elements of their merge end.
    fn split<T: Element>(
        &self,
        w: &mut Worker<'_>,
        text: Shared<'_, u8>,
        from: Shared<'_, T>,
        count: usize,
    ) -> Result<(usize, usize), DeviceFault> {
        let (mut low, mut high) = (count.saturating_sub(self.right.len()), count.min(self.left.len()));
        while low < high {
            let middle = low.midpoint(high);
            let left = from.get(w, self.left.start + middle)?;
            let right = from.get(w, self.right.start + (count - middle - 1))?;
            if T::compare(w, text, &left, &right)?.is_le() {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok((self.left.start + low, self.right.start + (count - low)))
    }
}

fn merge<T: Element>(
    w: &mut Worker<'_>,
    text: Shared<'_, u8>,
    [mut left, mut right]: [Reader<'_, T>; 2],
    to: &mut Part<'_, T>,
    mut at: usize,
) -> Result<(), DeviceFault> {
    let (mut out, mut held) = ([T::default(); AT_HAND], 0);
    loop {
        let next = match (left.peek(w)?, right.peek(w)?) {
            (None, None) => return to.write(w, at, &out[..held]),
            (Some(a), Some(b)) if T::compare(w, text, &a, &b)?.is_gt() => right.take(b),
            (Some(a), _) => left.take(a),
            (None, Some(b)) => right.take(b),
        };
        out[held] = next;
        held += 1;
        if held == AT_HAND {
            to.write(w, at, &out)?;
            at += held;
            held = 0;
        }
    }
}

/// Reads a span in order, a little ahead.
struct Reader<'a, T> {
    from: Shared<'a, T>,
    span: Range<usize>,
    ahead: [T; AT_HAND],
    at_hand: Range<usize>,
}

impl<'a, T: Element> Reader<'a, T> {
    fn new(from: Shared<'a, T>, span: Range<usize>) -> Self {
        Self {
            from,
            span,
            ahead: [T::default(); AT_HAND],
            at_hand: 0..0,
        }
    }

    fn peek(&mut self, w: &mut Worker<'_>) -> Result<Option<T>, DeviceFault> {
        if self.at_hand.is_empty() {
            let len = AT_HAND.min(self.span.len());
            self.from.read(w, self.span.start, &mut self.ahead[..len])?;
            self.span.start += len;
            self.at_hand = 0..len;
        }
        Ok(self.ahead[self.at_hand.clone()].first().copied())
    }

    /// Goes past the element that [`Reader::peek`] gave.
    fn take(&mut self, peeked: T) -> T {
        self.at_hand.start += 1;
        peeked
    }
}
