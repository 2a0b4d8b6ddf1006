//! Record files in `.mortar/heal`: notes of what absent copies lack.
//!
//! A record is its length, the low 32 bits of its xxh3_64 (4 bytes each, little-endian), and its
//! bytes. What a crash tore off at the end is cut when the file is next read or appended to.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

use super::durable::{self, OPEN};
use super::handle::each_entry;
use super::hot::lock;

/// Record files kept open for appending.
const OPEN_FILES_MAX: usize = 16;
/// Longest record.
pub(super) const RECORD_BYTES_MAX: usize = 16 << 20;
const HEADER_BYTES: usize = 8;
/// Replacements are written under this prefix first.
const TEMPORARY: &str = ".new-";

/// The folder and its open files.
pub(super) struct Records {
    dir: OwnedFd,
    /// Open files with the length of their whole records.
    open: Mutex<HashMap<String, (OwnedFd, u64)>>,
}

impl Records {
    pub fn new(dir: OwnedFd) -> Self {
        Records {
            dir,
            open: Mutex::new(HashMap::new()),
        }
    }

    pub fn append(&self, name: &str, record: &[u8], durable: bool) -> Result<(), Errno> {
        check_name(name)?;
        if record.len() > RECORD_BYTES_MAX {
            return Err(Errno::INVAL);
        }
        let mut open = lock(&self.open);
        if !open.contains_key(name) {
            if open.len() >= OPEN_FILES_MAX {
                open.clear();
            }
            let opened = self.open_for_append(name)?;
            open.insert(name.to_owned(), opened);
        }
        let (file, len) = open.get_mut(name).ok_or(Errno::IO)?;
        let bytes = framed(record);
        if let Err(error) = durable::write_all(file, *len, &bytes) {
            rustix::fs::ftruncate(&*file, *len)?;
            return Err(error);
        }
        *len += bytes.len() as u64;
        if durable {
            durable::sync_data(file.as_fd()).map_err(|_| Errno::IO)?;
        }
        Ok(())
    }

    pub fn read(&self, name: &str) -> Result<Vec<Vec<u8>>, Errno> {
        check_name(name)?;
        let _open = lock(&self.open);
        match rustix::fs::openat(&self.dir, name, OPEN | OFlags::RDWR, Mode::empty()) {
            Ok(file) => Ok(read_and_cut(&file)?.0),
            Err(Errno::NOENT) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    pub fn replace(&self, name: &str, records: &[Vec<u8>]) -> Result<(), Errno> {
        check_name(name)?;
        let mut open = lock(&self.open);
        open.remove(name);
        let c_name = std::ffi::CString::new(name).map_err(|_| Errno::INVAL)?;
        if records.is_empty() {
            return durable::remove_file(self.dir.as_fd(), &c_name);
        }
        let temporary =
            std::ffi::CString::new(format!("{TEMPORARY}{name}")).map_err(|_| Errno::INVAL)?;
        let bytes: Vec<u8> = records.iter().flat_map(|record| framed(record)).collect();
        durable::replace_file(self.dir.as_fd(), &c_name, &temporary, &bytes)
    }

    pub fn files(&self) -> Result<Vec<String>, Errno> {
        let mut names = Vec::new();
        each_entry(&self.dir, &mut |name, _| {
            let name = name.to_string_lossy();
            if check_name(&name).is_ok() {
                names.push(name.into_owned());
            }
            Ok(())
        })?;
        names.sort();
        Ok(names)
    }

    fn open_for_append(&self, name: &str) -> Result<(OwnedFd, u64), Errno> {
        let flags = OPEN | OFlags::RDWR;
        match rustix::fs::openat(&self.dir, name, flags, Mode::empty()) {
            Ok(file) => {
                let len = read_and_cut(&file)?.1;
                Ok((file, len))
            }
            Err(Errno::NOENT) => {
                let mode = Mode::from_raw_mode(0o600);
                let flags = flags | OFlags::CREATE | OFlags::EXCL;
                let file = rustix::fs::openat(&self.dir, name, flags, mode)?;
                durable::sync_file(self.dir.as_fd()).map_err(|_| Errno::IO)?;
                Ok((file, 0))
            }
            Err(error) => Err(error),
        }
    }
}

fn framed(record: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + record.len());
    bytes.extend_from_slice(&(record.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(xxh3_64(record) as u32).to_le_bytes());
    bytes.extend_from_slice(record);
    bytes
}

/// All whole records, and the length they take; what follows is cut off.
fn read_and_cut(file: &OwnedFd) -> Result<(Vec<Vec<u8>>, u64), Errno> {
    let size = rustix::fs::fstat(file)?.st_size.max(0) as usize;
    let mut bytes = vec![0; size];
    let mut done = 0;
    while done < size {
        match rustix::io::pread(file, &mut bytes[done..], done as u64)? {
            0 => break,
            count => done += count,
        }
    }
    bytes.truncate(done);
    let mut records = Vec::new();
    let mut rest = &bytes[..];
    while let Some((record, after)) = next_record(rest) {
        records.push(record.to_vec());
        rest = after;
    }
    let whole = (bytes.len() - rest.len()) as u64;
    if !rest.is_empty() {
        rustix::fs::ftruncate(file, whole)?;
    }
    Ok((records, whole))
}

fn next_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, rest) = bytes.split_at_checked(HEADER_BYTES)?;
    let len = u32::from_le_bytes(header[..4].try_into().ok()?) as usize;
    let sum = u32::from_le_bytes(header[4..].try_into().ok()?);
    let (record, after) = rest.split_at_checked(len)?;
    // Zeros, as a crash leaves them, are no record: an empty one has a sum that is not 0.
    (xxh3_64(record) as u32 == sum).then_some((record, after))
}

fn check_name(name: &str) -> Result<(), Errno> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let good =
        !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.bytes().all(plain);
    if good { Ok(()) } else { Err(Errno::INVAL) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(dir: &tempfile::TempDir) -> Records {
        Records::new(OwnedFd::from(std::fs::File::open(dir.path()).unwrap()))
    }

    #[test]
    fn a_torn_tail_is_cut_and_the_rest_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        records(&dir).append("marks", b"first", true).unwrap();
        records(&dir).append("marks", b"", false).unwrap();
        let whole = std::fs::metadata(dir.path().join("marks")).unwrap().len();
        for torn in [
            &b"\x05\0\0\0"[..],
            b"\x03\0\0\0\x01\x02\x03\x04abc",
            &[0; 100],
        ] {
            let path = dir.path().join("marks");
            let mut bytes = std::fs::read(&path).unwrap();
            bytes.extend_from_slice(torn);
            std::fs::write(&path, bytes).unwrap();
            let read = records(&dir).read("marks").unwrap();
            assert_eq!(read, [b"first".to_vec(), Vec::new()]);
            assert_eq!(std::fs::metadata(&path).unwrap().len(), whole);
        }
        let again = records(&dir);
        again.append("marks", b"third", false).unwrap();
        assert_eq!(again.read("marks").unwrap().len(), 3);
    }

    #[test]
    fn replacing_is_seen_by_later_appends_and_none_removes() {
        let dir = tempfile::tempdir().unwrap();
        let records = records(&dir);
        records.append("a", b"1", false).unwrap();
        records
            .replace("a", &[b"2".to_vec(), b"3".to_vec()])
            .unwrap();
        records.append("a", b"4", true).unwrap();
        assert_eq!(records.read("a").unwrap(), [b"2", b"3", b"4"]);
        assert_eq!(records.files().unwrap(), ["a"]);
        records.replace("a", &[]).unwrap();
        assert!(records.files().unwrap().is_empty());
        assert!(records.read("a").unwrap().is_empty());
        assert_eq!(records.append("../a", b"", false), Err(Errno::INVAL));
    }
}
