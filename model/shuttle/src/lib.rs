//! Stories of the HMM mailing-list threads, each told with the designs that failed and with the one that ships.
#![forbid(unsafe_code)]

pub mod args;
pub mod batch;
pub mod explore;
pub mod program;
pub mod report;
pub mod saved;
pub mod scenario;
pub mod timeline;
