//! Real source files to work with: the sources of the crates this workspace is built from.

use std::fs;
use std::path::{Path, PathBuf};

/// The root of this repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_owned()
}

/// Copies `files` real source files below `into`, in their folders. When the machine has fewer,
/// it takes them again in another folder.
///
/// # Panics
/// When cargo has no sources.
#[track_caller]
pub fn copy_sources(into: &Path, files: usize) {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let sources = home.expect("cargo's folder").join("registry/src");
    let mut left = files;
    for round in 0.. {
        let before = left;
        copy_some(&sources, &into.join(format!("round-{round}")), &mut left);
        if left == 0 {
            return;
        }
        assert!(left < before, "{} holds no source files", sources.display());
    }
}

fn copy_some(from: &Path, to: &Path, left: &mut usize) {
    let mut entries: Vec<_> = fs::read_dir(from).into_iter().flatten().flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    fs::create_dir_all(to).expect("a folder of sources");
    for entry in entries {
        if *left == 0 {
            return;
        }
        let to = to.join(entry.file_name());
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => copy_some(&entry.path(), &to, left),
            Ok(kind) if kind.is_file() => {
                fs::copy(entry.path(), &to).expect("a copy of a source file");
                *left -= 1;
            }
            Ok(_) | Err(_) => {}
        }
    }
}
