//! Forks that are announced while the kernel fails to bring pages home: the child has what its parent had, never zeroes (FRK-1).

mod common;

use isomem_sim::journal::Journal;
use isomem_sim::kernel::{Errno, Site};
use isomem_sim::rig::Rig;

use common::{Times, explore};

const TIMES: Times = Times {
    plain: 20,
    schedules: 500,
};

/// A page is on the device, and so many attempts to move it fail.
fn story(journal: &Journal, failures: usize) {
    let rig = Rig::new(journal, 2);
    for page in 0..2 {
        rig.cpu_write(page, 0, 7 + page as u64);
    }
    assert_eq!(rig.migrate(0, 2), 2);
    (0..failures).for_each(|nth| rig.kernel().fail_nth(Site::Move, nth, Errno::NOMEM));
    let child = rig.fork();
    rig.kernel().fail_no_more();
    for page in 0..2 {
        assert_eq!(child.read(rig.page(page), 0), Ok(7 + page as u64), "in the child");
        assert_eq!(rig.cpu_read(page, 0), 7 + page as u64, "in the parent");
    }
    child.exit();
    rig.shut_down();
}

#[test]
fn mig_4_a_fork_waits_for_pages_that_cannot_come_home_at_once() {
    explore(TIMES, |journal, number| story(journal, 1 + number as usize % 12));
}

#[test]
fn frk_1_the_child_gets_copies_of_what_cannot_come_home_at_all() {
    explore(TIMES, |journal, _| story(journal, 10_000));
}
