//! Lanes of a GPU, which are launched for a few steps; every other one belongs to a context that takes pages.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use isomem_conformance::Outcome;
use isomem_conformance::work::{Done, Driver, Op, Step, Stop, Worker};
use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::bus::{AtomicOp, Bus};
use isomem_core::mirror::DeviceHandle;
use isomem_core::mm::{MemoryConfig, MemoryKind};
use isomem_drivers::svm::{Context, Home, Svm, SvmError};

use super::{Host, Opened, counted, each, wrong};

/// Pages of the GPU's memory: fewer than the work needs.
const MEMORY_PAGES: usize = 4;

struct Gpu<W: Bus> {
    device: DeviceHandle<W>,
    svm: Svm<W>,
    contexts: [Arc<Context<W>>; 2],
    workers: AtomicUsize,
    window: W::Window,
}

struct Launcher<W: Bus> {
    context: Arc<Context<W>>,
    window: W::Window,
}

pub(crate) fn open<H: Host>(program: &H, _: &[PageRange]) -> Opened {
    let config = MemoryConfig {
        name: "svm",
        capacity_bytes: MEMORY_PAGES * PAGE_SIZE,
        mirror_budget_bytes: None,
        kind: MemoryKind::Private,
    };
    let device = program.mm().register(config).map_err(wrong)?;
    let svm = Svm::new(program.mm()).map_err(wrong)?;
    let context = |home| svm.open(&device, home).map(Arc::new).map_err(wrong);
    let contexts = [context(Home::Device)?, context(Home::InPlace)?];
    Ok(Box::new(Gpu {
        device,
        svm,
        contexts,
        workers: AtomicUsize::new(0),
        window: program.window(),
    }))
}

impl<W: Bus> Driver for Gpu<W> {
    fn worker(&self) -> Result<Box<dyn Worker>, Stop> {
        let number = self.workers.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Launcher {
            context: self.contexts[number % 2].clone(),
            window: self.window,
        }))
    }

    fn close(self: Box<Self>) -> Outcome {
        let Self {
            device, svm, contexts, ..
        } = *self;
        drop(contexts);
        device.unregister().map_err(wrong)?;
        drop(svm);
        Ok(())
    }
}

impl<W: Bus> Worker for Launcher<W> {
    fn attempt(&mut self, steps: &[Step]) -> Done {
        let window = self.window;
        counted(steps, |steps, seen| {
            let item = self.context.launch(move |lane| {
                each(&steps, &seen, |step| match step.op {
                    Op::Load => lane.load(&window, step.addr),
                    Op::Store(value) => lane.store(&window, step.addr, value).map(|()| 0),
                    Op::Add(value) => lane.atomic(&window, step.addr, AtomicOp::Add(value)),
                })
            });
            let item = item.map_err(|error| match error {
                SvmError::Entry(error) => error.into(),
                other => Stop::failed(other),
            })?;
            Ok(item.wait()?)
        })
    }
}
