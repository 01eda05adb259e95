//! Locks are taken in one order by everybody.
//!
//! Every lock that a thread wants while it holds another gives an edge between their classes: *holds this, wants that*. A cycle of edges is a deadlock that
//! waits for its schedule, and is reported with the chain of each edge, also where this schedule got away with it. Where threads
//! really do wait for each other in a circle, [`Checker::deadlock`] says who holds and wants what.
//!
//! # What counts as a cycle
//! - Between classes: any, of two classes or more, also when one thread alone took both orders: another could run the same code.
//! - Within a class, as of two directories of one table: single locks are compared, not classes. A parent's lock before its child's is an order
//!   as well; only a circle of the very same locks, made by two threads or more, is a finding. (A lock is known by its address. One thread that makes and
//!   drops locks of a class could meet an address again in another role, so it alone proves nothing.)
//! - Two readers do not exclude each other. A link of the cycle where the lock is held for reading and wanted for reading counts only if somebody
//!   wants the class for writing: a writer that waits in between makes later readers wait, in Linux as in std.
//! - A lock that was tried and taken has edges to what is wanted under it, but none leads to it: nobody waits for it.
//! - Who sleeps on a condition takes the mutex again under the locks it kept: edges as for any lock. The condition itself has none, as nobody
//!   knows who would have signalled it; it appears in the account of a deadlock.
//! - A thread that wants a lock which it holds itself will not come back, in any schedule: that is a deadlock at once.
//!
//! # Invariants
//! - CHK-11 (FLT-2): the graph of lock classes has no cycle that can deadlock.
//!
//! Linux: kernel/locking/lockdep.c has the idea.

use super::{Checker, Finding, Verdict};
use crate::journal::{Event, Name};
use crate::sync::{LockId, LockStep};

mod chains;
mod graph;

use chains::{Account, Words};
use graph::{Edge, Graph, Node};

/// What a thread holds and waits for.
#[derive(Debug, Default)]
struct Thread {
    name: String,
    /// In the order in which they were taken.
    held: Vec<LockId>,
    waits: Waits,
    /// What it left last: the mutex of a condition it goes to sleep on.
    left: Option<LockId>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Waits {
    /// It runs, as far as locks go.
    #[default]
    No,
    Lock(LockId),
    /// Asleep on a condition; then it needs the mutex again.
    Signal {
        condition: LockId,
        mutex: Option<LockId>,
    },
    /// Signalled. What it has next is the mutex.
    Mutex,
}

/// Watches locks.
#[derive(Debug)]
pub struct LockOrder {
    threads: Vec<Thread>,
    /// Classes that somebody wanted for reading: of those alone it is worth saying that a lock is held for writing.
    read: Vec<Name>,
    /// `None` where only a real deadlock is of interest.
    graph: Option<Graph>,
}

impl LockOrder {
    /// Reports a cycle as soon as its last edge is made.
    pub fn reporting() -> Self {
        Self {
            threads: Vec::new(),
            read: Vec::new(),
            graph: Some(Graph::default()),
        }
    }

    /// Only keeps the chains, for the account of a deadlock.
    pub fn watching() -> Self {
        Self {
            threads: Vec::new(),
            read: Vec::new(),
            graph: None,
        }
    }

    fn step(&mut self, index: usize, step: LockStep, id: LockId) -> Result<(), Finding> {
        let thread = &mut self.threads[index];
        match step {
            LockStep::Wants => {
                thread.waits = Waits::Lock(id);
                if id.shared && !self.read.contains(&id.name) {
                    self.read.push(id.name);
                }
                return self.wants(index, id);
            }
            LockStep::Has => {
                let again = thread.waits == Waits::Mutex;
                thread.waits = Waits::No;
                let result = if again { self.wants(index, id) } else { Ok(()) };
                self.threads[index].held.push(id);
                return result;
            }
            LockStep::Left => {
                if let Some(at) = thread.held.iter().rposition(|held| *held == id) {
                    thread.held.remove(at);
                }
                thread.left = Some(id);
            }
            LockStep::Sleeps => {
                thread.waits = Waits::Signal {
                    condition: id,
                    mutex: thread.left,
                };
            }
            LockStep::Wakes => thread.waits = Waits::Mutex,
        }
        Ok(())
    }

    fn wants(&mut self, index: usize, id: LockId) -> Result<(), Finding> {
        let thread = &self.threads[index];
        if thread.held.iter().any(|held| is_same(*held, id)) {
            let sentence = format!("{}, and so for itself", self.words().holds_and_waits(thread, id));
            return Err(Finding::new(Verdict::Deadlock, sentence));
        }
        let Some(graph) = &mut self.graph else { return Ok(()) };
        let mut cycle = graph.note_writer(id);
        for held in &thread.held {
            cycle = cycle.or_else(|| graph.insert(Edge::new(index, *held, id)));
        }
        match cycle {
            Some(cycle) => Err(self.cycle_found(&cycle)),
            None => Ok(()),
        }
    }

    fn words(&self) -> Words<'_> {
        Words { read: &self.read }
    }

    fn cycle_found(&self, cycle: &[Edge]) -> Finding {
        let words = self.words();
        let link = |edge: &Edge| {
            let another = if matches!(edge.to, Node::Single(..)) {
                "another "
            } else {
                ""
            };
            format!(
                "thread {} holds {} and wants {another}{}",
                self.threads[edge.thread].name,
                words.lock(edge.held),
                words.lock(edge.wanted)
            )
        };
        let links: Vec<String> = cycle.iter().map(link).collect();
        Finding::new(Verdict::LockOrder, links.join("; "))
    }
}

/// Whether two ways to hold a lock are of the same lock.
fn is_same(one: LockId, other: LockId) -> bool {
    one.at == other.at && one.name == other.name
}

impl Checker for LockOrder {
    fn observe(&mut self, thread: usize, name: &str, event: &Event) -> Result<(), Finding> {
        let Event::Lock(step, id) = *event else {
            return Ok(());
        };
        while self.threads.len() <= thread {
            self.threads.push(Thread::default());
        }
        if self.threads[thread].name.is_empty() {
            self.threads[thread].name = String::from(name);
        }
        self.step(thread, step, id)
    }

    fn deadlock(&self, threads: &[String]) -> Option<String> {
        Account {
            threads: &self.threads,
            names: threads,
            words: self.words(),
        }
        .sentence()
    }
}

#[cfg(test)]
mod tests;
