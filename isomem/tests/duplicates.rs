//! MIG-12: pages that are read mostly live on both sides, and a write by either ends that. In real memory.

#![allow(dead_code, reason = "the shared helpers serve other tests, too")]
#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "calls on one mapping share one reason"
)]

mod apart;
#[path = "duplicates/changes.rs"]
mod changes;
#[path = "memkinds/rig.rs"]
mod rig;
#[path = "duplicates/shared.rs"]
mod shared;
#[path = "duplicates/sides.rs"]
mod sides;
#[path = "duplicates/together.rs"]
mod together;
