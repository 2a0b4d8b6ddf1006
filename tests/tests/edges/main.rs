//! The far ends of what a file system must hold: very many, very deep, very large, very old, very
//! odd, very full. What comes out is compared with the bare disk wherever the disk can tell.

mod clears;
mod deviations;
mod frozen;
mod full;
mod groups;
mod links;
mod many;
mod names;
mod sparse;
mod times;
mod unnamed;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, Dir, FallocateFlags, Mode, OFlags, RawDir, SeekFrom, Timespec, Timestamps,
    UTIME_OMIT, XattrFlags, fallocate, fstat, ftruncate, lgetxattr, linkat, mkdirat, openat,
    renameat, seek, setxattr, statat, utimensat,
};
use rustix::io::{Errno, Result, pread, write};
use tests::cluster::{Cluster, Mount, VOLUME, wait_until};
use tests::compare::Both;
use tests::mapping::{Access, Mapping};
use tests::users::User;
use tests::{report, scale};

const WITHIN: Duration = Duration::from_secs(60);

fn errno<T>(outcome: std::io::Result<T>) -> Result<T> {
    outcome.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// An extended attribute, or why there is none.
fn xattr(path: &Path, name: &str) -> Result<Vec<u8>> {
    let mut value = vec![0u8; 4096];
    let len = lgetxattr(path, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}
