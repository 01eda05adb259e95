use isomem::{Part, Worker};

fn twice(worker: &mut Worker<'_>, part: Part<'_, u64>) {
    let mut other = part;
    let _ = other.set(worker, 0, 1);
    let _ = part.get(worker, 0);
}

fn main() {}
