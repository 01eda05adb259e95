//! The calling Linux process as a world for isomem.
//!
//! [`Linux`] is the world; [`sys`] talks to the kernel; [`service`] runs jobs off the program's stacks.

mod areas;
pub mod own;
pub mod pager;
pub mod service;
pub mod sys;
mod world;

pub use sys::bus::Window;
pub use world::{Linux, OpenError};
