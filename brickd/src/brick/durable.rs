//! The one module that syncs, and that replaces a file so that a crash leaves the old or the new.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

/// Flags of everything a brick opens: follows no link, never blocks on a fifo, leaves atime alone.
pub(super) const OPEN: OFlags = OFlags::NOFOLLOW
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOATIME)
    .union(OFlags::CLOEXEC);
/// Flags of every directory a brick opens.
pub(super) const OPEN_DIR: OFlags = OPEN.union(OFlags::DIRECTORY);

/// Data and inode of an open file or directory. Its error is final: never retried.
pub(super) fn sync_file(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::fsync(fd)
}

/// Data, and of the inode what is needed to read it back.
pub(super) fn sync_data(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::fdatasync(fd)
}

/// Everything on the disk that holds `fd`. Writeback errors since `fd` was opened are told once,
/// so one descriptor is kept from the start.
pub(super) fn sync_disk(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::syncfs(fd)
}

/// Makes `dir/name` hold `bytes`, durably: never a part of them, never nothing.
pub(super) fn replace_file(
    dir: BorrowedFd<'_>,
    name: &CStr,
    temporary: &CStr,
    bytes: &[u8],
) -> Result<(), Errno> {
    let flags = OPEN | OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
    let file = rustix::fs::openat(dir, temporary, flags, Mode::from_raw_mode(0o600))?;
    write_all(&file, 0, bytes)?;
    sync_file(file.as_fd())?;
    rustix::fs::renameat(dir, temporary, dir, name)?;
    sync_file(dir)
}

/// Removes `dir/name`, durably; that there is none is no error.
pub(super) fn remove_file(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) => sync_file(dir),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Writes all of `bytes` at `offset`. A write cut short in the middle is EIO: what the file holds
/// then is neither the old nor the new.
pub(super) fn write_all(fd: &OwnedFd, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pwrite(fd, &bytes[done..], offset + done as u64) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) if done == 0 => return Err(error),
            Err(_) => return Err(Errno::IO),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_holds_the_new_bytes_and_leaves_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        for text in [&b"first, longer"[..], b"second"] {
            replace_file(fd.as_fd(), c"name", c"name.new", text).unwrap();
            assert_eq!(std::fs::read(dir.path().join("name")).unwrap(), text);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        remove_file(fd.as_fd(), c"name").unwrap();
        remove_file(fd.as_fd(), c"name").unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
