//! The calling Linux process as a world for isomem.
//!
//! [`Linux`] is the world; [`sys`] talks to the kernel; [`service`] runs jobs off the program's stacks.

mod areas;
pub mod bracket;
pub mod calls;
pub mod exact;
pub mod interposed;
pub mod own;
pub mod pager;
pub mod service;
pub mod sys;
mod world;

pub use exact::{Exact, ExactError, Exactness, Windows};
pub use interposed::Interposed;
pub use sys::bus::Window;
pub use world::{Linux, OpenError};
