use isomem::Mirror;

fn leak(mirror: &Mirror, data: &[u64]) {
    let _ = mirror.launch(data, |_, data| Ok(data));
}

fn main() {}
