//! `run bfs`: level-synchronous breadth-first search on the device, over a graph in ordinary `Vec`s.
//!
//! The queue is one array that every reached vertex enters once: a level is a span of it. A worker takes an even share
//! of the level, and whoever changes a neighbour's level from [`UNREACHED`] by compare-and-exchange appends it. While
//! a level is small, one worker goes on to the next levels by itself, so that a long chain is not a launch per vertex.

use super::graph::{Direction, Graph};
use super::input::{self, vec_for};
use super::{Failure, Outcome, Progress, Session};
use crate::args::RunArgs;
use isomem::{Atomics, DeviceFault, Shared, Worker};
use serde::Serialize;
use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The level of a vertex that no edge has led to yet.
const UNREACHED: u32 = u32::MAX;
/// The queue's first cell holds its length; the vertices follow.
const HEAD: usize = 1;
/// A level of fewer vertices is one worker's.
const SMALL: usize = 256;
/// Edges at hand on a worker's stack.
const EDGES: usize = 256;

#[derive(Debug, Serialize)]
struct Searched {
    root: u64,
    vertices: usize,
    edges: usize,
    reached: usize,
    depth: u32,
    edges_scanned: u64,
    matches_cpu: bool,
}

/// Searches the file's graph.
pub(crate) fn run(options: &RunArgs, progress: &Progress) -> Result<Outcome, Failure> {
    progress.begin("reading");
    let path = &options.file;
    let text = input::read(path, |done, of| progress.set(done, of))?;
    progress.begin("building the graph");
    let direction = if options.undirected {
        Direction::Both
    } else {
        Direction::AsWritten
    };
    let graph = Graph::parse(path, &text, direction)?;
    drop(text);
    let root = match options.root {
        None => graph.first,
        Some(name) => graph.vertex(name).ok_or(Failure::NoSuchVertex {
            path: path.clone(),
            root: name,
        })?,
    };
    let search = Search::new(&graph, root, path)?;
    let cells = 4 * graph.vertices();
    let mut session = Session::open(options, &[2 * cells, 4 * graph.targets.len(), cells, cells])?;
    progress.begin("searching on the device");
    let edges_scanned = session.on_device(|session| search.on_device(session, progress))?;
    progress.begin("searching on the CPU");
    let (levels, difference) = session.on_cpu(|| {
        let levels: Vec<u32> = search.levels.iter().map(|level| level.load(Relaxed)).collect();
        let (by_cpu, scanned) = on_cpu(&graph, root);
        let difference = first_difference(&graph, &levels, &by_cpu).or_else(|| {
            (scanned != edges_scanned)
                .then(|| format!("{edges_scanned} edges scanned on the device, {scanned} on the CPU"))
        });
        (levels, difference)
    });
    let reached = || levels.iter().filter(|&&level| level != UNREACHED);
    let searched = Searched {
        root: graph.names[root as usize],
        vertices: graph.vertices(),
        edges: graph.targets.len(),
        reached: reached().count(),
        depth: reached().max().copied().unwrap_or_default(),
        edges_scanned,
        matches_cpu: difference.is_none(),
    };
    Ok(Outcome {
        text: tell(&searched),
        result: super::value(&searched),
        difference,
        happened: session.close()?,
    })
}

fn tell(searched: &Searched) -> String {
    let Searched {
        root,
        vertices,
        edges,
        reached,
        depth,
        edges_scanned,
        ..
    } = searched;
    format!(
        "{reached} of {vertices} vertices reached from {root}, depth {depth}, \
         {edges_scanned} of {edges} edges scanned\n"
    )
}

/// A search under way.
struct Search<'g> {
    graph: &'g Graph,
    levels: Vec<AtomicU32>,
    queue: Vec<AtomicU32>,
}

/// One level: its number, and where in the queue its vertices are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Level {
    number: u32,
    span: Range<usize>,
}

/// What a worker did in a launch.
struct Done {
    scanned: u64,
    /// The level that its last one leads to begins here and has this number.
    next: Level,
}

impl<'g> Search<'g> {
    fn new(graph: &'g Graph, root: u32, path: &Path) -> Result<Self, Failure> {
        let mut levels = vec_for(graph.vertices(), path)?;
        levels.resize_with(graph.vertices(), || AtomicU32::new(UNREACHED));
        let mut queue = vec_for(HEAD + graph.vertices(), path)?;
        queue.resize_with(HEAD + graph.vertices(), || AtomicU32::new(0));
        levels[root as usize].store(0, Relaxed);
        queue[0].store(1, Relaxed);
        queue[HEAD].store(root, Relaxed);
        Ok(Self { graph, levels, queue })
    }

    /// Searches level by level, and says how many edges were looked at.
    fn on_device(&self, session: &Session, progress: &Progress) -> Result<u64, Failure> {
        let mut level = Level { number: 0, span: 0..1 };
        let mut scanned = 0;
        while !level.span.is_empty() {
            let start = level.clone();
            let args = (
                &self.graph.offsets[..],
                &self.graph.targets[..],
                &self.levels[..],
                &self.queue[..],
            );
            let done = session.launch(args, |w, (offsets, targets, levels, queue)| {
                Device {
                    offsets,
                    targets,
                    levels,
                    queue,
                }
                .search(w, start.clone())
            })?;
            scanned += done.iter().map(|done| done.scanned).sum::<u64>();
            // With a small level the first worker went on alone, and knows best how far.
            let next = done.into_iter().map(|done| done.next).max_by_key(|next| next.number);
            let Some(next) = next else { break };
            let end = self.queue[0].load(Relaxed) as usize;
            level = Level {
                number: next.number,
                span: next.span.start..end,
            };
            progress.set(end as u64, self.levels.len() as u64);
        }
        Ok(scanned)
    }
}

/// The search as a worker sees it.
struct Device<'a> {
    offsets: Shared<'a, u64>,
    targets: Shared<'a, u32>,
    levels: Atomics<'a, u32>,
    queue: Atomics<'a, u32>,
}

impl Device<'_> {
    fn search(&self, w: &mut Worker<'_>, mut level: Level) -> Result<Done, DeviceFault> {
        let mut scanned = 0;
        if level.span.len() >= SMALL {
            let share = w.share(level.span.len());
            scanned = self.expand(w, &level, level.span.start + share.start..level.span.start + share.end)?;
            let next = Level {
                number: level.number + 1,
                span: level.span.end..level.span.end,
            };
            return Ok(Done { scanned, next });
        }
        while w.index() == 0 && !level.span.is_empty() && level.span.len() < SMALL {
            scanned += self.expand(w, &level, level.span.clone())?;
            let end = self.queue.load(w, 0)? as usize;
            level = Level {
                number: level.number + 1,
                span: level.span.end..end,
            };
        }
        Ok(Done { scanned, next: level })
    }

    /// Follows the edges of the vertices at `share` of the queue.
    fn expand(&self, w: &mut Worker<'_>, level: &Level, share: Range<usize>) -> Result<u64, DeviceFault> {
        let mut scanned = 0;
        let mut at_hand = [0u32; EDGES];
        for place in share {
            let vertex = self.queue.load(w, HEAD + place)? as usize;
            let edges = self.offsets.get(w, vertex)? as usize..self.offsets.get(w, vertex + 1)? as usize;
            scanned += edges.len() as u64;
            for from in edges.clone().step_by(EDGES) {
                let len = EDGES.min(edges.end - from);
                self.targets.read(w, from, &mut at_hand[..len])?;
                for &target in &at_hand[..len] {
                    self.reach(w, target, level.number + 1)?;
                }
            }
        }
        Ok(scanned)
    }

    fn reach(&self, w: &mut Worker<'_>, vertex: u32, level: u32) -> Result<(), DeviceFault> {
        let cell = vertex as usize;
        if self.levels.load(w, cell)? != UNREACHED || self.levels.compare_exchange(w, cell, UNREACHED, level)?.is_err()
        {
            return Ok(());
        }
        let place = self.queue.fetch_add(w, 0, 1)? as usize;
        self.queue.store(w, HEAD + place, vertex)
    }
}

/// The CPU's own search: levels, and edges looked at.
fn on_cpu(graph: &Graph, root: u32) -> (Vec<u32>, u64) {
    let mut levels = vec![UNREACHED; graph.vertices()];
    let mut queue = VecDeque::from([root]);
    let mut scanned = 0;
    levels[root as usize] = 0;
    while let Some(vertex) = queue.pop_front() {
        let next = levels[vertex as usize] + 1;
        for &target in graph.neighbours(vertex) {
            scanned += 1;
            if levels[target as usize] == UNREACHED {
                levels[target as usize] = next;
                queue.push_back(target);
            }
        }
    }
    (levels, scanned)
}

fn first_difference(graph: &Graph, device: &[u32], cpu: &[u32]) -> Option<String> {
    let vertex = device.iter().zip(cpu).position(|(device, cpu)| device != cpu)?;
    let told = |level: u32| {
        if level == UNREACHED {
            "unreached".to_owned()
        } else {
            format!("at level {level}")
        }
    };
    let (device, cpu) = (told(device[vertex]), told(cpu[vertex]));
    Some(format!(
        "vertex {} is {device} on the device, {cpu} on the CPU",
        graph.names[vertex]
    ))
}

#[cfg(test)]
mod tests;
