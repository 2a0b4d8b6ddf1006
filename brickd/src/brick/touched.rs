//! `.mortar/touched`: a small file of fixed size, written in place, so that making one entry of it
//! durable waits for no commit of the disk's journal.
//!
//! 512 entries of 8 bytes. The first is the magic. Each other is a code and the low 32 bits of its
//! xxh3_64 (4 bytes each, little-endian), or zeros.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

use super::durable::{self, OPEN};
use super::store::TOUCHED_MAX;

const MAGIC: &[u8; ENTRY_BYTES] = b"MORTART1";
/// Its name in `.mortar`.
pub(super) const NAME: &CStr = c"touched";
const TEMPORARY: &CStr = c"touched.new";
const ENTRY_BYTES: usize = 8;
const FILE_BYTES: usize = (TOUCHED_MAX as usize + 1) * ENTRY_BYTES;

/// The open file.
#[derive(Default)]
pub(super) struct TouchedFile {
    file: Option<OwnedFd>,
}

impl TouchedFile {
    /// All entries with their slots; `None` when there is no whole file.
    pub fn read(&mut self, private: BorrowedFd<'_>) -> Result<Option<Vec<(u32, u32)>>, Errno> {
        let Some(file) = self.open(private)? else {
            return Ok(None);
        };
        let mut bytes = [0; FILE_BYTES];
        let len = rustix::io::pread(file, &mut bytes[..], 0)?;
        if len != FILE_BYTES {
            return Ok(None);
        }
        let mut entries = bytes.chunks_exact(ENTRY_BYTES);
        if entries.next() != Some(MAGIC) {
            return Ok(None);
        }
        let mut codes = Vec::new();
        for (slot, entry) in (0..).zip(entries) {
            let (code, sum) = entry.split_at(4);
            if entry == [0; ENTRY_BYTES] {
                continue;
            }
            if xxh3_64(code).to_le_bytes()[..4] != *sum {
                return Ok(None);
            }
            codes.push((
                slot,
                u32::from_le_bytes(code.try_into().unwrap_or_default()),
            ));
        }
        Ok(Some(codes))
    }

    /// Sets an entry, durably, or clears it, which a crash may undo.
    pub fn write(
        &mut self,
        private: BorrowedFd<'_>,
        slot: u32,
        code: Option<u32>,
    ) -> Result<(), Errno> {
        let file = self.open(private)?.ok_or(Errno::IO)?;
        let entry = code.map_or([0; ENTRY_BYTES], entry_of);
        let offset = (u64::from(slot) + 1) * ENTRY_BYTES as u64;
        durable::write_all(file, offset, &entry)?;
        if code.is_some() {
            durable::sync_data(file.as_fd()).map_err(|_| Errno::IO)?;
        }
        Ok(())
    }

    /// Replaces the file by one with these entries, from the first slot on; durably.
    pub fn replace(&mut self, private: BorrowedFd<'_>, codes: &[u32]) -> Result<(), Errno> {
        self.file = None;
        replace(private, codes)
    }

    fn open(&mut self, private: BorrowedFd<'_>) -> Result<Option<&OwnedFd>, Errno> {
        if self.file.is_none() {
            match rustix::fs::openat(private, NAME, OPEN | OFlags::RDWR, Mode::empty()) {
                Ok(file) => self.file = Some(file),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.file.as_ref())
    }
}

/// Makes the file of a brick, see [`TouchedFile::replace`].
pub(super) fn replace(private: BorrowedFd<'_>, codes: &[u32]) -> Result<(), Errno> {
    let mut bytes = MAGIC.to_vec();
    for code in codes.iter().take(TOUCHED_MAX as usize) {
        bytes.extend_from_slice(&entry_of(*code));
    }
    bytes.resize(FILE_BYTES, 0);
    durable::replace_file(private, NAME, TEMPORARY, &bytes)
}

fn entry_of(code: u32) -> [u8; ENTRY_BYTES] {
    let mut entry = [0; ENTRY_BYTES];
    let code = code.to_le_bytes();
    entry[..4].copy_from_slice(&code);
    entry[4..].copy_from_slice(&xxh3_64(&code).to_le_bytes()[..4]);
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_kept_and_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let path = dir.path().join("touched");
        let read = || TouchedFile::default().read(fd.as_fd()).unwrap();
        assert_eq!(read(), None);
        replace(fd.as_fd(), &[]).unwrap();
        assert_eq!(read(), Some(Vec::new()));
        let mut file = TouchedFile::default();
        file.write(fd.as_fd(), 3, Some(0)).unwrap();
        file.write(fd.as_fd(), 510, Some(77)).unwrap();
        assert_eq!(read(), Some(vec![(3, 0), (510, 77)]));
        file.write(fd.as_fd(), 3, None).unwrap();
        assert_eq!(read(), Some(vec![(510, 77)]));
        file.replace(fd.as_fd(), &[5, 6]).unwrap();
        assert_eq!(file.read(fd.as_fd()).unwrap(), Some(vec![(0, 5), (1, 6)]));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), FILE_BYTES as u64);
        let whole = std::fs::read(&path).unwrap();
        for at in [0, 8, 15, 16] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(read(), None, "byte {at}");
        }
        std::fs::write(&path, &whole[..100]).unwrap();
        assert_eq!(read(), None);
    }
}
