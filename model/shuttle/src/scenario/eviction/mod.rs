//! Eviction when more pages want to a device than it has room for (MIG-7).
//!
//! ```text
//! first                     second                    cpu
//! sends pages 0 and 1       sends pages 2 and 3       writes page 0
//! uses page 0 there         uses page 2 there         .
//! ```
//!
//! The device has room for two pages, so somebody must go for somebody to come: the question is what the one who sends holds while he waits for
//! that.

use std::sync::Arc;

use isomem_sim::checker::Verdict;

use super::{Design, Run, Scenario};

mod shipped;
mod under_the_pool_lock;
mod waits_for_owner;

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "eviction",
    about: "Two threads send pages to a device that has room for half of them. It may be slow, but it must not stick.",
    source: "MIG-7, MGR-4",
    designs: &[
        Design {
            name: "evict-waits-for-owner",
            about: "Each page of a request gets its place when its turn comes; if the oldest page there is still on its way, its owner will \
                    soon be done with it.",
            expected: Verdict::Deadlock,
            story: |run| tell(run, waits_for_owner::WaitsForOwner::new(run)),
        },
        Design {
            name: "evict-under-the-pool-lock",
            about: "The list of pages by age has a lock; who evicts keeps it, so that nobody else takes the same victim.",
            expected: Verdict::LockOrder,
            story: |run| tell(run, under_the_pool_lock::UnderThePoolLock::new(run)),
        },
        Design {
            name: "shipped",
            about: "Room is made before any page is in transit, with no lock held; a victim that is on its way is passed over.",
            expected: Verdict::Holds,
            story: shipped::tell_story,
        },
    ],
};

/// Pages that the device has room for.
pub const ROOM: usize = 2;

/// Memory that is shared with a small device, in some design.
pub trait SmallDevice: Send + Sync + 'static {
    /// Sends two pages there, as one request.
    fn send(&self, pages: [u64; 2]);
    /// The device uses a page, if it has it.
    fn device_use(&self, page: u64);
    /// The CPU writes to a page, wherever it is.
    fn cpu_write(&self, page: u64, value: u64);
    /// The CPU reads it.
    fn cpu_read(&self, page: u64);
    /// The story is over.
    fn shut_down(&self) {}
}

fn tell(run: &Run, memory: impl SmallDevice) {
    let memory = Arc::new(memory);
    let (first, second, cpu) = (memory.clone(), memory.clone(), memory.clone());
    let threads = [
        run.spawn("first", move || send_and_use(&*first, [0, 1])),
        run.spawn("second", move || send_and_use(&*second, [2, 3])),
        run.spawn("cpu", move || cpu.cpu_write(0, 5)),
    ];
    threads.into_iter().for_each(|thread| drop(thread.join()));
    memory.cpu_read(0);
    memory.shut_down();
}

/// The device may have the first page already where it is, and uses it once more where it goes.
fn send_and_use(memory: &impl SmallDevice, pages: [u64; 2]) {
    memory.device_use(pages[0]);
    memory.send(pages);
    memory.device_use(pages[0]);
}
