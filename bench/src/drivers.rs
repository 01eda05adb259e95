//! The drivers, each beside a bare one of the same shape that takes one big lock around everything.
//!
//! Both do the same: their device takes pages at random, adds one to each word of the page, and writes it back, by one of its units and by
//! two, while the program invalidates a page each ten milliseconds. (Where the driver has requests to copy, it copies pages of one half of the memory
//! to the other.) What memory holds is looked at in the end, so nobody is fast by losing some.
//!
//! A page is what such devices move at a time: a guest's disk request, a network card's packet, a copy engine's step. Word by word an uncontended
//! lock costs less than a pin: some 20 ns against 30.

mod bare;
mod ours;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use isomem_core::addr::{PAGE_SIZE, PageRange};

use self::bare::{Bare, Shape};
use crate::BenchError;
use crate::row::{Row, median, time};
use crate::sys::{Memory, Pages};

/// Many and short: on a shared machine the clock changes between two of them.
const REPEATS: usize = 21;
/// Pages that a unit takes in one repeat.
const COUNT: usize = 40_000;
/// Pages that the device works on.
const PAGES: usize = 256;
/// Pages in a job, for drivers that work by jobs.
const JOB: usize = 256;
/// Requests in flight, for those that work by requests.
const DEPTH: usize = 8;
/// Bytes in half of them.
const HALF_BYTES: usize = PAGES / 2 * PAGE_SIZE;
/// Words of a page.
const WORDS: usize = PAGE_SIZE / 8;
/// How often the program invalidates one.
const INVALIDATION_EVERY: Duration = Duration::from_millis(10);
/// What one driver with one unit may be slower for the noise of the machine.
const NOISE: f64 = 0.97;

/// A device at work on [`PAGES`] pages from an address on.
trait Driver: Sync {
    /// Has each of `units` units take `count` of its pages.
    fn work(&self, units: usize, count: usize) -> Result<(), BenchError>;

    /// The program gives the page the protection that it has.
    fn invalidate(&self, page: PageRange) -> Result<(), BenchError>;
}

pub(crate) fn svm() -> Result<Vec<Row>, BenchError> {
    compare(["svm", "svm_two"], ours::svm, Shape::Accesses)
}

pub(crate) fn userptr() -> Result<Vec<Row>, BenchError> {
    compare(["userptr", "userptr_two"], ours::userptr, Shape::Jobs)
}

pub(crate) fn shadow() -> Result<Vec<Row>, BenchError> {
    compare(["shadow", "shadow_two"], ours::shadow, Shape::Accesses)
}

pub(crate) fn odp() -> Result<Vec<Row>, BenchError> {
    compare(["odp", "odp_two"], ours::odp, Shape::Requests)
}

pub(crate) fn engines() -> Result<Vec<Row>, BenchError> {
    compare(["engines", "engines_two"], ours::engines, Shape::Engines)
}

/// The two rows of a driver. The second one holds if the driver scales at least as well as the bare one.
fn compare<D: Driver>(
    [one, two]: [&'static str; 2],
    open: fn(&Memory) -> Result<D, BenchError>,
    shape: Shape,
) -> Result<Vec<Row>, BenchError> {
    let count = match shape {
        Shape::Requests => COUNT / 4,
        _ => COUNT,
    };
    let mut memory = [
        Memory::new(PAGES * PAGE_SIZE, Pages::Small)?,
        Memory::new(PAGES * PAGE_SIZE, Pages::Small)?,
    ];
    if shape == Shape::Requests {
        memory
            .iter_mut()
            .for_each(|memory| memory.words()[..HALF_BYTES / 8].fill(1));
    }
    let ranges = memory.each_ref().map(Memory::range);
    let driver = open(&memory[0])?;
    let bare = Bare::new(&memory[1], shape);
    let mut rates: [[Vec<f64>; 2]; 2] = Default::default();
    for repeat in 0..=REPEATS {
        for units in [1, 2] {
            let measured = [
                rate(&driver, ranges[0], units, count)?,
                rate(&bare, ranges[1], units, count)?,
            ];
            for (rates, measured) in rates[units - 1].iter_mut().zip(measured) {
                if repeat > 0 {
                    rates.push(measured);
                }
            }
        }
    }
    drop((driver, bare));
    for memory in &mut memory {
        let sum: u64 = memory.words().iter().sum();
        let (from, to) = memory.words().split_at(HALF_BYTES / 8);
        assert!(
            match shape {
                Shape::Requests => from == to,
                _ => sum == (3 * (REPEATS + 1) * count * WORDS) as u64,
            },
            "what a device wrote is lost"
        );
    }
    let [first, second] = rates;
    let bar = median(first[0].clone()) / median(first[1].clone());
    let row =
        |name, bar, [value, baseline]: [Vec<f64>; 2]| Row::rate(name, "ops/s", bar, value, "one big lock", baseline);
    Ok(vec![row(one, NOISE, first), row(two, bar, second)])
}

/// Operations a second.
fn rate(driver: &impl Driver, range: PageRange, units: usize, count: usize) -> Result<f64, BenchError> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let program = scope.spawn(|| -> Result<(), BenchError> {
            for page in (0..PAGES).cycle() {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                driver.invalidate(range.skip(page).expect("inside").take(1))?;
                std::thread::sleep(INVALIDATION_EVERY);
            }
            Ok(())
        });
        let (ns, worked) = time(|| driver.work(units, count));
        done.store(true, Ordering::Relaxed);
        program.join().expect("the program's thread does not panic")?;
        worked?;
        Ok((units * count) as f64 / ns * 1e9)
    })
}

/// Runs `unit` on a thread for each.
fn each_unit(units: usize, unit: impl Fn(usize) -> Result<(), BenchError> + Sync) -> Result<(), BenchError> {
    let unit = &unit;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..units).map(|number| scope.spawn(move || unit(number))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("a unit's thread does not panic"))
    })
}

/// A unit's pages, in an order that looks random (xorshift). No other unit has them.
struct Places {
    unit: usize,
    random: u64,
}

impl Places {
    fn new(unit: usize, seed: usize) -> Self {
        let random = 0x9e37_79b9_7f4a_7c15 ^ (seed as u64 + 1);
        Self { unit, random }
    }

    /// Bytes from the start of the memory to the next page.
    fn next(&mut self) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random as usize % (PAGES / 2) * 2 + self.unit) * PAGE_SIZE
    }
}

/// A device's own memory for a page. Aligned, so that nobody's copies are the slower for where a stack happens to be.
#[repr(align(4096))]
struct Buffer([u8; PAGE_SIZE]);

impl Buffer {
    const fn new() -> Self {
        Self([0; PAGE_SIZE])
    }
}

/// What a device does with the bytes of a page.
fn add_one(page: &mut Buffer) {
    for word in page.0.as_chunks_mut().0 {
        *word = (u64::from_ne_bytes(*word) + 1).to_ne_bytes();
    }
}
