use isomem_core::addr::PAGE_SIZE;

use super::{read, write};
use crate::sys::mapping::{self, Mapping};

#[test]
fn peek_1_what_cannot_be_accessed_is_a_short_count() {
    let two = Mapping::new(3 * PAGE_SIZE).expect("three pages");
    let range = two.range();
    mapping::protect(
        range.skip(1).expect("the second").take(1),
        Some(isomem_core::world::Access::Read),
    )
    .expect("protected");
    mapping::protect(range.skip(2).expect("the third"), None).expect("protected");
    let bytes = vec![7_u8; 3 * PAGE_SIZE];
    // SAFETY: the mapping is this test's own.
    assert_eq!(unsafe { write(range.start(), &bytes) }, Ok(PAGE_SIZE));
    let mut back = vec![0_u8; 3 * PAGE_SIZE];
    assert_eq!(read(range.start(), &mut back), Ok(2 * PAGE_SIZE));
    assert_eq!(back[..PAGE_SIZE], bytes[..PAGE_SIZE]);
    assert!(back[PAGE_SIZE..].iter().all(|byte| *byte == 0));
    mapping::protect(range, Some(isomem_core::world::Access::Write)).expect("protected");
}

#[test]
fn peek_1_addresses_without_memory_are_a_count_of_0() {
    for addr in [0, 1, usize::MAX - 7, 1 << 47, (1 << 47) - 4] {
        assert_eq!(read(addr, &mut [0; 8]), Ok(0), "{addr:#x}");
        // SAFETY: there is nothing there.
        assert_eq!(unsafe { write(addr, &[1; 8]) }, Ok(0), "{addr:#x}");
    }
    assert_eq!(read(0, &mut []), Ok(0));
}
