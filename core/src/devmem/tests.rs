use super::*;
use crate::addr::PageRange;
use allocator_api2::alloc::Global as Heap;

fn memory(capacity_pages: usize, chunks: usize) -> DeviceMemory<Heap> {
    let arena = PageRange::from_pages(1 << 20, chunks * PAGES_PER_BLOCK).unwrap();
    DeviceMemory::new(DeviceId(0), "test", MemoryKind::Private, capacity_pages, arena).unwrap()
}

fn block(number: usize) -> BlockId {
    BlockId::new(number).unwrap()
}

#[test]
fn mig_8_neither_capacity_nor_budget_is_ever_exceeded() {
    let memory = memory(100, 4);
    let (small, large) = (Budget::new(30), Budget::new(1000));
    assert_eq!(memory.reserve(50, &small), Ok(30));
    assert_eq!(memory.reserve(1, &small), Err(Full::Budget));
    assert_eq!(memory.reserve(500, &large), Ok(70));
    assert_eq!(memory.reserve(1, &large), Err(Full::Device));
    assert_eq!((large.used_pages(), memory.used_pages()), (70, 100));
    memory.unreserve(30, &small);
    assert_eq!(small.used_pages(), 0);
    assert_eq!(memory.reserve(500, &large), Ok(30));
}

#[test]
fn mig_7_the_least_recently_used_block_is_first_to_go() {
    let memory = memory(2048, 4);
    let grants: Vec<Grant> = (1..=3).map(|number| memory.grant(block(number)).unwrap()).collect();
    assert_eq!(memory.oldest(|_| true, 0), Some(block(1)));
    memory.touch(grants[0].chunk);
    assert_eq!(memory.oldest(|_| true, 0), Some(block(2)));
    assert_eq!(memory.oldest(|_| true, 1), Some(block(3)));
    assert_eq!(memory.oldest(|id| id != block(2), 0), Some(block(3)));
    memory.revoke(grants[1].chunk, Contents::Huge);
    assert_eq!(memory.oldest(|_| true, 0), Some(block(3)));
    memory.touch(grants[1].chunk);
    assert_eq!(
        memory.oldest(|_| true, 2),
        None,
        "a chunk without an owner is not in the list"
    );
}

#[test]
fn chunks_run_out_and_come_back_and_remember_what_was_in_them() {
    let memory = memory(2048, 2);
    let first = memory.grant(block(7)).unwrap();
    assert!(!first.broken);
    assert_eq!(memory.owner_of(first.base_page + 5), Some(block(7)));
    let second = memory.grant(block(8)).unwrap();
    assert!(memory.grant(block(9)).is_none());
    assert_eq!(memory.free_chunks(), 0);
    memory.revoke(second.chunk, Contents::Small);
    assert!(memory.grant(block(9)).unwrap().broken);
    memory.revoke(first.chunk, Contents::Huge);
    assert!(!memory.grant(block(9)).unwrap().broken);
}
