//! A file mapped into memory: shared, for reading and, where the file allows it, for writing.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use rustix::io::{Errno, Result};

/// Whether a mapping may be stored to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads only.
    Read,
    /// Loads and stores.
    Write,
}

/// The first bytes of a file, mapped with `MAP_SHARED`; unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    access: Access,
}

// SAFETY: a mapping belongs to the process, not to the thread that made it.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `len` bytes from the file's begin. Loads and stores behind the file's last page end
    /// the process with SIGBUS, as in any program: map no more than there is.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn new(file: &File, len: usize, access: Access) -> Result<Mapping> {
        let protection = match access {
            Access::Read => libc::PROT_READ,
            Access::Write => libc::PROT_READ | libc::PROT_WRITE,
        };
        // SAFETY: the kernel picks the place, so no memory of this process is replaced.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(last_error());
        }
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        Ok(Mapping { base, len, access })
    }

    /// Loads bytes.
    ///
    /// # Panics
    /// When they are not in the mapping.
    pub fn load(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len);
        let mut bytes = vec![0u8; len];
        // SAFETY: the range is in the mapping. Others may store to it meanwhile: what is then
        // loaded is one byte or the other, and nothing here relies on it.
        unsafe { std::ptr::copy(self.base.as_ptr().add(at), bytes.as_mut_ptr(), len) };
        bytes
    }

    /// Stores bytes.
    ///
    /// # Panics
    /// When they do not fit in the mapping, or it is for reading only.
    pub fn store(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len && self.access == Access::Write);
        // SAFETY: the range is in the mapping, which is mapped for writing.
        unsafe { std::ptr::copy(bytes.as_ptr(), self.base.as_ptr().add(at), bytes.len()) };
    }

    /// Writes what was stored to the file: msync(2) with `MS_SYNC`.
    ///
    /// # Errors
    /// What msync(2) says.
    pub fn sync(&self) -> Result<()> {
        // SAFETY: the range is this mapping.
        let done = unsafe { libc::msync(self.base.as_ptr().cast(), self.len, libc::MS_SYNC) };
        if done == 0 { Ok(()) } else { Err(last_error()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, which nobody uses after its drop.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
