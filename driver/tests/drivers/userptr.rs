//! Submitted work: a few steps with the pages that they need as its objects. What was cancelled is submitted again from where it was.

use std::sync::Arc;

use isomem_conformance::Outcome;
use isomem_conformance::work::{Done, Driver, Step, Stop, Worker};
use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::bus::Bus;
use isomem_core::mirror::pin::Pin;
use isomem_core::notifier::Blocking;
use isomem_core::world::Access;
use isomem_drivers::userptr::{MAX_OBJECTS, Object, Policy, Stopped, SubmitError, UserPtr};

use super::{Host, Opened, counted, each, touch, wrong};

struct Device<W: Bus> {
    device: Arc<UserPtr<W>>,
    window: W::Window,
}

pub(crate) fn open<H: Host>(program: &H, _: &[PageRange]) -> Opened {
    let device = Arc::new(UserPtr::new(program.mm()).map_err(wrong)?);
    let window = program.window();
    Ok(Box::new(Device { device, window }))
}

impl<W: Bus> Driver for Device<W> {
    fn worker(&self) -> Result<Box<dyn Worker>, Stop> {
        Ok(Box::new(Self {
            device: self.device.clone(),
            window: self.window,
        }))
    }

    fn close(self: Box<Self>) -> Outcome {
        let device = Arc::into_inner(self.device).ok_or_else(|| wrong("somebody uses it"))?;
        device.close();
        Ok(())
    }
}

fn stop(error: SubmitError) -> Stop {
    match error {
        SubmitError::Fault(error) => error.into(),
        SubmitError::Stopped(Stopped::Cancelled(_)) => Stop::Again,
        other => Stop::failed(other),
    }
}

/// The pages that the first steps need, as many as can be named, and what for; with the number of these steps.
fn pages_of(steps: &[Step]) -> (Vec<(usize, Access)>, usize) {
    let mut pages: Vec<(usize, Access)> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let start = step.addr & !(PAGE_SIZE - 1);
        match pages.iter().position(|page| page.0 == start) {
            Some(at) => pages[at].1 = pages[at].1.max(step.op.access()),
            None if pages.len() == MAX_OBJECTS => return (pages, number),
            None => pages.push((start, step.op.access())),
        }
    }
    (pages, steps.len())
}

impl<W: Bus> Device<W> {
    fn submit(&self, steps: &[Step], pages: &[(usize, Access)]) -> Done {
        let window = self.window;
        let object =
            |&(start, access): &(usize, Access)| self.device.object(start, PAGE_SIZE, access, Policy::Survives);
        let objects: Result<Vec<Object<W>>, _> = pages.iter().map(object).collect();
        let starts: Vec<usize> = pages.iter().map(|page| page.0).collect();
        counted(steps, |steps, seen| {
            let objects = objects.map_err(Stop::failed)?;
            let objects: Vec<&Object<W>> = objects.iter().collect();
            let work = self.device.submit(&objects, Blocking::May, move |job| {
                each(&steps, &seen, |step| {
                    let object = starts.iter().position(|start| step.addr & !(PAGE_SIZE - 1) == *start);
                    let object = object.ok_or(Stopped::Outside)?;
                    let reach = |world: &W, pin: Pin<'_>| touch(world, &window, pin, step.op);
                    let done = job.with(object, step.addr % PAGE_SIZE, 8, step.op.access(), reach)?;
                    done.map_err(|_| Stopped::Outside)
                })
            });
            work.map_err(stop)
        })
    }
}

impl<W: Bus> Worker for Device<W> {
    fn attempt(&mut self, steps: &[Step]) -> Done {
        let mut all = Done::default();
        while all.stop.is_none() && all.seen.len() < steps.len() {
            let rest = &steps[all.seen.len()..];
            let (pages, count) = pages_of(rest);
            let Done { seen, stop } = self.submit(&rest[..count], &pages);
            all.seen.extend(seen);
            all.stop = stop;
        }
        all
    }
}
