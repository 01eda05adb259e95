//! The device that a run works on, and the time that it and the CPU take.

use super::{Failure, causes};
use crate::args::RunArgs;
use crate::report::Happened;
use isomem::{Args, DeviceFault, Mirror, Mm, SoftConfig, SoftDevice, Worker};
use std::time::{Duration, Instant};

/// The unit in which a device keeps memory.
const CHUNK: usize = 2 << 20;

/// An address space, a device and its mirror, for one run.
pub(crate) struct Session {
    mm: Mm,
    device: SoftDevice,
    mirror: Mirror,
    happened: Happened,
    on_device: Duration,
    on_cpu: Duration,
}

impl Session {
    /// Opens this process's memory to a device that has room for buffers of these lengths, unless told otherwise.
    pub(crate) fn open(options: &RunArgs, buffers: &[usize]) -> Result<Self, Failure> {
        let memory_bytes = options.device_memory.map_or_else(|| room_for(buffers), |size| size.0);
        let workers = options.workers();
        let config = SoftConfig {
            workers,
            memory_bytes,
            placement: options.placement.0,
            ..SoftConfig::default()
        };
        let mm = Mm::current().map_err(|error| Failure::Open(causes(&error)))?;
        let device = mm
            .soft_device(config)
            .map_err(|error| Failure::Device(causes(&error)))?;
        let mirror = device.mirror().map_err(|error| Failure::Device(causes(&error)))?;
        let happened = Happened::new(memory_bytes, workers, options.placement.to_string());
        Ok(Self {
            mm,
            device,
            mirror,
            happened,
            on_device: Duration::ZERO,
            on_cpu: Duration::ZERO,
        })
    }

    /// Runs a kernel on every worker of the device.
    pub(crate) fn launch<A, R, F>(&self, args: A, kernel: F) -> Result<Vec<R>, Failure>
    where
        A: Args,
        R: Send,
        F: for<'v> Fn(&mut Worker<'_>, A::Handle<'v>) -> Result<R, DeviceFault> + Sync,
    {
        self.mirror
            .launch(args, kernel)
            .map_err(|error| Failure::Launch(causes(&error)))
    }

    /// Times what is done on the device.
    pub(crate) fn on_device<R>(&mut self, work: impl FnOnce(&Self) -> R) -> R {
        let started = Instant::now();
        let done = work(self);
        self.on_device += started.elapsed();
        done
    }

    /// Times what the CPU does afterwards: its touches bring the pages home.
    pub(crate) fn on_cpu<R>(&mut self, work: impl FnOnce() -> R) -> R {
        let started = Instant::now();
        let done = work();
        self.on_cpu += started.elapsed();
        done
    }

    /// What happened. The mirror, the device and the address space go, in this order, and the device's pages come home.
    pub(crate) fn close(self) -> Result<Happened, Failure> {
        let happened = self.happened.with(&self.mm.stats(), self.on_device, self.on_cpu);
        self.mirror.unregister();
        self.device
            .unregister()
            .map_err(|busy| Failure::Device(causes(&busy)))?;
        drop(self.mm);
        Ok(happened)
    }
}

/// Whole chunks for each buffer, wherever it begins, and some to spare.
fn room_for(buffers: &[usize]) -> usize {
    let chunks: usize = buffers.iter().map(|bytes| bytes.div_ceil(CHUNK) + 1).sum();
    (chunks + 8) * CHUNK
}
