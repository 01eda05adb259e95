//! A simulated kernel as a world for isomem's protocol, and checkers that judge what happens in it.
//!
//! A *story* is a piece of concurrent code. It tells a [`journal::Journal`] what it does; [`checker`]s judge the steps as they come, and the
//! first finding ends the matter. Under the feature `shuttle` a model checker decides who runs next, so that a finding can be found,
//! kept and replayed; without it the same code runs on plain threads.
#![forbid(unsafe_code)]

pub mod checker;
pub mod device;
pub mod journal;
pub mod kernel;
pub mod rig;
pub mod world;

pub use isomem_core::sync;
