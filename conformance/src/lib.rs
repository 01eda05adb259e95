//! What the kernel's HMM promises a program, as cases that any world can run.
//!
//! A case is told by what a program does: it maps memory, touches it, forks, and gives the test driver commands. What does these things is a
//! [`Machine`]: a live process with `isomem dmirror`, a kernel that has the driver, or a simulated world. A case gets a
//! machine that nothing was done with, and should run in a process of its own.
//!
//! [`work`] is for drivers of one's own: the work list that each of them does, in a live process and in a simulated one.
//!
//! Where the kernel's driver has a defect, the case asks for the right thing, and is marked: see [`Case::kernel`].
#![forbid(unsafe_code)]

mod bench;
mod cases;
mod machine;
pub mod work;

pub use bench::{Failure, Outcome};
pub use cases::{Case, Kernel, all};
pub use machine::{Backing, Machine};
