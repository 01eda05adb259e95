//! Serves faults of a simulated process: the part of `isomem-linux`'s pager, with its order.
//!
//! # Invariants
//! - PGR-1, PGR-2, PGR-4, PGR-6 as stated there: events before faults; only the leader fills holes; while an event is followed that may wait for
//!   pages in transit, messages are read on; departures and arrivals are held from before the read until its events are processed.
//!
//! # Locking
//! None of its own.

use std::sync::Arc;

use isomem_core::addr::{PAGE_SIZE, VirtAddr};
use isomem_core::mm::{CpuFault, HeldArrivals, LateEvent, Mm, Served};
use isomem_core::world::World;

use crate::journal::{self, Journal};
use crate::kernel::{Channel, Msg, Origin, Process};
use crate::sync::thread::JoinHandle;
use crate::sync::{AtomicBool, Ordering};
use crate::world::SimWorld;

/// Whether the arenas need a thread: they do where a device reaches memory through the CPU's page table, and so can run into a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arenas {
    /// A thread serves their faults.
    Served,
    /// There are none.
    Quiet,
}

/// What the threads share.
struct Shared {
    mm: Mm<SimWorld>,
    journal: Journal,
    stop: AtomicBool,
}

/// The pager's threads. Dropping it stops and joins them; by then no thread may wait for a page.
pub struct Pager {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl core::fmt::Debug for Pager {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Pager").finish_non_exhaustive()
    }
}

impl Pager {
    /// Starts serving the faults of `mm`.
    pub fn start(mm: &Mm<SimWorld>, journal: &Journal, arenas: Arenas) -> Self {
        let shared = Arc::new(Shared {
            mm: mm.clone(),
            journal: journal.clone(),
            stop: AtomicBool::new(false),
        });
        let process = mm.world().process();
        process.attach_reader(Channel::Program);
        let leader = shared.clone();
        let mut threads = vec![journal::spawn(journal, "pager", move || leader.lead())];
        if arenas == Arenas::Served {
            process.attach_reader(Channel::Arena);
            let server = shared.clone();
            threads.push(journal::spawn(journal, "arena pager", move || server.serve_arenas()));
        }
        Self { shared, threads }
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        // Release pairs with the Acquire in the threads' loops.
        self.shared.stop.store(true, Ordering::Release);
        let process = self.shared.process();
        process.nudge(Channel::Program);
        process.nudge(Channel::Arena);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        process.detach_reader(Channel::Program);
        process.detach_reader(Channel::Arena);
    }
}

/// A CPU fault.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Fault {
    page: usize,
    kind: CpuFault,
}

/// Messages that were read and are not processed yet.
#[derive(Default)]
struct Inbox {
    faults: Vec<Fault>,
    events: std::collections::VecDeque<Msg>,
}

impl Shared {
    fn process(&self) -> &Process {
        self.mm.world().process()
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The life of the leader.
    fn lead(self: &Arc<Self>) {
        while !self.stopped() {
            self.process().wait_messages(Channel::Program);
            self.process_batch();
        }
        self.process_batch();
    }

    fn process_batch(self: &Arc<Self>) {
        let mut inbox = Inbox::default();
        let departures = self.mm.hold_departures();
        let mut arrivals = Some(self.mm.hold_arrivals());
        self.read(&mut inbox);
        while let Some(event) = inbox.events.pop_front() {
            self.process_event(event, &mut inbox, &mut arrivals);
        }
        drop(arrivals);
        drop(departures);
        for fault in inbox.faults {
            self.serve(fault);
        }
    }

    fn read(&self, inbox: &mut Inbox) {
        for message in self.process().read_messages(Channel::Program) {
            let Msg::Fault {
                page,
                access,
                protected,
            } = message
            else {
                inbox.events.push_back(message);
                continue;
            };
            let kind = if protected {
                CpuFault::WriteProtected
            } else {
                CpuFault::Missing(access)
            };
            let fault = Fault { page, kind };
            if !inbox.faults.contains(&fault) {
                inbox.faults.push(fault);
            }
        }
    }

    fn process_event<'a>(self: &'a Arc<Self>, event: Msg, inbox: &mut Inbox, arrivals: &mut Option<HeldArrivals<'a>>) {
        match event {
            Msg::Removed(range, Origin::Program) => self.mm.late(LateEvent::Removed(range)),
            Msg::Unmapped(range, Origin::Program) => self.mm.late(LateEvent::Unmapped(range)),
            Msg::Remapped(from, to, Origin::Program) => {
                self.delegate(inbox, arrivals, move |shared| {
                    shared.mm.late(LateEvent::Remapped { from, to });
                });
            }
            Msg::Forked(child, Origin::Program) => {
                self.mm.late_fork();
                self.give_to_child(child);
            }
            Msg::Forked(child, Origin::Own) if self.mm.has_stragglers() => self.give_to_child(child),
            // Everything is at home; the child is left alone.
            Msg::Forked(child, Origin::Own) => self.process().release_child(child),
            Msg::Removed(..) | Msg::Unmapped(..) | Msg::Remapped(..) | Msg::Fault { .. } => {}
        }
    }

    /// With arrivals held: what came home now would be missing in the child.
    fn give_to_child(&self, child: usize) {
        self.mm.arena_runs(&mut |home, arena| {
            for (page, from) in (home.first_page()..home.end_page()).zip(arena.first_page()..) {
                self.process().copy_to_child(from, child, page);
            }
        });
        self.process().release_child(child);
    }

    /// Lets a helper process an event that may have to wait for pages in transit, and reads on until it has.
    fn delegate<'a>(
        self: &'a Arc<Self>,
        inbox: &mut Inbox,
        arrivals: &mut Option<HeldArrivals<'a>>,
        work: impl FnOnce(&Self) + Send + 'static,
    ) {
        *arrivals = None;
        let done = Arc::new(AtomicBool::new(false));
        let (shared, tell) = (self.clone(), done.clone());
        let helper = journal::spawn(&self.journal, "helper", move || {
            work(&shared);
            tell.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            self.read(inbox);
            self.mm.world().pause(20_000);
        }
        let _ = helper.join();
        *arrivals = Some(self.mm.hold_arrivals());
    }

    /// Serves a fault; every event that was read is processed.
    fn serve(&self, fault: Fault) {
        let Ok(addr) = VirtAddr::new(fault.page * PAGE_SIZE) else {
            return;
        };
        let mut served = self.mm.cpu_fault(addr, fault.kind);
        if served == Served::Hole {
            served = self.mm.fill_hole(addr, fault.kind);
        }
        match served {
            Served::Done | Served::InTransit => {}
            Served::Hole | Served::Again => self.mm.world().wake(addr.page()),
        }
    }

    /// The life of the thread that serves the arenas.
    fn serve_arenas(&self) {
        while !self.stopped() {
            self.process().wait_messages(Channel::Arena);
            for message in self.process().read_messages(Channel::Arena) {
                let Msg::Fault { page, .. } = message else { continue };
                let Ok(addr) = VirtAddr::new(page * PAGE_SIZE) else {
                    continue;
                };
                match self.mm.arena_fault(addr) {
                    Served::Done | Served::InTransit => {}
                    Served::Hole | Served::Again => self.mm.world().wake_arena(addr.page()),
                }
            }
        }
    }
}
