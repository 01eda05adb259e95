use isomem::Mirror;

fn race(mirror: &Mirror, data: &mut [u64]) {
    let _ = mirror.launch(&mut data[..], |worker, mut part| part.set(worker, 0, data[1]));
}

fn main() {}
