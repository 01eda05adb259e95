//! Coherent device memory, device-to-device migration and exclusive access, in real memory.

#![allow(dead_code, reason = "the shared helpers serve other tests, too")]
#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "calls on one mapping share one reason"
)]

mod apart;
#[path = "memkinds/claims.rs"]
mod claims;
#[path = "memkinds/exclusive.rs"]
mod exclusive;
#[path = "memkinds/hops.rs"]
mod hops;
#[path = "memkinds/rig.rs"]
mod rig;
#[path = "memkinds/together.rs"]
mod together;
