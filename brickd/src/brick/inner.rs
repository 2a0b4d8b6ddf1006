//! What all parts of a brick share, and how what is in memory gets to the disk.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use mortar_common::{FsError, Gfid};
use mortar_proto::data::Time;
use rustix::fs::{AtFlags, StatVfsMountFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::durable;
use super::handle::Target;
use super::hot::{Dirty, Hot, HotTable, State, Touch, lock};
use super::layout::{self, HandleName};
use super::readdir::Listings;
use super::records::Records;
use super::state::{Crash, StateFile};
use super::store::BrickError;
use super::touched::TouchedFile;
use super::xattr;

/// What is changed in memory is written back when it was left alone for this long.
const WRITE_BACK_IDLE_MS: u64 = 1_000;
/// How often the housekeeper looks.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_millis(250);
/// Objects share this many locks of [`LastNames`].
const LAST_NAMES: usize = 32;
/// A listing that nobody went on with for this long, or twice that, is dropped from memory.
const LISTING_IDLE_MS: u64 = 10_000;

/// One open brick.
pub(super) struct Inner {
    pub path: PathBuf,
    /// Also what syncfs is called on: open from the start, so that it hears of every error.
    pub root: OwnedFd,
    /// `.mortar` itself, locked against a second brickd.
    pub private: OwnedFd,
    pub handle: OwnedFd,
    pub txn: OwnedFd,
    pub orphan: OwnedFd,
    pub stray: OwnedFd,
    pub hot: HotTable,
    pub listings: Listings,
    pub records: Records,
    pub touched: Mutex<TouchedFile>,
    pub state: Mutex<StateFile>,
    pub reserve: super::Reserve,
    /// ext4 and XFS: one fsync of an object also commits its name and handle, made before it.
    pub ordered_journal: bool,
    /// When crashes can have lost counters.
    pub crashes: Vec<Crash>,
    /// Change numbers up to this may be applied: it is durable.
    pub number_ceiling: AtomicU64,
    /// Highest change number applied in this life.
    pub last_applied: AtomicU64,
    pub last_names: LastNames,
    /// Held for reading by whoever has taken objects out of the table or off its list of dirty ones
    /// and writes them back, so that a sync does not pass them by: what it confirms would be gone
    /// with this process. Nothing is waited for in it but the disk.
    pub writing_back: RwLock<()>,
    /// Held by a sync while it writes back: another one would find nothing left to write and
    /// confirm what the first has still in its hands. Comes before `writing_back`.
    pub writing_back_all: Mutex<()>,
    /// How often the directories were walked to renew handles.
    pub walks: Mutex<u64>,
    pub failed: OnceLock<Failure>,
    pub stop: AtomicBool,
    pub wake: Condvar,
    pub wake_lock: Mutex<Wake>,
    pub started: Instant,
}

/// Why a brick is given up for good.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// Its disk failed first so.
    #[error("{0}")]
    Disk(String),
    /// Another folder or none is at its place.
    #[error("another folder or none is at its place")]
    NotInPlace,
}

/// Held by whoever gives a file a name or takes one from it, while it looks whether that is the last
/// one, marks it and does it. Changes of one object hold its key, but a heal takes names from what
/// is in their way, which is in nobody's keys. Nothing else is locked in it.
#[derive(Default)]
pub(super) struct LastNames([Mutex<()>; LAST_NAMES]);

impl LastNames {
    /// Of this object, and of some others.
    pub fn of(&self, gfid: Gfid) -> MutexGuard<'_, ()> {
        lock(&self.0[gfid.lo as usize % LAST_NAMES])
    }
}

/// What the background threads are woken for.
#[derive(Default)]
pub(super) struct Wake {
    /// Something big waits in `txn/` to be freed.
    pub free: bool,
}

impl Inner {
    /// Milliseconds since this brick was opened.
    pub fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// What the counters of an object last changed by the disk at this moment are at least,
    /// because a crash can have lost newer ones.
    pub fn lost_counters(&self, disk_ms: u64) -> Option<u64> {
        let within = |crash: &&Crash| (crash.from_ms..=crash.to_ms).contains(&disk_ms);
        self.crashes
            .iter()
            .filter(within)
            .map(|crash| crash.number_floor)
            .max()
    }

    /// EIO and its like are the disk's failure: noted, and final for every later change.
    pub fn error(&self, error: Errno, what: impl FnOnce() -> String) -> BrickError {
        if is_disk_failure(error) {
            let what = what();
            self.fail(&what, error);
            return BrickError::Disk {
                what,
                source: error.into(),
            };
        }
        BrickError::Refused {
            what: what(),
            error: FsError::from_errno(error.raw_os_error()),
        }
    }

    /// Notes the first failure of the disk.
    pub fn fail(&self, what: &str, error: Errno) {
        if self
            .failed
            .set(Failure::Disk(format!("{what}: {error}")))
            .is_ok()
        {
            tracing::error!(brick = %self.path.display(), %what, %error, "the disk failed");
        }
    }

    /// Refuses once the disk has failed.
    pub fn check_failed(&self) -> Result<(), BrickError> {
        match self.failed.get() {
            None => Ok(()),
            Some(Failure::Disk(first)) => Err(BrickError::Disk {
                what: format!("brick {}", self.path.display()),
                source: std::io::Error::other(first.clone()),
            }),
            Some(Failure::NotInPlace) => Err(self.not_in_place()),
        }
    }

    /// Takes a change's time and number over into an object.
    pub fn touch(&self, hot: &Hot, what: Touch, time: Time, number: u64) {
        self.update(hot, |state| state.touch(what, time, number));
    }

    /// Changes an object's state in memory; it is written back later.
    pub fn update<T>(&self, hot: &Hot, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = hot.state();
        let out = change(&mut state);
        state.touched_ms = self.now_ms();
        if state.dirty != Dirty::Clean && !state.gone {
            self.hot.list_dirty(hot.gfid, &mut state);
        }
        out
    }

    /// Refuses, from now on for good, when another folder or none is at the brick's place: what is
    /// written to this one would not be found again, and what was deleted must not be served.
    pub fn check_place(&self) -> Result<(), BrickError> {
        let here = rustix::fs::fstat(&self.root);
        let there = rustix::fs::stat(&self.path);
        let same = match (here, there) {
            (Ok(here), Ok(there)) => (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino),
            (_, Err(Errno::NOENT | Errno::NOTDIR)) => false,
            (Err(error), _) | (_, Err(error)) => {
                return Err(self.error(error, || "looking at the brick's folder".to_owned()));
            }
        };
        if same {
            return Ok(());
        }
        if self.failed.set(Failure::NotInPlace).is_ok() {
            let brick = self.path.display();
            tracing::error!(%brick, "another folder or none is at the brick's place");
        }
        Err(self.not_in_place())
    }

    fn not_in_place(&self) -> BrickError {
        BrickError::NotThisBrick(format!(
            "brick {} was deleted, moved or unmounted while it was in use: put it back and restart \
             brickd",
            self.path.display()
        ))
    }

    /// Refuses, from now on for good, when the kernel has made the disk read-only, as it does with
    /// one that it finds damaged: a copy that takes nothing must not wait for the first change to
    /// say so.
    pub fn check_writable(&self) -> Result<(), BrickError> {
        let is_read_only = rustix::fs::fstatvfs(&self.root)
            .map(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY))
            .map_err(|error| self.error(error, || "looking at the brick's disk".to_owned()))?;
        match is_read_only {
            true => Err(self.error(Errno::ROFS, || format!("brick {}", self.path.display()))),
            false => Ok(()),
        }
    }

    /// Before objects are taken to be written back; let go when they are.
    pub fn begin_write_back(&self) -> RwLockReadGuard<'_, ()> {
        self.writing_back
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an object that was just made in memory.
    pub fn insert_new(&self, hot: Hot) -> Arc<Hot> {
        let mut to_write = Vec::new();
        let _writing_back = self.begin_write_back();
        let hot = self.hot.insert_new(hot, &mut to_write);
        self.write_back_evicted(&to_write);
        self.hot.close_spare_descriptors();
        hot
    }

    /// Writes times and counters to the disk, so that a read of the disk gives what memory gives.
    pub fn write_back(&self, hot: &Hot) -> Result<(), Errno> {
        self.write_back_state(hot, &mut hot.state())
    }

    fn write_back_state(&self, hot: &Hot, state: &mut State) -> Result<(), Errno> {
        if state.dirty == Dirty::Clean || state.gone {
            return Ok(());
        }
        let target = self.target(hot)?;
        if state.dirty == Dirty::Times {
            self.set_times(&target, None, Some(state.mtime))?;
        }
        let encoded = state.stored(hot.gfid, disk_clock_ms()).encode();
        self.with_of(&target, |of| xattr::set(of, layout::XATTR, encoded.bytes()))?;
        state.dirty = Dirty::Clean;
        Ok(())
    }

    /// Sets times on the disk; what is `None` stays.
    pub fn set_times(
        &self,
        target: &Target,
        atime: Option<Time>,
        mtime: Option<Time>,
    ) -> Result<(), Errno> {
        let times = Timestamps {
            last_access: timespec(atime),
            last_modification: timespec(mtime),
        };
        match target {
            Target::Fd(fd) => rustix::fs::futimens(fd, &times),
            Target::Handle(name) => {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::utimensat(&self.handle, name.c_str(), &times, flags)
            }
        }
    }

    /// For objects that have to leave memory. A failure is noted: the next change hears of it.
    pub fn write_back_evicted(&self, evicted: &[Arc<Hot>]) {
        for hot in evicted {
            self.write_back_or_fail(hot);
        }
    }

    fn write_back_or_fail(&self, hot: &Hot) {
        match self.write_back(hot) {
            // Freed between the look at memory and the write.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => self.fail("writing back times and counters", error),
        }
    }

    /// Writes back everything that is ahead of the disk, and waits for what others write back.
    pub fn write_back_all(&self) {
        let _one_at_a_time = lock(&self.writing_back_all);
        let all = {
            let others = self.writing_back.write();
            let _none = others.unwrap_or_else(PoisonError::into_inner);
            self.hot.take_dirty()
        };
        for hot in all {
            hot.state().listed = false;
            self.write_back_or_fail(&hot);
        }
    }

    /// Makes one object durable: data, inode, its names and handle.
    pub fn sync_object(&self, gfid: Gfid, data_only: bool) -> Result<(), Errno> {
        let hot = self.hot(gfid)?;
        if !self.ordered_journal || !(hot.is_dir() || hot.is_file()) {
            self.write_back(&hot)?;
            return self.sync_disk();
        }
        let fd = self.descriptor(&hot)?;
        {
            let mut state = hot.state();
            // Bytes alone: their counters are above the floor after a crash anyway.
            if data_only && hot.is_file() && !state.unsynced {
                drop(state);
                return durable::sync_data(fd.as_fd()).map_err(|_| Errno::IO);
            }
            self.write_back_state(&hot, &mut state)?;
            state.unsynced = false;
        }
        durable::sync_file(fd.as_fd()).map_err(|_| Errno::IO)
    }

    /// syncfs; its error is final whatever it is.
    pub fn sync_disk(&self) -> Result<(), Errno> {
        durable::sync_disk(self.root.as_fd()).map_err(|_| Errno::IO)
    }

    /// Writes back, syncs, and notes from when on a crash could lose anything.
    pub fn sync_all(&self) -> Result<(), BrickError> {
        self.check_failed()?;
        let begun_ms = disk_clock_ms();
        self.write_back_all();
        self.sync_disk()
            .map_err(|error| self.error(error, || "syncing the disk".to_owned()))?;
        self.check_failed()?;
        lock(&self.state).note_sync(begun_ms);
        Ok(())
    }

    /// Makes sure that no change number is used that a crash could make be used again.
    pub fn reserve_number(&self, number: u64) -> Result<(), BrickError> {
        self.last_applied.fetch_max(number, Ordering::Relaxed);
        if number <= self.number_ceiling.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut state = lock(&self.state);
        if number <= self.number_ceiling.load(Ordering::Acquire) {
            return Ok(());
        }
        let ceiling = state
            .reserve_numbers(self.private.as_fd(), number)
            .map_err(|error| self.error(error, || "writing .mortar/volume".to_owned()))?;
        self.number_ceiling.store(ceiling, Ordering::Release);
        Ok(())
    }

    /// The handle's marker in `orphan/`.
    pub fn mark_orphan(&self, name: &HandleName) -> Result<(), Errno> {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let regular = rustix::fs::FileType::RegularFile;
        match rustix::fs::mknodat(&self.orphan, name.gfid_c_str(), regular, mode, 0) {
            Err(Errno::EXIST) => Ok(()),
            other => other,
        }
    }

    /// Takes the marker away; that there is none is no error.
    pub fn unmark_orphan(&self, name: &HandleName) -> Result<(), Errno> {
        match rustix::fs::unlinkat(&self.orphan, name.gfid_c_str(), AtFlags::empty()) {
            Err(Errno::NOENT | Errno::ISDIR) => Ok(()),
            other => other,
        }
    }

    /// Body of the thread that writes back what was left alone.
    pub fn keep_house(&self) {
        let mut listings_from_ms = self.now_ms();
        while !self.stop.load(Ordering::Acquire) {
            let guard = lock(&self.wake_lock);
            drop(self.wake.wait_timeout(guard, HOUSEKEEPING_INTERVAL));
            let now_ms = self.now_ms();
            if now_ms.saturating_sub(listings_from_ms) >= LISTING_IDLE_MS {
                self.listings.drop_idle();
                listings_from_ms = now_ms;
            }
            self.write_back_idle(now_ms);
        }
    }

    /// Writes back what was left alone for long enough.
    pub fn write_back_idle(&self, now_ms: u64) {
        let _writing_back = self.begin_write_back();
        for hot in self.hot.take_dirty() {
            let mut state = hot.state();
            state.listed = false;
            if state.gone || state.dirty == Dirty::Clean {
                continue;
            }
            if now_ms.saturating_sub(state.touched_ms) < WRITE_BACK_IDLE_MS {
                self.hot.list_dirty(hot.gfid, &mut state);
                continue;
            }
            match self.write_back_state(&hot, &mut state) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => self.fail("writing back times and counters", error),
            }
        }
    }
}

/// What cannot be blamed on the change: the copy is out.
pub(super) fn is_disk_failure(error: Errno) -> bool {
    // EUCLEAN is what ext4 and XFS call a damaged structure.
    matches!(
        error,
        Errno::IO | Errno::ROFS | Errno::UCLEAN | Errno::NXIO | Errno::NODEV | Errno::SHUTDOWN
    )
}

/// The clock disks take their times from, in ms since 1970.
pub(super) fn disk_clock_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    super::handle::millis(Time {
        secs: now.tv_sec,
        nanos: now.tv_nsec as u32,
    })
}

fn timespec(time: Option<Time>) -> Timespec {
    match time {
        Some(time) => Timespec {
            tv_sec: time.secs,
            tv_nsec: time.nanos.into(),
        },
        None => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
    }
}
