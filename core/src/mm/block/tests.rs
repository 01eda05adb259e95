use super::*;
use allocator_api2::alloc::Global as Heap;

fn residency(device: u8) -> Residency<Heap> {
    Residency {
        device: DeviceId(device),
        chunk: ChunkId::for_tests(0),
        base_page: 0,
        pages: PageMask::NONE,
        claimed: PageMask::NONE,
        exclusive: PageMask::NONE,
        duplicates: PageMask::NONE,
        huge: false,
        fenced: false,
        incoming: 0,
        charge: Heap::share(Budget::new(512)).unwrap(),
    }
}

#[test]
fn known_blocks_come_in_order_and_cut_to_the_range() {
    let table = BlockTable::<Heap>::new();
    for number in [3, 600, BlockId::COUNT - 1] {
        table.get_or_insert(BlockId::new(number).unwrap()).unwrap();
    }
    assert!(table.get(BlockId::new(4).unwrap()).is_none());
    let all: Vec<usize> = table.known(PageRange::ALL).map(|(block, _)| block.id.get()).collect();
    assert_eq!(all, [3, 600, BlockId::COUNT - 1]);
    let part = PageRange::from_pages(3 * PAGES_PER_BLOCK + 10, 600 * PAGES_PER_BLOCK).unwrap();
    let spans: Vec<_> = table.known(part).map(|(_, span)| (span.first, span.end)).collect();
    assert_eq!(spans, [(10, 512), (0, 512)]);
}

#[test]
fn mig_3_settling_tells_who_waits_and_only_for_the_pages_that_settled() {
    let table = BlockTable::<Heap>::new();
    let block = table.get_or_insert(BlockId::new(1).unwrap()).unwrap();
    let mut state = block.lock();
    state.transit = PageMask::of(0, 8);
    state.waiters = PageMask::of(2, 6);
    assert_eq!(block.settle(&mut state, PageMask::of(0, 4)).pages, PageMask::of(2, 4));
    assert_eq!(state.transit, PageMask::of(4, 8));
    assert_eq!(state.waiters, PageMask::of(4, 6));
}

#[test]
fn a_residency_is_taken_only_when_empty_and_nothing_is_on_its_way() {
    let table = BlockTable::<Heap>::new();
    let block = table.get_or_insert(BlockId::new(1).unwrap()).unwrap();
    let mut state = block.lock();
    state.residencies[0] = Some(residency(1));
    state.on_mut(DeviceId(1)).unwrap().incoming = 1;
    assert!(state.take_empty(DeviceId(1)).is_none());
    state.on_mut(DeviceId(1)).unwrap().incoming = 0;
    state.on_mut(DeviceId(1)).unwrap().pages.insert(5);
    assert!(state.take_empty(DeviceId(1)).is_none());
    assert!(state.holding(5).is_some() && !state.at_home().has(5));
    state.on_mut(DeviceId(1)).unwrap().pages.remove(5);
    assert!(state.take_empty(DeviceId(2)).is_none());
    assert!(state.take_empty(DeviceId(1)).is_some());
}

#[test]
fn a_waiter_sleeps_until_its_pages_settle() {
    let table = BlockTable::<Heap>::new();
    let block = table.get_or_insert(BlockId::new(1).unwrap()).unwrap();
    block.lock().transit = PageMask::of(0, 2);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| block.wait_settled(PageMask::of(1, 2)).transit.is_empty());
        while block.lock().sleepers == 0 {
            std::thread::yield_now();
        }
        let _ = block.settle(&mut block.lock(), PageMask::of(0, 2));
        assert!(waiter.join().unwrap());
    });
}

#[test]
fn mig_10_a_claimed_page_is_at_home_and_keeps_its_residency() {
    let table = BlockTable::<Heap>::new();
    let block = table.get_or_insert(BlockId::new(1).unwrap()).unwrap();
    let mut state = block.lock();
    state.residencies[0] = Some(residency(1));
    let claiming = state.on_mut(DeviceId(1)).unwrap();
    claiming.claimed = PageMask::of(4, 6);
    assert_eq!(claiming.held(), PageMask::of(4, 6));
    assert!(state.at_home().has(5) && state.holding(5).is_none() && state.has_claims());
    assert!(state.take_empty(DeviceId(1)).is_none());
    assert!(state.claimed_by_others(DeviceId(1)).is_empty());
    assert_eq!(state.claimed_by_others(DeviceId(2)), PageMask::of(4, 6));
    assert_eq!(state.on_mut(DeviceId(1)).unwrap().give_back(PageMask::of(0, 5)), 1);
    assert_eq!(state.on_mut(DeviceId(1)).unwrap().give_back(PageMask::FULL), 1);
    assert!(state.take_empty(DeviceId(1)).is_some());
}

#[test]
fn mig_11_a_page_that_leaves_the_arena_is_no_longer_exclusive() {
    let mut residency = residency(1);
    residency.pages = PageMask::FULL;
    residency.exclusive = PageMask::of(0, 4);
    residency.huge = true;
    residency.leave(PageMask::of(2, 3));
    assert_eq!(residency.exclusive.count(), 3);
    assert!(!residency.huge && residency.pages.count() == PAGES_PER_BLOCK - 1);
}
