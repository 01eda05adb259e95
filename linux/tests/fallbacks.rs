//! What older kernels give says the same as the ioctls of newer ones.

mod common;

use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{Program, write};
use isomem_core::addr::PageRange;
use isomem_core::world::{Pte, PteRun};
use isomem_linux::sys::inject::{self, Site};
use isomem_linux::sys::mapping;
use isomem_linux::sys::maps::{Maps, Vma};
use isomem_linux::sys::pagemap::Pagemap;

/// What one test makes fail, another must not meet.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn scan(with: impl FnOnce(&mut dyn FnMut(PteRun))) -> Vec<(usize, usize, bool)> {
    let mut pages = Vec::new();
    with(&mut |run| pages.push((run.range.start(), run.range.end(), run.pte != Pte::None)));
    // The words do not tell zero and huge pages, so runs may be cut otherwise.
    pages.dedup_by(|next, last| {
        let joined = last.1 == next.0 && last.2 == next.2;
        if joined {
            last.1 = next.1;
        }
        joined
    });
    pages
}

#[test]
fn pmap_1_words_say_the_same_as_the_scan() {
    let _alone = alone();
    let pagemap = Pagemap::open().unwrap();
    let program = Program::map(3000);
    for page in (0..3000).filter(|page| page % 7 < 3 || page % 900 < 200) {
        write(program.range, page, 1);
    }
    let wider = PageRange::from_pages(program.range.first_page() - 5, 3010).unwrap();
    let by_ioctl = scan(|each| pagemap.scan(wider, each).unwrap());
    let by_words = scan(|each| pagemap.scan_words(wider, each).unwrap());
    assert_eq!(by_ioctl, by_words);
    assert_eq!(by_ioctl.first().unwrap().0, wider.start());
    assert_eq!(by_ioctl.last().unwrap().1, wider.end());
}

fn areas(with: impl FnOnce(&mut dyn FnMut(Vma))) -> Vec<Vma> {
    let mut areas = Vec::with_capacity(4096);
    with(&mut |vma| areas.push(vma));
    areas
}

#[test]
fn maps_1_the_text_says_the_same_as_the_query() {
    let _alone = alone();
    let maps = Maps::open().unwrap();
    let program = Program::map(64);
    mapping::protect(program.part(3, 5), None).unwrap();
    // Other tests of this file map and unmap meanwhile, so only this program's areas must be equal.
    let range = program.range;
    // Another test's mapping may be joined to this one's between the two looks.
    let cut = |vma: Vma| Vma {
        range: vma.range.intersect(range).unwrap(),
        ..vma
    };
    let by_query: Vec<_> = areas(|each| maps.in_range(range, each).unwrap())
        .into_iter()
        .map(cut)
        .collect();
    let by_text: Vec<_> = areas(|each| maps.in_range_by_text(range, each).unwrap())
        .into_iter()
        .map(cut)
        .collect();
    assert_eq!(by_query, by_text);
    assert!(by_query.len() >= 3);
    let named = |all: &[Vma]| {
        all.iter()
            .filter(|vma| vma.file || vma.shared)
            .copied()
            .collect::<Vec<_>>()
    };
    let by_query = areas(|each| maps.in_range(PageRange::ALL, each).unwrap());
    let by_text = areas(|each| maps.in_range_by_text(PageRange::ALL, each).unwrap());
    assert_eq!(named(&by_query), named(&by_text));
}

#[test]
fn a_kernel_without_the_ioctls_is_noticed_once() {
    let _alone = alone();
    let (maps, pagemap) = (Maps::open().unwrap(), Pagemap::open().unwrap());
    let program = Program::filled(4);
    inject::fail(Site::ProcmapQuery, libc::ENOTTY, 0, 1);
    let seen = areas(|each| maps.in_range(program.range, each).unwrap());
    assert_eq!(seen.len(), 1);
    assert!(!maps.has_query());
    inject::fail(Site::PagemapScan, libc::ENOTTY, 0, 1);
    let ptes = scan(|each| pagemap.scan(program.range, each).unwrap());
    assert_eq!(ptes, [(program.range.start(), program.range.end(), true)]);
    assert!(!pagemap.has_scan());
    inject::clear();
}
