//! Counts of what happened, and how long faults took.
//!
//! Counters are plain relaxed atomics: they order nothing and are not part of the checked protocol.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counters as they run.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $($(#[$doc])* pub(crate) $name: AtomicU64,)*
            pub(crate) device_fault_ns: Histogram,
            pub(crate) cpu_fault_ns: Histogram,
        }

        /// What happened in an address space so far.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
            /// Invalidations that were started.
            pub invalidations: u64,
            /// Non-blocking invalidations that a subscriber refused.
            pub invalidations_refused: u64,
            /// Readers told that what they saw went stale.
            pub collisions: u64,
            /// Device misses, from the miss to the resumed access, in nanoseconds.
            pub device_fault_ns: Latency,
            /// CPU faults on migrated pages, as served by the pager (without the kernel's share), in nanoseconds.
            pub cpu_fault_ns: Latency,
            /// Bytes of isomem's own tables at present.
            pub metadata_bytes: u64,
        }

        impl Counters {
            pub(crate) fn read(&self) -> Stats {
                Stats {
                    $($name: self.$name.load(Relaxed),)*
                    device_fault_ns: self.device_fault_ns.read(),
                    cpu_fault_ns: self.cpu_fault_ns.read(),
                    ..Stats::default()
                }
            }
        }
    };
}

counters! {
    /// Misses of device page tables that were serviced.
    device_faults,
    /// Device misses that waited for another worker's service of the same block.
    device_faults_merged,
    /// CPU faults on migrated pages; each is counted before its thread goes on.
    cpu_faults,
    /// CPU faults on pages in transit.
    cpu_faults_in_transit,
    /// CPU faults on untouched pages of tracked areas.
    cpu_faults_untouched,
    /// Device accesses that met a page which had gone home meanwhile, and called it back.
    recalls,
    /// Pages that went to a device.
    pages_to_device,
    /// Pages that a CPU fault brought home, fault-around included.
    pages_home_by_fault,
    /// Pages that came home to make room.
    pages_home_by_eviction,
    /// Pages that came home because somebody asked.
    pages_home_by_request,
    /// Of the pages that went to a device, those that came from another one.
    pages_between_devices,
    /// Pages that were claimed for coherent device memory.
    pages_claimed,
    /// Pages that a device took exclusively.
    pages_exclusive,
    /// Pages of which the CPU got a copy to read while the device kept them.
    pages_duplicated,
    /// Such duplicates that ended, by a write or because the page had to be on one side.
    duplicates_collapsed,
    /// Bytes that changed place by relinking pages.
    bytes_moved,
    /// Bytes that changed place by copying.
    bytes_copied,
    /// Pages that a migration left where they were.
    pages_skipped,
    /// Chunks of device memory whose pages were evicted.
    evictions,
    /// Blocks whose pages were found to go back and forth between a device and the CPU, or another device.
    thrash_detected,
    /// Device misses that waited because of that, before their pages went.
    thrash_throttled,
    /// Device misses that were mapped in place because of that.
    thrash_mapped_in_place,
    /// Reads of the CPU's mappings that had to start again.
    retries,
    /// Invalidations that went on although a device still held a pin: the MMU fences it.
    fenced,
    /// Changes of the address space that devices were told of before they were made.
    changes_announced,
    /// Changes of the address space that devices were told of only afterwards: contents dropped.
    late_removed,
    /// The same: unmapped.
    late_unmapped,
    /// The same: moved to another address.
    late_remapped,
    /// The same: forked.
    late_forked,
    /// Of those, changes that a device kept refusing to hear of.
    late_untold,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, amount: usize) {
    counter.fetch_add(amount as u64, Relaxed);
}

/// Sub-buckets per power of two.
const FINE: usize = 16;
const BUCKETS: usize = 40 * FINE;

/// Latencies in buckets 1/16 of a power of two wide, up to about 17 minutes.
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    max: AtomicU64,
}

impl core::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.read().fmt(f)
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            max: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    /// Adds one latency.
    pub fn record(&self, ns: u64) {
        self.buckets[bucket(ns)].fetch_add(1, Relaxed);
        self.max.fetch_max(ns, Relaxed);
    }

    /// Count and quantiles so far.
    pub fn read(&self) -> Latency {
        let count = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).sum();
        let max = self.max.load(Relaxed);
        Latency {
            count,
            p50: self.quantile(count, 50).min(max),
            p99: self.quantile(count, 99).min(max),
            max,
        }
    }

    fn quantile(&self, count: u64, percent: u64) -> u64 {
        let rank = (count * percent).div_ceil(100);
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket.load(Relaxed);
            if seen >= rank && seen > 0 {
                return upper_bound(index);
            }
        }
        0
    }
}

fn bucket(ns: u64) -> usize {
    if ns < FINE as u64 {
        return ns as usize;
    }
    let power = ns.ilog2() as usize;
    let fine = (ns >> (power - 4)) as usize - FINE;
    ((power - 3) * FINE + fine).min(BUCKETS - 1)
}

fn upper_bound(index: usize) -> u64 {
    if index < FINE {
        return index as u64;
    }
    let (power, fine) = (index / FINE + 3, index % FINE);
    ((FINE + fine + 1) as u64) << (power - 4)
}

/// Quantiles of a latency, in nanoseconds; the p50 and p99 are at most 1/16 too high.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Latency {
    /// Events measured.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// Longest.
    pub max: u64,
}

#[cfg(test)]
mod tests;
