use super::Exclusions;
use crate::sys::mapping::Mapping;
use crate::sys::maps::{Maps, Name, Vma};
use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::world::{Area, Backing};

static IN_DATA: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

fn classify(vma: &Vma, range: PageRange) -> Vec<Area> {
    let mut areas = Vec::new();
    Exclusions::new()
        .unwrap()
        .classify(vma, range, &mut |area| areas.push(area));
    areas
}

fn anonymous(range: PageRange) -> Vma {
    Vma {
        range,
        read: true,
        write: true,
        exec: false,
        shared: false,
        file: false,
        inode: 0,
        offset: 0,
        name: Name::None,
        page_bytes: PAGE_SIZE,
    }
}

fn backing_of(addr: usize) -> Backing {
    let page = PageRange::covering(addr, 1).unwrap();
    let mut found = Vec::new();
    let exclusions = Exclusions::new().unwrap();
    let each = &mut |vma: Vma| exclusions.classify(&vma, page, &mut |area| found.push(area.backing));
    Maps::open().unwrap().in_range(page, each).unwrap();
    assert_eq!(found.len(), 1);
    found[0]
}

#[test]
fn area_2_an_area_is_cut_at_a_mapping_of_our_own() {
    let own = Mapping::new(2 * PAGE_SIZE).unwrap();
    let first = own.range().first_page();
    let joined = PageRange::from_pages(first - 3, 8).unwrap();
    let areas = classify(&anonymous(joined), joined);
    let excluded = |page: usize| {
        let mut at = areas.iter().filter(|area| area.range.contains(page * PAGE_SIZE));
        at.next().is_some_and(|area| area.backing == Backing::Excluded)
    };
    // The neighbours of the mapping may be isomem's as well (other tests run beside this one).
    assert!(excluded(first) && excluded(first + 1));
    assert_eq!(areas.iter().map(|area| area.range.page_count()).sum::<usize>(), 8);
}

#[test]
fn area_1_data_of_the_program_and_isomems_metadata_are_excluded() {
    assert_eq!(backing_of((&raw const IN_DATA).addr()), Backing::Excluded);
    let metadata = crate::sys::metadata::owned_range().unwrap();
    assert_eq!(backing_of(metadata.start), Backing::Excluded);
    let arena = Mapping::new_aligned(1 << 21).unwrap();
    assert_eq!(backing_of(arena.range().start()), Backing::Excluded);
}

#[test]
fn heap_and_stacks_can_migrate() {
    let heap = vec![0_u8; 1 << 20];
    assert_eq!(backing_of(heap.as_ptr().addr() + PAGE_SIZE), Backing::Anonymous);
    let on_stack = 0_u8;
    assert_eq!(backing_of((&raw const on_stack).addr()), Backing::Anonymous);
}
