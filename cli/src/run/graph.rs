//! A directed graph out of an edge list, as compressed sparse rows in ordinary `Vec`s.

use super::Failure;
use super::input::{lines, show};
use std::path::Path;

/// The edges of vertex `v` lead to `targets[offsets[v]..offsets[v + 1]]`.
#[derive(Debug)]
pub(crate) struct Graph {
    /// What the file calls each vertex, in rising order.
    pub(crate) names: Vec<u64>,
    pub(crate) offsets: Vec<u64>,
    pub(crate) targets: Vec<u32>,
    /// Where the first edge of the file begins.
    pub(crate) first: u32,
}

/// Whether an edge leads both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    AsWritten,
    Both,
}

impl Graph {
    /// Reads lines of `u v`, apart by spaces or tabs. A third column (a weight or a time) is checked to be a number
    /// and otherwise left alone; `#` and `%` begin a comment.
    pub(crate) fn parse(path: &Path, text: &[u8], direction: Direction) -> Result<Self, Failure> {
        let mut edges = Vec::new();
        for (number, line) in lines(text) {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") || line.starts_with(b"%") {
                continue;
            }
            let Some(edge) = edge(line) else {
                let what = format!(
                    "'{}' is not an edge; write two vertex numbers, as in `12 34`",
                    show(line)
                );
                return Err(Failure::Malformed {
                    path: path.to_owned(),
                    line: number,
                    what,
                });
            };
            edges.push(edge);
        }
        match edges.first() {
            None => Err(Failure::Nothing {
                path: path.to_owned(),
                what: "no edge",
            }),
            Some(&(first, _)) => Self::build(path, edges, first, direction),
        }
    }

    fn build(path: &Path, edges: Vec<(u64, u64)>, first: u64, direction: Direction) -> Result<Self, Failure> {
        let too_large = || Failure::TooLarge { path: path.to_owned() };
        let mut names: Vec<u64> = edges.iter().flat_map(|&(from, to)| [from, to]).collect();
        names.sort_unstable();
        names.dedup();
        // The device marks a vertex that it has not reached with the highest number.
        u32::try_from(names.len() + 1).map_err(|_| too_large())?;
        let index = |name| names.binary_search(&name).unwrap_or_default() as u32;
        let mut edges: Vec<(u32, u32)> = edges.iter().map(|&(from, to)| (index(from), index(to))).collect();
        if direction == Direction::Both {
            edges.extend_from_within(..);
            let half = edges.len() / 2;
            edges[half..].iter_mut().for_each(|edge| *edge = (edge.1, edge.0));
        }
        let mut offsets = vec![0u64; names.len() + 1];
        edges.iter().for_each(|edge| offsets[edge.0 as usize + 1] += 1);
        for vertex in 1..offsets.len() {
            offsets[vertex] += offsets[vertex - 1];
        }
        let mut next = offsets.clone();
        let mut targets = vec![0u32; edges.len()];
        for (from, to) in edges {
            let place = &mut next[from as usize];
            targets[*place as usize] = to;
            *place += 1;
        }
        let first = index(first);
        Ok(Self {
            names,
            offsets,
            targets,
            first,
        })
    }

    pub(crate) fn vertices(&self) -> usize {
        self.names.len()
    }

    /// The vertex that the file calls so.
    pub(crate) fn vertex(&self, name: u64) -> Option<u32> {
        self.names.binary_search(&name).ok().map(|vertex| vertex as u32)
    }

    pub(crate) fn neighbours(&self, vertex: u32) -> &[u32] {
        let vertex = vertex as usize;
        &self.targets[self.offsets[vertex] as usize..self.offsets[vertex + 1] as usize]
    }
}

fn edge(line: &[u8]) -> Option<(u64, u64)> {
    let mut columns = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let edge = (columns.next()?.parse().ok()?, columns.next()?.parse().ok()?);
    match (columns.next(), columns.next()) {
        (None, _) => Some(edge),
        (Some(weight), None) => weight.parse::<f64>().ok().map(|_| edge),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
