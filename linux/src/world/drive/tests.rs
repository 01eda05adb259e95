use super::{Border, Patience, drive, persist};
use crate::sys::uffd::Progress;
use isomem_core::addr::{PAGE_SIZE, PageRange};
use rustix::io::Errno;

fn pages(count: usize) -> PageRange {
    PageRange::from_pages(16, count).unwrap()
}

fn partly(pages: usize, errno: Errno) -> Progress {
    Progress {
        bytes: pages * PAGE_SIZE,
        errno: Some(errno),
    }
}

#[test]
fn drv_a_partial_progress_is_continued_until_the_cause_shows() {
    let outcome = drive(pages(8), Border::Invalid, Patience::Some, |part| {
        match part.first_page() {
            16 => partly(3, Errno::AGAIN),
            19 => partly(0, Errno::BUSY),
            _ => unreachable!("nothing is done twice or skipped"),
        }
    });
    assert_eq!(outcome, (3, Some(Errno::BUSY)));
}

#[test]
fn a_range_over_two_areas_is_done_in_pieces() {
    // A border after the fifth page, and the kernel refuses what straddles it.
    let outcome = drive(pages(8), Border::Invalid, Patience::Some, |part| {
        if part.first_page() < 21 && part.end_page() > 21 {
            return partly(0, Errno::INVAL);
        }
        Progress {
            bytes: part.len_bytes(),
            errno: None,
        }
    });
    assert_eq!(outcome, (8, None));
}

#[test]
fn drv_b_a_page_that_is_refused_alone_ends_it() {
    let mut calls = 0;
    let outcome = drive(pages(512), Border::Invalid, Patience::Some, |_| {
        calls += 1;
        partly(0, Errno::INVAL)
    });
    assert_eq!((outcome, calls), ((0, Some(Errno::INVAL)), 10));
}

#[test]
fn drv_b_endless_eagain_is_reported() {
    assert_eq!(
        drive(pages(2), Border::NoEntry, Patience::Some, |_| partly(0, Errno::AGAIN)),
        (0, Some(Errno::AGAIN))
    );
    assert_eq!(persist(|| Err(Errno::AGAIN)), Err(Errno::AGAIN));
    let mut calls = 0;
    let third = persist(|| {
        calls += 1;
        if calls < 3 { Err(Errno::INTR) } else { Ok(()) }
    });
    assert_eq!(third, Ok(()));
}
