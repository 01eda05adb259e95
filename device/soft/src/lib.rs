//! A device in software: worker threads that reach a program's memory only through a device page table of their own, with a TLB,
//! memory of their own that pages migrate to, and a fault queue for what they miss.
//!
//! It is generic over the world it runs in. [`SoftDevice`] is the device, [`SoftMirror`] its view of the address space, and
//! [`Worker`] what a kernel gets. Most programs use it through the crate `isomem`, whose launches are safe and typed.
//!
//! # Invariants
//! - SOFT-1 (DEV-1): a worker touches program memory only through a pin of an entry that the mirror's page table holds.
//! - SOFT-2: a worker that services a miss or waits for one holds no pin, so that no invalidation waits for it.
//! - SOFT-3: the driver's part of a worker touches only memory that is never mirrored; what the kernel touches otherwise is served
//!   like any CPU access.
//! - SOFT-4 (LIFE-3): after `release` no worker accesses memory through the mirror any more.
//!
//! # Locking
//! The job slot's lock and the fault queue's lock, both leaves; no kernel and no service runs with either held.
#![forbid(unsafe_code)]

mod device;
mod error;
mod job;
mod mirror;
mod queue;
mod sync;
mod worker;

pub use device::{MAX_WORKERS, SoftConfig, SoftDevice, SoftError, SoftStats, Stall, Unregister};
pub use error::{DeviceFault, LaunchError, PanicNote};
pub use isomem_core::mirror::range::Placement;
pub use mirror::{Side, SoftMirror};
pub use worker::{Kernel, Operand, Worker};
