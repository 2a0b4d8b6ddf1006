//! What must hold after a test: both copies equal, nothing in the logs that a human must look at.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{lgetxattr, llistxattr};

use super::Host;

/// A copy writes times back after a second of rest, so equality is waited for.
const EQUAL_WITHIN: Duration = Duration::from_secs(15);
/// Differences listed in a message.
const LISTED_MAX: usize = 20;
/// The brick's own xattr: format version, then the gfid; only the gfid is the same on all copies.
const OWN_XATTR: &str = "trusted.mortar";
const OWN_FOLDER: &str = ".mortar";

/// Asserts that two bricks hold the same, byte for byte, but for their `.mortar`: names, types,
/// content, symlink texts, mode, owner, size, mtime, hard links, xattrs with ACLs, gfids.
///
/// # Panics
/// With what differs.
#[track_caller]
pub fn assert_bricks_equal(a: &Path, b: &Path) {
    let start = Instant::now();
    let mut differences = brick_differences(a, b);
    while !differences.is_empty() && start.elapsed() < EQUAL_WITHIN {
        std::thread::sleep(Duration::from_millis(250));
        differences = brick_differences(a, b);
    }
    let count = differences.len();
    differences.truncate(LISTED_MAX);
    assert!(
        count == 0,
        "{} and {} differ in {count} places:\n{}",
        a.display(),
        b.display(),
        differences.join("\n")
    );
}

/// What differs between two bricks, one line each; empty when they are equal.
pub fn brick_differences(a: &Path, b: &Path) -> Vec<String> {
    let (of_a, of_b) = (entries_of(a), entries_of(b));
    let mut differences = Vec::new();
    for (path, entry) in &of_a {
        match of_b.get(path) {
            None => differences.push(format!("{}: only in {}", path.display(), a.display())),
            Some(other) => {
                if let Some(what) = difference(entry, other) {
                    differences.push(format!("{}: {what}", path.display()));
                } else if entry.kind == Kind::File && !same_content(&a.join(path), &b.join(path)) {
                    differences.push(format!("{}: the content differs", path.display()));
                }
            }
        }
    }
    for path in of_b.keys().filter(|path| !of_a.contains_key(*path)) {
        differences.push(format!("{}: only in {}", path.display(), b.display()));
    }
    differences
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// One object under one of its names.
#[derive(Debug)]
struct Entry {
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    size: u64,
    mtime: (i64, i64),
    device: u64,
    /// The first name of the object, and how many links it has: equal for equal link groups.
    links: (PathBuf, u64),
    target: PathBuf,
    gfid: Option<Vec<u8>>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

fn difference(a: &Entry, b: &Entry) -> Option<String> {
    fn differ<T: PartialEq + std::fmt::Debug>(what: &str, a: &T, b: &T) -> Option<String> {
        (a != b).then(|| format!("{what} {a:?} and {b:?}"))
    }
    if a.gfid.is_none() {
        return Some("it has no gfid".to_owned());
    }
    differ("types", &a.kind, &b.kind)
        .or_else(|| differ("gfids", &a.gfid, &b.gfid))
        .or_else(|| differ("modes", &a.mode, &b.mode))
        .or_else(|| differ("owners", &a.owner, &b.owner))
        .or_else(|| differ("sizes", &a.size, &b.size))
        .or_else(|| differ("mtimes", &a.mtime, &b.mtime))
        .or_else(|| differ("devices", &a.device, &b.device))
        .or_else(|| differ("links", &a.links, &b.links))
        .or_else(|| differ("targets", &a.target, &b.target))
        .or_else(|| differ("xattrs", &a.xattrs, &b.xattrs))
}

/// Everything under a brick but its `.mortar`, by path; the root itself is the empty path.
fn entries_of(brick: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut entries = BTreeMap::new();
    let mut first_names: HashMap<u64, PathBuf> = HashMap::new();
    let mut folders = vec![PathBuf::new()];
    if let Some(entry) = entry_at(brick, Path::new(""), &mut first_names) {
        entries.insert(PathBuf::new(), entry);
    }
    while let Some(folder) = folders.pop() {
        for name in sorted_names(&brick.join(&folder)) {
            if folder.as_os_str().is_empty() && name == OWN_FOLDER {
                continue;
            }
            let path = folder.join(&name);
            // An entry may go while a heal is under way: then the comparison is made again.
            if let Some(entry) = entry_at(brick, &path, &mut first_names) {
                if entry.kind == Kind::Directory {
                    folders.push(path.clone());
                }
                entries.insert(path, entry);
            }
        }
    }
    entries
}

fn sorted_names(folder: &Path) -> Vec<std::ffi::OsString> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .collect();
    names.sort();
    names
}

fn entry_at(brick: &Path, path: &Path, first_names: &mut HashMap<u64, PathBuf>) -> Option<Entry> {
    let full = brick.join(path);
    let meta = fs::symlink_metadata(&full).ok()?;
    let kind = kind_of(&meta);
    let (size, links) = if kind == Kind::Directory {
        // What a directory's size and count of links are is the disk's own business.
        (0, (PathBuf::new(), 0))
    } else {
        let first = first_names
            .entry(meta.ino())
            .or_insert_with(|| path.to_owned())
            .clone();
        (meta.size(), (first, meta.nlink()))
    };
    let mut xattrs = xattrs_of(&full);
    let own = xattrs.remove(OWN_XATTR);
    Some(Entry {
        kind,
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        size,
        mtime: (meta.mtime(), meta.mtime_nsec()),
        device: meta.rdev(),
        links,
        target: fs::read_link(&full).unwrap_or_default(),
        gfid: own.and_then(|own| own.get(1..17).map(<[u8]>::to_vec)),
        xattrs,
    })
}

fn kind_of(meta: &fs::Metadata) -> Kind {
    let kind = meta.file_type();
    match () {
        () if kind.is_file() => Kind::File,
        () if kind.is_dir() => Kind::Directory,
        () if kind.is_symlink() => Kind::Symlink,
        () if kind.is_fifo() => Kind::Fifo,
        () if kind.is_socket() => Kind::Socket,
        () if kind.is_char_device() => Kind::CharDevice,
        () => Kind::BlockDevice,
    }
}

fn xattrs_of(path: &Path) -> BTreeMap<String, Vec<u8>> {
    const LIST_MAX: usize = 64 << 10;
    let mut list = vec![0u8; LIST_MAX];
    let len = llistxattr(path, &mut list[..]).unwrap_or(0);
    let names = list[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0u8; LIST_MAX];
            let len = lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value[..]);
            value.truncate(len.unwrap_or(0));
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect()
}

fn same_content(a: &Path, b: &Path) -> bool {
    const PIECE: usize = 1 << 20;
    let (Ok(mut a), Ok(mut b)) = (File::open(a), File::open(b)) else {
        return false;
    };
    let (mut of_a, mut of_b) = (Vec::with_capacity(PIECE), Vec::with_capacity(PIECE));
    loop {
        of_a.clear();
        of_b.clear();
        let read_a = (&mut a).take(PIECE as u64).read_to_end(&mut of_a);
        let read_b = (&mut b).take(PIECE as u64).read_to_end(&mut of_b);
        if read_a.is_err() || read_b.is_err() || of_a != of_b {
            return false;
        }
        if of_a.is_empty() {
            return true;
        }
    }
}

/// A WARN or ERROR line that a test expects.
#[derive(Clone, Copy, Debug)]
pub struct Allowed<'a> {
    /// A part of the line.
    pub text: &'a str,
    /// Why it is right that it is there.
    pub why: &'a str,
}

/// Asserts that no log of these hosts has a WARN or ERROR line, or a panic, that is not allowed.
#[track_caller]
pub(super) fn assert_logs_clean(hosts: &[Host], allowed: &[Allowed<'_>]) {
    assert!(
        allowed.iter().all(|one| !one.why.is_empty()),
        "each allowed line needs its reason"
    );
    let mut unexpected = Vec::new();
    for log in hosts.iter().flat_map(Host::logs) {
        let text = String::from_utf8_lossy(&fs::read(&log).expect("a log")).into_owned();
        for line in text.lines().filter(|line| needs_a_human(line)) {
            if !allowed.iter().any(|one| line.contains(one.text)) {
                unexpected.push(format!("{}: {line}", log.display()));
            }
        }
    }
    let count = unexpected.len();
    unexpected.truncate(LISTED_MAX);
    assert!(
        count == 0,
        "{count} unexpected lines in the logs:\n{}",
        unexpected.join("\n")
    );
}

/// Whether a log line's level is WARN or ERROR (the second word, after the time), or it tells of
/// a panic.
fn needs_a_human(line: &str) -> bool {
    let level = line.split_whitespace().nth(1);
    matches!(level, Some("WARN" | "ERROR")) || line.contains("panicked at")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{XattrFlags, setxattr};

    fn brick(gfid: u8) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(OWN_FOLDER)).unwrap();
        own(folder.path(), 1);
        fs::write(folder.path().join("a"), "content").unwrap();
        own(&folder.path().join("a"), gfid);
        let time = std::time::SystemTime::UNIX_EPOCH;
        for path in [folder.path().join("a"), folder.path().to_owned()] {
            File::open(path).unwrap().set_modified(time).unwrap();
        }
        folder
    }

    fn own(path: &Path, gfid: u8) {
        setxattr(
            path,
            OWN_XATTR,
            &[[1; 1].as_slice(), &[gfid; 16]].concat(),
            XattrFlags::empty(),
        )
        .unwrap();
    }

    #[test]
    fn equal_bricks_are_equal_and_each_difference_is_seen() {
        let (a, b) = (brick(7), brick(7));
        fs::write(a.path().join(".mortar/volume"), "its own").unwrap();
        assert_eq!(brick_differences(a.path(), b.path()), Vec::<String>::new());
        assert!(brick_differences(a.path(), brick(8).path())[0].contains("gfids"));

        let seen = |change: &dyn Fn(&Path), what: &str| {
            let other = brick(7);
            change(other.path());
            let differences = brick_differences(a.path(), other.path()).join("\n");
            assert!(differences.contains(what), "{what} not in {differences}");
        };
        seen(&|to| fs::write(to.join("a"), "CONTENT").unwrap(), "mtimes");
        seen(&|to| fs::remove_file(to.join("a")).unwrap(), "a: only in");
        seen(&|to| fs::write(to.join("b"), "").unwrap(), "b: only in");
        seen(
            &|to| fs::hard_link(to.join("a"), to.join(".mortar/h")).unwrap(),
            "links",
        );
        seen(
            &|to| setxattr(to.join("a"), "user.x", b"1", XattrFlags::empty()).unwrap(),
            "xattrs",
        );
        seen(
            &|to| {
                fs::write(to.join("a"), "CONTENT").unwrap();
                let file = File::open(to.join("a")).unwrap();
                file.set_modified(std::time::SystemTime::UNIX_EPOCH)
                    .unwrap();
            },
            "the content differs",
        );
    }

    #[test]
    fn only_levels_and_panics_need_a_human() {
        assert!(needs_a_human(
            "2026-01-01T00:00:00Z  WARN brickd: the disk is slow"
        ));
        assert!(needs_a_human("2026-01-01T00:00:00Z ERROR brickd: lost"));
        assert!(needs_a_human("thread 'main' panicked at src/main.rs:1:1"));
        assert!(!needs_a_human(
            "2026-01-01T00:00:00Z  INFO brickd: ERROR is a word"
        ));
    }
}
