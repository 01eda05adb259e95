//! isomem with one software device of one worker, and the calls that the rows time.

use std::time::Instant;

use isomem::{Mirror, Mm, Placement, SoftConfig, SoftDevice, ThrashPolicy};
use isomem_core::addr::{PAGE_SIZE, PageRange};
use isomem_core::world::Access;

use crate::BenchError;
use crate::row::time;

/// Dropped in the order of its fields.
pub(crate) struct Rig {
    mirror: Mirror,
    _device: SoftDevice,
    mm: Mm,
    metadata_before: u64,
}

pub(crate) fn refused(error: impl std::error::Error + Send + Sync + 'static) -> BenchError {
    BenchError::Isomem(Box::new(error))
}

impl Rig {
    /// A device with so much memory that takes pages on the first touch.
    pub(crate) fn new(memory_bytes: usize) -> Result<Self, BenchError> {
        Self::with(memory_bytes, Placement::OnTouch)
    }

    pub(crate) fn with(memory_bytes: usize, placement: Placement) -> Result<Self, BenchError> {
        let mm = Mm::current().map_err(refused)?;
        let metadata_before = mm.stats().metadata_bytes;
        let config = SoftConfig {
            workers: 1,
            memory_bytes,
            placement,
            // The rows time what happens when pages move.
            thrash: ThrashPolicy::OFF,
            ..SoftConfig::default()
        };
        let device = mm.soft_device(config).map_err(refused)?;
        let mirror = device.mirror().map_err(refused)?;
        Ok(Self {
            mirror,
            _device: device,
            mm,
            metadata_before,
        })
    }

    /// Sends the range to the device; nanoseconds.
    pub(crate) fn send(&self, range: PageRange) -> Result<f64, BenchError> {
        let (ns, report) = time(|| self.mirror.migrate_to_device(range));
        let report = report.map_err(refused)?;
        assert_eq!(report.skipped, 0, "pages were left behind: {:?}", report.skips());
        Ok(ns)
    }

    /// Brings the range home; nanoseconds.
    pub(crate) fn bring_home(&self, range: PageRange) -> Result<f64, BenchError> {
        let (ns, report) = time(|| self.mirror.migrate_home(range));
        let report = report.map_err(refused)?;
        assert_eq!(report.skipped, 0, "pages were left behind: {:?}", report.skips());
        Ok(ns)
    }

    /// Looks at the range; nanoseconds.
    pub(crate) fn snapshot(&self, range: PageRange) -> Result<f64, BenchError> {
        let (ns, snapshot) = time(|| self.mirror.snapshot(range));
        assert!(!snapshot.map_err(refused)?.runs().is_empty());
        Ok(ns)
    }

    /// Empties the device's page table over the range.
    pub(crate) fn forget(&self, range: PageRange) -> Result<(), BenchError> {
        crate::sys::protect_as_it_is(&self.mm, range, Access::Write).map_err(refused)
    }

    /// The device's sum of the words, and the nanoseconds it takes on the worker.
    pub(crate) fn sum(&self, words: &[u64]) -> Result<(f64, u64), BenchError> {
        let kernel = |worker: &mut isomem::Worker<'_>, words: isomem::Shared<'_, u64>| {
            let began = Instant::now();
            let mut sum = 0;
            words.for_chunks(worker, 0..words.len(), |_, piece| sum += piece.iter().sum::<u64>())?;
            Ok((began.elapsed().as_secs_f64() * 1e9, sum))
        };
        let done = self.mirror.launch(words, kernel).map_err(refused)?;
        Ok(done[0])
    }

    /// Has the device read one word of each page, in order; nanoseconds on the worker.
    pub(crate) fn touch_pages(&self, words: &[u64]) -> Result<f64, BenchError> {
        let kernel = |worker: &mut isomem::Worker<'_>, words: isomem::Shared<'_, u64>| {
            let began = Instant::now();
            for index in (0..words.len()).step_by(PAGE_SIZE / 8) {
                std::hint::black_box(words.get(worker, index)?);
            }
            Ok(began.elapsed().as_secs_f64() * 1e9)
        };
        let done = self.mirror.launch(words, kernel).map_err(refused)?;
        Ok(done[0])
    }

    /// Bytes of isomem's tables beyond what they were before the device came.
    pub(crate) fn metadata_bytes(&self) -> u64 {
        self.mm.stats().metadata_bytes - self.metadata_before
    }
}
