//! How devices, mirrors and address spaces begin and end: in every order, under load, in callbacks, across forks and exits.

#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "a raw launch and the accesses in its kernel share one reason"
)]

mod apart;

use std::process::{ExitStatus, exit};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use apart::{MIB, Mapped, apart, config, device_sum, open, pages_on_device, threads};
use isomem::{Access, DeviceFault, FaultError, LaunchError, MigrateError, Mirror, Mm, PAGE_SIZE, SoftDevice};
use isomem_core::device::Device;
use isomem_core::mirror::{DeviceHandle, MirrorError};
use isomem_core::mm::{ChangeError, EntryError, MemoryConfig, MemoryKind, RegisterError};
use isomem_core::notifier::{Answer, CallbackScope, Deferred, Inside, Invalidation};
use isomem_core::world::Metadata;
use isomem_linux::Linux;
use isomem_linux::sys::metadata::{MetaArc, MetadataHeap};

type CoreMirror = isomem_core::mirror::Mirror<Linux, Probe>;

/// A driver's side of a mirror, which counts, and does in its callbacks what a test wants.
#[derive(Default)]
struct Probe {
    invalidations: AtomicUsize,
    releases: AtomicUsize,
    inside: AtomicUsize,
    /// The mirror is gone: from now on each callback is one too many.
    gone: AtomicBool,
    late: AtomicUsize,
    on_invalidate: Option<fn(&Self, &Invalidation)>,
    on_release: Option<fn(&Self)>,
    /// For the hooks.
    step: AtomicUsize,
    mm: Mutex<Option<Mm>>,
    own: Mutex<Option<CoreMirror>>,
    deferred: Mutex<Option<Deferred<MetadataHeap>>>,
    seen: Mutex<Vec<String>>,
}

impl Probe {
    fn called(&self, counter: &AtomicUsize, run: impl FnOnce()) {
        self.inside.fetch_add(1, Ordering::SeqCst);
        counter.fetch_add(1, Ordering::SeqCst);
        self.late
            .fetch_add(self.gone.load(Ordering::SeqCst).into(), Ordering::SeqCst);
        run();
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    fn releases(&self) -> usize {
        self.releases.load(Ordering::SeqCst)
    }

    fn await_step(&self, step: usize) {
        while self.step.load(Ordering::SeqCst) < step {
            std::thread::yield_now();
        }
    }

    fn go_to(&self, step: usize) {
        self.step.store(step, Ordering::SeqCst);
    }
}

impl Device for Probe {
    fn invalidate(&self, invalidation: &Invalidation, _scope: &CallbackScope<'_>) {
        self.called(&self.invalidations, || {
            if let Some(hook) = self.on_invalidate {
                hook(self, invalidation);
            }
        });
    }

    fn try_invalidate(&self, _invalidation: &Invalidation, _scope: &CallbackScope<'_>) -> Answer {
        self.called(&self.invalidations, || ());
        Answer::Done
    }

    fn release(&self) {
        self.called(&self.releases, || {
            if let Some(hook) = self.on_release {
                hook(self);
            }
        });
    }
}

fn share(probe: Probe) -> MetaArc<Probe> {
    MetadataHeap::share(probe).unwrap()
}

fn register(mm: &Mm) -> DeviceHandle<Linux> {
    let memory = MemoryConfig {
        name: "probe",
        capacity_bytes: 16 * MIB,
        mirror_budget_bytes: None,
        kind: MemoryKind::Private,
    };
    mm.core().register(memory).unwrap()
}

/// Starts an invalidation of the memory's pages and ends it, which changes nothing.
fn invalidate(mm: &Mm, memory: &Mapped) {
    // SAFETY: the memory stays readable and writable.
    unsafe { mm.protect(memory.range(), Some(Access::Write)) }.unwrap();
}

#[test]
fn life_1_a_device_with_live_mirrors_is_busy_and_is_handed_back_unchanged() {
    apart(
        "life_1_a_device_with_live_mirrors_is_busy_and_is_handed_back_unchanged",
        || {
            let (mm, device, mirror) = open(config());
            let memory = Mapped::numbered(2 * MIB);
            mirror.prefetch(memory.words()).unwrap();
            let more = [device.mirror().unwrap(), device.mirror().unwrap()];
            let busy = device.unregister().unwrap_err();
            assert_eq!(busy.mirrors, 3);
            assert!(busy.to_string().contains("3 mirrors"), "{busy}");
            let device = busy.device;
            assert_eq!(device.memory_pages().0, 512, "a refusal changes nothing");
            assert_eq!(device_sum(&more[1], memory.words()), memory.words().iter().sum());
            drop(more);
            mirror.prefetch(memory.words()).unwrap();
            mirror.unregister();
            assert_eq!(
                device.memory_pages().0,
                512,
                "without a mirror the pages stay until somebody wants them"
            );
            device.unregister().unwrap();
            let faults = mm.stats().cpu_faults;
            memory.check();
            assert_eq!(mm.stats().cpu_faults, faults, "unregister brought the pages home");
        },
    );
}

#[test]
fn life_2_after_unregister_no_callback_runs_whatever_other_threads_do() {
    apart(
        "life_2_after_unregister_no_callback_runs_whatever_other_threads_do",
        || {
            const ROUNDS: usize = 300;
            let (mm, device, mirror) = open(config());
            let [first, second] = [Mapped::numbered(MIB), Mapped::numbered(MIB)];
            let stop = AtomicBool::new(false);
            let until_stopped = |work: &dyn Fn()| {
                while !stop.load(Ordering::Relaxed) {
                    work();
                }
            };
            std::thread::scope(|scope| {
                scope.spawn(|| until_stopped(&|| invalidate(&mm, &first)));
                scope.spawn(|| {
                    until_stopped(&|| {
                        mirror.prefetch(second.words()).unwrap();
                        second.check();
                    });
                });
                let (mut called, mut probes) = (0, Vec::new());
                for round in 0..ROUNDS {
                    let handle = register(&mm);
                    let probe = share(Probe::default());
                    let ended = handle.mirror(probe.clone()).unwrap();
                    std::thread::sleep(Duration::from_micros(100 * (round as u64 % 7)));
                    ended.unregister().unwrap();
                    probe.gone.store(true, Ordering::SeqCst);
                    assert_eq!((probe.inside.load(Ordering::SeqCst), probe.releases()), (0, 1));
                    handle.unregister().unwrap();
                    called += probe.invalidations.load(Ordering::SeqCst);
                    probes.push(probe);
                }
                stop.store(true, Ordering::Relaxed);
                assert!(called > ROUNDS, "the threads did invalidate: {called}");
                assert!(probes.iter().all(|probe| probe.late.load(Ordering::SeqCst) == 0));
            });
            mirror.unregister();
            device.unregister().unwrap();
        },
    );
}

#[test]
fn life_2_unregister_waits_for_the_callback_in_flight() {
    apart("life_2_unregister_waits_for_the_callback_in_flight", || {
        let mm = Mm::current().unwrap();
        let memory = Mapped::numbered(MIB);
        let handle = register(&mm);
        let probe = share(Probe {
            on_invalidate: Some(|probe, _| {
                probe.go_to(1);
                probe.await_step(2);
            }),
            ..Probe::default()
        });
        let mirror = handle.mirror(probe.clone()).unwrap();
        let unregistered = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| invalidate(&mm, &memory));
            probe.await_step(1);
            scope.spawn(|| {
                mirror.unregister().unwrap();
                unregistered.store(true, Ordering::SeqCst);
            });
            std::thread::sleep(Duration::from_millis(50));
            assert!(!unregistered.load(Ordering::SeqCst));
            assert_eq!(handle.id().get(), 0);
            assert_eq!(probe.releases(), 1, "the device stops first, then callbacks end");
            probe.go_to(2);
        });
        assert_eq!((probe.inside.load(Ordering::SeqCst), probe.releases()), (0, 1));
        handle.unregister().unwrap();
    });
}

/// A mirror whose release waits until another thread's invalidation is over, and that thread.
fn release_that_waits(end: impl FnOnce(&Mm, CoreMirror, &DeviceHandle<Linux>) -> Option<CoreMirror>) {
    let mm = Mm::current().unwrap();
    let memory = Mapped::numbered(MIB);
    let handle = register(&mm);
    let probe = share(Probe {
        on_release: Some(|probe| {
            probe.go_to(1);
            probe.await_step(2);
        }),
        ..Probe::default()
    });
    let mirror = handle.mirror(probe.clone()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            probe.await_step(1);
            invalidate(&mm, &memory);
            probe.go_to(2);
        });
        let left = end(&mm, mirror, &handle);
        assert_eq!(probe.releases(), 1, "released by what came first");
        if let Some(mirror) = left {
            assert!(mirror.state().is_released());
            let refused = mirror.migrate_to_device(memory.range()).unwrap_err();
            assert_eq!(refused, MigrateError::Released);
            let refused = mirror.fault(memory.range(), Access::Read).unwrap_err();
            assert_eq!(refused, FaultError::Released);
            mirror.unregister().unwrap();
        }
    });
    handle.unregister().unwrap();
    mm.core().exit();
    assert_eq!(probe.releases(), 1, "and never again");
    memory.check();
}

#[test]
fn life_3_unregister_releases_once_and_lets_release_wait_for_invalidations() {
    apart(
        "life_3_unregister_releases_once_and_lets_release_wait_for_invalidations",
        || {
            release_that_waits(|_, mirror, _| {
                mirror.unregister().unwrap();
                None
            });
        },
    );
}

#[test]
fn life_3_a_failed_device_releases_once_and_lets_release_wait_for_invalidations() {
    apart(
        "life_3_a_failed_device_releases_once_and_lets_release_wait_for_invalidations",
        || {
            release_that_waits(|_, mirror, handle| {
                assert_eq!(handle.fail(), 0);
                Some(mirror)
            });
        },
    );
}

#[test]
fn life_3_exit_releases_once_and_lets_release_wait_for_invalidations() {
    apart(
        "life_3_exit_releases_once_and_lets_release_wait_for_invalidations",
        || {
            release_that_waits(|mm, mirror, handle| {
                mm.core().exit();
                assert_eq!(handle.fail(), 0);
                Some(mirror)
            });
        },
    );
}

#[test]
fn life_3_threads_that_race_to_end_a_mirror_release_it_once() {
    apart("life_3_threads_that_race_to_end_a_mirror_release_it_once", || {
        for _ in 0..100 {
            let mm = Mm::current().unwrap();
            let handle = register(&mm);
            let probe = share(Probe::default());
            let mirror = handle.mirror(probe.clone()).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| handle.fail());
                scope.spawn(|| mm.core().exit());
                scope.spawn(|| drop(mirror));
            });
            assert_eq!(probe.releases(), 1);
            handle.unregister().unwrap();
        }
    });
}

#[test]
fn life_4_a_mirror_outlives_its_address_space_and_refuses() {
    apart("life_4_a_mirror_outlives_its_address_space_and_refuses", || {
        let (mm, device, mirror) = open(config());
        let memory = Mapped::numbered(2 * MIB);
        mirror.prefetch(memory.words()).unwrap();
        mm.core().exit();
        memory.check();
        assert!(mirror.is_released());
        let refused = mirror.launch((), |_, ()| Ok(())).unwrap_err();
        assert!(matches!(
            refused,
            LaunchError::Device(isomem_soft::LaunchError::Released)
        ));
        assert_eq!(
            mirror.migrate_to_device(memory.range()).unwrap_err(),
            MigrateError::Released
        );
        assert_eq!(
            mirror.fault(memory.range(), Access::Read).unwrap_err(),
            FaultError::Released
        );
        drop((mm, device));
        assert!(mirror.is_released());
        mirror.unregister();
        let (_mm, device, mirror) = open(config());
        assert_eq!(device_sum(&mirror, memory.words()), memory.words().iter().sum());
        mirror.unregister();
        device.unregister().unwrap();
    });
}

enum Piece {
    Mm(Mm),
    Device(SoftDevice),
    Mirror(Mirror),
}

/// Every order of `0..len`.
fn orders(len: usize) -> Vec<Vec<usize>> {
    if len == 0 {
        return vec![Vec::new()];
    }
    let insert = |order: Vec<usize>| {
        (0..len).map(move |at| {
            let mut order = order.clone();
            order.insert(at, len - 1);
            order
        })
    };
    orders(len - 1).into_iter().flat_map(insert).collect()
}

#[test]
fn life_4_everything_may_be_dropped_in_every_order_with_pages_on_the_device() {
    apart(
        "life_4_everything_may_be_dropped_in_every_order_with_pages_on_the_device",
        || {
            let memory = Mapped::numbered(2 * MIB);
            let before = threads(usize::MAX);
            for order in orders(5) {
                let (mm, device, mirror) = open(config());
                let second = device.mirror().unwrap();
                assert_eq!(mirror.prefetch(memory.words()).unwrap().migrated(), 512);
                let pieces = [
                    Piece::Mm(mm.clone()),
                    Piece::Mm(mm),
                    Piece::Device(device),
                    Piece::Mirror(mirror),
                    Piece::Mirror(second),
                ];
                let mut pieces = pieces.map(Some);
                for (nth, piece) in order.iter().enumerate() {
                    drop(pieces[*piece].take());
                    if nth == 2 {
                        memory.check();
                    }
                    let refused_late = pieces.iter().flatten().any(|piece| match piece {
                        Piece::Mirror(mirror) => device_sum(mirror, memory.words()) != memory.words().iter().sum(),
                        Piece::Mm(mm) => mm.stats().metadata_bytes == 0,
                        Piece::Device(device) => device.memory_pages().1 == 0,
                    });
                    assert!(!refused_late, "{order:?}");
                }
                memory.check();
                assert_eq!(
                    threads(before),
                    before,
                    "{order:?}: isomem's threads ended with the last handle"
                );
            }
        },
    );
}

/// Lines of /proc/self/maps, open descriptors, threads, bytes of isomem's own.
fn held() -> (usize, usize, usize, u64) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    (maps, descriptors, threads(2), MetadataHeap::bytes_in_use() as u64)
}

#[test]
fn life_5_opening_and_closing_leaves_nothing() {
    apart("life_5_opening_and_closing_leaves_nothing", || {
        let memory = Mapped::numbered(MIB);
        let expected = memory.words().iter().sum::<u64>();
        let once = || {
            let (mm, device, mirror) = open(config());
            assert_eq!(device_sum(&mirror, memory.words()), expected);
            memory.check();
            mirror.unregister();
            device.unregister().unwrap();
            drop(mm);
        };
        for _ in 0..3 {
            once();
        }
        let before = held();
        for _ in 0..200 {
            once();
        }
        let after = held();
        // The C library's arenas for ended threads' memory may move a line of maps.
        assert!(after.0 <= before.0 + 2, "lines of maps: {before:?} -> {after:?}");
        assert_eq!((before.1, before.2), (after.1, after.2), "descriptors and threads");
        assert_eq!(before.3, after.3, "bytes of isomem's own");
    });
}

#[test]
fn life_5_mirrors_of_a_device_that_stays_leave_nothing() {
    apart("life_5_mirrors_of_a_device_that_stays_leave_nothing", || {
        let (_mm, device, mirror) = open(config());
        let memory = Mapped::numbered(4 * MIB);
        let once = || {
            let mirror = device.mirror().unwrap();
            assert_eq!(device_sum(&mirror, memory.words()), memory.words().iter().sum());
            memory.check();
            mirror.unregister();
        };
        for _ in 0..3 {
            once();
        }
        let before = held();
        for _ in 0..200 {
            once();
        }
        assert_eq!(before.3, held().3);
        mirror.unregister();
        device.unregister().unwrap();
    });
}

/// Forks by libc and has the child run `check` and leave by its exit handlers. Returns its status.
fn fork(check: impl FnOnce()) -> ExitStatus {
    // SAFETY: the child goes on alone with what it has; the C library makes its allocator usable there.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
        exit(if outcome.is_ok() { 0 } else { 9 });
    }
    apart::wait_forked(child)
}

#[test]
fn life_6_a_forks_child_is_refused_drops_without_hanging_and_opens_its_own() {
    apart(
        "life_6_a_forks_child_is_refused_drops_without_hanging_and_opens_its_own",
        || {
            let (mm, device, mirror) = open(config());
            let memory = Mapped::numbered(2 * MIB);
            let expected = memory.words().iter().sum::<u64>();
            mirror.prefetch(memory.words()).unwrap();
            let mut pieces = Some((mm, device, mirror));
            let status = fork(|| {
                let (mm, device, mirror) = pieces.take().unwrap();
                memory.check();
                refused_in_child(&mm, &device, &mirror, &memory);
                drop((mirror, device, mm));
                let (mm, device, mirror) = open(config());
                assert_eq!(device_sum(&mirror, memory.words()), expected);
                assert_eq!(pages_on_device(&mirror, memory.range()), 512);
                memory.check();
                mirror.unregister();
                device.unregister().unwrap();
                drop(mm);
                assert_eq!(threads(1), 1);
            });
            assert!(status.success(), "{status}");
            let (_mm, device, mirror) = pieces.take().unwrap();
            assert_eq!(device_sum(&mirror, memory.words()), expected, "the parent goes on");
            memory.check();
            mirror.unregister();
            device.unregister().unwrap();
        },
    );
}

fn refused_in_child(mm: &Mm, device: &SoftDevice, mirror: &Mirror, memory: &Mapped) {
    const REFUSED: EntryError = EntryError::WrongAddressSpace;
    let range = memory.range();
    let launch = mirror.launch((), |_, ()| Ok(())).unwrap_err();
    assert!(matches!(
        launch,
        LaunchError::Device(isomem_soft::LaunchError::Entry(REFUSED))
    ));
    assert_eq!(mirror.migrate_to_device(range).unwrap_err(), REFUSED.into());
    assert_eq!(mirror.migrate_home(range).unwrap_err(), REFUSED.into());
    assert_eq!(mirror.fault(range, Access::Read).unwrap_err(), REFUSED.into());
    assert_eq!(mirror.snapshot(range).unwrap_err(), REFUSED.into());
    assert_eq!(device.mirror().unwrap_err(), MirrorError::Entry(REFUSED));
    assert_eq!(device.fail(), 0);
    let registered = mm.soft_device(config()).unwrap_err();
    assert!(registered.to_string().contains("after a fork"), "{registered}");
    // SAFETY: refused before anything happens.
    assert_eq!(unsafe { mm.unmap(range) }, Err(ChangeError::Entry(REFUSED)));
    // SAFETY: as above.
    assert_eq!(unsafe { mm.discard_pages(range) }, Err(ChangeError::Entry(REFUSED)));
}

#[test]
fn life_6_a_child_may_unregister_what_it_inherited_in_any_order_or_just_leave() {
    apart(
        "life_6_a_child_may_unregister_what_it_inherited_in_any_order_or_just_leave",
        || {
            let (mm, device, mirror) = open(config());
            let memory = Mapped::numbered(2 * MIB);
            let mut pieces = Some((mm, device, mirror));
            for way in 0..4 {
                pieces.as_ref().unwrap().2.prefetch(memory.words()).unwrap();
                let status = fork(|| {
                    let (mm, device, mirror) = pieces.take().unwrap();
                    match way {
                        0 => drop((mm, device, mirror)),
                        1 => {
                            mirror.unregister();
                            device.unregister().unwrap();
                        }
                        2 => drop(device.unregister()),
                        _ => exit(0),
                    }
                    memory.check();
                });
                assert!(status.success(), "way {way}: {status}");
                memory.check();
            }
            let (_mm, device, mirror) = pieces.unwrap();
            mirror.unregister();
            device.unregister().unwrap();
        },
    );
}

#[test]
fn life_7_a_failed_device_gives_its_pages_back_and_refuses_everything() {
    apart(
        "life_7_a_failed_device_gives_its_pages_back_and_refuses_everything",
        || {
            let (mm, device, mirror) = open(config());
            let mut memory = Mapped::numbered(8 * MIB);
            mirror.prefetch(memory.words()).unwrap();
            // Written on the device only.
            mirror
                .launch(&mut memory.words_mut()[..], |worker, mut part| {
                    (0..part.len()).step_by(512).try_for_each(|at| {
                        let old = part.get(worker, at)?;
                        part.set(worker, at, old)
                    })
                })
                .unwrap();
            assert_eq!(pages_on_device(&mirror, memory.range()), 8 * MIB / PAGE_SIZE);
            assert_eq!(device.fail(), 0);
            assert_eq!(device.fail(), 0, "failing twice is failing");
            assert_eq!(device.memory_pages().0, 0);
            memory.check();
            assert!(mirror.is_released());
            let refused = mirror.launch((), |_, ()| Ok(())).unwrap_err();
            assert_eq!(refused.to_string(), "the mirror was released");
            assert_eq!(
                mirror.migrate_to_device(memory.range()).unwrap_err(),
                MigrateError::Released
            );
            assert_eq!(
                mirror.fault(memory.range(), Access::Read).unwrap_err(),
                FaultError::Released
            );
            assert_eq!(device.mirror().unwrap_err(), MirrorError::DeviceFailed);
            let second = mm.soft_device(config()).unwrap();
            let other = second.mirror().unwrap();
            assert_eq!(device_sum(&other, memory.words()), memory.words().iter().sum());
            other.unregister();
            second.unregister().unwrap();
            mirror.unregister();
            device.unregister().unwrap();
        },
    );
}

#[test]
fn life_7_a_device_fails_in_the_middle_of_everything_and_nothing_is_lost() {
    apart(
        "life_7_a_device_fails_in_the_middle_of_everything_and_nothing_is_lost",
        || {
            for round in 0..20 {
                let (_mm, device, mirror) = open(config());
                let memory = Mapped::numbered(4 * MIB);
                let (first, second) = memory.words().split_at(MIB / 8);
                std::thread::scope(|scope| {
                    let runs = scope.spawn(|| {
                        while let Ok(sums) = mirror.launch(second, |worker, words| -> Result<u64, DeviceFault> {
                            let mut sum = 0u64;
                            for at in worker.share(words.len()).step_by(64) {
                                sum = sum.wrapping_add(words.get(worker, at)?);
                            }
                            Ok(sum)
                        }) {
                            assert_eq!(sums.len(), 2);
                        }
                    });
                    scope.spawn(|| while mirror.prefetch(first).is_ok() {});
                    scope.spawn(|| {
                        while !mirror.is_released() {
                            memory.check();
                        }
                    });
                    std::thread::sleep(Duration::from_millis(round));
                    device.fail();
                    runs.join().unwrap();
                });
                assert_eq!(device.memory_pages().0, 0);
                memory.check();
                mirror.unregister();
                device.unregister().unwrap();
            }
        },
    );
}

/// What a callback may not do, tried from inside one; each refusal is noted.
fn try_everything(probe: &Probe, invalidation: &Invalidation) {
    let Some(mm) = probe.mm.lock().unwrap().take() else {
        return;
    };
    let range = invalidation.range;
    let mut seen = Vec::new();
    let own = probe.own.lock().unwrap().take();
    let mirror = own.as_ref().unwrap();
    // SAFETY: refused before anything happens.
    seen.push(unsafe { mm.protect(range, None) }.unwrap_err().to_string());
    // SAFETY: as above.
    seen.push(unsafe { mm.unmap(range) }.unwrap_err().to_string());
    seen.push(mirror.migrate_to_device(range).unwrap_err().to_string());
    seen.push(mirror.migrate_home(range).unwrap_err().to_string());
    seen.push(mirror.fault(range, Access::Read).unwrap_err().to_string());
    seen.push(mirror.snapshot(range).unwrap_err().to_string());
    seen.push(mm.soft_device(config()).unwrap_err().to_string());
    *probe.own.lock().unwrap() = own;
    *probe.seen.lock().unwrap() = seen;
    *probe.mm.lock().unwrap() = Some(mm);
}

#[test]
fn inv_7_what_a_callback_may_not_do_is_refused_and_says_so() {
    apart("inv_7_what_a_callback_may_not_do_is_refused_and_says_so", || {
        let mm = Mm::current().unwrap();
        let memory = Mapped::numbered(MIB);
        let handle = register(&mm);
        let probe = share(Probe {
            on_invalidate: Some(try_everything),
            mm: Mutex::new(Some(mm.clone())),
            ..Probe::default()
        });
        *probe.own.lock().unwrap() = Some(handle.mirror(probe.clone()).unwrap());
        invalidate(&mm, &memory);
        drop(probe.mm.lock().unwrap().take());
        let seen = core::mem::take(&mut *probe.seen.lock().unwrap());
        assert_eq!(seen.len(), 7);
        for refusal in seen {
            assert_eq!(refusal, EntryError::InCallback.to_string());
        }
        let own = probe.own.lock().unwrap().take().unwrap();
        own.unregister().unwrap();
        handle.unregister().unwrap();
        memory.check();
    });
}

#[test]
fn life_8_unregistering_in_a_callback_is_deferred_and_the_token_waits() {
    apart(
        "life_8_unregistering_in_a_callback_is_deferred_and_the_token_waits",
        || {
            let mm = Mm::current().unwrap();
            let memory = Mapped::numbered(MIB);
            let handle = register(&mm);
            let probe = share(Probe {
                on_invalidate: Some(|probe, _| {
                    if let Some(own) = probe.own.lock().unwrap().take() {
                        let deferred = own.unregister().unwrap_err();
                        assert_eq!(deferred.inside(), Inside::Callback);
                        let deferred = deferred.wait().unwrap_err();
                        *probe.deferred.lock().unwrap() = Some(deferred);
                    }
                }),
                ..Probe::default()
            });
            *probe.own.lock().unwrap() = Some(handle.mirror(probe.clone()).unwrap());
            invalidate(&mm, &memory);
            let deferred = probe.deferred.lock().unwrap().take().unwrap();
            assert_eq!(probe.releases(), 0);
            invalidate(&mm, &memory);
            assert_eq!(
                probe.invalidations.load(Ordering::SeqCst),
                2,
                "the device has not stopped, so it is told"
            );
            deferred.wait().unwrap();
            assert_eq!(probe.releases(), 1);
            invalidate(&mm, &memory);
            assert_eq!(
                probe.invalidations.load(Ordering::SeqCst),
                2,
                "no callback begins any more"
            );
            handle.unregister().unwrap();
            memory.check();
        },
    );
}

#[test]
fn life_8_a_mirror_dropped_in_its_callback_is_released_in_the_end() {
    apart("life_8_a_mirror_dropped_in_its_callback_is_released_in_the_end", || {
        let before = threads(usize::MAX);
        let mm = Mm::current().unwrap();
        let memory = Mapped::numbered(MIB);
        let handle = register(&mm);
        let probe = share(Probe {
            on_invalidate: Some(|probe, _| drop(probe.own.lock().unwrap().take())),
            ..Probe::default()
        });
        *probe.own.lock().unwrap() = Some(handle.mirror(probe.clone()).unwrap());
        invalidate(&mm, &memory);
        invalidate(&mm, &memory);
        assert_eq!(
            probe.invalidations.load(Ordering::SeqCst),
            2,
            "the device has not stopped, so it is told"
        );
        drop(handle);
        drop(mm);
        assert_eq!(probe.releases(), 1);
        assert_eq!(threads(before), before);
        memory.check();
    });
}

#[test]
fn life_1_a_device_waits_for_the_callback_that_its_last_mirror_ended_in() {
    apart(
        "life_1_a_device_waits_for_the_callback_that_its_last_mirror_ended_in",
        || {
            let mm = Mm::current().unwrap();
            let memory = Mapped::numbered(MIB);
            let handle = register(&mm);
            let probe = share(Probe {
                on_invalidate: Some(|probe, _| {
                    if let Some(own) = probe.own.lock().unwrap().take() {
                        *probe.deferred.lock().unwrap() = Some(own.unregister().unwrap_err());
                        probe.go_to(1);
                        probe.await_step(2);
                    }
                }),
                ..Probe::default()
            });
            *probe.own.lock().unwrap() = Some(handle.mirror(probe.clone()).unwrap());
            std::thread::scope(|scope| {
                scope.spawn(|| invalidate(&mm, &memory));
                probe.await_step(1);
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(50));
                    probe.go_to(2);
                });
                handle.unregister().unwrap();
                assert_eq!(
                    probe.inside.load(Ordering::SeqCst),
                    0,
                    "a thread is still in a callback"
                );
                assert_eq!(probe.releases(), 1);
            });
            let deferred = probe.deferred.lock().unwrap().take();
            deferred.unwrap().wait().unwrap();
        },
    );
}

/// Leaves the process with pages on the device, a mirror that nobody drops, and threads in the middle of faults.
fn leave(how: &str) {
    let (mm, device, mirror) = open(config());
    let memory: &'static Mapped = Box::leak(Box::new(Mapped::numbered(8 * MIB)));
    let mirror = Arc::new(mirror);
    for half in 0..2 {
        let mirror = Arc::clone(&mirror);
        let words = memory.words();
        let words = &words[half * words.len() / 2..][..words.len() / 2];
        std::thread::spawn(move || {
            loop {
                mirror.prefetch(words).unwrap();
                core::hint::black_box(words.iter().fold(0, |sum, word| sum ^ *word));
            }
        });
    }
    let launching = Arc::clone(&mirror);
    std::thread::spawn(move || {
        loop {
            device_sum(&launching, memory.words());
        }
    });
    core::mem::forget((mm, device, mirror));
    std::thread::sleep(Duration::from_millis(100));
    match how {
        "return" => {}
        "exit" => {
            let _ = std::thread::spawn(|| exit(7)).join();
        }
        "abort" => std::process::abort(),
        _ => {
            // SAFETY: a plain system call.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
    }
}

#[test]
fn life_9_a_process_ends_whatever_is_in_flight() {
    use std::os::unix::process::ExitStatusExt;
    if let Some(how) = apart::role() {
        return leave(&how);
    }
    let test = "life_9_a_process_ends_whatever_is_in_flight";
    for (how, code, signal) in [
        ("return", Some(0), None),
        ("exit", Some(7), None),
        ("abort", None, Some(libc::SIGABRT)),
        ("kill", None, Some(libc::SIGKILL)),
    ] {
        for _ in 0..5 {
            let status = apart::wait(apart::start_again(test, how), Duration::from_secs(10));
            assert_eq!((status.code(), status.signal()), (code, signal), "{how}: {status}");
        }
    }
}

#[test]
fn life_1_more_devices_than_there_can_be_are_refused() {
    apart("life_1_more_devices_than_there_can_be_are_refused", || {
        let mm = Mm::current().unwrap();
        let handles: Vec<_> = (0..isomem_core::mm::MAX_DEVICES).map(|_| register(&mm)).collect();
        let config = MemoryConfig {
            name: "one too many",
            capacity_bytes: MIB,
            mirror_budget_bytes: None,
            kind: MemoryKind::Private,
        };
        assert_eq!(mm.core().register(config).unwrap_err(), RegisterError::TooMany);
        handles.into_iter().for_each(|handle| handle.unregister().unwrap());
        register(&mm).unregister().unwrap();
    });
}

/// The kernel lets munmap return when its event was read, not when it was handled; what the program maps and sends to the device next at
/// the same place must not be taken for the old.
#[test]
fn wld_2_fresh_memory_at_an_old_address_is_not_taken_for_the_old() {
    apart("wld_2_fresh_memory_at_an_old_address_is_not_taken_for_the_old", || {
        let (_mm, _device, mirror) = open(config());
        for round in 0..500 {
            let memory = Mapped::numbered(MIB);
            mirror.prefetch(memory.words()).unwrap();
            let expected = (0..MIB / 8).map(apart::number).sum::<u64>();
            assert_eq!(device_sum(&mirror, memory.words()), expected, "round {round}");
        }
    });
}
