//! The drivers that the HMM and mmu-notifier threads argue about, each a small client of isomem's core.
//!
//! | driver | its counterpart in Linux | for hardware that |
//! |---|---|---|
//! | [`svm`] | nouveau's svm | faults, and replays or cancels |
//! | [`userptr`] | i915's userptr | cannot fault: pages are got when work is submitted |
//! | [`shadow`] | KVM's MMU | walks a shadow of the CPU's page table |
//! | [`odp`] | RDMA's on-demand paging | works on regions with keys, from queues of requests |
//! | [`engines`] | amdgpu's queues | has two engines that stop in different ways |
#![forbid(unsafe_code)]

pub mod engines;
// Its programs are live ones: there are no threads outside of a story under the model checker.
#[cfg(not(feature = "shuttle"))]
#[doc = include_str!("../../docs/write-your-driver.md")]
pub mod guide {}
mod link;
pub mod odp;
pub mod shadow;
pub mod svm;
pub mod userptr;
mod work;

pub use work::Work;
