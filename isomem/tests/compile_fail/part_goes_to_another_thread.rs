use isomem::Part;

fn elsewhere(part: Part<'_, u64>) {
    std::thread::scope(|scope| {
        scope.spawn(move || part.len());
    });
}

fn main() {}
