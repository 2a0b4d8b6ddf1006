//! One brick: a folder on a disk that holds a copy of a replica set as plain files.
//!
//! Knows ordered changes and reads; knows nothing of peers, epochs, sessions or the network.
//!
//! A file is a plain file at the path it has in the volume; `.mortar/handle` holds a second link
//! to it, named by its gfid, and for a directory the kernel's file handle, so that a gfid leads to
//! its object without a walk. Times and counters are ahead of the disk in memory (`hot`).

mod apply;
mod check;
mod durable;
mod handle;
mod hot;
mod inner;
mod layout;
mod prepare;
mod read;
mod readdir;
mod records;
mod recover;
mod state;
pub mod store;
mod touched;
mod xattr;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, RwLock, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use mortar_common::{BrickId, Gfid, VolumeId};
use mortar_proto::data::{Change, HealObjectStep, Object, ReadDir, ReadDirPage, StatFs};
use mortar_proto::registry::Limits;
use rustix::io::Errno;
use std::os::fd::AsFd;

use hot::{HotTable, lock};
use inner::{Inner, LastNames, Wake, disk_clock_ms};
use records::Records;
use state::StateFile;
pub use store::{BrickError, HealSource, Store, StoredState};
use touched::TouchedFile;

/// Whose brick a folder is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BrickIdentity {
    /// The volume's id.
    pub volume: VolumeId,
    /// Its name, for messages.
    pub volume_name: String,
    /// The brick's id.
    pub brick: BrickId,
    /// Index of its replica set in the volume.
    pub set: u32,
}

/// Space of the disk that is never given to users (`storage.reserve`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reserve {
    /// Share of the disk, in percent.
    pub percent: u8,
    /// But at least this many bytes.
    pub bytes_min: u64,
}

impl Default for Reserve {
    fn default() -> Self {
        Reserve {
            percent: 1,
            bytes_min: 256 << 20,
        }
    }
}

impl Reserve {
    /// Bytes reserved on a disk of this size.
    pub fn bytes_of(&self, disk_bytes: u64) -> u64 {
        (disk_bytes / 100 * u64::from(self.percent)).max(self.bytes_min)
    }
}

/// One open brick. Dropping it writes everything back, syncs, and closes it in order.
pub struct Brick {
    inner: Arc<Inner>,
    threads: Vec<JoinHandle<()>>,
    /// Goes last, when the folder is let go of.
    hold: Arc<()>,
}

impl Brick {
    /// Whether this folder can become a brick, and the limits of its disk. Changes nothing.
    ///
    /// `force` allows the root partition, a mount point, and a folder that is not empty.
    pub fn check(path: &Path, force: bool) -> Result<Limits, BrickError> {
        prepare::check(path, force)
    }

    /// Makes the folder a brick: itself if it is missing, `.mortar`, and the root's gfid.
    pub fn make(path: &Path, identity: &BrickIdentity, force: bool) -> Result<(), BrickError> {
        prepare::make(path, identity, force)
    }

    /// Removes what `make` made; users' files stay. A folder that is no brick is left alone, one
    /// that `make` made and no change has touched goes too. Refused while the brick is open.
    pub fn unmake(path: &Path, identity: &BrickIdentity) -> Result<(), BrickError> {
        prepare::unmake(path, identity)
    }

    /// Opens a brick and puts in order what a crash left.
    pub fn open(
        path: &Path,
        identity: &BrickIdentity,
        reserve: Reserve,
    ) -> Result<Brick, BrickError> {
        let opened = prepare::open(path, identity)?;
        let crashed = opened.file.running;
        let synced_ms = opened.file.synced_at_ms;
        let new_handles = opened.handles_lost.then(|| opened.root_handle.clone());
        let inner = Arc::new(inner_of(opened, reserve).map_err(|error| {
            BrickError::NotThisBrick(format!("brick {}: {error}", path.display()))
        })?);
        let swept_from_ms = match (&new_handles, crashed) {
            (Some(_), _) => Some(0),
            (None, true) => Some(synced_ms),
            (None, false) => None,
        };
        inner.recover(new_handles, swept_from_ms).map_err(|error| {
            inner.error(error, || {
                format!("putting brick {} in order", path.display())
            })
        })?;
        let mut brick = Brick {
            inner: Arc::clone(&inner),
            threads: Vec::new(),
            hold: Arc::default(),
        };
        brick.spawn("brick-keeper", Inner::keep_house)?;
        brick.spawn("brick-freer", Inner::free_big_files)?;
        tracing::info!(brick = %path.display(), volume = %identity.volume_name, crashed, "brick opened");
        Ok(brick)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Gone when this brick has ended and its folder can be opened again, which is some time after
    /// whoever used it last let it go: it writes everything back first.
    pub fn hold(&self) -> Weak<()> {
        Arc::downgrade(&self.hold)
    }

    /// Why the brick's disk is given up, if it is.
    pub fn failure(&self) -> Option<String> {
        self.inner.failed.get().map(ToString::to_string)
    }

    /// Loses what memory is ahead of the disk by, as SIGKILL does.
    #[cfg(test)]
    fn forget_everything(&self) {
        for hot in self.inner.hot.take_dirty() {
            let mut state = hot.state();
            (state.listed, state.gone) = (false, true);
        }
    }

    /// One round of the thread that writes back what was left alone.
    #[cfg(test)]
    fn keep_house_once(&self) {
        self.inner.write_back_idle(self.inner.now_ms());
    }

    fn spawn(&mut self, name: &str, body: fn(&Inner)) -> Result<(), BrickError> {
        let inner = Arc::clone(&self.inner);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || body(&inner))
            .map_err(|error| {
                BrickError::NotThisBrick(format!("no thread can be started: {error}"))
            })?;
        self.threads.push(thread);
        Ok(())
    }

    fn refusal(&self, error: Errno, what: &str, gfid: Gfid) -> BrickError {
        self.inner.error(error, || format!("{what} {gfid}"))
    }

    fn in_private<T>(&self, what: &str, done: Result<T, Errno>) -> Result<T, BrickError> {
        done.map_err(|error| self.inner.error(error, || what.to_owned()))
    }
}

impl Drop for Brick {
    fn drop(&mut self) {
        self.inner.stop.store(true, Ordering::Release);
        {
            let _guard = lock(&self.inner.wake_lock);
            self.inner.wake.notify_all();
        }
        for thread in self.threads.drain(..) {
            // A thread that panicked has printed why; what it left is written below.
            let _ = thread.join();
        }
        if self.inner.sync_all().is_err() {
            return;
        }
        let last_applied = self.inner.last_applied.load(Ordering::Relaxed);
        let closed = lock(&self.inner.state).close(self.inner.private.as_fd(), last_applied);
        if let Err(error) = closed {
            self.inner.fail("closing .mortar/volume", error);
        }
    }
}

fn inner_of(opened: prepare::Opened, reserve: Reserve) -> Result<Inner, Errno> {
    let ordered_journal = prepare::has_ordered_journal(&opened.root)?;
    let mut file = opened.file;
    file.recover(disk_clock_ms());
    let [handle, heal, txn, orphan, stray] = opened.folders;
    Ok(Inner {
        path: opened.path,
        root: opened.root,
        private: opened.private,
        handle,
        txn,
        orphan,
        stray,
        hot: HotTable::new(),
        listings: readdir::Listings::new(),
        records: Records::new(heal),
        touched: Mutex::new(TouchedFile::default()),
        reserve,
        ordered_journal,
        crashes: file.crashes.clone(),
        number_ceiling: AtomicU64::new(0),
        last_applied: AtomicU64::new(0),
        state: Mutex::new(StateFile::new(file)),
        last_names: LastNames::default(),
        writing_back: RwLock::default(),
        writing_back_all: Mutex::default(),
        walks: Mutex::new(0),
        failed: OnceLock::new(),
        stop: AtomicBool::new(false),
        wake: Condvar::new(),
        wake_lock: Mutex::new(Wake::default()),
        started: Instant::now(),
    })
}

impl Store for Brick {
    fn apply(&self, change: &Change, payload: &[u8]) -> Result<(), BrickError> {
        self.inner.apply(change, payload)
    }

    fn object(&self, gfid: Gfid) -> Result<Object, BrickError> {
        self.inner
            .object(gfid)
            .map_err(|error| self.refusal(error, "object", gfid))
    }

    fn lookup(&self, parent: Gfid, name: &[u8]) -> Result<Object, BrickError> {
        self.inner.lookup(parent, name).map_err(|error| {
            let name = String::from_utf8_lossy(name);
            self.inner
                .error(error, || format!("lookup of '{name}' in {parent}"))
        })
    }

    fn read_link(&self, gfid: Gfid) -> Result<Bytes, BrickError> {
        self.inner
            .read_link(gfid)
            .map_err(|error| self.refusal(error, "readlink", gfid))
    }

    fn read_soon(&self, gfid: Gfid, bytes: u64) {
        self.inner.read_soon(gfid, bytes);
    }

    fn read(
        &self,
        gfid: Gfid,
        offset: u64,
        len: u32,
        into: &mut Vec<u8>,
    ) -> Result<(), BrickError> {
        let done = self.inner.read(gfid, offset, len, into);
        done.map_err(|error| self.refusal(error, "read", gfid))
    }

    fn read_dir(&self, page: &ReadDir) -> Result<ReadDirPage, BrickError> {
        let gfid = page.gfid.unwrap_or_default();
        self.inner
            .read_dir(page)
            .map_err(|error| self.refusal(error, "readdir", gfid))
    }

    fn is_empty_dir(&self, gfid: Gfid) -> Result<bool, BrickError> {
        self.inner
            .is_empty_dir(gfid)
            .map_err(|error| self.refusal(error, "readdir", gfid))
    }

    fn parent_of_dir(&self, gfid: Gfid) -> Result<Gfid, BrickError> {
        self.inner
            .parent_of_dir(gfid)
            .map_err(|error| self.refusal(error, "parent of", gfid))
    }

    fn get_xattr(&self, gfid: Gfid, name: &[u8]) -> Result<Bytes, BrickError> {
        self.inner
            .get_xattr(gfid, name)
            .map_err(|error| self.refusal(error, "getxattr", gfid))
    }

    fn list_xattr(&self, gfid: Gfid) -> Result<Bytes, BrickError> {
        self.inner
            .list_xattr(gfid)
            .map_err(|error| self.refusal(error, "listxattr", gfid))
    }

    fn seek(&self, gfid: Gfid, offset: u64, hole: bool) -> Result<u64, BrickError> {
        self.inner
            .seek(gfid, offset, hole)
            .map_err(|error| match error {
                // Here ENXIO says that there is nothing behind: not that the disk is gone.
                Errno::NXIO => BrickError::Refused {
                    what: format!("seek in {gfid}"),
                    error: mortar_common::FsError::NoDevice,
                },
                other => self.refusal(other, "seek", gfid),
            })
    }

    fn stat_fs(&self) -> Result<StatFs, BrickError> {
        self.in_private("statfs", self.inner.stat_fs())
    }

    fn sync_all(&self) -> Result<(), BrickError> {
        self.inner.sync_all()
    }

    fn check(&self) -> Result<(), BrickError> {
        self.inner.check_failed()?;
        self.inner.check_place()?;
        self.inner.check_writable()
    }

    fn stored_state(&self) -> StoredState {
        lock(&self.inner.state).stored(self.inner.last_applied.load(Ordering::Relaxed))
    }

    fn store_state(&self, state: &StoredState) -> Result<(), BrickError> {
        self.inner.check_failed()?;
        let done = lock(&self.inner.state).store(self.inner.private.as_fd(), state);
        self.in_private("writing .mortar/volume", done)
    }

    fn append_record(&self, name: &str, record: &[u8], durable: bool) -> Result<(), BrickError> {
        self.inner.check_failed()?;
        let done = self.inner.records.append(name, record, durable);
        self.in_private(&format!("appending to .mortar/heal/{name}"), done)
    }

    fn read_records(&self, name: &str) -> Result<Vec<Vec<u8>>, BrickError> {
        let done = self.inner.records.read(name);
        self.in_private(&format!("reading .mortar/heal/{name}"), done)
    }

    fn replace_records(&self, name: &str, records: &[Vec<u8>]) -> Result<(), BrickError> {
        self.inner.check_failed()?;
        let done = self.inner.records.replace(name, records);
        self.in_private(&format!("replacing .mortar/heal/{name}"), done)
    }

    fn record_files(&self) -> Result<Vec<String>, BrickError> {
        self.in_private("listing .mortar/heal", self.inner.records.files())
    }

    fn read_touched(&self) -> Result<Option<Vec<(u32, u32)>>, BrickError> {
        let done = lock(&self.inner.touched).read(self.inner.private.as_fd());
        self.in_private("reading .mortar/touched", done)
    }

    fn write_touched(&self, slot: u32, code: Option<u32>) -> Result<(), BrickError> {
        self.inner.check_failed()?;
        let done = lock(&self.inner.touched).write(self.inner.private.as_fd(), slot, code);
        self.in_private("writing .mortar/touched", done)
    }

    fn replace_touched(&self, codes: &[u32]) -> Result<(), BrickError> {
        self.inner.check_failed()?;
        let done = lock(&self.inner.touched).replace(self.inner.private.as_fd(), codes);
        self.in_private("replacing .mortar/touched", done)
    }
}

impl HealSource for Brick {
    fn heal_object(&self, gfid: Gfid) -> Result<HealObjectStep, BrickError> {
        self.inner
            .heal_source(gfid)
            .map_err(|error| self.refusal(error, "reading", gfid))
    }

    fn next_extent(&self, gfid: Gfid, offset: u64) -> Result<Option<(u64, u64, bool)>, BrickError> {
        let found = self.inner.next_extent(gfid, offset);
        found.map_err(|error| self.refusal(error, "extents of", gfid))
    }

    fn sum(&self, gfid: Gfid, offset: u64, len: u64) -> Result<u64, BrickError> {
        self.inner
            .sum(gfid, offset, len)
            .map_err(|error| self.refusal(error, "sum of", gfid))
    }

    fn forget_cached(&self, gfid: Gfid, offset: u64, len: u64) {
        self.inner.forget_cached(gfid, offset, len);
    }

    fn path_of(&self, gfid: Gfid) -> Option<String> {
        self.inner.path_of(gfid)
    }

    fn each_handle(
        &self,
        wanted: &dyn Fn(u32) -> bool,
        each: &mut dyn FnMut(Gfid) -> bool,
    ) -> Result<(), BrickError> {
        self.in_private("listing handles", self.inner.each_handle(wanted, each))
    }

    fn orphans(&self) -> Result<Vec<Gfid>, BrickError> {
        self.in_private("listing orphans", self.inner.orphans())
    }
}
