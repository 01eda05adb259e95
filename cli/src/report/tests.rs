use super::*;

#[test]
fn bytes_and_times_are_told_in_the_unit_that_fits() {
    assert_eq!(Bytes(512).to_string(), "512 B");
    assert_eq!(Bytes(64 << 20).to_string(), "64 MiB");
    assert_eq!(Bytes(1536).to_string(), "1.5 KiB");
    assert_eq!(Nanos(0).to_string(), "-");
    assert_eq!(Nanos(900).to_string(), "900 ns");
    assert_eq!(Nanos(1_500).to_string(), "1.5 us");
    assert_eq!(Nanos(2_500_000_000).to_string(), "2.50 s");
}

#[test]
fn late_events_are_summed() {
    let mut stats = Stats::default();
    stats.late_removed = 1;
    stats.late_unmapped = 2;
    stats.late_remapped = 3;
    stats.late_forked = 4;
    let happened = Happened::new(1 << 20, 2, "on-touch".into()).with(&stats, Duration::ZERO, Duration::ZERO);
    assert_eq!(happened.late_events, 10);
    assert!(happened.to_string().contains("2 workers, 1 MiB"));
}
