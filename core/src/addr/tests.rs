use proptest::prelude::*;

use super::*;

#[test]
fn bad_ranges_are_refused_each_for_its_reason() {
    assert_eq!(PageRange::new(0x1000, 0), Err(RangeError::Empty(0x1000)));
    assert!(matches!(
        PageRange::new(0x1001, 0x1000),
        Err(RangeError::Misaligned { .. })
    ));
    assert!(matches!(
        PageRange::new(0x1000, 0x1001),
        Err(RangeError::Misaligned { .. })
    ));
    assert!(matches!(
        PageRange::new(usize::MAX & !0xfff, 0x2000),
        Err(RangeError::Wraps { .. })
    ));
    assert!(matches!(
        PageRange::new(USER_END - PAGE_SIZE, 2 * PAGE_SIZE),
        Err(RangeError::NotUser(_))
    ));
    assert!(matches!(
        PageRange::new(0xffff_8000_0000_0000, PAGE_SIZE),
        Err(RangeError::NotUser(_))
    ));
    assert_eq!(PageRange::covering(5, 0), Err(RangeError::Empty(5)));
    assert!(matches!(
        PageRange::covering(usize::MAX, 2),
        Err(RangeError::Wraps { .. })
    ));
    assert!(VirtAddr::new(USER_END).is_err());
}

#[test]
fn covering_rounds_outwards() {
    let range = PageRange::covering(0x1fff, 2).unwrap();
    assert_eq!((range.start(), range.end()), (0x1000, 0x3000));
}

#[test]
fn masks_of_whole_words_and_edges() {
    assert!(PageMask::of(0, PAGES_PER_BLOCK).is_full());
    assert!(PageMask::of(7, 7).is_empty());
    let mask = PageMask::of(63, 129);
    assert_eq!(mask.count(), 66);
    assert_eq!(mask.runs().collect::<Vec<_>>(), vec![63..129]);
}

proptest! {
    #[test]
    fn a_mask_is_a_set(pages in proptest::collection::btree_set(0..PAGES_PER_BLOCK, 0..60)) {
        let mut mask = PageMask::NONE;
        pages.iter().for_each(|&page| mask.insert(page));
        prop_assert_eq!(mask.count(), pages.len());
        let listed: Vec<usize> = mask.runs().flatten().collect();
        prop_assert_eq!(listed, pages.iter().copied().collect::<Vec<_>>());
        pages.iter().for_each(|&page| mask.remove(page));
        prop_assert!(mask.is_empty());
    }

    #[test]
    fn spans_cut_a_range_at_block_borders(first in 0usize..4000, count in 1usize..4000) {
        let range = PageRange::from_pages(first, count).unwrap();
        let mut next = first;
        for span in range.spans() {
            prop_assert_eq!(span.range().first_page(), next);
            prop_assert_eq!(span.mask().count(), span.end - span.first);
            prop_assert_eq!(BlockId::of(VirtAddr::new(span.range().start()).unwrap()), span.block);
            next = span.range().end_page();
        }
        prop_assert_eq!(next, range.end_page());
    }
}
