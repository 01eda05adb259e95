use super::super::tests::By;
use super::*;

const FAULT: By = By(0, "fault");
const FORK: By = By(1, "fork");
const SHRINKER: By = By(2, "shrinker");

const fn lock(name: Name, at: usize) -> LockId {
    LockId {
        name,
        at,
        shared: false,
    }
}

const A: LockId = lock("a", 1);
const B: LockId = lock("b", 2);
const C: LockId = lock("c", 3);

const fn reading(id: LockId) -> LockId {
    LockId { shared: true, ..id }
}

impl By {
    fn does(&self, checker: &mut LockOrder, step: LockStep, id: LockId) -> Result<(), Finding> {
        self.step(checker, Event::Lock(step, id))
    }

    fn wants(&self, checker: &mut LockOrder, id: LockId) -> Result<(), Finding> {
        self.does(checker, LockStep::Wants, id)
    }

    fn takes(&self, checker: &mut LockOrder, id: LockId) -> Result<(), Finding> {
        self.wants(checker, id)?;
        self.does(checker, LockStep::Has, id)
    }

    fn leaves(&self, checker: &mut LockOrder, id: LockId) {
        assert_eq!(self.does(checker, LockStep::Left, id), Ok(()));
    }

    /// Takes the locks in this order, and leaves them.
    fn nests(&self, checker: &mut LockOrder, ids: &[LockId]) -> Result<(), Finding> {
        for id in ids {
            self.takes(checker, *id)?;
        }
        for id in ids.iter().rev() {
            self.leaves(checker, *id);
        }
        Ok(())
    }
}

fn cycle(sentence: &str) -> Result<(), Finding> {
    Err(Finding::new(Verdict::LockOrder, sentence))
}

fn account(checker: &LockOrder) -> Option<String> {
    checker.deadlock(&["fault", "fork", "shrinker"].map(String::from))
}

#[test]
fn chk_11_one_order_for_all_is_accepted() {
    let checker = &mut LockOrder::reporting();
    for thread in [FAULT, FORK, SHRINKER] {
        assert_eq!(thread.nests(checker, &[A, B, C]), Ok(()));
        assert_eq!(thread.nests(checker, &[A, C]), Ok(()));
        assert_eq!(thread.nests(checker, &[B, C]), Ok(()));
    }
    assert_eq!(account(checker), None);
}

#[test]
fn chk_11_two_orders_are_found_without_a_deadlock() {
    let checker = &mut LockOrder::reporting();
    assert_eq!(FAULT.nests(checker, &[A, B]), Ok(()));
    assert_eq!(
        FORK.nests(checker, &[B, A]),
        cycle("thread fork holds `b` and wants `a`; thread fault holds `a` and wants `b`")
    );
}

#[test]
fn chk_11_a_cycle_of_three_is_found_with_every_chain() {
    let checker = &mut LockOrder::reporting();
    let (semaphore, reclaim, mapping) = (lock("semaphore", 1), lock("reclaim", 2), lock("file mapping", 3));
    assert_eq!(FORK.nests(checker, &[semaphore, reclaim]), Ok(()));
    assert_eq!(SHRINKER.nests(checker, &[reclaim, mapping]), Ok(()));
    assert_eq!(
        FAULT.nests(checker, &[mapping, reading(semaphore)]),
        cycle(
            "thread fault holds `file mapping` and wants `semaphore` for reading; thread fork holds `semaphore` for writing and wants `reclaim`; thread shrinker holds `reclaim` and wants `file mapping`"
        )
    );
}

#[test]
fn chk_11_a_lock_that_is_only_tried_is_waited_for_by_nobody() {
    let checker = &mut LockOrder::reporting();
    assert_eq!(FAULT.nests(checker, &[A, B]), Ok(()));
    assert_eq!(FORK.takes(checker, B), Ok(()));
    assert_eq!(FORK.does(checker, LockStep::Has, A), Ok(()));
    assert_eq!(FORK.takes(checker, C), Ok(()), "what is tried is held, all the same");
    FORK.leaves(checker, C);
    assert_eq!(
        SHRINKER.nests(checker, &[C, A]),
        cycle("thread shrinker holds `c` and wants `a`; thread fork holds `a` and wants `c`")
    );
}

#[test]
fn chk_11_readers_exclude_each_other_only_where_somebody_writes() {
    let checker = &mut LockOrder::reporting();
    assert_eq!(FAULT.nests(checker, &[reading(A), B]), Ok(()));
    assert_eq!(FORK.nests(checker, &[B, reading(A)]), Ok(()));
    assert_eq!(
        SHRINKER.nests(checker, &[A]),
        cycle("thread fork holds `b` and wants `a` for reading; thread fault holds `a` for reading and wants `b`")
    );
}

#[test]
fn chk_11_locks_of_a_class_are_told_apart_by_place() {
    let checker = &mut LockOrder::reporting();
    let (parent, child, leaf) = (lock("directory", 1), lock("directory", 2), lock("directory", 3));
    assert_eq!(FAULT.nests(checker, &[parent, child, leaf]), Ok(()));
    assert_eq!(FORK.nests(checker, &[parent, leaf]), Ok(()));
    assert_eq!(
        FORK.nests(checker, &[leaf, parent]),
        cycle(
            "thread fork holds `directory` and wants another `directory`; thread fault holds `directory` and wants another `directory`"
        )
    );
}

#[test]
fn chk_11_one_thread_that_meets_an_address_again_is_no_cycle_within_a_class() {
    let checker = &mut LockOrder::reporting();
    let (parent, child) = (lock("directory", 1), lock("directory", 2));
    assert_eq!(FAULT.nests(checker, &[parent, child]), Ok(()));
    assert_eq!(FAULT.nests(checker, &[child, parent]), Ok(()));
    assert_eq!(
        FORK.nests(checker, &[parent, child]),
        cycle(
            "thread fork holds `directory` and wants another `directory`; thread fault holds `directory` and wants another `directory`"
        )
    );
}

#[test]
fn chk_11_waking_takes_the_mutex_again_under_what_was_kept() {
    let checker = &mut LockOrder::reporting();
    let condition = lock("changed", 9);
    assert_eq!(FORK.nests(checker, &[A, B]), Ok(()));
    assert_eq!(FAULT.takes(checker, A), Ok(()));
    assert_eq!(FAULT.takes(checker, B), Ok(()));
    FAULT.leaves(checker, A);
    assert_eq!(FAULT.does(checker, LockStep::Sleeps, condition), Ok(()));
    assert_eq!(FAULT.does(checker, LockStep::Wakes, condition), Ok(()));
    assert_eq!(
        FAULT.does(checker, LockStep::Has, A),
        cycle("thread fault holds `b` and wants `a`; thread fork holds `a` and wants `b`")
    );
}

#[test]
fn chk_11_who_wants_what_it_holds_is_deadlocked_in_either_mode() {
    for mut checker in [LockOrder::reporting(), LockOrder::watching()] {
        assert_eq!(FAULT.takes(&mut checker, reading(A)), Ok(()));
        assert_eq!(
            FAULT.takes(&mut checker, A),
            Err(Finding::new(
                Verdict::Deadlock,
                "thread fault holds `a` for reading and waits for `a` for writing, and so for itself"
            ))
        );
    }
}

#[test]
fn a_watching_one_reports_no_cycle_but_tells_of_the_deadlock() {
    let checker = &mut LockOrder::watching();
    assert_eq!(SHRINKER.nests(checker, &[B, A]), Ok(()));
    assert_eq!(FAULT.takes(checker, A), Ok(()));
    assert_eq!(FORK.takes(checker, B), Ok(()));
    assert_eq!(FAULT.wants(checker, B), Ok(()));
    assert_eq!(FORK.wants(checker, A), Ok(()));
    assert_eq!(
        account(checker).as_deref(),
        Some(
            "thread fault holds `a` and waits for `b`, which thread fork holds; thread fork holds `b` and waits for `a`, which thread fault holds"
        )
    );
}

#[test]
fn who_sleeps_is_part_of_the_account() {
    let checker = &mut LockOrder::watching();
    assert_eq!(FORK.takes(checker, A), Ok(()));
    assert_eq!(FORK.takes(checker, C), Ok(()));
    FORK.leaves(checker, C);
    assert_eq!(FORK.does(checker, LockStep::Sleeps, lock("quiet", 9)), Ok(()));
    assert_eq!(FAULT.wants(checker, reading(A)), Ok(()));
    assert_eq!(
        account(checker).as_deref(),
        Some(
            "thread fault waits for `a` for reading, which thread fork holds; thread fork holds `a` for writing and sleeps until `quiet` is signalled, and nobody is left to do that"
        )
    );
    assert_eq!(SHRINKER.takes(checker, C), Ok(()));
    assert_eq!(
        account(checker).as_deref(),
        Some(
            "thread fault waits for `a` for reading, which thread fork holds; thread fork holds `a` for writing and sleeps until `quiet` is signalled, and then needs `c`, which thread shrinker holds; thread shrinker holds `c` and waits for something that is no lock"
        )
    );
}
