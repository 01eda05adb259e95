use isomem::Mirror;
use std::cell::Cell;

fn cells(mirror: &Mirror, data: &[Cell<u64>]) {
    let _ = mirror.launch(data, |_, _| Ok(()));
}

fn main() {}
