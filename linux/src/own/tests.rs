use super::{Change, OwnChanges, PLACES, Settled};
use isomem_core::addr::PageRange;

fn removed(page: usize) -> Change {
    Change::Removed(PageRange::from_pages(page, 1).unwrap())
}

fn with_reader() -> OwnChanges {
    let own = OwnChanges::new();
    own.reader_started();
    own
}

#[test]
fn own_1_an_announcement_explains_one_event_of_the_same_range() {
    let own = with_reader();
    let ticket = own.announce(removed(1)).unwrap();
    assert!(!own.take(removed(2)));
    assert!(own.take(removed(1)));
    assert!(!own.take(removed(1)), "the second is the program's");
    assert_eq!(own.done(ticket), Settled::Yes);
    assert!(!own.take(removed(1)));
}

fn pages(first: usize, count: usize) -> PageRange {
    PageRange::from_pages(first, count).unwrap()
}

#[test]
fn own_1_a_change_that_comes_in_pieces_is_one() {
    let own = with_reader();
    let ticket = own.announce(Change::Removed(pages(4, 4))).unwrap();
    assert!(!own.take(Change::Removed(pages(5, 2))));
    assert!(own.take(Change::Removed(pages(4, 1))));
    assert!(own.take(Change::Removed(pages(5, 3))));
    assert!(!own.take(Change::Removed(pages(5, 3))));
    // The area was split after it was reported: the kernel repeats its end.
    assert!(own.take(Change::Removed(pages(7, 1))));
    assert_eq!(own.done(ticket), Settled::Yes);
    assert!(!own.take(Change::Removed(pages(7, 1))));
}

#[test]
fn own_1_where_devices_are_kept_out_everything_is_explained() {
    let own = with_reader();
    let ticket = own.announce(Change::Within(pages(4, 4))).unwrap();
    for _ in 0..2 {
        assert!(own.take(Change::Unmapped(pages(4, 4))) && own.take(Change::Removed(pages(5, 1))));
        assert!(own.take(Change::Remapped(pages(4, 2), pages(90, 2))));
        assert!(!own.take(Change::Unmapped(pages(4, 5))) && !own.take(Change::Forked));
    }
    assert_eq!(own.done(ticket), Settled::Unknown);
    assert!(own.take(Change::Unmapped(pages(4, 4))));
    own.sweep();
    assert!(!own.take(Change::Unmapped(pages(4, 4))));
}

#[test]
fn own_2_an_event_that_is_processed_after_the_call_returned_is_still_known() {
    let own = with_reader();
    let ticket = own.announce(removed(1)).unwrap();
    assert_eq!(own.done(ticket), Settled::Unknown);
    assert!(own.is_open(ticket));
    assert!(own.take(removed(1)));
    assert!(!own.is_open(ticket));
}

#[test]
fn own_3_a_sweep_forgets_what_is_done_and_nothing_else() {
    let own = with_reader();
    let (done, under_way) = (own.announce(removed(1)).unwrap(), own.announce(removed(2)).unwrap());
    own.done(done);
    own.sweep();
    assert!(!own.take(removed(1)));
    assert!(own.take(removed(2)));
    assert_eq!(own.done(under_way), Settled::Yes);
}

#[test]
fn own_3_without_a_reader_nothing_is_left_behind() {
    let own = OwnChanges::new();
    let ticket = own.announce(removed(1)).unwrap();
    assert_eq!(own.done(ticket), Settled::Yes);
    assert!(!own.take(removed(1)));
}

#[test]
fn places_run_out_and_come_back() {
    let own = with_reader();
    let all: Vec<_> = (0..PLACES).map(|page| own.announce(removed(page)).unwrap()).collect();
    assert!(own.announce(removed(99)).is_none());
    for ticket in all {
        own.done(ticket);
    }
    own.sweep();
    assert!(own.announce(removed(99)).is_some());
}
