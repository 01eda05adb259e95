//! Work launched on queues of two engines, every other worker on the other one. Graphics has a queue of all memory; compute, whose queue has to have each of its
//! pages, one of the page that comes next.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use isomem_conformance::Outcome;
use isomem_conformance::work::{Done, Driver, Step, Stop, Worker};
use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::bus::Bus;
use isomem_core::mirror::pin::Pin;
use isomem_core::world::Access;
use isomem_drivers::engines::{Engine, EngineError, Engines};

use super::{Host, Opened, counted, each, touch, wrong};

struct Device<W: Bus> {
    engines: Arc<Engines<W>>,
    window: W::Window,
    workers: AtomicUsize,
}

struct Unit<W: Bus> {
    engines: Arc<Engines<W>>,
    window: W::Window,
    engine: Engine,
}

pub(crate) fn open<H: Host>(program: &H, _: &[PageRange]) -> Opened {
    Ok(Box::new(Device {
        engines: Arc::new(Engines::new(program.mm()).map_err(wrong)?),
        window: program.window(),
        workers: AtomicUsize::new(0),
    }))
}

impl<W: Bus> Driver for Device<W> {
    fn worker(&self) -> Result<Box<dyn Worker>, Stop> {
        let number = self.workers.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Unit {
            engines: self.engines.clone(),
            window: self.window,
            engine: [Engine::Graphics, Engine::Compute][number % 2],
        }))
    }

    fn close(self: Box<Self>) -> Outcome {
        let engines = Arc::into_inner(self.engines).ok_or_else(|| wrong("somebody uses it"))?;
        engines.close();
        Ok(())
    }
}

fn stop(error: EngineError) -> Stop {
    match error {
        EngineError::Fault(error) => error.into(),
        other => Stop::failed(other),
    }
}

impl<W: Bus> Unit<W> {
    /// The queue's memory for the first steps, what for, and how many steps these are.
    fn next(&self, steps: &[Step]) -> (PageRange, Access, usize) {
        let page = |step: &Step| step.addr / PAGE_SIZE;
        let first = page(&steps[0]);
        match PageRange::from_pages(first, 1) {
            Some(range) if self.engine == Engine::Compute => {
                let count = steps.iter().take_while(|step| page(step) == first).count();
                let access = steps[..count].iter().map(|step| step.op.access()).max();
                (range, access.unwrap_or(Access::Read), count)
            }
            _ => (PageRange::ALL, Access::Write, steps.len()),
        }
    }

    fn launch(&self, steps: &[Step], memory: PageRange, access: Access) -> Done {
        let window = self.window;
        counted(steps, |steps, seen| {
            let queue = self.engines.queue(self.engine, memory, access).map_err(stop)?;
            let work = queue.launch(move |unit| {
                Ok(each(&steps, &seen, |step| {
                    let reach = |world: &W, pin: Pin<'_>| touch(world, &window, pin, step.op);
                    let done = unit.with(step.addr, 8, step.op.access(), reach).map_err(stop)?;
                    done.map_err(Stop::failed)
                }))
            });
            work.and_then(|work| work.wait()).map_err(stop)?
        })
    }
}

impl<W: Bus> Worker for Unit<W> {
    fn attempt(&mut self, steps: &[Step]) -> Done {
        let mut all = Done::default();
        while all.stop.is_none() && all.seen.len() < steps.len() {
            let rest = &steps[all.seen.len()..];
            let (memory, access, count) = self.next(rest);
            let Done { seen, stop } = self.launch(&rest[..count], memory, access);
            all.seen.extend(seen);
            all.stop = stop;
        }
        all
    }
}
