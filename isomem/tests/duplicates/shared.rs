//! A device that shares pages with the CPU.

use std::time::{Duration, Instant};

use isomem::{Access, MemoryKind, Mm, PAGE_SIZE, PageRange, PageState, VirtAddr};
use isomem_core::bus::{AtomicOp, Bus, Span};
use isomem_core::mirror::pin::PinSlot;
use isomem_core::mm::Advice;
use isomem_linux::Window;
use isomem_linux::sys::metadata::MetadataHeap;

use crate::apart::{MIB, Mapped};
use crate::rig::{Gpu, gpu};

/// Pages of what [`share`] makes.
pub(crate) const PAGES: usize = MIB / PAGE_SIZE;

/// Numbered memory of [`PAGES`] pages, all on a device, and all read by the CPU.
pub(crate) fn share(mm: &Mm) -> (Gpu, Mapped) {
    let device = gpu(mm, "sharing", MemoryKind::Private);
    let memory = Mapped::numbered(MIB);
    share_with(&device, &memory);
    (device, memory)
}

/// Makes duplicates of all pages of `memory`.
pub(crate) fn share_with(device: &Gpu, memory: &Mapped) {
    device.mirror.advise(memory.range(), Advice::ReadMostly).unwrap();
    let sent = device.mirror.migrate_to_device(memory.range()).unwrap();
    assert_eq!(sent.skipped, 0, "{sent:?}");
    memory.check();
    let pages = memory.len_bytes / PAGE_SIZE;
    expect_shared(device, memory.range(), pages);
    device.wait_used(pages);
}

/// Waits until so many pages of `range` are duplicates.
#[track_caller]
pub(crate) fn expect_shared(device: &Gpu, range: PageRange, pages: usize) {
    expect(device, range, is_duplicate, pages);
}

/// Waits until so many pages of `range` are in a state that `is` accepts: the CPU goes on as soon as it can, and the pages settle a moment later.
#[track_caller]
pub(crate) fn expect(device: &Gpu, range: PageRange, is: fn(&PageState) -> bool, pages: usize) {
    let began = Instant::now();
    loop {
        let found = device.count(range, is);
        if found == pages {
            return;
        }
        let waited = began.elapsed();
        assert!(waited.as_secs() < 20, "{found} pages are as expected, not {pages}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn is_duplicate(state: &PageState) -> bool {
    matches!(state, PageState::Duplicate { .. })
}

pub(crate) fn is_system(state: &PageState) -> bool {
    matches!(state, PageState::System { .. })
}

pub(crate) fn is_on_device(state: &PageState) -> bool {
    matches!(state, PageState::Device { .. })
}

/// How often CPU threads waited for somebody to serve a fault on a page of a device.
pub(crate) fn faults(mm: &Mm) -> u64 {
    mm.stats().cpu_faults
}

/// The word at `addr`, as the device reads it.
pub(crate) fn peek(device: &Gpu, slot: &mut PinSlot<'_, MetadataHeap>, addr: usize) -> u64 {
    // SAFETY: the tests access these words by atomic operations while devices do.
    let window = unsafe { Window::new(addr, 8, Access::Read) };
    let at = VirtAddr::new(addr).unwrap();
    loop {
        if let Some(pin) = slot.pin(at, 8, Access::Read) {
            let span = Span::new(pin, &window, Access::Read).unwrap();
            let world = device.mirror.state().mm().world();
            return world.atomic_u64(&span, 0, AtomicOp::Load).unwrap();
        }
        device.mirror.fault(at.page(), Access::Read).unwrap();
    }
}
