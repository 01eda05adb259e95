use isomem::{Mirror, Shared};
use std::sync::Mutex;

fn leak(mirror: &Mirror, data: &[u64]) {
    let kept: Mutex<Option<Shared<'_, u64>>> = Mutex::new(None);
    let _ = mirror.launch(data, |_, data| {
        *kept.lock().unwrap() = Some(data);
        Ok(())
    });
}

fn main() {}
