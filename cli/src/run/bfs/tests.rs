use super::*;
use proptest::prelude::*;

fn graph(edges: &[(u64, u64)]) -> Graph {
    let text: String = edges.iter().map(|(from, to)| format!("{from} {to}\n")).collect();
    Graph::parse(Path::new("edges"), text.as_bytes(), Direction::AsWritten).expect("a graph")
}

#[test]
fn the_cpu_finds_the_shortest_way() {
    let graph = graph(&[(0, 1), (1, 2), (2, 3), (0, 3), (4, 0)]);
    let (levels, scanned) = on_cpu(&graph, 0);
    assert_eq!(levels, [0, 1, 2, 1, UNREACHED]);
    assert_eq!(scanned, 4);
}

#[test]
fn the_first_difference_is_named_as_the_file_names_it() {
    let graph = graph(&[(10, 20), (20, 30)]);
    assert_eq!(first_difference(&graph, &[0, 1, 2], &[0, 1, 2]), None);
    let said = first_difference(&graph, &[0, UNREACHED, 5], &[0, 1, 2]).expect("they differ");
    assert_eq!(said, "vertex 20 is unreached on the device, at level 1 on the CPU");
}

proptest! {
    /// Levels by relaxing every edge until nothing changes.
    #[test]
    fn levels_are_the_least_that_every_edge_allows(edges in prop::collection::vec((0..15u64, 0..15u64), 1..40)) {
        let graph = graph(&edges);
        let mut least = vec![u32::MAX; graph.vertices()];
        least[graph.first as usize] = 0;
        for _ in 0..graph.vertices() {
            for &(from, to) in &edges {
                let (from, to) = (graph.vertex(from).unwrap() as usize, graph.vertex(to).unwrap() as usize);
                least[to] = least[to].min(least[from].saturating_add(1));
            }
        }
        prop_assert_eq!(on_cpu(&graph, graph.first).0, least);
    }
}
