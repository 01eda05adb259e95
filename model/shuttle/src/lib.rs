//! Stories of the HMM mailing-list threads, each told with the designs that failed and with the one that ships.
#![forbid(unsafe_code)]

pub mod explore;
pub mod scenario;
