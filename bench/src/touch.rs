//! CPU touches of migrated pages, beside a bare one-page userfault.

use std::time::Instant;

use isomem_core::addr::PAGE_SIZE;

use crate::bare::{Bare, Served};
use crate::rig::Rig;
use crate::row::{Row, median, time};
use crate::sys::{Memory, Pages};
use crate::{BenchError, REPEATS, SIZE};

/// Pages touched one by one where each costs a round trip.
const TOUCHES: usize = 2048;

pub(crate) fn order() -> Result<Vec<Row>, BenchError> {
    let rig = Rig::new(2 * SIZE)?;
    let mut memory = Memory::new(SIZE, Pages::Small)?;
    memory.fill();
    let served = Bare::new(SIZE, Pages::Small)?.serve();
    let pages = SIZE / PAGE_SIZE;
    let (mut value, mut baseline) = (vec![], vec![]);
    for _ in 0..REPEATS {
        rig.send(memory.range())?;
        value.push(
            time(|| {
                (0..pages).for_each(|page| {
                    memory.touch(page);
                });
            })
            .0 / pages as f64,
        );
        baseline.push(round_trip(&served)?);
    }
    Ok(vec![Row::new(
        "touch_order",
        "ns/page",
        0.05,
        value,
        "round trip",
        baseline,
    )])
}

pub(crate) fn random() -> Result<Vec<Row>, BenchError> {
    let rig = Rig::new(2 * SIZE)?;
    let mut memory = Memory::new(SIZE, Pages::Small)?;
    memory.fill();
    let served = Bare::new(SIZE, Pages::Small)?.serve();
    let order = shuffled(SIZE / PAGE_SIZE);
    let (mut value, mut baseline) = (vec![], vec![]);
    for _ in 0..REPEATS {
        rig.send(memory.range())?;
        value.push(median(latencies(&memory, &order[..TOUCHES])));
        baseline.push(round_trip(&served)?);
    }
    Ok(vec![Row::new(
        "touch_random",
        "ns p50",
        1.2,
        value,
        "round trip p50",
        baseline,
    )])
}

pub(crate) fn two_threads() -> Result<Vec<Row>, BenchError> {
    let rig = Rig::new(2 * SIZE)?;
    let mut memory = Memory::new(SIZE, Pages::Small)?;
    memory.fill();
    let order = shuffled(SIZE / PAGE_SIZE);
    let (first, second) = order[..2 * TOUCHES].split_at(TOUCHES);
    let (mut value, mut baseline) = (vec![], vec![]);
    for _ in 0..REPEATS {
        rig.send(memory.range())?;
        let touch = |pages: &[usize]| {
            pages.iter().for_each(|&page| {
                memory.touch(page);
            });
        };
        baseline.push(time(|| touch(&order[..2 * TOUCHES])).0 / (2 * TOUCHES) as f64);
        rig.send(memory.range())?;
        let both = || {
            std::thread::scope(|scope| {
                scope.spawn(|| touch(first));
                touch(second);
            });
        };
        value.push(time(both).0 / (2 * TOUCHES) as f64);
    }
    Ok(vec![Row::new(
        "touch_two_threads",
        "ns/page",
        0.67,
        value,
        "one thread",
        baseline,
    )])
}

/// Median of bare one-page userfaults in random order.
fn round_trip(served: &Served) -> Result<f64, BenchError> {
    let bare = &served.bare;
    bare.move_out(SIZE)?;
    let order = shuffled(SIZE / PAGE_SIZE);
    let trip = median(latencies(&bare.home, &order[..TOUCHES]));
    bring_rest(bare)?;
    Ok(trip)
}

/// The pages that were not touched come home too, so that the next round can move all.
fn bring_rest(bare: &Bare) -> Result<(), BenchError> {
    (0..SIZE / PAGE_SIZE).for_each(|page| {
        bare.home.touch(page);
    });
    Ok(())
}

fn latencies(memory: &Memory, order: &[usize]) -> Vec<f64> {
    let touch = |&page: &usize| {
        let began = Instant::now();
        memory.touch(page);
        began.elapsed().as_secs_f64() * 1e9
    };
    order.iter().map(touch).collect()
}

/// The numbers below `count` in an order without runs: a fixed multiplicative walk, the same in every run.
fn shuffled(count: usize) -> Vec<usize> {
    assert!(count.is_power_of_two());
    (0..count)
        .map(|index| (index * 0x9e37_79b1 + 0x7f4a_7c15) % count)
        .collect()
}
