use isomem::{DeviceFault, Shared, Worker};

fn nested(worker: &mut Worker<'_>, data: Shared<'_, u64>) -> Result<(), DeviceFault> {
    data.for_chunks(worker, 0..data.len(), |_, _| {
        let _ = data.get(worker, 0);
    })
}

fn main() {}
