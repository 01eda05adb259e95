use super::*;
use proptest::prelude::*;

fn parse(text: &str, direction: Direction) -> Result<Graph, String> {
    Graph::parse(Path::new("edges"), text.as_bytes(), direction).map_err(|failure| failure.to_string())
}

#[test]
fn an_edge_list_in_snaps_format_is_read() {
    let graph = parse(
        "# comment\n# FromNodeId\tToNodeId\n70\t10\n10 70\n\n70 9000000000\r\n",
        Direction::AsWritten,
    )
    .expect("a graph");
    assert_eq!(graph.names, [10, 70, 9_000_000_000]);
    assert_eq!(graph.first, 1);
    assert_eq!(graph.neighbours(0), [1]);
    assert_eq!(graph.neighbours(1), [0, 2]);
    assert_eq!(graph.neighbours(2), [0u32; 0]);
    assert_eq!(graph.vertex(70), Some(1));
    assert_eq!(graph.vertex(71), None);
}

#[test]
fn a_malformed_edge_is_told_with_its_line() {
    for bad in [
        "1",
        "1 x",
        "-1 2",
        "1 2 3 4",
        "1 2 x",
        "99999999999999999999 1",
        "1,2",
        "\u{0}\u{1} 2",
    ] {
        let said = parse(&format!("# head\n0 1\n{bad}\n"), Direction::AsWritten).expect_err("malformed");
        assert!(said.contains("line 3"), "{bad:?}: {said}");
    }
    assert!(parse("1 2 0.5\n3 4 1700000000\n", Direction::AsWritten).is_ok());
}

#[test]
fn a_file_without_an_edge_is_told() {
    for empty in ["", "\n\n", "# only a comment"] {
        assert!(
            parse(empty, Direction::AsWritten)
                .expect_err("nothing")
                .contains("no edge")
        );
    }
}

proptest! {
    #[test]
    fn every_edge_is_in_the_rows(edges in prop::collection::vec((0..20u64, 0..20u64), 1..80)) {
        let text: String = edges.iter().map(|(from, to)| format!("{from} {to}\n")).collect();
        let graph = parse(&text, Direction::Both).expect("a graph");
        let mut found = Vec::new();
        for vertex in 0..graph.vertices() as u32 {
            for &to in graph.neighbours(vertex) {
                found.push((graph.names[vertex as usize], graph.names[to as usize]));
            }
        }
        let mut expected: Vec<_> = edges.iter().flat_map(|&(from, to)| [(from, to), (to, from)]).collect();
        expected.sort_unstable();
        found.sort_unstable();
        prop_assert_eq!(found, expected);
    }
}
