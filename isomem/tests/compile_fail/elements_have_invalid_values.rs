use isomem::Mirror;

fn invalid(mirror: &Mirror, data: &mut [bool]) {
    let _ = mirror.launch(data, |_, _| Ok(()));
}

fn main() {}
