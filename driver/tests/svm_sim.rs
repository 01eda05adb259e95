//! The GPU in the simulated kernel, before every checker: its lanes work while the program changes everything about the memory.
//!
//! On plain threads by default; `--features shuttle --release` tells the same stories under many schedules.

#[path = "../../sim/tests/common/mod.rs"]
mod common;

use isomem_core::addr::PAGE_SIZE;
use isomem_core::mirror::DeviceHandle;
use isomem_core::mirror::copy::ReachError;
use isomem_core::mirror::range::FaultError;
use isomem_core::mm::{MemoryConfig, MemoryKind};
use isomem_core::world::Access;
use isomem_drivers::svm::{Home, Svm};
use isomem_sim::journal::Journal;
use isomem_sim::rig::Rig;
use isomem_sim::world::{SimWindow, SimWorld};

use common::{Times, explore, rounds, value};

const TIMES: Times = Times {
    plain: 5,
    schedules: 500,
};
/// Rounds of who changes things meanwhile.
const CHANGES: usize = rounds(2, 60);

const ANYWHERE: SimWindow = SimWindow::new(0, usize::MAX, Access::Write);

type Gpu = DeviceHandle<SimWorld>;

/// A machine with a GPU of few pages, which is gone before the machine is.
fn with_svm(journal: &Journal, pages: usize, story: impl FnOnce(&Rig, &Svm<SimWorld>, &Gpu)) {
    let rig = Rig::new(journal, pages);
    let config = MemoryConfig {
        name: "svm",
        capacity_bytes: 4 * PAGE_SIZE,
        mirror_budget_bytes: None,
        kind: MemoryKind::Private,
    };
    let device = rig.mm().register(config).unwrap();
    let svm = Svm::new(rig.mm()).unwrap();
    story(&rig, &svm, &device);
    // The contexts are gone, so nobody has a mirror of it: not the fault thread either.
    device.unregister().unwrap();
    drop(svm);
    rig.shut_down();
}

fn addr(rig: &Rig, page: usize) -> usize {
    rig.addr(page, 0) as usize
}

#[test]
fn svm_2_a_lane_that_leaves_memory_is_cancelled_and_its_neighbours_go_on() {
    explore(TIMES, |journal, number| {
        with_svm(journal, 4, |rig, svm, device| {
            let home = [Home::Device, Home::InPlace][number as usize % 2];
            let context = svm.open(device, home).unwrap();
            rig.cpu_write(1, 0, 7);
            rig.protect(1, 1, Some(Access::Read)).unwrap();
            rig.unmap(2, 1).unwrap();
            let at = |page| addr(rig, page);
            // All may be in one batch: neighbours, and a reader and a writer of one page.
            let (zero, one, two, three) = (at(0), at(1), at(2), at(3));
            let good = context.launch(move |lane| lane.store(&ANYWHERE, zero, 5)).unwrap();
            let reader = context.launch(move |lane| lane.load(&ANYWHERE, one).map(|seen| assert_eq!(seen, 7)));
            let writer = context.launch(move |lane| lane.store(&ANYWHERE, one, 8)).unwrap();
            let lost = context.launch(move |lane| lane.store(&ANYWHERE, two, 9)).unwrap();
            let last = context.launch(move |lane| lane.store(&ANYWHERE, three, 6)).unwrap();
            let page = |addr| isomem_core::addr::VirtAddr::new(addr).unwrap();
            assert_eq!(
                [
                    good.wait(),
                    reader.unwrap().wait(),
                    writer.wait(),
                    lost.wait(),
                    last.wait()
                ],
                [
                    Ok(()),
                    Ok(()),
                    Err(ReachError::Fault(FaultError::ReadOnly { addr: page(one) })),
                    Err(ReachError::Fault(FaultError::Hole { addr: page(two) })),
                    Ok(())
                ]
            );
            assert_eq!((rig.cpu_read(0, 0), rig.cpu_read(1, 0), rig.cpu_read(3, 0)), (5, 7, 6));
        });
    });
}

#[test]
fn mig_13_pages_go_to_the_device_on_demand_and_come_back_when_the_program_touches_them() {
    explore(TIMES, |journal, _| {
        with_svm(journal, 1, |rig, svm, device| {
            let context = svm.open(device, Home::Device).unwrap();
            let at = addr(rig, 0);
            for round in 0..CHANGES {
                rig.cpu_write(0, 0, value(1, round));
                let item = context.launch(move |lane| {
                    assert_eq!(lane.load(&ANYWHERE, at)?, value(1, round));
                    lane.store(&ANYWHERE, at, value(2, round))
                });
                assert_eq!(item.unwrap().wait(), Ok(()));
                assert_eq!(rig.cpu_read(0, 0), value(2, round));
            }
            assert!(rig.mm().stats().pages_to_device > 0);
        });
    });
}
