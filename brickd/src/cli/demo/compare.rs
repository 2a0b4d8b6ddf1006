//! Compares two brick folders as plain files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mortar_common::name::PRIVATE_DIR;

/// What a comparison found.
pub enum Comparison {
    /// No difference.
    Equal {
        /// Regular files compared.
        files: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// The first difference, in words.
    Different(String),
}

/// Compares names, types, owners, modes, times, symlink texts and contents of two bricks.
pub fn folders(one: &Path, two: &Path) -> Result<Comparison, String> {
    let (left, right) = (entries(one)?, entries(two)?);
    if let Some(missing) = left.keys().find(|name| !right.contains_key(*name)) {
        return Ok(Comparison::Different(format!(
            "{} is on one brick only",
            missing.display()
        )));
    }
    if let Some(missing) = right.keys().find(|name| !left.contains_key(*name)) {
        return Ok(Comparison::Different(format!(
            "{} is on one brick only",
            missing.display()
        )));
    }
    let (mut files, mut bytes) = (0, 0);
    for (name, a) in &left {
        let b = &right[name];
        let same = (a.mode(), a.uid(), a.gid()) == (b.mode(), b.uid(), b.gid())
            && (a.is_dir() || a.len() == b.len())
            && (a.mtime(), a.mtime_nsec()) == (b.mtime(), b.mtime_nsec());
        if !same {
            return Ok(Comparison::Different(format!(
                "attributes of {}",
                name.display()
            )));
        }
        if a.is_symlink() && targets_differ(&one.join(name), &two.join(name)) {
            return Ok(Comparison::Different(format!(
                "text of the symlink {}",
                name.display()
            )));
        }
        if a.is_file() {
            files += 1;
            bytes += a.len();
            if !same_content(&one.join(name), &two.join(name)).map_err(|e| e.to_string())? {
                return Ok(Comparison::Different(format!(
                    "content of {}",
                    name.display()
                )));
            }
        }
    }
    Ok(Comparison::Equal { files, bytes })
}

fn entries(root: &Path) -> Result<BTreeMap<PathBuf, fs::Metadata>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", root.display());
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if folder == root && entry.file_name() == PRIVATE_DIR {
                continue;
            }
            let meta = entry.path().symlink_metadata().map_err(failed)?;
            if meta.is_dir() {
                folders.push(entry.path());
            }
            let name = entry.path().strip_prefix(root).map(Path::to_owned);
            found.insert(name.map_err(|error| error.to_string())?, meta);
        }
    }
    Ok(found)
}

fn targets_differ(one: &Path, two: &Path) -> bool {
    fs::read_link(one).ok() != fs::read_link(two).ok()
}

fn same_content(one: &Path, two: &Path) -> std::io::Result<bool> {
    let (mut one, mut two) = (File::open(one)?, File::open(two)?);
    let (mut a, mut b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let got = one.read(&mut a)?;
        if got == 0 {
            return Ok(two.read(&mut b)? == 0);
        }
        if two.read_exact(&mut b[..got]).is_err() || a[..got] != b[..got] {
            return Ok(false);
        }
    }
}
