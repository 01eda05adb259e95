use core::alloc::Layout;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use allocator_api2::vec::Vec as MetaVec;
use isomem_core::notifier::{Answer, CallbackScope, Invalidation, Subscriber};
use isomem_core::world::Metadata;

use super::classes::{CUTS, SLAB_BYTES, SMALL_CLASSES, small_class, step, step_len};
use super::heap::Heap;
use super::{MetaArc, MetadataHeap, contains, owned_range};

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

#[test]
fn a_step_is_the_least_that_holds_and_loses_at_most_an_eighth() {
    for n in 1..100_000 {
        let len = step_len(step(n));
        assert!(len >= n && (n <= 8 || (len - n) * 8 < n), "{n} -> {len}");
        assert!(step(n) == 0 || step_len(step(n) - 1) < n);
    }
}

#[test]
fn a_slab_holds_its_links_and_its_blocks() {
    for (class, cut) in CUTS.iter().enumerate() {
        assert!(cut.block_count * 4 <= cut.header_bytes);
        assert!(cut.header_bytes + cut.block_count * cut.block_bytes <= SLAB_BYTES);
        assert!(cut.block_count <= 1 << 16 && cut.header_bytes.is_multiple_of(cut.align));
        assert_eq!(small_class(cut.block_bytes, 1), Some(class));
    }
    assert_eq!(CUTS[SMALL_CLASSES - 1].block_bytes, 32 << 10);
    // A node is a page and a little, a directory three pages: neither may cost much more.
    assert!(CUTS[small_class(4096 + 64, 8).unwrap()].block_bytes <= 4608);
    assert!(CUTS[small_class(12 << 10, 8).unwrap()].block_bytes <= 12 << 10);
}

#[test]
fn meta_1_blocks_are_aligned_apart_and_in_the_range() {
    let heap = Heap::new(256 << 20);
    let mut blocks = Vec::new();
    for round in 0..2000usize {
        let layout = layout(1 + round * 37 % 70_000, 1 << (round % 17));
        let block = heap.allocate(layout).unwrap();
        let start = block.cast::<u8>().addr().get();
        assert!(
            start.is_multiple_of(layout.align()) && heap.contains(start) && heap.contains(start + layout.size() - 1)
        );
        blocks.push((start, layout, block.cast::<u8>()));
    }
    blocks.sort_by_key(|block| block.0);
    assert!(blocks.windows(2).all(|pair| pair[0].0 + pair[0].1.size() <= pair[1].0));
    for (_, layout, block) in blocks {
        // SAFETY: allocated above from this heap with this layout, and freed once.
        unsafe { heap.deallocate(block, layout) };
    }
    assert_eq!(heap.bytes_in_use(), 0);
}

#[test]
fn meta_3_exhaustion_is_an_error_and_freed_blocks_serve_again() {
    for size in [48, 4200, 100 << 10] {
        let heap = Heap::new(16 << 20);
        let blocks: Vec<_> = core::iter::from_fn(|| heap.allocate(layout(size, 8)).ok()).collect();
        assert!(blocks.len() * size > 8 << 20, "{size}: {} blocks", blocks.len());
        let in_use = heap.bytes_in_use();
        for block in &blocks {
            // SAFETY: allocated above with this layout, and freed once.
            unsafe { heap.deallocate(block.cast(), layout(size, 8)) };
        }
        assert_eq!(heap.bytes_in_use(), 0);
        let again = core::iter::from_fn(|| heap.allocate(layout(size, 8)).ok()).count();
        assert_eq!((again, heap.bytes_in_use()), (blocks.len(), in_use));
    }
}

#[test]
fn meta_3_what_cannot_be_served_is_an_error() {
    let heap = Heap::new(16 << 20);
    assert!(heap.allocate(layout(1 << 40, 8)).is_err());
    assert!(heap.allocate(layout(17 << 20, 8)).is_err());
    assert!(heap.allocate(layout(64, 1 << 20)).is_err());
    assert!(heap.allocate(layout(0, 64)).is_ok_and(|block| block.is_empty()));
    assert_eq!(heap.bytes_in_use(), 0);
}

#[test]
fn zeroed_is_zero_also_when_the_block_was_used() {
    for size in [100, 40_000, 300 << 10] {
        let heap = Heap::new(16 << 20);
        for _ in 0..3 {
            let block = heap.allocate_zeroed(layout(size, 8)).unwrap().cast::<u8>();
            // SAFETY: the block has `size` bytes, all written as zero.
            let bytes = unsafe { core::slice::from_raw_parts_mut(block.as_ptr(), size) };
            assert!(bytes.iter().all(|byte| *byte == 0));
            bytes.fill(0xa5);
            // SAFETY: allocated above with this layout, and freed once.
            unsafe { heap.deallocate(block, layout(size, 8)) };
        }
    }
}

#[test]
fn meta_2_threads_never_get_the_same_block() {
    let heap = Heap::new(64 << 20);
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let heap = &heap;
            scope.spawn(move || {
                let mut held = Vec::new();
                for round in 0..20_000usize {
                    let size = [16, 48, 4160, 70_000][round % 4];
                    let block = heap.allocate(layout(size, 8)).unwrap().cast::<u8>();
                    // SAFETY: the block has at least 16 bytes.
                    unsafe { block.write_bytes(thread, 16) };
                    held.push((block, size));
                    if held.len() > 40 {
                        let (block, size) = held.swap_remove(round % 40);
                        // SAFETY: a live block of at least 16 bytes, written above.
                        let bytes = unsafe { block.cast::<[u8; 16]>().read() };
                        assert_eq!(bytes, [thread; 16]);
                        // SAFETY: allocated above with this layout; it left `held`.
                        unsafe { heap.deallocate(block, layout(size, 8)) };
                    }
                }
                for (block, size) in held {
                    // SAFETY: allocated above with this layout, and freed once.
                    unsafe { heap.deallocate(block, layout(size, 8)) };
                }
            });
        }
    });
    assert_eq!(heap.bytes_in_use(), 0);
}

#[test]
fn meta_2_a_forks_child_can_allocate_while_others_were_in_the_middle() {
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    drop(MetaArc::try_new([0u8; 100]));
                }
            });
        }
        for _ in 0..20 {
            // SAFETY: the child makes only calls that are fit for a child of a threaded process, and leaves by `_exit`.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let ok = (0..1000).all(|_| MetaArc::try_new([0u8; 100]).is_ok());
                // SAFETY: ends the child without running the parent's exit handlers.
                unsafe { libc::_exit(if ok { 0 } else { 1 }) };
            }
            let mut status = 0;
            // SAFETY: waits for the child made above; `status` is ours.
            let waited = unsafe { libc::waitpid(child, &mut status, 0) };
            assert_eq!((waited, status), (child, 0));
        }
        stop.store(true, Ordering::Relaxed);
    });
}

struct Counts(Arc<AtomicUsize>);

impl Drop for Counts {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_shared_value_is_dropped_once_with_the_last_clone() {
    let drops = Arc::new(AtomicUsize::new(0));
    let first = MetadataHeap::share(Counts(drops.clone())).unwrap();
    assert!(contains(core::ptr::from_ref(&*first).addr()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let clone = first.clone();
            scope.spawn(move || (0..1000).for_each(|_| drop(clone.clone())));
        }
    });
    let other = first.clone();
    assert!(MetaArc::ptr_eq(&first, &other));
    drop(first);
    assert_eq!(drops.load(Ordering::Relaxed), 0);
    drop(other);
    assert_eq!(drops.load(Ordering::Relaxed), 1);
}

#[repr(align(4096))]
struct Aligned(#[expect(dead_code)] u8);

#[test]
fn a_shared_value_has_its_alignment() {
    let value = MetadataHeap::share(Aligned(1)).unwrap();
    assert!(core::ptr::from_ref(&*value).addr().is_multiple_of(4096));
}

impl Subscriber for Counts {
    fn start(&self, _: &Invalidation, _: &CallbackScope<'_>) {}

    fn try_start(&self, _: &Invalidation, _: &CallbackScope<'_>) -> Answer {
        unreachable!("never subscribed")
    }
}

#[test]
fn a_subscriber_is_dropped_through_its_trait() {
    let drops = Arc::new(AtomicUsize::new(0));
    let subscriber = MetadataHeap::share_subscriber(Counts(drops.clone())).unwrap();
    drop(subscriber.clone());
    assert_eq!(drops.load(Ordering::Relaxed), 0);
    drop(subscriber);
    assert_eq!(drops.load(Ordering::Relaxed), 1);
}

#[test]
fn collections_live_in_the_range() {
    let mut numbers = MetaVec::new_in(MetadataHeap);
    numbers.extend(0..100_000u64);
    let range = owned_range().unwrap();
    assert!(range.contains(&numbers.as_ptr().addr()));
    assert!(MetadataHeap::bytes_in_use() >= 800_000);
    assert!(!contains(core::ptr::from_ref(&range).addr()));
    assert_eq!(numbers.iter().sum::<u64>(), 100_000 * 99_999 / 2);
}
