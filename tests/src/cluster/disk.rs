//! A disk that can lose power, or go bad: a file served from this process's memory, under a loop
//! device, with a write cache that forgets.
//!
//! What a cut leaves is what a real disk would hold: at one instant, between two of the disk's own
//! writes, everything that was written before the last flush, and of what was written since a
//! random part, block by block. Page caches above the loop device are lost with their host. The
//! kernel's own ways to an image at an instant do not do: freezing a file system flushes it first,
//! and a copy of a backing file takes time, in which the kernel goes on writing.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite,
    Request, WriteFlags,
};

use crate::simulator::Random;

/// What a disk writes whole or not at all.
const BLOCK_BYTES: usize = 4096;
/// Attributes of a disk never change.
const ATTRIBUTES_FOR: Duration = Duration::from_secs(3600);
/// The number of the first disk on a shelf; below it are the file system's own.
const FIRST_DISK: u64 = 2;

type Block = Arc<[u8; BLOCK_BYTES]>;

/// What a disk holds without power.
#[derive(Clone, Default)]
pub(super) struct Image(HashMap<u64, Block>);

/// What is wrong with a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DiskTrouble {
    /// Nothing.
    #[default]
    Nothing,
    /// What is not in a cache above it cannot be read: EIO.
    ReadsFail,
    /// Nothing is written or flushed any more: EIO.
    WritesFail,
}

/// A disk with power.
struct Disk {
    bytes: u64,
    state: Mutex<State>,
    thawed: Condvar,
}

#[derive(Default)]
struct State {
    written: HashMap<u64, Block>,
    /// Blocks written since the last flush, with what the flush left there.
    unflushed: HashMap<u64, Option<Block>>,
    frozen: bool,
    flushes: u64,
    trouble: DiskTrouble,
    /// Reads, writes and flushes that failed.
    failures: u64,
}

impl State {
    fn fails(&mut self, when: DiskTrouble) -> Result<(), Errno> {
        if self.trouble == when {
            self.failures += 1;
            return Err(Errno::EIO);
        }
        Ok(())
    }
}

impl Disk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while the disk is frozen.
    fn ready(&self) -> MutexGuard<'_, State> {
        let state = self.lock();
        let thawed = self.thawed.wait_while(state, |state| state.frozen);
        thawed.unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let len = len.min(self.bytes.saturating_sub(offset) as usize);
        let mut bytes = vec![0; len];
        let mut state = self.lock();
        state.fails(DiskTrouble::ReadsFail)?;
        for (block, within, at) in pieces(offset, len) {
            if let Some(stored) = state.written.get(&block) {
                let count = at.len();
                bytes[at].copy_from_slice(&stored[within..within + count]);
            }
        }
        Ok(bytes)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let mut state = self.ready();
        state.fails(DiskTrouble::WritesFail)?;
        for (block, within, at) in pieces(offset, data.len()) {
            let before = state.written.get(&block).cloned();
            let mut bytes = before.as_deref().copied().unwrap_or([0; BLOCK_BYTES]);
            bytes[within..within + at.len()].copy_from_slice(&data[at]);
            state.unflushed.entry(block).or_insert(before);
            state.written.insert(block, Arc::new(bytes));
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), Errno> {
        let mut state = self.ready();
        state.fails(DiskTrouble::WritesFail)?;
        state.unflushed.clear();
        state.flushes += 1;
        Ok(())
    }

    /// Flips one bit of each block that begins with `mark`; returns how many these are.
    fn flip_bit(&self, mark: &[u8]) -> usize {
        let mut flipped = 0;
        for block in self.lock().written.values_mut() {
            if block.starts_with(mark) {
                let mut bytes = **block;
                bytes[mark.len()] ^= 1;
                *block = Arc::new(bytes);
                flipped += 1;
            }
        }
        flipped
    }

    /// Nothing is written from here on until [`Disk::thaw`]; what would be left without power.
    fn freeze(&self, random: &mut Random) -> Image {
        let mut state = self.lock();
        state.frozen = true;
        let mut left = state.written.clone();
        for (block, flushed) in &state.unflushed {
            if random.chance(50) {
                match flushed {
                    Some(bytes) => drop(left.insert(*block, Arc::clone(bytes))),
                    None => drop(left.remove(block)),
                }
            }
        }
        Image(left)
    }

    fn thaw(&self) {
        self.lock().frozen = false;
        self.thawed.notify_all();
    }
}

/// The blocks of a range: each with the place in the block and the place in the range.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= len {
            return None;
        }
        let at = offset + done as u64;
        let within = (at % BLOCK_BYTES as u64) as usize;
        let count = (BLOCK_BYTES - within).min(len - done);
        done += count;
        Some((at / BLOCK_BYTES as u64, within, done - count..done))
    })
}

/// A host's disks, each a file: at most one of them has a host that uses it.
pub(super) struct Shelf {
    folder: PathBuf,
    disks: Arc<Mutex<Vec<Arc<Disk>>>>,
    _session: BackgroundSession,
}

impl Shelf {
    /// Files appear in `folder`, which must exist.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn new(folder: &Path) -> Self {
        let disks = Arc::default();
        let served = Served(Arc::clone(&disks));
        let session = fuser::spawn_mount(served, folder, &Config::default());
        Shelf {
            folder: folder.to_owned(),
            disks,
            _session: session.expect("a shelf of disks as a FUSE mount"),
        }
    }

    /// Puts a disk with this content on the shelf; returns its path.
    pub fn put(&self, image: Image, mib: u32) -> PathBuf {
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        disks.push(Arc::new(Disk {
            bytes: u64::from(mib) << 20,
            state: Mutex::new(State {
                written: image.0,
                ..State::default()
            }),
            thawed: Condvar::new(),
        }));
        self.folder.join(disks.len().to_string())
    }

    /// Freezes the newest disk; what it would hold without power.
    pub fn freeze(&self, random: &mut Random) -> Image {
        self.newest().freeze(random)
    }

    /// The newest disk works again, for whoever still writes to it: nobody will read it.
    pub fn thaw(&self) {
        self.newest().thaw();
    }

    /// How often the newest disk was flushed.
    pub fn flushes(&self) -> u64 {
        self.newest().lock().flushes
    }

    /// From now on the newest disk has this trouble.
    pub fn trouble(&self, trouble: DiskTrouble) {
        self.newest().lock().trouble = trouble;
    }

    /// How many reads, writes and flushes of the newest disk failed.
    pub fn failures(&self) -> u64 {
        self.newest().lock().failures
    }

    /// Flips one bit behind `mark` in each block of the newest disk that begins with it; returns how
    /// many these are.
    pub fn flip_bit(&self, mark: &[u8]) -> usize {
        self.newest().flip_bit(mark)
    }

    /// The newest disk's path.
    pub fn newest_path(&self) -> PathBuf {
        let disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        self.folder.join(disks.len().to_string())
    }

    /// Frees the memory of all disks but the newest.
    pub fn drop_old(&self) {
        let disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        for disk in disks.iter().rev().skip(1) {
            *disk.lock() = State::default();
        }
    }

    fn newest(&self) -> Arc<Disk> {
        let disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(disks.last().expect("a disk was put on the shelf"))
    }
}

/// The shelf as a FUSE file system: a folder of files named by their number.
struct Served(Arc<Mutex<Vec<Arc<Disk>>>>);

impl Served {
    fn disk(&self, number: u64) -> Option<Arc<Disk>> {
        let disks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        disks.get(number.checked_sub(FIRST_DISK)? as usize).cloned()
    }
}

impl Filesystem for Served {
    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = name.to_str().and_then(|name| name.parse::<u64>().ok());
        let inode = number.map(|number| number - 1 + FIRST_DISK);
        match inode.and_then(|inode| Some((inode, self.disk(inode)?))) {
            Some((inode, disk)) => {
                let attributes = attributes(inode, disk.bytes);
                reply.entry(&ATTRIBUTES_FOR, &attributes, Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let bytes = self.disk(ino.into()).map_or(0, |disk| disk.bytes);
        reply.attr(&ATTRIBUTES_FOR, &attributes(ino.into(), bytes));
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.disk(ino.into()) {
            Some(disk) => match disk.read(offset, size as usize) {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(error),
            },
            None => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.disk(ino.into()) {
            Some(disk) => match disk.write(offset, data) {
                Ok(()) => reply.written(data.len() as u32),
                Err(error) => reply.error(error),
            },
            None => reply.error(Errno::EIO),
        }
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        match self.disk(ino.into()).map(|disk| disk.flush()) {
            Some(Err(error)) => reply.error(error),
            Some(Ok(())) | None => reply.ok(),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }
}

fn attributes(inode: u64, bytes: u64) -> FileAttr {
    let is_disk = inode >= FIRST_DISK;
    FileAttr {
        ino: INodeNo(inode),
        size: bytes,
        blocks: bytes / 512,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if is_disk {
            FileType::RegularFile
        } else {
            FileType::Directory
        },
        perm: if is_disk { 0o600 } else { 0o700 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES as u32,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Disk {
        Disk {
            bytes: 1 << 20,
            state: Mutex::default(),
            thawed: Condvar::new(),
        }
    }

    #[test]
    fn what_was_flushed_is_left_and_of_the_rest_a_part() {
        let disk = disk();
        disk.write(0, &[1; 64 * BLOCK_BYTES]).unwrap();
        disk.flush().unwrap();
        disk.write(100, &[2; 63 * BLOCK_BYTES]).unwrap();
        assert_eq!(disk.read(99, 2).unwrap(), [1, 2]);
        let Image(left) = disk.freeze(&mut Random::new(1));
        let new = left.values().filter(|block| block.contains(&2)).count();
        assert_eq!(left.len(), 64);
        assert!(
            (10..54).contains(&new),
            "{new} of 64 unflushed blocks are left"
        );
    }

    #[test]
    fn a_frozen_disk_writes_nothing_until_it_thaws() {
        let disk = disk();
        disk.freeze(&mut Random::new(1));
        std::thread::scope(|scope| {
            let write = scope.spawn(|| disk.write(0, &[7; 10]).unwrap());
            std::thread::sleep(Duration::from_millis(50));
            assert!(!write.is_finished());
            assert_eq!(disk.read(0, 1).unwrap(), [0]);
            disk.thaw();
        });
        assert_eq!(disk.read(0, 1).unwrap(), [7]);
    }

    #[test]
    fn a_disk_in_trouble_fails_as_it_is_told_and_counts_it() {
        let disk = disk();
        disk.write(0, b"mark0").unwrap();
        disk.lock().trouble = DiskTrouble::ReadsFail;
        assert!(disk.read(0, 1).is_err() && disk.write(5, &[1]).is_ok() && disk.flush().is_ok());
        disk.lock().trouble = DiskTrouble::WritesFail;
        assert!(disk.read(0, 1).is_ok() && disk.write(5, &[2]).is_err() && disk.flush().is_err());
        assert_eq!(disk.lock().failures, 3);
        disk.lock().trouble = DiskTrouble::Nothing;
        assert_eq!(disk.read(0, 6).unwrap(), b"mark0\x01");
        assert_eq!((disk.flip_bit(b"mark"), disk.flip_bit(b"other")), (1, 0));
        assert_eq!(disk.read(0, 6).unwrap(), b"mark1\x01");
    }
}
