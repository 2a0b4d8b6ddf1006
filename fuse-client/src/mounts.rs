//! The kernel's table of mounts, and what a client that was killed leaves in it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

/// As `/proc/mounts` shows a mount of Mortar's.
pub const FS_TYPE: &str = "fuse.mortar";
/// Dead mounts that may lie on each other at one place.
const DEAD_MAX: usize = 16;

/// One mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// `MAJOR:MINOR` of its device.
    pub device: String,
    /// Where it is.
    pub point: PathBuf,
    /// Its file system.
    pub fs_type: String,
}

/// The topmost mount at a place.
///
/// # Errors
/// When the table cannot be read.
pub fn at(point: &Path) -> io::Result<Option<Mount>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut mounts = table.lines().rev().filter_map(read);
    Ok(mounts.find(|mount| mount.point == point))
}

/// Takes away what is left at a place of a client that was killed, so that the volume can be
/// mounted there again at once. What lives, and other file systems, stay.
///
/// # Errors
/// In words, when a dead mount is there and cannot be taken away.
pub fn clear_dead(point: &Path) -> Result<(), String> {
    for _ in 0..DEAD_MAX {
        if !is_dead(point) {
            return Ok(());
        }
        let shown = point.display();
        let real = real_place(point).unwrap_or_else(|| point.to_owned());
        let is_ours = at(&real).is_ok_and(|found| found.is_some_and(|it| it.fs_type == FS_TYPE));
        if !is_ours {
            break;
        }
        unmount(&real, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(|error| format!("the dead mount at {shown} cannot be taken away: {error}"))?;
    }
    if is_dead(point) {
        let shown = point.display();
        return Err(format!(
            "a dead mount is in the way at {shown}; remove it with 'umount {shown}'"
        ));
    }
    Ok(())
}

/// "Transport endpoint is not connected": nobody serves the mount any more. Who was asking while it
/// ended hears "connection aborted".
fn is_dead(point: &Path) -> bool {
    let dead = [libc::ENOTCONN, libc::ECONNABORTED].map(Some);
    std::fs::metadata(point).is_err_and(|error| dead.contains(&error.raw_os_error()))
}

/// The real path of a mount point that does not answer itself.
fn real_place(point: &Path) -> Option<PathBuf> {
    let parent = match point.parent()? {
        parent if parent.as_os_str().is_empty() => Path::new("."),
        parent => parent,
    };
    Some(parent.canonicalize().ok()?.join(point.file_name()?))
}

fn read(line: &str) -> Option<Mount> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ');
    let device = fields.nth(2)?.to_owned();
    let point = unescape(fields.nth(1)?);
    Some(Mount {
        device,
        point: PathBuf::from(OsStr::from_bytes(&point)),
        fs_type: file_system.split(' ').next()?.to_owned(),
    })
}

/// mountinfo writes blanks, tabs, newlines and backslashes as three octal digits.
fn unescape(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = text
            .get(at + 1..at + 4)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (bytes[at], octal) {
            (b'\\', Some(byte)) => {
                plain.push(byte);
                at += 4;
            }
            (byte, _) => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_as_it_is_written() {
        let line =
            "610 29 0:61 / /mnt/a\\040b\\134 rw,relatime shared:3 - fuse.mortar gfs01:/v01 rw";
        let mount = read(line).unwrap();
        assert_eq!(mount.device, "0:61");
        assert_eq!(mount.point, Path::new("/mnt/a b\\"));
        assert_eq!(mount.fs_type, FS_TYPE);
        assert_eq!(unescape("/mnt"), b"/mnt");
        assert!(at(Path::new("/proc")).unwrap().is_some());
    }

    #[test]
    fn what_lives_is_left_alone() {
        assert_eq!(clear_dead(Path::new("/proc")), Ok(()));
        assert_eq!(clear_dead(Path::new("/no/such/place")), Ok(()));
    }
}
