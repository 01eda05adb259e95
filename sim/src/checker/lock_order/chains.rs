//! The account of a deadlock: for every thread that waits, what it holds, what it waits for, and who has that.
//!
//! Threads are told in the order in which one waits for the next, so that a circle reads as one.

use super::{Thread, Waits, is_same};
use crate::journal::Name;
use crate::sync::LockId;

/// How to speak of locks.
#[derive(Clone, Copy)]
pub(super) struct Words<'a> {
    /// Classes that are read by somebody.
    pub(super) read: &'a [Name],
}

impl Words<'_> {
    /// A lock, and how it is held or wanted if there are two ways.
    pub(super) fn lock(self, id: LockId) -> String {
        let name = id.name;
        if id.shared {
            format!("`{name}` for reading")
        } else if self.read.contains(&name) {
            format!("`{name}` for writing")
        } else {
            format!("`{name}`")
        }
    }

    /// "thread a holds `x` and", or "thread a".
    fn opening(self, thread: &Thread) -> String {
        let held: Vec<String> = thread.held.iter().map(|id| self.lock(*id)).collect();
        if held.is_empty() {
            return format!("thread {}", thread.name);
        }
        format!("thread {} holds {} and", thread.name, held.join(" and "))
    }

    /// "thread a holds `x` and waits for `y`".
    pub(super) fn holds_and_waits(self, thread: &Thread, wanted: LockId) -> String {
        let is_namesake = |held: &LockId| held.name == wanted.name && held.at != wanted.at;
        let another = if thread.held.iter().any(is_namesake) {
            "another "
        } else {
            ""
        };
        format!("{} waits for {another}{}", self.opening(thread), self.lock(wanted))
    }
}

/// What there is to tell.
pub(super) struct Account<'a> {
    pub(super) threads: &'a [Thread],
    pub(super) names: &'a [String],
    pub(super) words: Words<'a>,
}

impl Account<'_> {
    /// The sentence, if any thread waits for a lock or a signal.
    pub(super) fn sentence(&self) -> Option<String> {
        let order = self.order();
        let mut told: Vec<String> = order.iter().map(|index| self.tell(*index)).collect();
        for (index, thread) in self.threads.iter().enumerate() {
            let is_waited_for = order.iter().any(|waiter| self.holder(*waiter) == Some(index));
            if is_waited_for && !order.contains(&index) {
                // As for the end of a thread.
                told.push(format!(
                    "{} waits for something that is no lock",
                    self.words.opening(thread)
                ));
            }
        }
        (!told.is_empty()).then(|| told.join("; "))
    }

    fn tell(&self, index: usize) -> String {
        let thread = &self.threads[index];
        let holder = self.holder(index);
        let by = holder.map(|by| self.names.get(by).unwrap_or(&self.threads[by].name));
        match (thread.waits, by) {
            (Waits::Lock(wanted), Some(by)) => {
                format!(
                    "{}, which thread {by} holds",
                    self.words.holds_and_waits(thread, wanted)
                )
            }
            (Waits::Signal { condition, mutex }, by) => {
                let opening = self.words.opening(thread);
                let asleep = format!("{opening} sleeps until `{}` is signalled", condition.name);
                match (mutex, by) {
                    (Some(mutex), Some(by)) => {
                        format!(
                            "{asleep}, and then needs {}, which thread {by} holds",
                            self.words.lock(mutex)
                        )
                    }
                    _ => format!("{asleep}, and nobody is left to do that"),
                }
            }
            _ => self.words.opening(thread),
        }
    }

    /// Who has the lock that a thread waits for.
    fn holder(&self, index: usize) -> Option<usize> {
        let wanted = match self.threads[index].waits {
            Waits::Lock(wanted) => wanted,
            Waits::Signal { mutex: Some(mutex), .. } => mutex,
            _ => return None,
        };
        let excludes = |held: &LockId| is_same(*held, wanted) && !(held.shared && wanted.shared);
        self.threads.iter().position(|thread| thread.held.iter().any(excludes))
    }

    /// The threads that cannot go on: circles first, then from those that nobody waits for.
    fn order(&self) -> Vec<usize> {
        let stuck: Vec<usize> = (0..self.threads.len()).filter(|index| self.is_stuck(*index)).collect();
        let is_waited_for = |index: usize| stuck.iter().any(|waiter| self.holder(*waiter) == Some(index));
        let circles = stuck.iter().filter(|index| self.is_in_circle(**index));
        let heads = stuck.iter().filter(|index| !is_waited_for(**index));
        let mut order = Vec::new();
        for start in circles.chain(heads).chain(&stuck) {
            let mut at = Some(*start);
            while let Some(index) = at.filter(|index| stuck.contains(index) && !order.contains(index)) {
                order.push(index);
                at = self.holder(index);
            }
        }
        order
    }

    fn is_stuck(&self, index: usize) -> bool {
        match self.threads[index].waits {
            Waits::Lock(_) => self.holder(index).is_some(),
            Waits::Signal { .. } => true,
            Waits::No | Waits::Mutex => false,
        }
    }

    fn is_in_circle(&self, start: usize) -> bool {
        let mut at = self.holder(start);
        for _ in self.threads {
            match at {
                Some(index) if index == start => return true,
                Some(index) => at = self.holder(index),
                None => return false,
            }
        }
        false
    }
}
