//! Locks on ranges of files, of a process or of an open file, as fcntl(2) takes them.

use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::io::{Errno, Result};

/// fcntl(2) with `command` (`F_SETLK`, `F_OFD_GETLK` and their like) for a lock of `kind`
/// (`F_WRLCK`, `F_RDLCK`, `F_UNLCK`) on `len` bytes from `start`; 0 bytes are all that follow.
/// Returns what the kernel made of it.
///
/// # Errors
/// What fcntl(2) says: `EAGAIN` where somebody else has the lock.
pub fn range(file: &File, command: i32, kind: i32, start: i64, len: i64) -> Result<libc::flock> {
    // SAFETY: flock is plain data, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock.l_start = start;
    lock.l_len = len;
    // SAFETY: the descriptor is open and `lock` lives through the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } {
        -1 => {
            let error = std::io::Error::last_os_error();
            Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
        }
        _ => Ok(lock),
    }
}
