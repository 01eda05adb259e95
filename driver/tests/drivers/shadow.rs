//! Virtual CPUs that run for a few steps. The guest's physical addresses begin elsewhere than the program's.

use std::sync::Arc;

use isomem_conformance::Outcome;
use isomem_conformance::work::{Done, Driver, Step, Stop, Worker};
use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::bus::Bus;
use isomem_core::mirror::pin::Pin;
use isomem_drivers::shadow::{GuestError, MemSlot, Shadow};

use super::{Host, Opened, counted, each, touch, wrong};

/// The guest's page numbers are the program's less this one, so that neither begins at 0.
const BELOW: usize = 0x100;

struct Guest<W: Bus> {
    machine: Arc<Shadow<W>>,
    window: W::Window,
}

pub(crate) fn open<H: Host>(program: &H, memory: &[PageRange]) -> Opened {
    let slot = |&host: &PageRange| MemSlot {
        first_gfn: host.first_page() - BELOW,
        host,
    };
    let slots: Vec<MemSlot> = memory.iter().map(slot).collect();
    let machine = Shadow::new(program.mm(), &slots).map_err(wrong)?;
    Ok(Box::new(Guest {
        machine: Arc::new(machine),
        window: program.window(),
    }))
}

impl<W: Bus> Driver for Guest<W> {
    fn worker(&self) -> Result<Box<dyn Worker>, Stop> {
        Ok(Box::new(Self {
            machine: self.machine.clone(),
            window: self.window,
        }))
    }

    fn close(self: Box<Self>) -> Outcome {
        let machine = Arc::into_inner(self.machine).ok_or_else(|| wrong("somebody uses it"))?;
        machine.close();
        Ok(())
    }
}

impl<W: Bus> Worker for Guest<W> {
    fn attempt(&mut self, steps: &[Step]) -> Done {
        let window = self.window;
        counted(steps, |steps, seen| {
            let ran = self.machine.run(move |guest| {
                let mut access = |step: &Step| {
                    let gpa = step.addr - BELOW * PAGE_SIZE;
                    let reach = |world: &W, pin: Pin<'_>| touch(world, &window, pin, step.op);
                    let done = guest.with(gpa, 8, step.op.access(), reach).map_err(stop)?;
                    done.map_err(Stop::failed)
                };
                Ok(each(&steps, &seen, &mut access))
            });
            ran.map_err(stop)?
        })
    }
}

fn stop(error: GuestError) -> Stop {
    match error {
        GuestError::Fault(error) => error.into(),
        other => Stop::failed(other),
    }
}
