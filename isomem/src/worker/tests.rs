use super::share;

#[test]
fn arg_2_shares_are_disjoint_and_cover() {
    for len in [0, 1, 2, 3, 7, 64, 1000, usize::MAX] {
        for count in 1..9 {
            let ends: Vec<_> = (0..count).map(|index| share(len, index, count)).collect();
            assert_eq!((ends[0].start, ends[count - 1].end), (0, len));
            assert!(ends.windows(2).all(|pair| pair[0].end == pair[1].start));
        }
    }
}
