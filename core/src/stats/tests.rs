use super::*;

#[test]
fn quantiles_are_within_a_sixteenth() {
    let histogram = Histogram::default();
    for ns in 1..=10_000 {
        histogram.record(ns);
    }
    let read = histogram.read();
    assert_eq!(read.count, 10_000);
    assert_eq!(read.max, 10_000);
    assert!((5_000..=5_000 + 5_000 / 16).contains(&read.p50), "{read:?}");
    assert!((9_900..=10_000).contains(&read.p99), "{read:?}");
}

#[test]
fn an_empty_histogram_reads_zero_and_huge_latencies_fit() {
    let histogram = Histogram::default();
    assert_eq!(histogram.read(), Latency::default());
    histogram.record(u64::MAX);
    assert_eq!(histogram.read().count, 1);
}
