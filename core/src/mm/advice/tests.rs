use allocator_api2::alloc::Global as Heap;
use proptest::prelude::*;

use super::*;
use crate::addr::PAGES_PER_BLOCK;

const HERE: DeviceId = DeviceId(3);
const THERE: DeviceId = DeviceId(5);
/// Pages of the model, from number 0: a little more than a block.
const PAGES: usize = PAGES_PER_BLOCK + 64;

fn pages(first: usize, count: usize) -> PageRange {
    PageRange::from_pages(first, count).unwrap()
}

fn store() -> AdviceStore<Heap> {
    AdviceStore::new()
}

fn preferred(store: &AdviceStore<Heap>, page: usize) -> Preferred {
    store.at(page).preferred
}

fn entries(store: &AdviceStore<Heap>) -> Vec<(usize, usize, Advised), Heap> {
    let mut seen = Vec::new_in(Heap);
    for entry in store.list.lock().iter() {
        seen.push((entry.range.first_page(), entry.range.end_page(), entry.said));
    }
    seen
}

#[test]
fn mig_13_advice_holds_for_its_pages_only_and_takes_back_what_it_contradicts() {
    let store = store();
    store.advise(pages(10, 10), Advice::ReadMostly, HERE).unwrap();
    store.advise(pages(15, 10), Advice::PreferDevice, HERE).unwrap();
    assert!(!store.read_mostly(9) && store.read_mostly(10) && store.read_mostly(19) && !store.read_mostly(20));
    assert_eq!(preferred(&store, 14), Preferred::Anywhere);
    assert_eq!(preferred(&store, 15), Preferred::Device(HERE));
    store.advise(pages(12, 6), Advice::PreferHome, THERE).unwrap();
    assert_eq!(
        (preferred(&store, 17), preferred(&store, 18)),
        (Preferred::Home, Preferred::Device(HERE))
    );
    assert!(store.read_mostly(17), "where it is best says nothing about its use");
    store.advise(pages(0, 100), Advice::ReadWrite, HERE).unwrap();
    store.advise(pages(0, 100), Advice::PreferAnywhere, HERE).unwrap();
    assert!(entries(&store).is_empty());
}

#[test]
fn adv_1_equal_neighbours_are_one_entry() {
    let store = store();
    for first in [0, 8, 4, 2, 6] {
        store.advise(pages(first, 2), Advice::ReadMostly, HERE).unwrap();
    }
    let said = Advised::NOTHING.used(Usage::ReadMostly);
    assert_eq!(&entries(&store)[..], [(0, 10, said)]);
}

#[test]
fn adv_2_forgetting_the_middle_of_a_range_needs_no_memory() {
    let store = store();
    store.advise(pages(0, 400), Advice::PreferHome, HERE).unwrap();
    let capacity = store.list.lock().capacity();
    // More holes than there are places.
    for hole in (1..400).step_by(3) {
        store.forget(pages(hole, 1));
    }
    assert_eq!(store.list.lock().capacity(), capacity);
    let left = entries(&store);
    assert_eq!(left.len(), capacity, "each place is used");
    let is_hole = |page: &usize| page % 3 == 1;
    assert!(
        (0..400)
            .filter(is_hole)
            .all(|page| preferred(&store, page) == Preferred::Anywhere)
    );
    let before_the_last_cut = 0..3 * (capacity - 1) - 2;
    assert!(
        before_the_last_cut
            .filter(|page| !is_hole(page))
            .all(|page| preferred(&store, page) == Preferred::Home)
    );
}

#[test]
fn adv_3_a_device_that_goes_takes_its_preferences_along() {
    let store = store();
    store.advise(pages(0, 30), Advice::ReadMostly, HERE).unwrap();
    store.advise(pages(10, 10), Advice::PreferDevice, HERE).unwrap();
    store.advise(pages(40, 10), Advice::PreferDevice, HERE).unwrap();
    store.advise(pages(50, 10), Advice::PreferDevice, THERE).unwrap();
    store.forget_device(HERE);
    let (read, there) = (
        Advised::NOTHING.used(Usage::ReadMostly),
        Advised::NOTHING.preferring(Preferred::Device(THERE)),
    );
    assert_eq!(&entries(&store)[..], [(0, 30, read), (50, 60, there)]);
}

#[derive(Debug, Clone)]
enum Op {
    Advise(PageRange, Advice, DeviceId),
    Forget(PageRange),
    ForgetDevice(DeviceId),
}

fn range() -> impl Strategy<Value = PageRange> {
    (0_usize..PAGES, 1_usize..40).prop_map(|(first, count)| pages(first, count.min(PAGES - first)))
}

fn op() -> impl Strategy<Value = Op> {
    let advice = proptest::sample::select(&[
        Advice::ReadMostly,
        Advice::ReadWrite,
        Advice::PreferHome,
        Advice::PreferDevice,
        Advice::PreferAnywhere,
    ]);
    let device = prop_oneof![Just(HERE), Just(THERE)];
    prop_oneof![
        8 => (range(), advice, device.clone()).prop_map(|(range, advice, device)| Op::Advise(range, advice, device)),
        2 => range().prop_map(Op::Forget),
        1 => device.prop_map(Op::ForgetDevice),
    ]
}

/// The model: what was said, page by page. Its ranges are few enough for the store to have a place for each cut.
fn apply(flat: &mut [Advised; PAGES], op: &Op) {
    match *op {
        Op::Advise(range, advice, device) => {
            for said in &mut flat[range.first_page()..range.end_page()] {
                *said = said.with(advice, device);
            }
        }
        Op::Forget(range) => flat[range.first_page()..range.end_page()].fill(Advised::NOTHING),
        Op::ForgetDevice(device) => {
            for said in flat
                .iter_mut()
                .filter(|said| said.preferred == Preferred::Device(device))
            {
                said.preferred = Preferred::Anywhere;
            }
        }
    }
}

fn check(store: &AdviceStore<Heap>, flat: &[Advised; PAGES]) {
    for (page, said) in flat.iter().enumerate() {
        assert_eq!(store.at(page), *said, "page {page}");
    }
    let list = entries(store);
    for &(first, end, said) in &list {
        assert!(first < end && said != Advised::NOTHING, "ADV-1");
    }
    for pair in list.windows(2) {
        assert!(
            pair[0].1 < pair[1].0 || pair[0].1 == pair[1].0 && pair[0].2 != pair[1].2,
            "ADV-1: {list:?}"
        );
    }
    for accept in [Preferred::Home, Preferred::Anywhere] {
        let found = store.pages_of(BlockId::new(0).unwrap(), |said| said.preferred == accept);
        let model = (0..PAGES_PER_BLOCK).filter(|&page| flat[page].preferred == accept);
        assert!(found.runs().flatten().eq(model));
    }
}

proptest! {
    #[test]
    fn adv_1_adv_3_as_a_flat_model_says(ops in proptest::collection::vec(op(), 1..30)) {
        let (store, mut flat) = (store(), [Advised::NOTHING; PAGES]);
        for op in &ops {
            apply(&mut flat, op);
            match *op {
                Op::Advise(range, advice, device) => store.advise(range, advice, device).unwrap(),
                Op::Forget(range) => store.forget(range),
                Op::ForgetDevice(device) => store.forget_device(device),
            }
            check(&store, &flat);
        }
    }
}
