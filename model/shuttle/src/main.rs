//! The checker's program; `isomem check` builds and runs it.

fn main() {}
