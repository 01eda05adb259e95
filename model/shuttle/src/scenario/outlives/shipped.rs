//! isomem's core in the simulated kernel: the process forks before it opens the device, and everything is used from both sides.
//!
//! ```text
//! parent                                   child                              gpu
//! sends a page, queues a job               .                                  takes the job
//! .                                        sends a page: refused              misses, brings the page in
//! exits: release stops the queue, waits    .                                  pins the page, works
//! every page comes home                    closes its copy                    .
//! sends a page: refused                    .                                  .
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use allocator_api2::alloc::Global;
use isomem_core::addr::{PAGE_SIZE, PageRange, VirtAddr};
use isomem_core::device::Device;
use isomem_core::migrate::MigrateError;
use isomem_core::mirror::pin::Pins;
use isomem_core::mirror::range::Placement;
use isomem_core::mirror::{DeviceHandle, Mirror, MirrorState};
use isomem_core::mm::{MemoryConfig, MemoryKind, Mm};
use isomem_core::notifier::{Answer, CallbackScope, Invalidation};
use isomem_core::world::Access;
use isomem_sim::checker::Verdict;
use isomem_sim::journal::{Event, Name};
use isomem_sim::kernel::{Kernel, Origin, Process};
use isomem_sim::world::SimWorld;

use super::{CHILD, File, Gpu, Job, PARENT};

const PAGE: usize = 1;

fn page() -> PageRange {
    PageRange::from_pages(PAGE, 1).expect("one page")
}

/// The driver's callbacks.
struct Side {
    gpu: Arc<Gpu>,
    /// The accesses under way.
    pins: Pins<Global>,
    process: Process,
}

impl Device for Side {
    fn invalidate(&self, invalidation: &Invalidation, _: &CallbackScope<'_>) {
        self.pins.flush(invalidation.range);
        let kernel = self.process.kernel();
        let wait = || {
            self.pins
                .wait_clear(invalidation.range, u64::MAX / 2, &|| kernel.now_ns(), &|ns| {
                    kernel.pause(ns);
                })
        };
        while wait().is_err() {}
    }

    fn try_invalidate(&self, invalidation: &Invalidation, _: &CallbackScope<'_>) -> Answer {
        self.pins.flush(invalidation.range);
        match self.pins.overlaps(invalidation.range) {
            Some(_) => Answer::Refused,
            None => Answer::Done,
        }
    }

    fn release(&self) {
        self.gpu.journal.record(Event::Release { mirror: "gpu" });
        self.gpu.stop();
        self.gpu.wait_idle();
    }
}

type TheMirror = Mirror<SimWorld, Side>;

/// The driver's open file, with the parent's mirror in it.
pub(super) struct Shipped {
    gpu: Arc<Gpu>,
    mm: Mm<SimWorld>,
    parent: Process,
    child: Process,
    state: Arc<MirrorState<SimWorld, Side>>,
    mirror: Mutex<Option<Arc<TheMirror>>>,
    device: Mutex<Option<DeviceHandle<SimWorld>>>,
}

impl Shipped {
    fn send(&self) -> Result<(), MigrateError> {
        let mirror = self.mirror.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mirror = mirror.ok_or(MigrateError::Released)?;
        mirror.migrate_to_device(page()).map(drop)
    }
}

impl File for Shipped {
    fn open(gpu: Arc<Gpu>, _: Name) -> Self {
        let parent = Kernel::new(&gpu.journal).process();
        parent.mmap_anonymous(page());
        let child = parent.fork(Origin::Program);
        parent.write(PAGE, 0, 7).expect("the page is mapped");
        let mm = Mm::new(SimWorld::new(&parent)).expect("the heap is large");
        let memory = MemoryConfig {
            name: "gpu",
            capacity_bytes: PAGE_SIZE,
            mirror_budget_bytes: None,
            kind: MemoryKind::Private,
        };
        let device = mm.register(memory).expect("there is room for a device");
        let side = Side {
            gpu: gpu.clone(),
            pins: Pins::new(1).expect("the heap is large"),
            process: parent.clone(),
        };
        let mirror = device.mirror(Arc::new(side)).expect("the device is there");
        Self {
            gpu,
            mm,
            parent,
            child,
            state: mirror.state().clone(),
            mirror: Mutex::new(Some(Arc::new(mirror))),
            device: Mutex::new(Some(device)),
        }
    }

    /// What a job works on is sent to the device before.
    fn submit(&self, meant: Name) -> bool {
        if meant == CHILD {
            self.child.enter();
        }
        if let Err(error) = self.send() {
            self.gpu.journal.note(format_args!("isomem says: {error}."));
            return false;
        }
        self.gpu.queue(Job { on: PARENT, meant });
        true
    }

    fn mm_goes(&self) {
        self.mm.exit();
        let device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let left = device.as_ref().map_or(0, |device| device.memory_pages().0);
        drop(device);
        if left > 0 {
            let sentence =
                format!("The parent's address space has gone, and {left} page of it is still on the device.");
            self.gpu.journal.found(Verdict::DeadAddressSpace, sentence);
        }
        if self.send().is_ok() {
            let sentence = "The mirror takes pages of the parent's, though the parent's address space has gone.";
            self.gpu.journal.found(Verdict::DeadAddressSpace, sentence);
        }
    }

    fn work(&self, gpu: &Gpu, job: Job) {
        let addr = VirtAddr::new(PAGE * PAGE_SIZE).expect("an address of the program");
        let side = self.state.device();
        let mut slot = side.pins.claim(self.state.table()).expect("one thread accesses memory");
        while !gpu.journal.is_decided() {
            if let Some(_pin) = slot.pin(addr, 8, Access::Write) {
                return gpu.work(job);
            }
            if let Err(error) = self.state.service_miss(addr, Access::Write, Placement::OnTouch) {
                return gpu.journal.note(format_args!("isomem says: {error}. The job ends."));
            }
        }
    }

    /// A fork's child has a copy of everything, and its copy of the mirror goes with its memory; the parent ends the mirror itself.
    fn close(&self) {
        if !self.parent.is_current() {
            return;
        }
        let mirror = self.mirror.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(mirror);
        self.gpu.journal.record(Event::Unregistered { mirror: "gpu" });
    }

    fn shut_down(&self) {
        self.close();
        let device = self.device.lock().unwrap_or_else(PoisonError::into_inner).take();
        if device.is_some_and(|device| device.unregister().is_err()) {
            self.gpu
                .journal
                .found(Verdict::Leak, "The file is closed, and the device has a mirror still.");
        }
        self.child.exit();
        self.parent.exit();
    }
}
