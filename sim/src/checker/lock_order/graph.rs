//! The graph over lock classes, and the search for a cycle in it.
//!
//! # Invariants
//! - Edges are never removed: what was taken in some order once may be taken so again.
//! - A cycle is reported when its last condition is met: an edge, or the first writer of a class whose readers were links until then.

use super::is_same;
use crate::journal::Name;
use crate::sync::LockId;

/// What edges connect. The classes and the single locks are graphs apart from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    /// All locks of this name.
    Class(Name),
    /// One of them, in edges within its class.
    Single(Name, usize),
}

/// A thread wanted one lock while it held another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edge {
    pub(super) from: Node,
    pub(super) to: Node,
    /// Who was the first to do so.
    pub(super) thread: usize,
    pub(super) held: LockId,
    pub(super) wanted: LockId,
}

impl Edge {
    pub(super) fn new(thread: usize, held: LockId, wanted: LockId) -> Self {
        let node = |id: LockId| {
            if held.name == wanted.name {
                Node::Single(id.name, id.at)
            } else {
                Node::Class(id.name)
            }
        };
        Self {
            from: node(held),
            to: node(wanted),
            thread,
            held,
            wanted,
        }
    }

    /// Whether the other says the same. Within a class it matters who says it.
    fn repeats(&self, other: &Self) -> bool {
        self.from == other.from
            && self.to == other.to
            && self.held.shared == other.held.shared
            && self.wanted.shared == other.wanted.shared
            && (self.thread == other.thread || matches!(self.from, Node::Class(_)))
    }
}

/// The edges so far.
#[derive(Debug, Default)]
pub(super) struct Graph {
    edges: Vec<Edge>,
    /// Classes that somebody wanted for writing.
    written: Vec<Name>,
}

impl Graph {
    /// Adds an edge. Returns a cycle that it closes, itself first.
    pub(super) fn insert(&mut self, edge: Edge) -> Option<Vec<Edge>> {
        debug_assert!(!is_same(edge.held, edge.wanted), "a lock is no edge to itself");
        if self.edges.iter().any(|known| known.repeats(&edge)) {
            return None;
        }
        self.edges.push(edge);
        self.cycle(edge)
    }

    /// Notes that a class has a writer. Returns a cycle that this makes one.
    pub(super) fn note_writer(&mut self, id: LockId) -> Option<Vec<Edge>> {
        if id.shared || self.written.contains(&id.name) {
            return None;
        }
        self.written.push(id.name);
        let readers = self
            .edges
            .iter()
            .filter(|edge| edge.wanted.shared && edge.wanted.name == id.name);
        readers.copied().find_map(|edge| self.cycle(edge))
    }

    /// Whether who makes the edge `one` can wait for who makes the edge `next`.
    fn links(&self, one: &Edge, next: &Edge) -> bool {
        let excludes = !one.wanted.shared || !next.held.shared;
        one.to == next.from && (excludes || self.written.contains(&one.wanted.name))
    }

    /// A shortest cycle through the edge `first`, breadth first.
    fn cycle(&self, first: Edge) -> Option<Vec<Edge>> {
        // Each path's last edge, and the position of the path that it continues.
        let mut paths: Vec<(Edge, Option<usize>)> = vec![(first, None)];
        let mut next = 0;
        while next < paths.len() {
            let (last, _) = paths[next];
            if next > 0 && self.links(&last, &first) {
                let path = unwind(&paths, next);
                if counts(&path) {
                    return Some(path);
                }
            }
            for edge in self.edges.iter().filter(|edge| self.links(&last, edge)) {
                if !paths.iter().any(|(taken, _)| taken.repeats(edge)) {
                    paths.push((*edge, Some(next)));
                }
            }
            next += 1;
        }
        None
    }
}

/// Single locks: see the module above.
fn counts(cycle: &[Edge]) -> bool {
    matches!(cycle[0].from, Node::Class(_)) || cycle.iter().any(|edge| edge.thread != cycle[0].thread)
}

fn unwind(paths: &[(Edge, Option<usize>)], last: usize) -> Vec<Edge> {
    let mut path = Vec::new();
    let mut at = Some(last);
    while let Some(index) = at {
        path.push(paths[index].0);
        at = paths[index].1;
    }
    path.reverse();
    path
}
