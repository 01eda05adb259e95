use core::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::time::Instant;

use super::{PIECE_BYTES, RawSpan, SpanError, Update};

/// Values, and the span over them. The span is only used while the values live and nobody else touches them.
fn span_of<T>(values: &mut [T]) -> RawSpan {
    RawSpan::new(values.as_mut_ptr().expose_provenance(), size_of_val(values))
}

// SAFETY comments below say "mapped": `values` outlives the span, is writable, and only the span touches it.

#[test]
fn span_1_out_of_bounds_is_an_error_and_touches_nothing() {
    let mut values = [1u64; 4];
    let span = span_of(&mut values[..3]);
    // SAFETY: mapped.
    assert_eq!(unsafe { span.read::<u64>(16) }, Ok(1));
    for offset in [17, 24, usize::MAX, usize::MAX - 7] {
        // SAFETY: mapped.
        let read = unsafe { span.read::<u64>(offset) };
        assert_eq!(
            read,
            Err(SpanError::OutOfBounds {
                offset,
                len_bytes: 8,
                span_bytes: 24
            })
        );
        // SAFETY: mapped.
        assert!(unsafe { span.write(offset, 9u64) }.is_err());
        // SAFETY: mapped.
        assert!(unsafe { span.update(offset, Update::Add, 9u64, Relaxed) }.is_err());
    }
    // SAFETY: mapped.
    assert!(unsafe { span.copy_from_slice(8, &[9u64; 3]) }.is_err());
    // SAFETY: mapped.
    assert!(unsafe { span.copy_to_slice(0, &mut [9u64; 4]) }.is_err());
    for count in [4, usize::MAX / 4, usize::MAX] {
        // SAFETY: mapped.
        assert!(unsafe { span.fill(0, count, 9u64) }.is_err());
        // SAFETY: mapped.
        assert!(unsafe { span.fold(0, count, 0, |sum: u64, value: u64| sum + value) }.is_err());
        // SAFETY: mapped.
        assert!(unsafe { span.map(0, count, |_: u64| 9) }.is_err());
    }
    assert_eq!(values, [1; 4]);
}

#[test]
fn span_1_a_part_is_within_the_whole() {
    let span = RawSpan::new(0x1000, 100);
    assert_eq!(span.part(10..20), Ok(RawSpan::new(0x100a, 10)));
    assert!(span.part(90..101).is_err() && span.part(101..101).is_err());
    assert!(span.part(100..100).is_ok_and(RawSpan::is_empty));
    assert_eq!(RawSpan::new(usize::MAX - 5, 100).len_bytes(), 5);
}

#[test]
fn a_misaligned_single_value_is_an_error() {
    let mut values = [0u64; 4];
    let span = span_of(&mut values);
    assert!(matches!(
        // SAFETY: mapped.
        unsafe { span.read::<u32>(2) },
        Err(SpanError::Misaligned { align: 4, .. })
    ));
    assert!(matches!(
        // SAFETY: mapped.
        unsafe { span.load::<u64>(4, Acquire) },
        Err(SpanError::Misaligned { align: 8, .. })
    ));
    // SAFETY: mapped.
    assert_eq!(unsafe { span.write(4, 7u32) }, Ok(()));
    assert_eq!(values[0], 7 << 32);
}

#[test]
fn span_2_atomics_of_each_width_change_only_their_word() {
    let mut values = [0u64; 2];
    let span = span_of(&mut values);
    // SAFETY: mapped.
    assert_eq!(unsafe { span.update(1, Update::Sub, 1u8, SeqCst) }, Ok(0));
    // SAFETY: mapped.
    assert_eq!(unsafe { span.update(2, Update::Or, 0x8001u16, SeqCst) }, Ok(0));
    // SAFETY: mapped.
    assert_eq!(unsafe { span.update(4, Update::Min, -5i32, SeqCst) }, Ok(0));
    // SAFETY: mapped.
    assert_eq!(unsafe { span.store(8, 40u64, SeqCst) }, Ok(()));
    assert_eq!(
        // SAFETY: mapped.
        unsafe { span.compare_exchange(8, 40u64, 41, (SeqCst, Relaxed)) },
        Ok(Ok(40))
    );
    assert_eq!(
        // SAFETY: mapped.
        unsafe { span.compare_exchange(8, 40u64, 42, (SeqCst, Relaxed)) },
        Ok(Err(41))
    );
    assert_eq!(values, [0xffff_fffb_8001_ff00, 41]);
    let span = span_of(&mut values);
    let updates = [
        (Update::Swap, 12),
        (Update::Add, 3),
        (Update::And, 14),
        (Update::Xor, 1),
        (Update::Max, 99),
    ];
    let seen = updates.map(|(update, operand)| {
        // SAFETY: mapped.
        unsafe { span.update(8, update, operand, SeqCst) }
    });
    assert_eq!(seen, [Ok(41u64), Ok(12), Ok(15), Ok(14), Ok(15)]);
    // SAFETY: mapped.
    assert_eq!(unsafe { span.load::<u64>(8, SeqCst) }, Ok(99));
}

#[test]
fn span_2_concurrent_adds_are_not_lost() {
    let mut values = [0u64; 1];
    let span = span_of(&mut values);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10_000 {
                    // SAFETY: mapped; all accesses are atomic.
                    unsafe { span.update(0, Update::Add, 1u64, Relaxed) }.unwrap();
                }
            });
        }
    });
    assert_eq!(values[0], 40_000);
}

#[test]
fn span_3_bulk_is_the_same_as_one_by_one_for_any_offset_and_count() {
    let mut values: Vec<u8> = (0..40_000u32).map(|n| (n * 7 % 251) as u8).collect();
    let plain = values.clone();
    let span = span_of(&mut values);
    let per_piece = PIECE_BYTES / 4;
    for offset in [0, 1, 3, 4096, 5001] {
        for count in [0, 1, 7, per_piece - 1, per_piece, per_piece + 1, 3 * per_piece + 5] {
            let bytes = &plain[offset..offset + count * 4];
            let expected: Vec<u32> = bytes
                .chunks(4)
                .map(|four| u32::from_ne_bytes(four.try_into().unwrap()))
                .collect();
            let mut seen = Vec::new();
            // SAFETY: mapped.
            unsafe { span.for_each(offset, count, |value: u32| seen.push(value)) }.unwrap();
            assert_eq!(seen, expected);
            let mut copied = vec![0u32; count];
            // SAFETY: mapped.
            unsafe { span.copy_to_slice(offset, &mut copied) }.unwrap();
            assert_eq!(copied, expected);
        }
    }
    // SAFETY: mapped.
    unsafe { span.map(1, 9001, |value: u32| value ^ 0x0101_0101) }.unwrap();
    let changed = |at: usize| (1..=9001 * 4).contains(&at);
    assert!(
        values
            .iter()
            .zip(&plain)
            .enumerate()
            .all(|(at, (new, old))| *new == old ^ u8::from(changed(at)))
    );
    let span = span_of(&mut values);
    // SAFETY: mapped.
    unsafe { span.fill(2, 3000, [1u8, 2, 3]) }.unwrap();
    assert_eq!(values[..3], [plain[0], plain[1] ^ 1, 1]);
    assert!(values[2..9002].chunks(3).all(|three| three == [1, 2, 3]));
    assert_eq!(values[9002], plain[9002] ^ 1);
}

/// `cargo test --release -p isomem-linux span -- --ignored --nocapture` prints the speed of a fold beside that of a slice.
#[test]
#[ignore = "measures; asserts nothing"]
fn speed_of_a_fold() {
    const SPAN_BYTES: usize = 2 << 20;
    let mut values: Vec<u64> = (0..8u64 << 20).collect();
    let span = span_of(&mut values);
    let (mut by_slice, mut by_fold, mut by_load) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..101 {
        let start = Instant::now();
        let plain: u64 = std::hint::black_box(&values[..]).iter().sum();
        by_slice.push(start.elapsed());
        let start = Instant::now();
        let folded = (0..span.len_bytes()).step_by(SPAN_BYTES).fold(0u64, |sum, at| {
            // SAFETY: mapped.
            unsafe { span.fold(at, SPAN_BYTES / 8, sum, |sum, value: u64| sum.wrapping_add(value)) }.unwrap()
        });
        by_fold.push(start.elapsed());
        let start = Instant::now();
        let loaded = (0..span.len_bytes()).step_by(8).fold(0u64, |sum, at| {
            // SAFETY: mapped.
            sum.wrapping_add(unsafe { span.load::<u64>(at, Relaxed) }.unwrap())
        });
        by_load.push(start.elapsed());
        assert!(plain == folded && plain == loaded);
    }
    let mut ratios: Vec<_> = by_fold
        .iter()
        .zip(&by_slice)
        .map(|(fold, slice)| fold.div_duration_f64(*slice))
        .collect();
    ratios.sort_unstable_by(f64::total_cmp);
    println!("fold / slice: median {:.3}", ratios[ratios.len() / 2]);
    for (name, times) in [("slice", &mut by_slice), ("fold", &mut by_fold), ("load", &mut by_load)] {
        times.sort_unstable();
        println!("{name}: min {:?}, median {:?}", times[0], times[times.len() / 2]);
    }
}
