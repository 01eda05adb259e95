use super::{Pte, Runs};
use isomem_core::world::PteRun;

#[test]
fn pmap_1_gaps_become_holes_and_equal_neighbours_join() {
    let present = Pte::Present {
        zero: false,
        huge: false,
    };
    let mut seen = Vec::new();
    let mut each = |run: PteRun| seen.push((run.range.start(), run.range.end(), run.pte));
    let mut runs = Runs {
        at: 0x1000,
        pending: None,
        each: &mut each,
    };
    runs.push(0x2000, 0x3000, present);
    runs.push(0x3000, 0x5000, present);
    runs.push(0x6000, 0x7000, Pte::Swapped);
    runs.finish(0x9000).unwrap();
    assert_eq!(
        seen,
        [
            (0x1000, 0x2000, Pte::None),
            (0x2000, 0x5000, present),
            (0x5000, 0x6000, Pte::None),
            (0x6000, 0x7000, Pte::Swapped),
            (0x7000, 0x9000, Pte::None),
        ]
    );
}
