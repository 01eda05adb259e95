//! System calls, each behind a safe function or an owning value; all of this crate's unsafe code.

pub mod bus;
pub mod call;
pub mod files;
pub mod fork;
pub mod inject;
pub mod interpose;
pub mod job;
pub mod mapping;
pub mod maps;
pub mod metadata;
pub mod pagemap;
pub mod peek;
pub mod per_process;
pub mod seccomp;
pub mod segments;
pub mod span;
pub mod thread;
pub mod thread_blocks;
pub mod uffd;
pub mod warden;
