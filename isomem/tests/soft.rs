//! The software device itself (DEV-1), below the facade: spans, windows, pins in the way of invalidations, and how they end.

#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "a raw launch and the accesses in its kernel share one reason"
)]

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use isomem::{Access, DeviceFault, Mm, PAGE_SIZE, PageRange, Placement, SoftConfig};
use isomem_core::addr::BLOCK_SIZE;
use isomem_core::bus::{AtomicOp, Bus};
use isomem_core::device::Device;
use isomem_core::mm::{EntryError, MemoryConfig, MemoryKind};
use isomem_core::notifier::{Answer, CallbackScope, Invalidation};
use isomem_core::world::{Metadata, World};
use isomem_linux::{Linux, Window};
use isomem_soft::{LaunchError, Operand, SoftDevice, SoftMirror, Worker};

fn open(placement: Placement) -> (Mm, SoftDevice<Linux>, SoftMirror<Linux>) {
    let mm = Mm::current().expect("these tests need userfaultfd: run them as root");
    let config = SoftConfig {
        workers: 2,
        memory_bytes: 16 << 20,
        placement,
        ..SoftConfig::default()
    };
    let device = SoftDevice::new(mm.core(), config).unwrap();
    let mirror = device.mirror().unwrap();
    (mm, device, mirror)
}

/// Pages of a block of their own, so that what one test holds up does not concern another. They stay for ever: a kernel that
/// outlives its test by a mistake meets them still.
fn pages(count: usize) -> usize {
    let len_bytes = count * PAGE_SIZE + 2 * BLOCK_SIZE;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let start = unsafe { libc::mmap(core::ptr::null_mut(), len_bytes, protection, flags, -1, 0) };
    assert_ne!(start, libc::MAP_FAILED);
    start.expose_provenance().next_multiple_of(BLOCK_SIZE)
}

fn window(start: usize, len_bytes: usize, access: Access) -> Window {
    // SAFETY: the tests' pages are used by nobody else.
    unsafe { Window::new(start, len_bytes, access) }
}

fn range(start: usize, pages: usize) -> PageRange {
    PageRange::new(start, pages * PAGE_SIZE).unwrap()
}

/// A kernel that lives for ever, as the device wants it where nobody vouches for its end.
fn launch(
    mirror: &SoftMirror<Linux>,
    kernel: impl for<'k> Fn(Worker<'k, Linux>) + Sync + Send + 'static,
) -> Result<(), isomem_soft::LaunchError> {
    mirror.launch(Box::leak(Box::new(kernel)))
}

#[test]
fn bus_1_a_window_is_the_end_of_what_a_kernel_reaches() {
    let (_mm, _device, mirror) = open(Placement::OnTouch);
    let start = pages(2);
    launch(&mirror, move |mut worker| {
        let read = window(start, 64, Access::Read);
        let mut out = [0; 64];
        worker.read(&read, start, &mut out).unwrap();
        for (addr, len) in [
            (start + 1, 64),
            (start - 1, 8),
            (start + PAGE_SIZE, 1),
            (usize::MAX, 1),
            (1 << 47, 1),
        ] {
            let refused = worker.read(&read, addr, &mut out[..len]);
            assert!(
                matches!(refused, Err(DeviceFault::NotGiven { addr: at, .. }) if at == addr),
                "{refused:?}"
            );
        }
        assert!(matches!(
            worker.write(&read, start, &[1]),
            Err(DeviceFault::NotGiven { .. })
        ));
        let odd = worker.atomic_u64(&read, start + 4, AtomicOp::Load);
        assert_eq!(odd, Err(DeviceFault::Misaligned { addr: start + 4 }));
    })
    .unwrap();
}

#[test]
fn bus_2_spans_across_pages_and_blocks_are_stitched() {
    let (_mm, _device, mirror) = open(Placement::OnTouch);
    const PAGES: usize = 1030;
    let start = pages(PAGES);
    launch(&mirror, move |mut worker| {
        if worker.index() > 0 {
            return;
        }
        let all = window(start, PAGES * PAGE_SIZE, Access::Write);
        let data: Vec<u8> = (0..PAGES * PAGE_SIZE - 6).map(|at| (at % 251) as u8).collect();
        worker.write(&all, start + 3, &data).unwrap();
        let mut back = vec![0; data.len()];
        worker.read(&all, start + 3, &mut back).unwrap();
        assert!(back == data);
    })
    .unwrap();
    // SAFETY: the launch is over.
    let first = unsafe { core::slice::from_raw_parts(start as *const u8, 5) };
    assert_eq!(first, [0, 0, 0, 0, 1]);
}

#[test]
fn soft_1_several_operands_are_pinned_at_once() {
    for placement in [Placement::OnTouch, Placement::InPlace] {
        let (_mm, _device, mirror) = open(placement);
        let (from, to) = (pages(4), pages(4));
        launch(&mirror, move |mut worker| {
            let (read, write) = (window(from, 64, Access::Read), window(to, 64, Access::Write));
            let operands = [
                Operand {
                    window: &read,
                    addr: from + 8 * worker.index(),
                    len_bytes: 8,
                    access: Access::Read,
                },
                Operand {
                    window: &write,
                    addr: to + 8 * worker.index(),
                    len_bytes: 8,
                    access: Access::Write,
                },
            ];
            let mut word = [1; 8];
            let copied = worker.with_many(operands, |world, [read, write]| {
                world.load(&read, 0, &mut word)?;
                assert!(world.store(&read, 0, &word).is_err(), "a span for reading");
                world.store(&write, 0, &word)
            });
            copied.unwrap();
            assert_eq!(word, [0; 8]);
        })
        .unwrap();
    }
}

/// Holds a pin of `addr` from when it says so until it is told, and then accesses it again.
fn hold(mirror: &SoftMirror<Linux>, addr: usize, held: &'static AtomicBool, go: &'static AtomicBool) {
    launch(mirror, move |mut worker| {
        if worker.index() > 0 {
            return;
        }
        let all = window(addr, 8, Access::Write);
        let operand = Operand {
            window: &all,
            addr,
            len_bytes: 8,
            access: Access::Write,
        };
        let stored = worker.with(operand, |world, span| {
            world.store(&span, 0, &7u64.to_ne_bytes())?;
            held.store(true, SeqCst);
            while !go.load(SeqCst) {
                thread::yield_now();
            }
            world.atomic_u64(&span, 0, AtomicOp::Add(1))
        });
        // Should it have failed, nobody is to wait for it.
        held.store(true, SeqCst);
        stored.unwrap();
    })
    .unwrap();
}

fn wait_for(flag: &AtomicBool) {
    while !flag.load(SeqCst) {
        thread::yield_now();
    }
}

#[test]
fn lbus_2_a_migration_leaves_a_held_pin_to_the_mmu_and_no_write_is_lost() {
    static HELD: AtomicBool = AtomicBool::new(false);
    static GO: AtomicBool = AtomicBool::new(false);
    let (mm, _device, mirror) = open(Placement::OnTouch);
    let start = pages(1);
    thread::scope(|scope| {
        scope.spawn(|| hold(&mirror, start, &HELD, &GO));
        wait_for(&HELD);
        assert_eq!(mirror.migrate_home(range(start, 1)).unwrap().migrated(), 1);
        // SAFETY: the worker does not access it now; it is an atomic anyway.
        let word = unsafe { AtomicU64::from_ptr(start as *mut u64) };
        assert_eq!(word.fetch_add(100, SeqCst), 7);
        GO.store(true, SeqCst);
    });
    // SAFETY: the launch is over.
    assert_eq!(unsafe { (start as *const u64).read_volatile() }, 108);
    assert!(mm.stats().fenced > 0);
}

#[test]
fn mig_8_a_read_only_page_comes_home_from_where_a_stale_access_went_once() {
    static HELD: AtomicBool = AtomicBool::new(false);
    static GO: AtomicBool = AtomicBool::new(false);
    let (mm, _device, mirror) = open(Placement::OnTouch);
    let start = pages(1);
    thread::scope(|scope| {
        scope.spawn(|| hold(&mirror, start, &HELD, &GO));
        wait_for(&HELD);
        assert_eq!(mirror.migrate_home(range(start, 1)).unwrap().migrated(), 1);
        assert!(mm.stats().fenced > 0);
        // It calls the page back.
        GO.store(true, SeqCst);
    });
    // SAFETY: the launch is over, and nobody else uses the page.
    unsafe { mm.protect(range(start, 1), Some(Access::Read)) }.unwrap();
    assert_eq!(mirror.migrate_to_device(range(start, 1)).unwrap().migrated(), 1);
    // What is read-only cannot be relinked with the device's memory: it is copied, there and back.
    assert_eq!(mirror.migrate_home(range(start, 1)).unwrap().copied, 1);
    // SAFETY: as above.
    assert_eq!(unsafe { (start as *const u64).read_volatile() }, 8);
}

#[test]
fn soft_4_a_change_waits_for_a_held_pin_and_the_watchdog_names_the_worker() {
    static HELD: AtomicBool = AtomicBool::new(false);
    static GO: AtomicBool = AtomicBool::new(false);
    static CHANGED: AtomicBool = AtomicBool::new(false);
    let (mm, device, mirror) = open(Placement::InPlace);
    let start = pages(1);
    thread::scope(|scope| {
        scope.spawn(|| hold(&mirror, start, &HELD, &GO));
        wait_for(&HELD);
        scope.spawn(|| {
            // SAFETY: the kernel's access is over when the change is made, and nobody else uses the page.
            unsafe { mm.protect(range(start, 1), Some(Access::Read)) }.unwrap();
            CHANGED.store(true, SeqCst);
        });
        while device.stats().stalled_pins == 0 {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(!CHANGED.load(SeqCst));
        let stall = device.stats().last_stall.unwrap();
        assert_eq!((stall.worker, stall.range), (0, range(start, 1)));
        GO.store(true, SeqCst);
    });
    assert!(CHANGED.load(SeqCst));
}

#[test]
fn soft_3_pages_outlive_the_mirror_and_come_home_by_touch_or_with_the_device() {
    let (_mm, device, mirror) = open(Placement::OnTouch);
    let start = pages(8);
    launch(&mirror, move |mut worker| {
        worker
            .write(&window(start, 8 * PAGE_SIZE, Access::Write), start, &[5; 8 * PAGE_SIZE])
            .unwrap();
    })
    .unwrap();
    assert!(device.memory_pages().0 > 0);
    mirror.unregister();
    // SAFETY: the launch is over.
    assert_eq!(unsafe { (start as *const u8).read_volatile() }, 5);
    device.unregister().unwrap();
}

#[test]
fn soft_2_misses_of_two_workers_on_one_block_are_serviced_once() {
    let (mm, _device, mirror) = open(Placement::InPlace);
    let before = mm.stats().device_faults_merged;
    for _ in 0..200 {
        let start = pages(1);
        static READY: AtomicU32 = AtomicU32::new(0);
        READY.store(0, SeqCst);
        launch(&mirror, move |mut worker| {
            READY.fetch_add(1, SeqCst);
            while READY.load(SeqCst) < 2 {
                thread::yield_now();
            }
            worker
                .read(&window(start, 8, Access::Read), start, &mut [0; 8])
                .unwrap();
        })
        .unwrap();
    }
    println!(
        "{} of 200 pairs of misses were merged",
        mm.stats().device_faults_merged - before
    );
}

#[test]
fn bad_configurations_are_refused_with_a_reason() {
    let mm = Mm::current().expect("these tests need userfaultfd: run them as root");
    let refused = |config: SoftConfig| mm.soft_device(config).unwrap_err().to_string();
    assert!(
        refused(SoftConfig {
            workers: 0,
            ..SoftConfig::default()
        })
        .contains("from 1 to 64 workers")
    );
    assert!(
        refused(SoftConfig {
            workers: 65,
            ..SoftConfig::default()
        })
        .contains("not 65")
    );
    assert!(
        refused(SoftConfig {
            memory_bytes: 0,
            ..SoftConfig::default()
        })
        .contains("at least one page")
    );
    assert!(
        refused(SoftConfig {
            memory_bytes: usize::MAX,
            ..SoftConfig::default()
        })
        .contains("memory")
    );
}

/// A device whose callbacks try what they must not.
struct Eager {
    /// Its own; other tests' invalidations reach it as well, from threads where a launch is refused for other reasons.
    page: PageRange,
    mirror: std::sync::OnceLock<SoftMirror<Linux>>,
    refused: AtomicBool,
}

impl Device for Eager {
    fn invalidate(&self, invalidation: &Invalidation, _scope: &CallbackScope<'_>) {
        if !invalidation.range.overlaps(self.page) {
            return;
        }
        let tried = self.mirror.get().map(|mirror| launch(mirror, |_| unreachable!()));
        self.refused.store(
            matches!(tried, Some(Err(LaunchError::Entry(EntryError::InCallback)))),
            SeqCst,
        );
    }

    fn try_invalidate(&self, _invalidation: &Invalidation, _scope: &CallbackScope<'_>) -> Answer {
        Answer::Done
    }

    fn release(&self) {}
}

#[test]
fn inv_7_a_launch_from_inside_a_callback_is_refused_and_does_not_hang() {
    let (mm, _device, mirror) = open(Placement::OnTouch);
    let page = range(pages(1), 1);
    let eager = Eager {
        page,
        mirror: std::sync::OnceLock::new(),
        refused: AtomicBool::new(false),
    };
    eager.mirror.set(mirror).unwrap();
    let eager = <Linux as World>::Meta::share(eager).unwrap();
    let memory = MemoryConfig {
        name: "eager",
        capacity_bytes: PAGE_SIZE,
        mirror_budget_bytes: None,
        kind: MemoryKind::Private,
    };
    let handle = mm.core().register(memory).unwrap();
    let watching = handle.mirror(eager.clone()).unwrap();
    // SAFETY: nobody uses the page.
    unsafe { mm.protect(page, Some(Access::Read)) }.unwrap();
    assert!(eager.refused.load(SeqCst));
    watching.unregister().unwrap();
    handle.unregister().unwrap();
}
