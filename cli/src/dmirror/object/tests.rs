use super::*;

/// A folder with these files in it; the program would lie in its `bin`.
fn installed(files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["bin/isomem"].iter().chain(files) {
        let path = folder.path().join(file);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, "").expect("written");
    }
    folder
}

fn found(files: &[&str]) -> Result<PathBuf, Missing> {
    let folder = installed(files);
    let root = folder.path().canonicalize().expect("it is there");
    beside(&root.join("bin/isomem")).map(|object| object.strip_prefix(&root).expect("in the folder").to_owned())
}

#[test]
fn drv_2_the_object_is_found_where_it_is_installed() {
    for place in [
        "bin/libisomem_preload.so",
        "lib/isomem/libisomem_preload.so",
        "lib/libisomem_preload.so",
        "bin/deps/libisomem_preload.so",
    ] {
        assert_eq!(found(&[place]).expect("found"), Path::new(place));
    }
}

#[test]
fn what_cargo_has_just_built_comes_first() {
    let object = found(&["bin/libisomem_preload.so", "bin/deps/libisomem_preload.so"]).expect("found");
    assert_eq!(object, Path::new("bin/deps/libisomem_preload.so"));
}

#[test]
fn a_missing_object_is_told_with_every_place_and_the_remedy() {
    let told = found(&[]).expect_err("there is none").to_string();
    for part in ["bin/deps", "lib/isomem", "cargo build --release", "ISOMEM_PRELOAD"] {
        assert!(told.contains(part), "{told}");
    }
}
