//! Bulk migration, both ways, beside a bare UFFDIO_MOVE loop and memcpy over as many pages.

use isomem_core::addr::{BLOCK_SIZE, PAGE_SIZE};

use crate::bare::Bare;
use crate::rig::Rig;
use crate::row::{Row, time};
use crate::sys::{Memory, Pages};
use crate::{BenchError, REPEATS, SIZE};

/// What one kind of page costs: to the device and home, with isomem and bare. Nanoseconds for each page of that kind.
struct Costs {
    out: Vec<f64>,
    home: Vec<f64>,
    bare_out: Vec<f64>,
    bare_home: Vec<f64>,
}

pub(crate) fn small() -> Result<Vec<Row>, BenchError> {
    let costs = measure(Pages::Small, PAGE_SIZE)?;
    let memcpy = memcpy()?;
    Ok(vec![
        Row::new(
            "migrate_4k_move",
            "ns/page",
            1.5,
            costs.out.clone(),
            "bare MOVE",
            costs.bare_out,
        ),
        Row::new("migrate_4k_memcpy", "ns/page", 0.125, costs.out, "memcpy", memcpy),
        Row::new("home_4k_move", "ns/page", 1.5, costs.home, "bare MOVE", costs.bare_home),
    ])
}

pub(crate) fn huge() -> Result<Vec<Row>, BenchError> {
    let costs = measure(Pages::Huge, BLOCK_SIZE)?;
    Ok(vec![
        Row::new(
            "migrate_2m_move",
            "ns/2MiB",
            2.0,
            costs.out,
            "bare MOVE",
            costs.bare_out,
        ),
        Row::new("home_2m_move", "ns/2MiB", 2.0, costs.home, "bare MOVE", costs.bare_home),
    ])
}

fn measure(pages: Pages, page_bytes: usize) -> Result<Costs, BenchError> {
    let rig = Rig::new(2 * SIZE)?;
    let mut memory = Memory::new(SIZE, pages)?;
    memory.fill();
    let bare = Bare::new(SIZE, pages)?;
    let count = (SIZE / page_bytes) as f64;
    let mut costs = Costs {
        out: vec![],
        home: vec![],
        bare_out: vec![],
        bare_home: vec![],
    };
    // The first round touches tables and areas for the first time.
    for repeat in 0..=REPEATS {
        let out = rig.send(memory.range())? / count;
        let home = rig.bring_home(memory.range())? / count;
        // 2 MiB a call for both: a huge page each, or 512 small ones.
        let bare_out = bare.move_out(BLOCK_SIZE)? * (page_bytes as f64 / BLOCK_SIZE as f64);
        let bare_home = bare.move_home(BLOCK_SIZE)? * (page_bytes as f64 / BLOCK_SIZE as f64);
        if repeat > 0 {
            costs.out.push(out);
            costs.home.push(home);
            costs.bare_out.push(bare_out);
            costs.bare_home.push(bare_home);
        }
    }
    Ok(costs)
}

fn memcpy() -> Result<Vec<f64>, BenchError> {
    let mut from = Memory::new(SIZE, Pages::Small)?;
    let mut to = Memory::new(SIZE, Pages::Small)?;
    from.fill();
    to.fill();
    let pages = (SIZE / PAGE_SIZE) as f64;
    Ok((0..REPEATS)
        .map(|_| time(|| to.copy_from(&mut from)).0 / pages)
        .collect())
}
