//! Results of real runs against what the usual tools say.

mod common;

use common::{Files, Random, c_rule, run_json, some_text, wc};
use proptest::prelude::*;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

#[test]
fn words_are_counted_as_wc_counts_them() {
    let files = Files::new();
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let binary = files.put(
        "binary",
        (0..200_000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect::<Vec<_>>(),
    );
    let text = files.put("text", some_text(200_000, 5000));
    for file in [
        &readme,
        &binary,
        &text,
        &files.put("long", vec![b'x'; 3 << 20]),
        &files.put("empty", ""),
    ] {
        if !file.exists() {
            println!("skipped: there is no {}", file.display());
            continue;
        }
        let object = run_json("wordcount", file, &["--words", c_rule()]);
        assert_eq!(object["result"]["words"], wc(file, "C"), "{}", file.display());
    }
    let utf8 = files.put("utf8", "Grüße — и слова\n日本語 é\u{1}x \u{1} ≤ 3\n".repeat(1000));
    assert_eq!(
        run_json("wordcount", &utf8, &["--words", "utf8"])["result"]["words"],
        wc(&utf8, "C.UTF-8")
    );
}

#[test]
fn the_most_frequent_words_are_told() {
    let files = Files::new();
    let object = run_json("wordcount", &files.put("text", "the cat the dog\nthe end cat"), &[]);
    assert_eq!(object["result"]["top"][0]["word"], "the");
    assert_eq!(object["result"]["top"][0]["count"], 3);
    assert_eq!(object["result"]["top"][1]["word"], "cat");
    assert_eq!(object["result"]["distinct"], 4);
}

#[test]
fn a_table_that_gets_full_grows() {
    let files = Files::new();
    let text: String = (0..40_000).map(|i| format!("{i}\n")).collect();
    assert_eq!(
        run_json("wordcount", &files.put("text", text), &[])["result"]["distinct"],
        40_000
    );
}

#[test]
fn numbers_are_sorted_by_value() {
    let (files, mut random) = (Files::new(), Random(3));
    for len in [1, 2, 511, 512, 513, 1024, 1025, 100_000] {
        let mut values: Vec<i64> = (0..len).map(|_| random.next() as i64 % 50_000 - 25_000).collect();
        let text: String = values.iter().map(|value| format!("{value}\n")).collect();
        let out = files.path("sorted");
        let object = run_json(
            "sort",
            &files.put("n", text),
            &["--output", out.to_str().unwrap(), "--workers", "3"],
        );
        assert_eq!(object["result"]["sorted_as"], "integers");
        values.sort_unstable();
        let sorted: String = values.iter().map(|value| format!("{value}\n")).collect();
        assert!(
            std::fs::read_to_string(out).expect("written") == sorted,
            "{len} numbers"
        );
    }
    let out = files.path("floats");
    let object = run_json(
        "sort",
        &files.put("f", "2.5\n-1e9\n\n3\n"),
        &["--output", out.to_str().unwrap()],
    );
    assert_eq!(object["result"]["sorted_as"], "floats");
    assert_eq!(
        std::fs::read_to_string(out).expect("written"),
        "-1000000000.0\n2.5\n3.0\n"
    );
}

#[test]
fn lines_are_sorted_as_sort_sorts_them() {
    let (files, mut random, mut text) = (Files::new(), Random(11), Vec::new());
    for _ in 0..30_000 {
        let shared = random.next() % 3;
        text.extend_from_slice(&b"the same beginning of more than eight bytes"[..14 * shared as usize]);
        text.extend((0..random.next() % 12).map(|_| [b'a', b'b', 0, 0xff, b'\r'][random.next() as usize % 5]));
        text.push(b'\n');
    }
    let (file, out) = (files.put("lines", text), files.path("sorted"));
    run_json("sort", &file, &["--output", out.to_str().unwrap()]);
    let expected = Command::new("sort")
        .arg(&file)
        .env("LC_ALL", "C")
        .output()
        .expect("sort runs")
        .stdout;
    assert!(std::fs::read(out).expect("written") == expected);
}

#[test]
fn a_graph_is_searched() {
    let files = Files::new();
    let edges = files.put("edges", "# a comment\n1\t2\n2\t3\n3\t4\n1\t4\n9\t1\n");
    let result = &run_json("bfs", &edges, &[])["result"];
    assert_eq!((&result["reached"], &result["depth"]), (&4.into(), &2.into()));
    let result = &run_json("bfs", &edges, &["--root", "9"])["result"];
    assert_eq!(
        (&result["reached"], &result["depth"], &result["root"]),
        (&5.into(), &3.into(), &9.into())
    );
    let result = &run_json("bfs", &edges, &["--undirected"])["result"];
    assert_eq!(result["reached"], 5);
}

#[test]
fn long_chains_and_broad_levels_are_searched() {
    let (files, mut random) = (Files::new(), Random(5));
    let chain: String = (0..50_000).map(|i| format!("{i} {}\n", i + 1)).collect();
    assert_eq!(
        run_json("bfs", &files.put("chain", chain), &[])["result"]["depth"],
        50_000
    );
    let star: String = (1..30_000)
        .map(|i| format!("0 {i}\n{i} {}\n", random.next() % 60_000))
        .collect();
    let result = &run_json("bfs", &files.put("star", star), &["--workers", "4"])["result"];
    assert!(result["reached"].as_u64().expect("a number") > 30_000);
}

#[test]
fn a_device_with_less_memory_than_the_data_evicts() {
    let files = Files::new();
    let evicted = |object: &serde_json::Value| object["stats"]["pages_home_by_eviction"].as_u64().expect("a number");
    let text = files.put("text", some_text(800_000, 3000));
    let object = run_json("wordcount", &text, &["--device-memory", "4M", "--words", c_rule()]);
    assert_eq!(object["result"]["words"], wc(&text, "C"));
    assert_eq!(object["stats"]["device_memory_bytes"], 4 << 20);
    assert!(evicted(&object) > 0);
    let mut random = Random(9);
    let numbers: String = (0..400_000).map(|_| format!("{}\n", random.next())).collect();
    let object = run_json("sort", &files.put("numbers", numbers), &["--device-memory", "4M"]);
    assert!(evicted(&object) > 0);
}

#[test]
fn statistics_tell_what_happened() {
    let files = Files::new();
    let object = run_json("wordcount", &files.put("text", some_text(300_000, 5000)), &[]);
    let stats = &object["stats"];
    let keys = "device_faults device_fault_p50_ns device_fault_p99_ns cpu_fault_p50_ns cpu_fault_p99_ns pages_to_device \
        pages_home_by_fault pages_home_by_eviction pages_home_by_request pages_duplicated duplicates_collapsed bytes_moved bytes_copied invalidations retries \
        collisions late_events device_ms cpu_ms";
    for key in keys.split_whitespace() {
        assert!(stats[key].is_number(), "{key} is missing");
    }
    for key in ["device_faults", "pages_to_device", "pages_home_by_fault", "bytes_moved"] {
        assert!(stats[key].as_u64().expect("a number") > 0, "{key} is 0");
    }
}

#[test]
fn in_place_moves_nothing() {
    let files = Files::new();
    let object = run_json(
        "wordcount",
        &files.put("text", some_text(100_000, 500)),
        &["--placement", "in-place"],
    );
    assert_eq!(object["stats"]["pages_to_device"], 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_counted_as_wc_counts_them(
        text in prop::collection::vec(prop_oneof![3 => prop::sample::select(&b"ab \n\t\x0b"[..]), 1 => any::<u8>()], 0..5000),
        workers in 1..5u8,
    ) {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(&text).expect("written");
        let object = run_json("wordcount", file.path(), &["--words", c_rule(), "--workers", &workers.to_string()]);
        prop_assert_eq!(&object["result"]["words"], wc(file.path(), "C"));
    }
}
