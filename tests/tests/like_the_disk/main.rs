//! What a system call does through the mount is what it does on a bare disk: each case is done on
//! both, by the same user, and what came out is compared.

mod new_objects;
mod ranges;
mod renames;
mod setid;
mod special_files;
mod xattrs;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, SeekFrom, Uid,
    XattrFlags, chownat, copy_file_range, fallocate, ftruncate, getxattr, lgetxattr, listxattr,
    lsetxattr, makedev, mkdirat, mknodat, open, removexattr, renameat_with, seek, setxattr,
};
use rustix::io::{Errno, Result};
use tests::cluster::VOLUME;
use tests::compare::Both;
use tests::users::User;

const CAPABILITY: &str = "security.capability";
/// cap_net_raw+ep, as the kernel stores it (version 2).
const CAPABILITY_VALUE: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const ACL: &str = "system.posix_acl_access";
const DEFAULT_ACL: &str = "system.posix_acl_default";
const XATTR_BYTES_MAX: usize = 64 << 10;

/// An extended attribute, or why there is none.
fn xattr(path: &Path, name: &str) -> Result<Vec<u8>> {
    let mut value = vec![0u8; XATTR_BYTES_MAX];
    let len = lgetxattr(path, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// (type and permissions, owner, group, ACLs, has a capability).
fn standing(path: &Path) -> (u32, u32, u32, [Option<Vec<u8>>; 2], bool) {
    let meta = fs::symlink_metadata(path).unwrap();
    let acls = [ACL, DEFAULT_ACL].map(|name| xattr(path, name).ok());
    let capability = xattr(path, CAPABILITY).is_ok();
    (meta.mode(), meta.uid(), meta.gid(), acls, capability)
}

fn open_with(path: &Path, flags: OFlags) -> Result<File> {
    Ok(File::from(open(path, flags, Mode::empty())?))
}

fn errno(outcome: std::io::Result<()>) -> Result<()> {
    outcome.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
