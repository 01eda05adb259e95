//! Where preempted work waits, and the worker that restores its queue.

use isomem_core::addr::PageRange;
use isomem_core::mirror::install::Look;
use isomem_core::mirror::range::FaultError;
use isomem_core::notifier::Attempt;
use isomem_core::sync::{Condvar, Mutex};
use isomem_core::world::{Access, World};

use super::{MAX_QUEUES, State};
use crate::link::Shared;

/// What the restore worker did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Restores {
    /// Times that work of a queue, none of which waited yet, had to wait for it.
    pub asked: u64,
    /// Times the worker woke. At most as often as it was asked: it sleeps otherwise (ENG-4).
    pub woken: u64,
    /// Queues that it restored.
    pub restored: u64,
    /// Queues that it could not restore: their work was told why.
    pub failed: u64,
    /// Whether it sleeps.
    pub sleeps: bool,
}

/// A compute queue, as the worker sees it.
#[derive(Clone, Copy)]
struct Entry {
    memory: PageRange,
    access: Access,
    /// Units of work that wait.
    waiting: usize,
    /// They may go on: it was restored, and the look lasts.
    open: bool,
    /// Why it could not be restored, until everybody knows who waited.
    failed: Option<FaultError>,
}

struct Requests {
    queues: [Option<Entry>; MAX_QUEUES],
    /// The worker looks from here on, so that every queue gets its turn.
    next: usize,
    /// The one that the worker is at.
    served: Option<usize>,
    stopped: bool,
    restores: Restores,
}

/// See the module.
pub(super) struct Desk<W: World> {
    pub(super) state: Shared<W, State<W>>,
    requests: Mutex<Requests>,
    /// The worker sleeps here while nobody waits.
    asked: Condvar,
    /// Work that waits sleeps here, and the worker while it lets that go on.
    changed: Condvar,
}

impl<W: World> Desk<W> {
    pub(super) fn new(state: Shared<W, State<W>>) -> Self {
        let requests = Requests {
            queues: [None; MAX_QUEUES],
            next: 0,
            served: None,
            stopped: false,
            restores: Restores::default(),
        };
        Self {
            state,
            requests: Mutex::new("engines desk", requests),
            asked: Condvar::new("engines asked"),
            changed: Condvar::new("engines changed"),
        }
    }

    /// A seat for a queue; `None` where there are enough.
    pub(super) fn seat(&self, memory: PageRange, access: Access) -> Option<usize> {
        let mut requests = self.requests.lock();
        let seat = requests.queues.iter().position(Option::is_none)?;
        self.state.device().assign(seat, memory);
        requests.queues[seat] = Some(Entry {
            memory,
            access,
            waiting: 0,
            open: false,
            failed: None,
        });
        Some(seat)
    }

    /// The queue is gone. Its last work has just ended, so the worker is not at it for long.
    pub(super) fn leave(&self, seat: usize) {
        let mut requests = self.requests.lock();
        while requests.served == Some(seat) {
            requests = self.changed.wait(requests);
        }
        requests.queues[seat] = None;
    }

    pub(super) fn restores(&self) -> Restores {
        self.requests.lock().restores
    }

    /// Work of an evicted queue waits for its next access, which `access` makes if it can.
    pub(super) fn wait_for<R>(
        &self,
        seat: usize,
        access: &mut dyn FnMut() -> Result<Option<R>, FaultError>,
    ) -> Result<R, FaultError> {
        let mut requests = self.requests.lock();
        if requests.queue(seat).waiting == 0 {
            requests.restores.asked += 1;
            self.asked.notify_all();
        }
        requests.queue(seat).waiting += 1;
        let ended = loop {
            let stopped = requests.stopped;
            let queue = requests.queue(seat);
            if stopped {
                break Err(FaultError::Released);
            } else if let Some(error) = queue.failed {
                break Err(error);
            } else if queue.open {
                drop(requests);
                let made = access();
                requests = self.requests.lock();
                match made.transpose() {
                    Some(ended) => break ended,
                    // It was evicted again meanwhile.
                    None => requests.queue(seat).open = false,
                }
                self.changed.notify_all();
            } else {
                requests = self.changed.wait(requests);
            }
        };
        let queue = requests.queue(seat);
        queue.waiting -= 1;
        if queue.waiting == 0 {
            queue.failed = None;
        }
        self.changed.notify_all();
        ended
    }

    /// The worker's life: asleep unless somebody waits (ENG-4).
    pub(super) fn serve(&self) {
        let mut requests = self.requests.lock();
        while !requests.stopped {
            let Some((seat, queue)) = requests.take() else {
                requests.restores.sleeps = true;
                requests = self.asked.wait(requests);
                requests.restores.sleeps = false;
                requests.restores.woken += 1;
                continue;
            };
            drop(requests);
            let wanted = [(queue.memory, queue.access)];
            // The core has the loop and its bound (ENG-3).
            let restored = self
                .state
                .fault_then(queue.memory, &wanted, &mut |look| self.restore(seat, queue, look));
            requests = self.requests.lock();
            requests.settle(seat, restored);
            self.changed.notify_all();
        }
        self.changed.notify_all();
    }

    /// The queue runs again if its pages are all there (ENG-1), and if those who waited could make their access before it was evicted anew.
    fn restore(&self, seat: usize, queue: Entry, look: &Look<'_, W::Meta>) -> Attempt<()> {
        let has_all = self.state.table().has_all(queue.memory, queue.access);
        if has_all && self.state.device().resume(seat, || look.is_stale()) && self.let_go(seat) {
            Attempt::Done(())
        } else {
            Attempt::Retry
        }
    }

    fn let_go(&self, seat: usize) -> bool {
        let mut requests = self.requests.lock();
        requests.queue(seat).open = true;
        self.changed.notify_all();
        while requests.queue(seat).open && requests.queue(seat).waiting > 0 {
            requests = self.changed.wait(requests);
        }
        core::mem::replace(&mut requests.queue(seat).open, false)
    }

    /// The worker ends, and whoever waits is told so.
    pub(super) fn stop(&self) {
        self.requests.lock().stopped = true;
        self.asked.notify_all();
        self.changed.notify_all();
    }
}

impl Requests {
    /// A queue that is taken.
    fn queue(&mut self, seat: usize) -> &mut Entry {
        self.queues[seat]
            .as_mut()
            .expect("a queue has its seat while it has work")
    }

    /// What the worker restores next.
    fn take(&mut self) -> Option<(usize, Entry)> {
        let seats = (self.next..self.next + MAX_QUEUES).map(|seat| seat % MAX_QUEUES);
        let waits = |seat: usize| self.queues[seat].filter(|queue| queue.waiting > 0 && queue.failed.is_none());
        let (seat, queue) = seats.into_iter().find_map(|seat| Some((seat, waits(seat)?)))?;
        self.next = seat + 1;
        self.served = Some(seat);
        Some((seat, queue))
    }

    fn settle(&mut self, seat: usize, restored: Result<(), FaultError>) {
        self.served = None;
        match restored {
            Ok(()) => self.restores.restored += 1,
            Err(error) => {
                self.restores.failed += 1;
                let queue = self.queue(seat);
                queue.failed = Some(error).filter(|_| queue.waiting > 0);
            }
        }
    }
}
