//! Userptr in the simulated kernel, before every checker. An access to memory that is gone is a fault of the simulated CPU, and fails the story.
//!
//! On plain threads by default; `--features shuttle` tells the same stories under many schedules.

#[path = "../../sim/tests/common/mod.rs"]
mod common;
mod stories;

use std::sync::Arc;

use isomem_core::addr::PAGE_SIZE;
use isomem_core::notifier::{Blocking, Cause};
use isomem_core::world::Access;
use isomem_drivers::userptr::{Job, Object, Policy, Stopped, SubmitError, UserPtr};
use isomem_sim::journal::Journal;
use isomem_sim::kernel::Op;
use isomem_sim::rig::Rig;
use isomem_sim::world::SimWorld;

use common::{Times, explore, join, spawn, value};
use stories::{ROUNDS, TIMES, forked_and_protected, taken_by_another_device, touch, used_by_the_program};

const NAME: &str = "userptr";

type Device = UserPtr<SimWorld>;

fn open(rig: &Rig) -> Arc<Device> {
    Arc::new(UserPtr::new(rig.mm()).expect("the heap is large"))
}

fn close(rig: &Rig, device: Arc<Device>) {
    Arc::into_inner(device).expect("nobody uses it any more").close();
    rig.shut_down();
}

/// The first `count` pages of the story.
fn pages(rig: &Rig, device: &Device, count: usize, policy: Policy) -> Object<SimWorld> {
    let range = rig.range(0, count);
    let object = device.object(range.start(), range.len_bytes(), Access::Write, policy);
    object.expect("the heap is large")
}

/// One access of a word on page `page` of object 0.
fn access(job: &mut Job<'_, SimWorld>, page: usize, word: usize, op: Op) -> Result<u64, Stopped> {
    let offset = page * PAGE_SIZE + word * 8;
    job.with(0, offset, 8, op.access(), |world, pin| {
        touch(world, NAME, &pin, word, op)
    })
}

/// Writes word 1 of both pages, and reads both again.
fn write_both(device: &Device, object: &Object<SimWorld>, number: u64) -> Result<(), SubmitError> {
    let seen = device.submit(&[object], Blocking::May, move |job| {
        for page in 0..2 {
            access(job, page, 1, Op::Store(number))?;
        }
        Ok([access(job, 0, 1, Op::Load)?, access(job, 1, 1, Op::Load)?])
    })?;
    assert_eq!(seen, [number; 2], "USR-1: the work saw other pages than it wrote");
    Ok(())
}

fn is_cancelled(result: &Result<(), SubmitError>) -> bool {
    matches!(result, Err(SubmitError::Stopped(Stopped::Cancelled(_))))
}

/// Work on two pages under `load`; what the program, the device and the load left must be there at the end.
fn under(journal: &Journal, load: impl Fn(&Rig) + Send + 'static) {
    let rig = Rig::new(journal, 2);
    let device = open(&rig);
    let worker = device.clone();
    let threads = vec![
        spawn(&rig, "cpu", used_by_the_program),
        spawn(&rig, "gpu", move |rig| {
            let object = pages(rig, &worker, 2, Policy::Survives);
            for round in 0..ROUNDS {
                let done = write_both(&worker, &object, value(2, round));
                assert!(done.is_ok() || is_cancelled(&done), "{done:?}");
                if rig.journal().is_decided() {
                    return;
                }
            }
        }),
        spawn(&rig, "load", load),
    ];
    join(threads);
    let object = pages(&rig, &device, 2, Policy::Survives);
    // Nothing is on its way any more, so nothing cancels.
    write_both(&device, &object, value(3, 0)).unwrap();
    if !rig.journal().is_decided() {
        assert_eq!(rig.cpu_read(0, 1), value(3, 0));
        assert_eq!(rig.cpu_read(1, 1), value(3, 0));
    }
    drop(object);
    close(&rig, device);
}

#[test]
fn usr_1_work_is_whole_or_cancelled_while_another_device_takes_the_pages() {
    explore(TIMES, |journal, _| under(journal, taken_by_another_device));
}

#[test]
fn usr_4_objects_outlive_forks_and_changes_of_protection() {
    explore(TIMES, |journal, _| under(journal, forked_and_protected));
}

#[test]
fn usr_4_the_simple_policy_dies_of_what_is_innocent() {
    explore(
        Times {
            plain: 1,
            schedules: 200,
        },
        |journal, _| {
            let rig = Rig::new(journal, 2);
            let device = open(&rig);
            let survivor = pages(&rig, &device, 2, Policy::Survives);
            let mortal = pages(&rig, &device, 2, Policy::DiesAtOnce);
            write_both(&device, &survivor, 1).unwrap();
            write_both(&device, &mortal, 2).unwrap();
            rig.protect(1, 1, Some(Access::Write)).unwrap();
            write_both(&device, &survivor, 3).unwrap();
            assert!(matches!(write_both(&device, &mortal, 4), Err(SubmitError::Dead)));
            // Also before it ever worked.
            let unused = pages(&rig, &device, 2, Policy::DiesAtOnce);
            rig.discard(0, 1).unwrap();
            assert!(matches!(write_both(&device, &unused, 5), Err(SubmitError::Dead)));
            drop((survivor, mortal, unused));
            close(&rig, device);
        },
    );
}

#[test]
fn usr_1_an_invalidation_between_two_accesses_cancels_by_name() {
    explore(
        Times {
            plain: 1,
            schedules: 50,
        },
        |journal, _| {
            let rig = Rig::new(journal, 2);
            let device = open(&rig);
            let object = pages(&rig, &device, 2, Policy::Survives);
            let (changes, again) = (rig.clone(), rig.clone());
            let done = device.submit(&[&object], Blocking::May, move |job| {
                access(job, 0, 1, Op::Store(1))?;
                changes.discard(1, 1).unwrap();
                // Page 0 is untouched; but the work is over.
                access(job, 0, 1, Op::Store(2)).map(drop)
            });
            let Err(SubmitError::Stopped(Stopped::Cancelled(Some(by)))) = done else {
                panic!("{done:?}")
            };
            assert_eq!((by.cause, by.range), (Cause::Clear, rig.range(1, 1)));
            assert_eq!(rig.cpu_read(0, 1), 1);
            // Nor does it pass for whole if it does not look.
            let done = device.submit(&[&object], Blocking::May, move |job| {
                access(job, 0, 1, Op::Store(3))?;
                again.discard(0, 1).unwrap();
                Ok(())
            });
            assert!(is_cancelled(&done), "{done:?}");
            drop(object);
            close(&rig, device);
        },
    );
}

#[test]
fn usr_1_who_must_not_sleep_is_asked_to_come_again_and_then_flies() {
    explore(
        Times {
            plain: 4,
            schedules: 500,
        },
        |journal, _| {
            let rig = Rig::new(journal, 1);
            let device = open(&rig);
            let object = pages(&rig, &device, 1, Policy::Survives);
            let work = |job: &mut Job<'_, SimWorld>| access(job, 0, 0, Op::Store(7));
            assert_eq!(
                device.submit(&[&object], Blocking::Never, work),
                Err(SubmitError::Again)
            );
            device.submit(&[&object], Blocking::May, work).unwrap();
            device.submit(&[&object], Blocking::Never, work).unwrap();
            let none: [&Object<SimWorld>; 0] = [];
            assert_eq!(device.submit(&none, Blocking::May, work), Err(SubmitError::Objects(0)));
            let outside = |job: &mut Job<'_, SimWorld>| access(job, 1, 0, Op::Load);
            let outside = device.submit(&[&object], Blocking::May, outside);
            assert_eq!(outside, Err(SubmitError::Stopped(Stopped::Outside)));
            drop(object);
            close(&rig, device);
        },
    );
}

#[test]
fn usr_3_a_pass_that_must_not_wait_cancels_and_leaves_an_access_in_flight_to_the_mmu() {
    explore(
        Times {
            plain: 4,
            schedules: 500,
        },
        |journal, _| {
            let rig = Rig::new(journal, 1);
            let device = open(&rig);
            // The kernel tells of changes where pages have migrated once.
            rig.migrate(0, 1);
            rig.home(0, 1);
            let object = pages(&rig, &device, 1, Policy::Survives);
            let told = rig.clone();
            let done: Result<(), SubmitError> = device.submit(&[&object], Blocking::May, move |job| {
                // The discard is over while the access is not.
                job.with(0, 0, 8, Access::Read, |_, _| {
                    join(vec![spawn(&told, "discard", |rig| rig.late_discard(0, 1).unwrap())]);
                })?;
                // It was not waited for, but the work was cancelled all the same.
                access(job, 0, 0, Op::Load)?;
                Ok(())
            });
            assert!(is_cancelled(&done), "{done:?}");
            assert_eq!(rig.mm().stats().late_untold, 0);
            drop(object);
            close(&rig, device);
        },
    );
}
