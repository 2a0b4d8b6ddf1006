//! Everything that can be seen of a folder, and where two of them differ.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{lgetxattr, llistxattr};
use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

/// Times that a sequence sets are before this one, in seconds after 1970; all others are after it.
pub const SET_BEFORE: i64 = 1_000_000_000;
const XATTR_BYTES_MAX: usize = 64 << 10;

/// An object under one of its names.
#[derive(Clone, PartialEq, Eq)]
pub struct Object {
    /// Type and permissions.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Bytes; 0 for a directory, whose size is the disk's own business.
    pub size: u64,
    /// Names.
    pub nlink: u64,
    /// Of a device.
    pub rdev: u64,
    /// The first of its names.
    pub first: PathBuf,
    /// A symlink's text.
    pub target: PathBuf,
    /// A file's content.
    pub content: u64,
    /// Extended attributes, ACLs among them.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// When it was changed, if that time was set.
    pub mtime: Option<(i64, i64)>,
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:o} {:?} {} bytes {} links",
            self.mode, self.owner, self.size, self.nlink
        )?;
        if self.rdev != 0 {
            write!(f, " device {:x}", self.rdev)?;
        }
        if !self.target.as_os_str().is_empty() {
            write!(f, " -> {}", self.target.display())?;
        }
        if let Some(mtime) = self.mtime {
            write!(f, " of {mtime:?}")?;
        }
        write!(f, " first {:?} content {:016x}", self.first, self.content)?;
        for (name, value) in &self.xattrs {
            write!(f, " {name}={:02x?}", &value[..value.len().min(64)])?;
        }
        Ok(())
    }
}

/// A folder at one time.
#[derive(Debug, Default)]
pub struct Look {
    /// By path; the folder itself is the empty path.
    pub objects: BTreeMap<PathBuf, Object>,
    times: BTreeMap<PathBuf, Times>,
}

/// When an object was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    ino: u64,
    /// Of content.
    mtime: (i64, i64),
    /// Of attributes, which nobody can set.
    ctime: (i64, i64),
}

/// One of them.
type Which = fn(&Times) -> (i64, i64);

impl Look {
    /// Looks at everything below `root`.
    ///
    /// # Errors
    /// What could not be read, and why.
    pub fn at(root: &Path) -> Result<Look, String> {
        let mut look = Look::default();
        let mut first_names = HashMap::new();
        let mut folders = vec![PathBuf::new()];
        look.take(root, PathBuf::new(), &mut first_names)?;
        while let Some(folder) = folders.pop() {
            let full = root.join(&folder);
            let entries = fs::read_dir(&full).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let mut entries = entries.map_err(|error| format!("{}: {error}", full.display()))?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                let path = folder.join(entry.file_name());
                let meta = look.take(root, path.clone(), &mut first_names)?;
                let listed = entry.file_type().map_err(|error| error.to_string())?;
                if listed != meta.file_type() {
                    return Err(format!("{}: listed as {listed:?}", path.display()));
                }
                if meta.is_dir() {
                    folders.push(path);
                }
            }
        }
        Ok(look)
    }

    fn take(
        &mut self,
        root: &Path,
        path: PathBuf,
        first_names: &mut HashMap<u64, PathBuf>,
    ) -> Result<Metadata, String> {
        let full = root.join(&path);
        let failed = |error: std::io::Error| format!("{}: {error}", full.display());
        let meta = fs::symlink_metadata(&full).map_err(failed)?;
        let kind = meta.file_type();
        let content = if kind.is_file() {
            xxh3_64(&fs::read(&full).map_err(failed)?)
        } else {
            0
        };
        let first = first_names
            .entry(meta.ino())
            .or_insert_with(|| path.clone());
        let object = Object {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            size: if kind.is_dir() { 0 } else { meta.size() },
            nlink: meta.nlink(),
            rdev: meta.rdev(),
            first: first.clone(),
            target: if kind.is_symlink() {
                fs::read_link(&full).map_err(failed)?
            } else {
                PathBuf::new()
            },
            content,
            xattrs: xattrs_of(&full).map_err(|errno| format!("{}: {errno}", full.display()))?,
            mtime: time_set(&meta),
        };
        let times = Times {
            ino: meta.ino(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        };
        self.times.insert(path.clone(), times);
        self.objects.insert(path, object);
        Ok(meta)
    }

    /// Objects of which `time` is another than in an earlier look, for those that had this name then.
    fn touched_since(&self, before: &Look, time: Which) -> Vec<&Path> {
        let same = self.times.iter().filter(|(path, now)| {
            let earlier = before.times.get(*path);
            earlier.is_some_and(|was| was.ino == now.ino && time(was) != time(now))
        });
        same.map(|(path, _)| path.as_path()).collect()
    }
}

/// What differs between the disk and the mount, one line each.
pub fn differences(disk: &Look, mount: &Look) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, object) in &disk.objects {
        match mount.objects.get(path) {
            Some(other) if other == object => {}
            Some(other) => lines.push(format!(
                "{path:?}:\n      disk  {object:?}\n      mount {other:?}"
            )),
            None => lines.push(format!("{path:?} is missing in the mount: {object:?}")),
        }
    }
    for (path, object) in &mount.objects {
        if !disk.objects.contains_key(path) {
            lines.push(format!("{path:?} is in the mount only: {object:?}"));
        }
    }
    lines
}

/// Objects of which a step changed a time on the disk and not in the mount, one line each. Each place
/// is given as it was before the step and after it. (That a mount changes it where ext4 sees that
/// nothing is new, as when an xattr gets the value it has, misleads nobody.)
pub fn times_kept(disk: [&Look; 2], mount: [&Look; 2]) -> Vec<String> {
    let kinds: [(&str, Which); 2] = [
        ("mtime", |times| times.mtime),
        ("ctime", |times| times.ctime),
    ];
    let mut lines = Vec::new();
    for (kind, time) in kinds {
        let in_mount = mount[1].touched_since(mount[0], time);
        let on_disk = disk[1].touched_since(disk[0], time);
        let kept = on_disk.iter().filter(|path| !in_mount.contains(path));
        lines.extend(kept.map(|path| format!("{path:?} kept its {kind} in the mount")));
    }
    lines
}

/// When an object was changed, if that time was set by utimensat(2).
pub fn time_set(meta: &Metadata) -> Option<(i64, i64)> {
    (meta.mtime() < SET_BEFORE).then(|| (meta.mtime(), meta.mtime_nsec()))
}

fn xattrs_of(path: &Path) -> Result<BTreeMap<String, Vec<u8>>, Errno> {
    let mut list = vec![0u8; XATTR_BYTES_MAX];
    let len = llistxattr(path, &mut list[..])?;
    let names = list[..len].split(|byte| *byte == 0);
    names
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0u8; XATTR_BYTES_MAX];
            let len = lgetxattr(path, OsStr::from_bytes(name), &mut value[..])?;
            value.truncate(len);
            Ok((String::from_utf8_lossy(name).into_owned(), value))
        })
        .collect()
}
