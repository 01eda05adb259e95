use isomem::Mirror;

fn race(mirror: Mirror) {
    let running = &mirror;
    std::thread::scope(|scope| {
        scope.spawn(move || running.launch((), |_, ()| Ok(())).is_ok());
        mirror.unregister();
    });
}

fn main() {}
