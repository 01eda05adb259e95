use super::{Mapping, own_in};
use isomem_core::addr::{BLOCK_SIZE, PAGE_SIZE};

fn is_own(range: isomem_core::addr::PageRange) -> bool {
    let mut found = false;
    own_in(range, &mut |own| found |= own.covers(range));
    found
}

#[test]
fn mapn_1_a_mapping_is_listed_as_long_as_it_lives() {
    let mapping = Mapping::new(4 * PAGE_SIZE).unwrap();
    let range = mapping.range();
    assert!(is_own(range));
    drop(mapping);
    assert!(!is_own(range));
}

#[test]
fn an_aligned_mapping_starts_at_a_block() {
    let mapping = Mapping::new_aligned(3 * BLOCK_SIZE).unwrap();
    assert!(mapping.range().start().is_multiple_of(BLOCK_SIZE));
    assert_eq!(mapping.range().len_bytes(), 3 * BLOCK_SIZE);
}

#[test]
fn mapn_2_a_mapping_kept_by_its_range_can_be_taken_up_again() {
    let range = Mapping::new(PAGE_SIZE).unwrap().into_range();
    assert!(is_own(range));
    drop(Mapping::from_range(range));
    assert!(!is_own(range));
}
