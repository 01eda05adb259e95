use isomem::Mirror;

fn late(mirror: Mirror) {
    mirror.unregister();
    let _ = mirror.launch((), |_, ()| Ok(()));
}

fn main() {}
