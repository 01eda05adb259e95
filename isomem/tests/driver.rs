//! What a driver of one's own gets from the core: range faults, snapshots, the DMA hook, and a report of every page.

#![allow(dead_code, reason = "the shared helpers serve other tests, too")]
#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "three calls on one mapping share one reason"
)]

mod apart;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use apart::{MIB, Mapped, apart};
use isomem::{Access, FaultError, Mm, PAGE_SIZE, PageRange, PageState, SkipReason};
use isomem_core::device::{Device, DeviceAddr, DmaError};
use isomem_core::mirror::{DeviceHandle, Mirror};
use isomem_core::mm::{MemoryConfig, MemoryKind};
use isomem_core::notifier::{Answer, CallbackScope, Invalidation};
use isomem_core::world::Metadata;
use isomem_linux::Linux;
use isomem_linux::sys::metadata::{MetaArc, MetadataHeap};

/// Where the device sees system memory: not where the CPU does.
const BUS_OFFSET: u64 = 1 << 50;

/// A device behind a bus that maps pages for DMA, and sometimes cannot.
#[derive(Default)]
struct Behind {
    mapped: AtomicUsize,
    refuses: AtomicBool,
}

impl Device for Behind {
    fn invalidate(&self, _: &Invalidation, _: &CallbackScope<'_>) {}

    fn try_invalidate(&self, _: &Invalidation, _: &CallbackScope<'_>) -> Answer {
        Answer::Done
    }

    fn release(&self) {}

    fn dma_map(&self, range: PageRange) -> Result<DeviceAddr, DmaError> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(DmaError {
                range,
                errno: libc::ENOSPC,
            });
        }
        self.mapped.fetch_add(range.page_count(), Ordering::Relaxed);
        Ok(DeviceAddr(range.start() as u64 + BUS_OFFSET))
    }

    fn dma_unmap(&self, range: PageRange, at: DeviceAddr) {
        assert_eq!(
            at.0,
            range.start() as u64 + BUS_OFFSET,
            "unmapped elsewhere than mapped"
        );
        self.mapped.fetch_sub(range.page_count(), Ordering::Relaxed);
    }
}

struct Rig {
    mm: Mm,
    _handle: DeviceHandle<Linux>,
    device: MetaArc<Behind>,
    mirror: Mirror<Linux, Behind>,
}

fn rig() -> Rig {
    let mm = Mm::current().expect("these tests need userfaultfd: run them as root");
    let memory = MemoryConfig {
        name: "behind",
        capacity_bytes: 16 * MIB,
        mirror_budget_bytes: None,
        kind: MemoryKind::Private,
    };
    let handle = mm.core().register(memory).unwrap();
    let device = MetadataHeap::share(Behind::default()).unwrap();
    let mirror = handle.mirror(device.clone()).unwrap();
    Rig {
        mm,
        _handle: handle,
        device,
        mirror,
    }
}

impl Rig {
    fn mapped(&self) -> usize {
        self.device.mapped.load(Ordering::Relaxed)
    }
}

fn rw(len_bytes: usize) -> Mapped {
    Mapped::new(len_bytes, libc::PROT_READ | libc::PROT_WRITE)
}

#[test]
fn flt_1_fault_brings_in_and_snapshot_only_looks() {
    apart("flt_1_fault_brings_in_and_snapshot_only_looks", || {
        let rig = rig();
        let memory = rw(MIB);
        let states = |range| {
            let snapshot = rig.mirror.snapshot(range).unwrap();
            snapshot
                .runs()
                .iter()
                .map(|(run, state)| (run.page_count(), *state))
                .collect::<Vec<_>>()
        };
        assert_eq!(states(memory.range()), [(256, PageState::Missing)]);
        assert_eq!(
            states(memory.range()),
            [(256, PageState::Missing)],
            "a look must not touch"
        );
        let faulted = rig.mirror.fault(memory.pages(0, 4), Access::Write).unwrap();
        assert_eq!((faulted.pages, faulted.on_device), (4, 0));
        let faulted = rig.mirror.fault(memory.pages(4, 4), Access::Read).unwrap();
        assert_eq!(faulted.pages, 4);
        let system = PageState::System {
            access: Access::Write,
            huge: false,
        };
        assert_eq!(
            states(memory.range()),
            [(4, system), (4, PageState::Zero), (248, PageState::Missing)]
        );
        rig.mirror.migrate_to_device(memory.pages(2, 1)).unwrap();
        let snapshot = rig.mirror.snapshot(memory.range()).unwrap();
        assert!(matches!(
            snapshot.at(memory.start + 2 * PAGE_SIZE),
            Some(PageState::Device {
                local: true,
                access: Access::Write,
                ..
            })
        ));
        assert_eq!(
            rig.mirror.fault(memory.pages(2, 1), Access::Write).unwrap().on_device,
            1
        );
    });
}

#[test]
fn tbl_4_every_run_is_mapped_for_dma_once_and_unmapped_once() {
    apart("tbl_4_every_run_is_mapped_for_dma_once_and_unmapped_once", || {
        let rig = rig();
        let memory = Mapped::numbered(4 * MIB);
        let pages = memory.range().page_count();
        rig.mirror.fault(memory.range(), Access::Read).unwrap();
        assert_eq!(rig.mapped(), pages);
        let leaf = rig
            .mirror
            .state()
            .table()
            .get(isomem::VirtAddr::new(memory.start).unwrap())
            .unwrap();
        assert_eq!(leaf.entry.addr().0, memory.start as u64 + BUS_OFFSET);
        rig.mirror.fault(memory.range(), Access::Write).unwrap();
        assert_eq!(rig.mapped(), pages, "a page that is mapped already is not mapped again");
        // Pages that leave for the device, or lose their entries by a protection change, leave the DMA mapping, too.
        rig.mirror.migrate_to_device(memory.pages(0, 100)).unwrap();
        assert_eq!(rig.mapped(), pages - 100);
        // SAFETY: the memory stays readable and writable.
        unsafe { rig.mm.protect(memory.pages(100, 50), Some(Access::Write)) }.unwrap();
        assert_eq!(rig.mapped(), pages - 150);
        rig.device.refuses.store(true, Ordering::Relaxed);
        let refused = rig.mirror.fault(memory.pages(100, 50), Access::Read).unwrap_err();
        assert!(
            matches!(
                refused,
                FaultError::Dma(DmaError {
                    errno: libc::ENOSPC,
                    ..
                })
            ),
            "{refused}"
        );
        assert_eq!(rig.mapped(), pages - 150);
        rig.mirror.unregister().unwrap();
        assert_eq!(
            rig.device.mapped.load(Ordering::Relaxed),
            0,
            "released, so nothing may stay mapped"
        );
        memory.check();
    });
}

#[test]
fn mig_1_each_page_may_drop_out_alone_and_the_report_says_why() {
    apart("mig_1_each_page_may_drop_out_alone_and_the_report_says_why", || {
        let rig = rig();
        let memory = Mapped::numbered(MIB);
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        // SAFETY: pages of the mapping just made, which nobody else knows; each call is like its manual page says.
        unsafe {
            let page = |index: usize| (memory.start + index * PAGE_SIZE) as *mut libc::c_void;
            assert_eq!(libc::munmap(page(10), PAGE_SIZE), 0);
            assert_eq!(libc::mprotect(page(20), 2 * PAGE_SIZE, libc::PROT_NONE), 0);
            let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            assert_eq!(libc::mmap(page(30), PAGE_SIZE, libc::PROT_READ, flags, fd, 0), page(30));
        }
        let report = rig.mirror.migrate_to_device(memory.range()).unwrap();
        assert_eq!((report.migrated(), report.skipped), (252, 4));
        let skips: Vec<_> = report
            .skips()
            .iter()
            .map(|(run, why)| (run.first_page(), run.page_count(), *why))
            .collect();
        let first = memory.range().first_page();
        assert_eq!(
            skips,
            [
                (first + 10, 1, SkipReason::Hole),
                (first + 20, 2, SkipReason::NoAccess),
                (first + 30, 1, SkipReason::NotAnonymous),
            ]
        );
        assert_eq!(rig.mirror.migrate_home(memory.range()).unwrap().moved, 252);
    });
}
