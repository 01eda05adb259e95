use isomem_core::addr::{PAGE_SIZE, VirtAddr};
use isomem_core::mirror::range::FaultError;
use isomem_core::world::Access::{self, Read, Write};

use super::{Miss, leading_run, settle};

fn misses(of: &[(usize, usize, Access)]) -> Vec<Miss> {
    let mut misses: Vec<Miss> = of
        .iter()
        .enumerate()
        .map(|(lane, &(context, page, access))| Miss {
            context,
            lane,
            page,
            access,
            ..Miss::NONE
        })
        .collect();
    misses.sort_unstable_by_key(Miss::order);
    misses
}

/// The ranges by which they are served, when nothing fails.
fn runs(mut misses: &[Miss]) -> Vec<(usize, usize)> {
    let mut runs = Vec::new();
    while !misses.is_empty() {
        let (range, count) = leading_run(misses);
        runs.push((range.first_page(), range.page_count()));
        misses = &misses[count..];
    }
    runs
}

#[test]
fn neighbours_of_the_same_strength_are_one_range_and_the_same_page_is_served_once() {
    assert_eq!(runs(&misses(&[(1, 7, Read), (1, 5, Read), (1, 6, Read)])), [(5, 3)]);
    assert_eq!(runs(&misses(&[(1, 5, Read), (1, 5, Write), (1, 6, Write)])), [(5, 2)]);
    assert_eq!(
        runs(&misses(&[(1, 5, Read), (1, 6, Write), (1, 6, Read)])),
        [(5, 1), (6, 1)]
    );
    assert_eq!(
        runs(&misses(&[(1, 5, Read), (1, 7, Read), (2, 8, Read)])),
        [(5, 1), (7, 1), (8, 1)]
    );
}

#[test]
fn svm_2_a_bad_page_cancels_its_own_strongest_access_and_nobody_else() {
    let mut run = misses(&[(1, 5, Write), (1, 6, Write), (1, 6, Read), (1, 7, Write)]);
    let addr = VirtAddr::new(6 * PAGE_SIZE).unwrap();
    let error = FaultError::ReadOnly { addr };
    assert_eq!(
        settle(&mut run, Err(error)),
        2,
        "the reader of the page and what follows are served again"
    );
    let errors: Vec<_> = run.iter().map(|miss| miss.error).collect();
    assert_eq!(errors, [None, Some(error), None, None]);
}

#[test]
fn svm_1_an_error_without_an_address_cancels_the_run() {
    let mut run = misses(&[(1, 5, Write), (1, 6, Write)]);
    assert_eq!(settle(&mut run, Err(FaultError::Released)), 2);
    assert!(run.iter().all(|miss| miss.error == Some(FaultError::Released)));
    let mut run = misses(&[(1, 5, Write), (1, 6, Write)]);
    assert_eq!(settle(&mut run, Ok(())), 2);
    assert!(run.iter().all(|miss| miss.error.is_none()));
}
