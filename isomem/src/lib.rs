//! One address space for the CPU and for a device: a program's ordinary memory on a device, by its ordinary pointers.
//!
//! Pages move to the device's memory when the device touches them, and come back when the CPU does. The device is told before a mapping
//! changes, so it never sees memory that is no longer there. In Linux an in-kernel driver gets this from HMM (mm/hmm.c); isomem gives it to what
//! lives in a process.
//!
//! ```
//! use isomem::{Mm, SoftConfig};
//!
//! let numbers: Vec<u64> = (0..1_000_000).collect();
//! let mm = Mm::current()?;
//! let device = mm.soft_device(SoftConfig::default())?;
//! let mirror = device.mirror()?;
//! let sums = mirror.launch(&numbers[..], |worker, numbers| {
//!     let mut sum = 0;
//!     numbers.for_chunks(worker, worker.share(numbers.len()), |_, piece| sum += piece.iter().sum::<u64>())?;
//!     Ok(sum)
//! })?;
//! assert_eq!(sums.iter().sum::<u64>(), numbers.iter().sum());
//! println!("{} device faults, {} pages moved", mm.stats().device_faults, mm.stats().pages_to_device);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Launches
//! A kernel is a closure that runs once on every worker of the device. It gets the worker and a handle for each slice that was lent to it:
//!
//! ```
//! # use isomem::{Mm, SoftConfig};
//! # let mm = Mm::current()?;
//! # let device = mm.soft_device(SoftConfig::default())?;
//! # let mirror = device.mirror()?;
//! use std::sync::atomic::AtomicU64;
//!
//! let text = b"the quick brown fox jumps over the lazy dog".to_vec();
//! let mut upper = vec![0u8; text.len()];
//! let letters: Vec<AtomicU64> = (0..256).map(|_| AtomicU64::new(0)).collect();
//! mirror.launch((&text[..], &mut upper[..], &letters[..]), |worker, (text, mut upper, letters)| {
//!     // A part of a `&mut` slice is this worker's own; `&` slices are everybody's.
//!     for index in 0..upper.len() {
//!         let letter = text.get(worker, upper.offset() + index)?;
//!         upper.set(worker, index, letter.to_ascii_uppercase())?;
//!         letters.fetch_add(worker, letter.into(), 1)?;
//!     }
//!     Ok(())
//! })?;
//! assert_eq!(upper, text.to_ascii_uppercase());
//! assert_eq!(letters[usize::from(b'e')].load(std::sync::atomic::Ordering::Relaxed), 3);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The slices stay borrowed while the launch runs, so what the types allow is safe; [`Mirror::launch_raw`] follows any pointer, and is unsafe.
//! A failed access is an error that the kernel passes on ([`DeviceFault`]), not a signal. What a kernel captures, or allocates, is
//! ordinary memory, and may be anywhere like all other.
//!
//! # Where memory is
//! [`Placement`] says what happens when the device misses: pages migrate on touch, stay in place, or migrate after so many accesses.
//! [`Mirror::prefetch`], [`Mirror::bring_home`] and [`Mirror::discard`] say it ahead of time, and [`Mirror::advise`] says what is best in general. Device memory smaller than the data is fine: pages
//! are evicted. Nothing but speed depends on where a page is.
//!
//! # Changes of the address space
//! What goes through [`Mm::unmap`], [`Mm::protect`], [`Mm::discard_pages`] and [`Mm::remap`] is announced to devices before it happens. What the
//! program does behind isomem's back is noticed late, repaired, and counted in [`Stats`].
//!
//! # The layers below
//! `isomem-core` is the protocol, generic over the world it runs in; `isomem-linux` is the calling process as a world; `isomem-soft` is the software
//! device. A driver of your own implements `isomem_core::device::Device` and registers with [`Mm::core`].

mod args;
mod device;
mod handle;
mod mirror;
mod mm;
mod raw;
mod worker;

pub use args::{Args, Atomic, Kind, Plain, Shareable};
pub use device::{Busy, SoftDevice};
pub use handle::{Atomics, Part, Shared, Word};
pub use isomem_core::addr::{PAGE_SIZE, PageRange, RangeError, VirtAddr};
pub use isomem_core::migrate::{MigrateError, SkipReason};
pub use isomem_core::mirror::MirrorError;
pub use isomem_core::mirror::range::{FaultError, Faulted, PageState};
pub use isomem_core::mm::{Advice, AdviseError, Advised, EntryError, MemoryKind, Preferred, ThrashPolicy, Usage};
pub use isomem_core::world::Access;
pub use isomem_linux::exact::has_warden;
pub use isomem_linux::{ExactError, Exactness, OpenError, Windows};
pub use isomem_soft::{DeviceFault, PanicNote, Placement, SoftConfig, SoftError, SoftStats, Stall};
pub use mirror::{LaunchError, Mirror, Report, Snapshot, VerbError};
pub use mm::{Builder, ChangeError, Latency, Mm, Stats};
pub use worker::Worker;
