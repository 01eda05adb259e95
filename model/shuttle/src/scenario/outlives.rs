//! A mirror outlives its address space, and a fork inherits it.
//!
//! A driver's mirror is reached through a file, and files live by other rules than address spaces: a fork's child inherits the descriptor but has an
//! address space of its own, and the file stays open for as long as any process has it, long after the address space is gone. So neither who
//! has the file may use the mirror, nor is the mirror of use for as long as there is the file.
//!
//! ```text
//! parent                                child                         gpu
//! opens the device file, forks          .                             .
//! gives it a job                        .                             works on the parent's memory
//! exits: its address space goes         still has the file open       must not work any more
//! .                                     gives it a job: refused       .
//! .                                     closes the file               .
//! ```

mod designs;
mod shipped;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use isomem_sim::checker::Verdict;
use isomem_sim::journal::{Event, Journal, Name};
use isomem_sim::sync::{Condvar, Mutex, thread};

use super::{Design, Run, Scenario};

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "outlives",
    about: "A process opens a device file, forks, gives the device a job and exits; the child has the file still open. The device must never \
            work on an address space that is gone, nor on the parent's when the child asks.",
    source: "S4, LIFE-3, LIFE-4, LIFE-6",
    designs: &[
        Design {
            name: "child-uses-parents-mirror",
            about: "The mirror belongs to the file: whoever has the file open uses it.",
            expected: Verdict::WrongAddressSpace,
            story: story::<designs::MirrorOfFile>,
        },
        Design {
            name: "release-on-close",
            about: "The device is stopped when the file is closed for the last time, since then nobody can want it any more.",
            expected: Verdict::DeadAddressSpace,
            story: story::<designs::ReleaseOnClose>,
        },
        Design {
            name: "release-does-not-wait",
            about: "The device is told when the address space goes: no job is begun from then on. One that is under way is not waited for.",
            expected: Verdict::DeadAddressSpace,
            story: story::<designs::ReleaseDoesNotWait>,
        },
        Design {
            name: "shipped",
            about: "Each use asks whether the caller is of the mirror's address space. When that goes, release is called and waited for; what comes \
                    later is refused, and the file can be closed at any time.",
            expected: Verdict::Holds,
            story: story::<shipped::Shipped>,
        },
    ],
};

/// Jobs that a process gives the device.
const JOBS: usize = 2;

/// A process, and its address space by the same name.
const PARENT: Name = "parent";
/// Another.
const CHILD: Name = "child";

/// A driver, as an open file of it.
trait File: Send + Sync + 'static {
    /// The process with the address space `mm` opens it.
    fn open(gpu: Arc<Gpu>, mm: Name) -> Self;

    /// A process with the address space `mm` gives the device a job through it. False where the driver refuses.
    fn submit(&self, mm: Name) -> bool;

    /// The address space that the file was opened with goes; when this returns, it is gone.
    fn mm_goes(&self);

    /// No process has the file open any more.
    fn close(&self);

    /// The device's own thread does what it took from the queue.
    fn work(&self, gpu: &Gpu, job: Job) {
        gpu.work(job);
    }

    /// The story is over.
    fn shut_down(&self) {}
}

/// A job: to work on an address space.
#[derive(Debug, Clone, Copy)]
struct Job {
    /// The one that the device reaches.
    on: Name,
    /// The one that was meant.
    meant: Name,
}

/// What the device has to do.
#[derive(Debug, Default)]
struct Jobs {
    queue: VecDeque<Job>,
    /// A job is under way.
    busy: bool,
    /// Nothing is begun any more.
    stopped: bool,
}

/// A device with a queue of jobs.
#[derive(Debug)]
struct Gpu {
    journal: Journal,
    jobs: Mutex<Jobs>,
    idle: Condvar,
}

impl Gpu {
    fn new(run: &Run) -> Arc<Self> {
        Arc::new(Self {
            journal: run.journal.clone(),
            jobs: Mutex::new("job queue", Jobs::default()),
            idle: Condvar::new("device is idle"),
        })
    }

    fn queue(&self, job: Job) {
        self.journal.note(format_args!(
            "A job is queued: the device is to work on the {}'s memory.",
            job.on
        ));
        self.jobs.lock().queue.push_back(job);
    }

    /// Drops what is queued; nothing is begun any more. A job under way goes on.
    fn stop(&self) {
        let mut jobs = self.jobs.lock();
        jobs.stopped = true;
        jobs.queue.clear();
        self.journal.note("The device is stopped.");
    }

    /// Waits until no job is under way.
    fn wait_idle(&self) {
        let mut jobs = self.jobs.lock();
        while jobs.busy {
            jobs = self.idle.wait(jobs);
        }
    }

    /// The device's own thread: a piece of work, if there is any.
    fn run_one(&self, work: impl FnOnce(Job)) {
        let job = {
            let mut jobs = self.jobs.lock();
            let job = if jobs.stopped { None } else { jobs.queue.pop_front() };
            let Some(job) = job else { return };
            jobs.busy = true;
            job
        };
        work(job);
        self.jobs.lock().busy = false;
        self.idle.notify_all();
    }

    fn work(&self, job: Job) {
        thread::yield_now();
        self.journal.record(Event::Works {
            device: "gpu",
            mm: job.on,
        });
        if job.on != job.meant {
            let sentence = format!(
                "The device works on the {}'s memory, at addresses that the {} gave it and that mean something else there.",
                job.on, job.meant
            );
            self.journal.found(Verdict::WrongAddressSpace, sentence);
        }
    }
}

/// A descriptor table entry that processes share.
struct Descriptor<F> {
    file: F,
    open_in: AtomicUsize,
}

impl<F: File> Descriptor<F> {
    fn close(&self) {
        if self.open_in.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.file.close();
        }
    }
}

fn story<F: File>(run: &Run) {
    let gpu = Gpu::new(run);
    let descriptor = Arc::new(Descriptor {
        file: F::open(gpu.clone(), PARENT),
        open_in: AtomicUsize::new(2),
    });
    let threads = [
        {
            let (descriptor, journal) = (descriptor.clone(), run.journal.clone());
            run.spawn("parent", move || parent(&descriptor, &journal))
        },
        {
            let (descriptor, journal) = (descriptor.clone(), run.journal.clone());
            run.spawn("child", move || child(&descriptor, &journal))
        },
        {
            let descriptor = descriptor.clone();
            run.spawn("gpu", move || {
                (0..2 * JOBS).for_each(|_| gpu.run_one(|job| descriptor.file.work(&gpu, job)));
            })
        },
    ];
    for thread in threads {
        thread.join().expect("no thread of the story panics");
    }
    descriptor.file.shut_down();
}

/// Gives the device jobs and exits: first its address space goes, then its descriptors are closed.
fn parent<F: File>(descriptor: &Descriptor<F>, journal: &Journal) {
    for _ in 0..JOBS {
        descriptor.file.submit(PARENT);
    }
    journal.note("The process exits.");
    descriptor.file.mm_goes();
    journal.record(Event::Died { mm: PARENT });
    descriptor.close();
}

/// Uses the descriptor that it inherited, and closes it.
fn child<F: File>(descriptor: &Descriptor<F>, journal: &Journal) {
    if !descriptor.file.submit(CHILD) {
        journal.note("The child is refused: the mirror is not of its address space.");
    }
    thread::yield_now();
    journal.note("The child closes the file.");
    descriptor.close();
}
