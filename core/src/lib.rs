//! The HMM protocol in user space: one address space for the CPU and for devices.
//!
//! Five nouns: an [`mm::Mm`] is an address space; a [`device::Device`] is something with its own page table, and perhaps its own memory; a
//! [`mirror::Mirror`] is one device's view of one mm, kept valid by invalidations ([`notifier`]); a range request
//! ([`mirror::range`]) brings pages in or looks; a migration ([`migrate`]) is pages on their way between system and device memory.
//!
//! The protocol is written once, generic over the [`world::World`] it runs in: the calling process on live Linux, or a
//! simulated kernel. There is no unsafe code here; what touches memory is the world's.
//!
//! The modules, in reading order: [`addr`], [`world`], [`device`], [`notifier`], [`mm`], [`mirror`], [`migrate`], [`stats`]. Locks are listed in
//! `docs/locking.md`, the words in `docs/glossary.md`.
#![forbid(unsafe_code)]

pub mod addr;
pub mod bus;
#[doc(hidden)]
pub mod count;
pub mod device;
pub(crate) mod devmem;
pub mod migrate;
pub mod mirror;
pub mod mm;
pub mod notifier;
pub mod stats;
#[doc(hidden)]
pub mod sync;
pub mod world;

pub use devmem::DeviceId;
