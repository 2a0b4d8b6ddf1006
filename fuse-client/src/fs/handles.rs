//! Open files and directories of this mount.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mortar_common::{FsError, Gfid};

use super::FsResult;
use super::dir::Listing;
use crate::cache::NodeId;

/// An open file.
#[derive(Debug)]
pub struct File {
    /// What is open.
    pub gfid: Gfid,
    /// Set when a fence has taken a lock that was held through this handle: from then on every
    /// use answers EIO, because what the lock protected may have changed.
    pub locks_lost: Arc<AtomicBool>,
    /// Bytes that came with the open.
    head: Mutex<Option<Head>>,
    /// What it was told of.
    pub durable: Durable,
}

/// How many losses of what was not synced a handle knows of: one that came to pass since it was
/// opened is told to it once, by its next fsync.
#[derive(Debug)]
pub struct Durable(AtomicU64);

impl Durable {
    /// Of a handle that is opened after so many losses.
    pub fn new(losses: u64) -> Self {
        Durable(AtomicU64::new(losses))
    }

    /// # Errors
    /// [`FsError::Io`] when there were more since.
    pub fn tell(&self, losses: u64) -> FsResult<()> {
        if self.0.swap(losses, Ordering::AcqRel) < losses {
            Err(FsError::Io)
        } else {
            Ok(())
        }
    }
}

/// The first bytes of a file as they were when it was opened.
#[derive(Clone, Debug)]
pub struct Head {
    /// From offset 0.
    pub bytes: Bytes,
    /// Whether they are the whole file.
    pub whole: bool,
    /// Their data counter.
    pub data_counter: u64,
    /// When they were asked for.
    pub sent_at: Instant,
}

impl File {
    /// A handle of its own.
    pub fn new(gfid: Gfid, head: Option<Head>, losses: u64) -> Self {
        File {
            gfid,
            locks_lost: Arc::default(),
            head: Mutex::new(head),
            durable: Durable::new(losses),
        }
    }

    /// Whether the handle may be used.
    ///
    /// # Errors
    /// [`FsError::Io`] when a lock held through it was lost.
    pub fn usable(&self) -> FsResult<()> {
        if self.locks_lost.load(Ordering::Acquire) {
            Err(FsError::Io)
        } else {
            Ok(())
        }
    }

    /// The bytes at `offset` if they came with the open and the file is still the same; `None` =
    /// ask the brick.
    pub fn head(
        &self,
        offset: u64,
        len: u32,
        data_counter: u64,
        believed: Duration,
    ) -> Option<Bytes> {
        let mut slot = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        let head = slot.as_ref()?;
        if head.data_counter != data_counter || head.sent_at.elapsed() > believed {
            *slot = None;
            return None;
        }
        let have = head.bytes.len() as u64;
        let end = offset.saturating_add(u64::from(len));
        if end > have && !head.whole {
            return None;
        }
        let bytes = head
            .bytes
            .slice(offset.min(have) as usize..end.min(have) as usize);
        if end >= have {
            // The kernel has them all now.
            *slot = None;
        }
        Some(bytes)
    }

    /// What came with the open is not to be used any more.
    pub fn drop_head(&self) {
        *self.head.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// An open directory.
#[derive(Debug)]
pub struct Dir {
    /// What is open.
    pub gfid: Gfid,
    /// Its node.
    pub node: NodeId,
    /// What it was told of.
    pub durable: Durable,
    /// Where its reader is.
    pub listing: Mutex<Listing>,
}

/// All open handles by number. Numbers are never used again.
#[derive(Debug, Default)]
pub struct Handles {
    last: AtomicU64,
    files: RwLock<HashMap<u64, Arc<File>>>,
    dirs: RwLock<HashMap<u64, Arc<Dir>>>,
}

impl Handles {
    /// Gives a file a handle.
    pub fn add_file(&self, file: File) -> u64 {
        let handle = self.next();
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        files.insert(handle, Arc::new(file));
        handle
    }

    /// The file of a handle.
    pub fn file(&self, handle: u64) -> FsResult<Arc<File>> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.get(&handle).cloned().ok_or(FsError::BadHandle)
    }

    /// Ends a file's handle.
    pub fn remove_file(&self, handle: u64) -> Option<Arc<File>> {
        self.files
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&handle)
    }

    /// All handles of an object.
    pub fn of(&self, gfid: Gfid) -> Vec<Arc<File>> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files
            .values()
            .filter(|file| file.gfid == gfid)
            .cloned()
            .collect()
    }

    /// Gives a directory a handle.
    pub fn add_dir(&self, dir: Dir) -> u64 {
        let handle = self.next();
        let mut dirs = self.dirs.write().unwrap_or_else(PoisonError::into_inner);
        dirs.insert(handle, Arc::new(dir));
        handle
    }

    /// The directory of a handle.
    pub fn dir(&self, handle: u64) -> FsResult<Arc<Dir>> {
        let dirs = self.dirs.read().unwrap_or_else(PoisonError::into_inner);
        dirs.get(&handle).cloned().ok_or(FsError::BadHandle)
    }

    /// Ends a directory's handle.
    pub fn remove_dir(&self, handle: u64) {
        self.dirs
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&handle);
    }

    fn next(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_a_file_is_used_while_it_is_the_same() {
        let head = |whole| Head {
            bytes: Bytes::from_static(b"0123456789"),
            whole,
            data_counter: 5,
            sent_at: Instant::now(),
        };
        let second = Duration::from_secs(1);
        let file = |whole| File::new(Gfid::ROOT, Some(head(whole)), 0);
        assert_eq!(&file(true).head(4, 100, 5, second).unwrap()[..], b"456789");
        assert_eq!(file(true).head(20, 5, 5, second).unwrap().len(), 0);
        assert_eq!(file(false).head(4, 100, 5, second), None);
        assert_eq!(&file(false).head(4, 2, 5, second).unwrap()[..], b"45");
        assert_eq!(file(true).head(0, 10, 6, second), None);
        assert_eq!(file(true).head(0, 10, 5, Duration::ZERO), None);
    }
}
