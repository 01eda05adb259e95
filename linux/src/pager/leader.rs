//! The thread that reads the program's descriptor.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use isomem_core::mm::{CpuFault, HeldArrivals, LateEvent, Served};
use isomem_core::world::{Access, World};

use super::ring::Work;
use super::{Fault, Pagee, Shared, count};
use crate::own::Change;
use crate::sys::uffd::{BATCH, Msg, Uffd};

/// Messages that are read on while an event is processed; enough for as many threads to wait at once.
const KEPT: usize = 4 * BATCH;
/// Pause between two reads that do not wait.
const READ_ON_NS: u64 = 20_000;

/// Messages that were read and are not processed yet.
struct Inbox {
    messages: [Msg; KEPT],
    len: usize,
}

impl Inbox {
    const fn new() -> Self {
        Self {
            messages: [const { Msg::Other(0) }; KEPT],
            len: 0,
        }
    }

    /// Takes the message out.
    fn take(&mut self, index: usize) -> Msg {
        core::mem::replace(&mut self.messages[index], Msg::Other(0))
    }

    fn room(&mut self) -> &mut [Msg] {
        &mut self.messages[self.len..]
    }
}

impl<P: Pagee> Shared<P> {
    /// The life of the leader.
    pub(super) fn lead(&self) {
        let mut inbox = Inbox::new();
        while !self.stop.load(Ordering::Acquire) {
            if self.world().program().wait().is_err() {
                count(&self.counts.read_errors);
                self.world().pause(100_000);
                continue;
            }
            count(&self.counts.batches);
            self.process(&mut inbox);
        }
        self.leave(&mut inbox);
    }

    /// Stays until everybody who nudges was heard, among them who stops us.
    fn leave(&self, inbox: &mut Inbox) {
        let own = self.world().own_changes();
        own.reader_gone();
        while !own.is_quiet() {
            self.process(inbox);
            self.world().pause(READ_ON_NS);
        }
    }

    /// Reads what is there, and processes it.
    fn process(&self, inbox: &mut Inbox) {
        let departures = self.pagee.hold_departures();
        let mut arrivals = self.pagee.hold_arrivals();
        self.read(inbox);
        self.process_events(inbox, &mut arrivals);
        drop(arrivals);
        drop(departures);
        self.process_faults(inbox);
        self.world().own_changes().sweep();
    }

    fn read(&self, inbox: &mut Inbox) {
        match self.world().program().try_read(inbox.room()) {
            Ok(read) => inbox.len += read,
            Err(_) => {
                count(&self.counts.read_errors);
                self.world().pause(READ_ON_NS);
            }
        }
    }

    /// Processes the events in the inbox, and those that arrive meanwhile, in order (PGR-1).
    fn process_events<'a>(&'a self, inbox: &mut Inbox, arrivals: &mut Option<HeldArrivals<'a>>) {
        let mut index = 0;
        while index < inbox.len {
            match inbox.take(index) {
                fault @ Msg::Fault { .. } => inbox.messages[index] = fault,
                Msg::Remove(range) if range == self.world().bell() => {
                    // Not swept here: of what is done by now, an event may lie in the inbox behind this one.
                    if self.world().features().event_remove() {
                        self.world().own_changes().nudge_over();
                    }
                }
                Msg::Remove(range) => self.changed(Change::Removed(range), LateEvent::Removed(range), inbox, arrivals),
                Msg::Unmap(range) => self.changed(Change::Unmapped(range), LateEvent::Unmapped(range), inbox, arrivals),
                Msg::Remap { from, to } => {
                    self.changed(
                        Change::Remapped(from, to),
                        LateEvent::Remapped { from, to },
                        inbox,
                        arrivals,
                    );
                }
                Msg::Fork(child) if self.world().own_changes().take(Change::Forked) => {
                    count(&self.counts.forks);
                    // Else everything is at home, and dropping the descriptor leaves the child alone.
                    if self.pagee.has_stragglers() {
                        self.give_to_child(child);
                    }
                }
                Msg::Fork(child) => {
                    count(&self.counts.late_events);
                    self.pagee.late_fork();
                    self.give_to_child(child);
                }
                Msg::Other(_) => {}
            }
            index += 1;
        }
    }

    /// With arrivals held: what came home now would be missing in the child.
    fn give_to_child(&self, child: OwnedFd) {
        self.pagee
            .give_to_child(&Uffd::of_child(child, self.world().features()));
    }

    fn changed<'a>(
        &'a self,
        change: Change,
        event: LateEvent,
        inbox: &mut Inbox,
        arrivals: &mut Option<HeldArrivals<'a>>,
    ) {
        if self.world().own_changes().take(change) {
            count(&self.counts.own_events);
            return;
        }
        count(&self.counts.late_events);
        match event {
            // Following a mapping waits for pages in transit.
            LateEvent::Remapped { .. } => self.delegate(Work::Late(event), inbox, arrivals),
            _ => self.pagee.late(event),
        }
    }

    /// Lets a helper process an event, and reads on until it has (PGR-4).
    fn delegate<'a>(&'a self, mut work: Work, inbox: &mut Inbox, arrivals: &mut Option<HeldArrivals<'a>>) {
        // Who has pages in transit may be about to bring them home.
        *arrivals = None;
        while let Err(back) = self.ring.put(work) {
            work = back;
            self.read_on(inbox);
        }
        while !self.ring.is_late_done() {
            self.read_on(inbox);
        }
        *arrivals = self.pagee.hold_arrivals();
    }

    fn read_on(&self, inbox: &mut Inbox) {
        self.read(inbox);
        self.world().pause(READ_ON_NS);
    }

    /// Hands out the faults in the inbox but the first, and serves that one.
    fn process_faults(&self, inbox: &mut Inbox) {
        let mut mine = None;
        for index in 0..inbox.len {
            let Some(fault) = fault_of(&inbox.messages[index]) else {
                continue;
            };
            let again = |other: &Msg| fault_of(other).is_some_and(|other| other.same_page(fault));
            if inbox.messages[..index].iter().any(again) {
                continue;
            }
            count(&self.counts.faults);
            if self.world().bell().contains(fault.addr.get()) {
                self.world().fill_zero(self.world().bell());
                self.world().own_changes().nudge_over();
            } else if self.is_marked(fault) {
                self.serve(fault);
            } else if mine.is_none() {
                mine = Some(fault);
            } else if self.ring.put(Work::Fault(fault)).is_ok() {
                count(&self.counts.handed);
            } else {
                self.requeue(fault);
            }
        }
        if let Some(fault) = mine {
            self.serve(fault);
        }
        inbox.len = 0;
    }

    fn is_marked(&self, fault: Fault) -> bool {
        let page = fault.page_number();
        // Acquire: pairs with the release of the helper that found the hole.
        self.mark(page)
            .compare_exchange(page, 0, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    /// The leader's own service of a fault; every event that was read is processed (PGR-2).
    fn serve(&self, fault: Fault) {
        let mut served = self.pagee.cpu_fault(fault.addr, fault.kind);
        if served == Served::Hole {
            served = self.pagee.fill_hole(fault.addr, fault.kind);
        }
        match served {
            Served::Done | Served::InTransit => {}
            Served::Hole | Served::Again => self.requeue(fault),
        }
    }
}

impl Fault {
    /// Whether serving one serves the other.
    fn same_page(self, other: Self) -> bool {
        let is_protection = |kind| kind == CpuFault::WriteProtected;
        self.page_number() == other.page_number() && is_protection(self.kind) == is_protection(other.kind)
    }
}

fn fault_of(message: &Msg) -> Option<Fault> {
    let Msg::Fault { addr, write, wp, .. } = *message else {
        return None;
    };
    let kind = match (wp, write) {
        (true, _) => CpuFault::WriteProtected,
        (false, true) => CpuFault::Missing(Access::Write),
        (false, false) => CpuFault::Missing(Access::Read),
    };
    Some(Fault { addr, kind })
}
