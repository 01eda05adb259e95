//! What it costs to be told before mappings change, at each level. A filter cannot be taken away again, so each repeat is a process of its own, which
//! measures the plain call before it opens isomem and the same call after.

use std::hint::black_box;

use isomem::{Exactness, Mm, PageRange, Windows};
use isomem_core::addr::PAGE_SIZE;

use crate::BenchError;
use crate::row::{Row, time};
use crate::sys::{in_child, map_page, unmap_page};

/// Calls of one repeat.
const CALLS: usize = 512;
/// Repeats; each is a process.
const REPEATS: usize = 5;
/// So large that the C library maps and unmaps each by itself, however often (M_MMAP_THRESHOLD_MAX is 32 MiB).
const BLOCK_BYTES: usize = 33 << 20;
/// Pages of a block that are touched.
const TOUCHED: usize = 64;
/// Nobody's addresses.
const ELSEWHERE: usize = 1 << 40;

pub(crate) fn rows() -> Result<Vec<Row>, BenchError> {
    let everywhere = Exactness::Exact(Windows::EVERYWHERE);
    let elsewhere = PageRange::new(ELSEWHERE, 1 << 30)
        .ok()
        .and_then(|range| Windows::only(&[range]));
    let elsewhere = Exactness::Exact(elsewhere.unwrap_or_default());
    Ok(vec![
        row("unmap_api", 60.0, Exactness::Cooperative, unmap_plain, unmap_by_api)?,
        row("unmap_exact", 60.0, everywhere, unmap_plain, |_| unmap_plain())?,
        row("unmap_outside", 1.1, elsewhere, unmap_plain, |_| unmap_plain())?,
        row("malloc_exact", 2.0, everywhere, allocate, |_| allocate())?,
        row("malloc_outside", 1.1, elsewhere, allocate, |_| allocate())?,
    ])
}

pub(crate) fn row(
    name: &'static str,
    bar: f64,
    level: Exactness,
    before: fn() -> f64,
    after: fn(&Mm) -> f64,
) -> Result<Row, BenchError> {
    let (mut value, mut baseline) = (vec![], vec![]);
    for _ in 0..REPEATS {
        let measured = in_child(|| {
            // The best of each half: what is compared is the cost of the calls, not of what else the machine does.
            let plain = (0..9).map(|_| before()).fold(f64::INFINITY, f64::min);
            let mm = Mm::builder().exactness(level).open().ok()?;
            let told = (0..9).map(|_| after(&mm)).fold(f64::INFINITY, f64::min);
            Some([plain, told])
        })?;
        let [plain, told] =
            measured.ok_or_else(|| BenchError::Isomem(format!("cannot open at the level {}", level.name()).into()))?;
        baseline.push(plain);
        value.push(told);
    }
    Ok(Row::new(name, "ns/call", bar, value, "the same call, plain", baseline))
}

/// Unmaps pages that lie apart; nanoseconds for each.
pub(crate) fn unmap_each(unmap: impl Fn(usize)) -> f64 {
    let pages: Vec<usize> = (0..CALLS).map(|_| map_page()).collect();
    time(|| pages.iter().for_each(|&page| unmap(page))).0 / CALLS as f64
}

pub(crate) fn unmap_plain() -> f64 {
    unmap_each(unmap_page)
}

fn unmap_by_api(mm: &Mm) -> f64 {
    unmap_each(|page| crate::sys::unmap_announced(mm, page))
}

/// Takes, touches and gives back large blocks; nanoseconds for each.
pub(crate) fn allocate() -> f64 {
    let work = || {
        for _ in 0..CALLS / 8 {
            let mut block = Vec::<u8>::with_capacity(BLOCK_BYTES);
            let room = block.spare_capacity_mut();
            (0..TOUCHED * PAGE_SIZE).step_by(PAGE_SIZE).for_each(|at| {
                room[at].write(1);
            });
            black_box(&mut block);
        }
    };
    time(work).0 / (CALLS / 8) as f64
}
