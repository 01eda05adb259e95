//! A driver that keeps where a page was, and does not hear when it goes: what each driver would be without its callback.

use std::collections::BTreeMap;
use std::sync::Arc;

use isomem_conformance::work::{Done, Driver, Op, Step, Stop, Worker};
use isomem_conformance::{Failure, Outcome};
use isomem_core::addr::{PAGE_SIZE, PageRange, VirtAddr};
use isomem_core::device::Device;
use isomem_core::mirror::{DeviceHandle, Mirror};
use isomem_core::mm::{MemoryConfig, MemoryKind};
use isomem_core::notifier::{Answer, CallbackScope, Invalidation};
use isomem_sim::journal::Actor;
use isomem_sim::kernel::{self, Process};
use isomem_sim::world::SimWorld;

use crate::drivers::{Host, wrong};
use crate::simulated::Simulated;

/// It says that the pages are given up.
struct Deaf;

impl Device for Deaf {
    fn invalidate(&self, _: &Invalidation, _: &CallbackScope<'_>) {}

    fn try_invalidate(&self, _: &Invalidation, _: &CallbackScope<'_>) -> Answer {
        Answer::Done
    }

    fn release(&self) {}
}

struct Keeper {
    device: DeviceHandle<SimWorld>,
    mirror: Arc<Mirror<SimWorld, Deaf>>,
    process: Process,
}

struct Walker {
    mirror: Arc<Mirror<SimWorld, Deaf>>,
    process: Process,
    /// Where pages were when they were looked up.
    known: BTreeMap<usize, usize>,
}

pub(crate) fn open(program: &Simulated, _: &[PageRange]) -> Result<Box<dyn Driver>, Failure> {
    let config = MemoryConfig {
        name: "deaf",
        capacity_bytes: PAGE_SIZE,
        mirror_budget_bytes: None,
        kind: MemoryKind::Private,
    };
    let device = program.mm().register(config).map_err(wrong)?;
    let mirror = Arc::new(device.mirror(Arc::new(Deaf)).map_err(wrong)?);
    let process = program.mm().world().process().clone();
    Ok(Box::new(Keeper {
        device,
        mirror,
        process,
    }))
}

impl Driver for Keeper {
    fn worker(&self) -> Result<Box<dyn Worker>, Stop> {
        Ok(Box::new(Walker {
            mirror: self.mirror.clone(),
            process: self.process.clone(),
            known: BTreeMap::new(),
        }))
    }

    fn close(self: Box<Self>) -> Outcome {
        drop(self.mirror);
        self.device.unregister().map_err(wrong)
    }
}

impl Walker {
    fn one(&mut self, step: &Step) -> Result<u64, Stop> {
        let addr = VirtAddr::new(step.addr).map_err(Stop::failed)?;
        let page = step.addr / PAGE_SIZE;
        if !self.known.contains_key(&page) {
            self.mirror.fault(addr.page(), isomem_core::world::Access::Write)?;
            let found = self.mirror.state().table().get(addr).ok_or(Stop::Again)?;
            self.known.insert(page, found.entry.addr().0 as usize / PAGE_SIZE);
        }
        let op = match step.op {
            Op::Load => kernel::Op::Load,
            Op::Store(value) => kernel::Op::Store(value),
            Op::Add(value) => kernel::Op::Add(value),
        };
        let (actor, word) = (Actor::Device("deaf"), step.addr % PAGE_SIZE / 8);
        let done = self.process.access(actor, self.known[&page], page, word, op);
        done.map_err(Stop::failed)
    }
}

impl Worker for Walker {
    fn attempt(&mut self, steps: &[Step]) -> Done {
        let mut done = Done::default();
        for step in steps {
            match self.one(step) {
                Ok(seen) => done.seen.push(seen),
                Err(stop) => {
                    done.stop = Some(stop);
                    break;
                }
            }
        }
        done
    }
}
