use isomem::SoftDevice;

fn late(device: SoftDevice) {
    let _ = device.unregister();
    let _ = device.mirror();
}

fn main() {}
