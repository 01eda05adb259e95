//! What isomem costs a program that has it open and does not use it.

use std::time::Duration;

use isomem_core::addr::PAGE_SIZE;

use crate::rig::Rig;
use crate::row::{Row, time};
use crate::sys::{Memory, Pages};
use crate::{BenchError, SIZE};

/// More repeats than elsewhere: the bar is close to 1, and the machine is shared.
const REPEATS: usize = 61;

pub(crate) fn rows() -> Result<Vec<Row>, BenchError> {
    let mut memory = Memory::new(SIZE / 16, Pages::Small)?;
    let (mut compute, mut faults) = ((vec![], vec![]), (vec![], vec![]));
    for _ in 0..REPEATS {
        settle();
        compute.1.push(time(compute_loop).0 / 1e6);
        faults.1.push(fault_loop(&mut memory)?);
        let rig = Rig::new(SIZE)?;
        settle();
        compute.0.push(time(compute_loop).0 / 1e6);
        faults.0.push(fault_loop(&mut memory)?);
        drop(rig);
    }
    Ok(vec![
        Row::new("idle_compute", "ms", 1.03, compute.0, "without isomem", compute.1),
        Row::new("idle_fault", "ns/page", 1.03, faults.0, "without isomem", faults.1),
    ])
}

/// Threads that were just started, or ended, are given time to come to rest: idle is what is measured.
fn settle() {
    std::thread::sleep(Duration::from_millis(5));
}

/// A few milliseconds of arithmetic that the compiler cannot shorten.
fn compute_loop() -> u64 {
    (0..3_000_000_u64).fold(1, |sum, step| std::hint::black_box(sum ^ step).rotate_left(5))
}

fn fault_loop(memory: &mut Memory) -> Result<f64, BenchError> {
    memory.discard()?;
    let pages = memory.range().page_count();
    debug_assert_eq!(pages * PAGE_SIZE, memory.range().len_bytes());
    Ok(time(|| (0..pages).for_each(|page| memory.store(page, 1))).0 / pages as f64)
}
