//! The shared object for unmodified programs: devices that the kernel does not have, behind the C library's calls.
//!
//! `isomem dmirror -- PROGRAM` loads it before the C library. A program that opens `/dev/hmm_dmirror0` to `3` then gets a descriptor whose
//! `ioctl` is served by `isomem-dmirror` in the program's own process; every other call goes to the next definition of its name.
//!
//! # Invariants
//! - PRE-1: a call that is not about a device reaches the next definition with the arguments that it came with, at any time: before
//!   anything is initialised, in a signal handler, in a child between `vfork` and `exec`.
//! - PRE-2: a device's descriptor is one end of a socket pair; which open it belongs to is told by the kernel's own identity of that end. So
//!   duplicates need no book-keeping, and the last of them is closed when the other end says so.
//! - PRE-3: what is opened belongs to the process that opened it. A fork's child starts with nothing, and asks the opener about descriptors
//!   that it inherited.
//!
//! # Locking
//! `table` (`process.rs`) is held for look-ups and opens, with signals blocked, so that a handler that closes a descriptor cannot meet it.
//!
//! Linux: the file operations of lib/test_hmm.c.

mod brackets;
mod calls;
mod data;
mod host;
mod memory;
mod next;
mod placeholder;
mod process;
mod remote;
mod server;
