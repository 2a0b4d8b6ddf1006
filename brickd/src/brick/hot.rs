//! Objects in memory: times, counters and presence bits that are ahead of the disk, and open
//! descriptors.
//!
//! Lock order: an object's state, then a shard. A shard's holder only tries an object's locks.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mortar_common::Gfid;
use mortar_proto::data::Time;

use super::layout::{Stored, Written, clamp_time};

/// Objects kept in memory, per brick (about 300 bytes each).
pub(super) const HOT_OBJECTS_MAX: usize = 65_536;
/// Descriptors kept open, per brick; fewer where the process may open fewer.
pub(super) const HOT_DESCRIPTORS_MAX: usize = 4_096;
/// Fewest descriptors a brick keeps, whatever the process' limit.
const HOT_DESCRIPTORS_MIN: usize = 64;
/// A brick takes this share of the descriptors the process may open.
const DESCRIPTORS_SHARE: u64 = 8;
/// Dirty objects handed back for write-back by one eviction.
const EVICT_DIRTY_MAX: usize = 32;
const SHARDS: usize = 64;
const SHARD_OBJECTS_MAX: usize = HOT_OBJECTS_MAX / SHARDS;

/// How much of an object's state the disk does not have yet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Dirty {
    Clean,
    /// ctime and counters: `trusted.mortar`.
    Attributes,
    /// mtime too.
    Times,
}

/// One object in memory.
pub(super) struct Hot {
    pub gfid: Gfid,
    /// S_IFMT bits of the mode: never change.
    pub file_type: u32,
    state: Mutex<State>,
    descriptor: Mutex<Option<Arc<OwnedFd>>>,
    recent: AtomicBool,
    descriptor_recent: AtomicBool,
    /// Where the last read ended.
    read_end: AtomicU64,
}

/// What is ahead of the disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    pub ctime: Time,
    pub mtime: Time,
    /// Number of the change that set mtime: changes of one directory may be applied in any order.
    mtime_by: u64,
    pub data_counter: u64,
    pub attr_counter: u64,
    pub rdev: Option<u64>,
    /// Of a symlink: reading it changes the disk's.
    pub atime: Option<Time>,
    pub presence: u32,
    pub dirty: Dirty,
    /// When it was last changed, on the housekeeper's clock.
    pub touched_ms: u64,
    /// In its shard's list of dirty objects.
    pub listed: bool,
    /// Freed: there is nothing to write back to.
    pub gone: bool,
    /// Made, named or otherwise changed but for its bytes since the last fsync known of it.
    pub unsynced: bool,
}

/// What a change does to an object's times and counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Touch {
    /// Attributes only: ctime.
    Attributes,
    /// Room for content: mtime and ctime, though what is read stays as it was. The kernel stamps the
    /// disk's mtime too.
    Room,
    /// Content: mtime and ctime.
    Content,
}

impl State {
    pub fn new(ctime: Time, mtime: Time, data_counter: u64, attr_counter: u64) -> Self {
        State {
            ctime,
            mtime,
            mtime_by: attr_counter,
            data_counter,
            attr_counter,
            rdev: None,
            atime: None,
            presence: 0,
            dirty: Dirty::Clean,
            touched_ms: 0,
            listed: false,
            gone: false,
            unsynced: true,
        }
    }

    /// Takes over the time and number of a change.
    pub fn touch(&mut self, what: Touch, time: Time, number: u64) {
        let time = clamp_time(time);
        if (time.secs, time.nanos) > (self.ctime.secs, self.ctime.nanos) {
            self.ctime = time;
        }
        self.attr_counter = self.attr_counter.max(number);
        self.soil(Dirty::Attributes);
        if what == Touch::Content {
            self.data_counter = self.data_counter.max(number);
        } else {
            self.unsynced = true;
        }
        if what != Touch::Attributes {
            self.set_mtime(time, number);
        }
    }

    /// Sets mtime, unless a later change has set it already.
    pub fn set_mtime(&mut self, time: Time, number: u64) {
        if number >= self.mtime_by {
            self.mtime = clamp_time(time);
            self.mtime_by = number;
        }
        self.soil(Dirty::Times);
    }

    /// The disk lacks this much.
    pub fn soil(&mut self, how: Dirty) {
        self.dirty = self.dirty.max(how);
    }

    /// As `trusted.mortar` holds it.
    pub fn stored(&self, gfid: Gfid, at_ms: u64) -> Stored {
        let written = Written {
            ctime: self.ctime,
            data_counter: self.data_counter,
            attr_counter: self.attr_counter,
            at_ms,
        };
        Stored {
            gfid,
            written: Some(written),
            rdev: self.rdev,
            atime: self.atime,
        }
    }
}

impl Hot {
    pub fn new(gfid: Gfid, file_type: u32, state: State, descriptor: Option<OwnedFd>) -> Self {
        Hot {
            gfid,
            file_type,
            state: Mutex::new(state),
            descriptor: Mutex::new(descriptor.map(Arc::new)),
            recent: AtomicBool::new(true),
            descriptor_recent: AtomicBool::new(true),
            read_end: AtomicU64::new(0),
        }
    }

    /// A read of these bytes: whether it goes on where the last one ended.
    pub fn reads_on(&self, offset: u64, len: u64) -> bool {
        let end = offset.saturating_add(len);
        self.read_end.swap(end, Ordering::Relaxed) == offset
    }

    pub fn is_dir(&self) -> bool {
        self.file_type == libc::S_IFDIR
    }

    pub fn is_file(&self) -> bool {
        self.file_type == libc::S_IFREG
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The descriptor, if it is open.
    pub fn descriptor(&self) -> Option<Arc<OwnedFd>> {
        let descriptor = lock(&self.descriptor).clone();
        if descriptor.is_some() {
            self.descriptor_recent.store(true, Ordering::Relaxed);
        }
        descriptor
    }
}

#[derive(Default)]
struct Shard {
    objects: HashMap<Gfid, Arc<Hot>>,
    /// Grows when something leaves: what was read from the disk before may be older than that.
    departures: u64,
    dirty: Vec<Gfid>,
}

/// All objects of a brick that are in memory.
pub(super) struct HotTable {
    shards: Vec<Mutex<Shard>>,
    descriptors: AtomicUsize,
    descriptors_max: usize,
    sweep_from: AtomicUsize,
}

/// Whether an object could be put in memory.
pub(super) enum Inserted {
    /// This is the one in memory now: the one given, or one that was there before.
    Here(Arc<Hot>),
    /// The shard has lost an object since `departures` was read: read the disk again.
    Again,
}

impl HotTable {
    pub fn new() -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let share = limit.map_or(HOT_DESCRIPTORS_MAX, |limit| {
            (limit / DESCRIPTORS_SHARE) as usize
        });
        HotTable {
            shards: (0..SHARDS).map(|_| Mutex::new(Shard::default())).collect(),
            descriptors: AtomicUsize::new(0),
            descriptors_max: share.clamp(HOT_DESCRIPTORS_MIN, HOT_DESCRIPTORS_MAX),
            sweep_from: AtomicUsize::new(0),
        }
    }

    /// The object, or how many have left its shard so far, for [`HotTable::insert`].
    pub fn find(&self, gfid: Gfid) -> Result<Arc<Hot>, u64> {
        let shard = self.shard(gfid);
        match shard.objects.get(&gfid) {
            Some(hot) => {
                hot.recent.store(true, Ordering::Relaxed);
                Ok(Arc::clone(hot))
            }
            None => Err(shard.departures),
        }
    }

    /// Puts in what was read from the disk. Write the objects in `to_write` back afterwards.
    pub fn insert(&self, hot: Hot, departures: u64, to_write: &mut Vec<Arc<Hot>>) -> Inserted {
        let mut shard = self.shard(hot.gfid);
        if let Some(there) = shard.objects.get(&hot.gfid) {
            return Inserted::Here(Arc::clone(there));
        }
        if shard.departures != departures {
            return Inserted::Again;
        }
        Inserted::Here(self.put(&mut shard, hot, to_write))
    }

    /// Puts in an object that was made just now.
    pub fn insert_new(&self, hot: Hot, to_write: &mut Vec<Arc<Hot>>) -> Arc<Hot> {
        let mut shard = self.shard(hot.gfid);
        shard.departures += 1;
        if let Some(stale) = shard.objects.remove(&hot.gfid) {
            self.forget_descriptor(&stale);
        }
        self.put(&mut shard, hot, to_write)
    }

    fn put(&self, shard: &mut Shard, hot: Hot, to_write: &mut Vec<Arc<Hot>>) -> Arc<Hot> {
        if shard.objects.len() >= SHARD_OBJECTS_MAX {
            self.evict(shard, to_write);
        }
        if lock(&hot.descriptor).is_some() {
            self.descriptors.fetch_add(1, Ordering::Relaxed);
        }
        let hot = Arc::new(hot);
        shard.objects.insert(hot.gfid, Arc::clone(&hot));
        hot
    }

    /// The object is freed: nothing is written back any more.
    pub fn remove(&self, gfid: Gfid) {
        let removed = {
            let mut shard = self.shard(gfid);
            shard.departures += 1;
            shard.objects.remove(&gfid)
        };
        if let Some(hot) = removed {
            hot.state().gone = true;
            self.forget_descriptor(&hot);
        }
    }

    /// Keeps a descriptor that was just opened; returns the one to use.
    pub fn keep_descriptor(&self, hot: &Hot, opened: OwnedFd) -> Arc<OwnedFd> {
        let kept = {
            let mut descriptor = lock(&hot.descriptor);
            if let Some(there) = &*descriptor {
                return Arc::clone(there);
            }
            let opened = Arc::new(opened);
            *descriptor = Some(Arc::clone(&opened));
            opened
        };
        hot.descriptor_recent.store(true, Ordering::Relaxed);
        self.descriptors.fetch_add(1, Ordering::Relaxed);
        self.close_spare_descriptors();
        kept
    }

    /// Closes those not used since the last time, when there are too many.
    pub fn close_spare_descriptors(&self) {
        if self.descriptors.load(Ordering::Relaxed) <= self.descriptors_max {
            return;
        }
        let enough = self.descriptors_max * 3 / 4;
        let from = self.sweep_from.fetch_add(7, Ordering::Relaxed);
        for step in 0..2 * SHARDS {
            let shard = lock(&self.shards[(from + step) % SHARDS]);
            for hot in shard.objects.values() {
                let Ok(mut descriptor) = hot.descriptor.try_lock() else {
                    continue;
                };
                if descriptor.is_some() && !hot.descriptor_recent.swap(false, Ordering::Relaxed) {
                    *descriptor = None;
                    self.descriptors.fetch_sub(1, Ordering::Relaxed);
                }
            }
            if self.descriptors.load(Ordering::Relaxed) <= enough {
                return;
            }
        }
    }

    /// Enters a dirty object in its shard's list. Called with the object's state locked.
    pub fn list_dirty(&self, gfid: Gfid, state: &mut State) {
        if !state.listed {
            state.listed = true;
            self.shard(gfid).dirty.push(gfid);
        }
    }

    /// Takes the dirty objects of all shards; each is to be written back or listed again.
    pub fn take_dirty(&self) -> Vec<Arc<Hot>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let mut shard = lock(shard);
            let listed = std::mem::take(&mut shard.dirty);
            all.extend(
                listed
                    .iter()
                    .filter_map(|gfid| shard.objects.get(gfid).cloned()),
            );
        }
        all
    }

    /// Second chance: what was not used since the last time goes, if it is clean and nobody has it.
    fn evict(&self, shard: &mut Shard, to_write: &mut Vec<Arc<Hot>>) {
        let mut spare = SHARD_OBJECTS_MAX / 8;
        let mut left = Vec::new();
        for (gfid, hot) in &shard.objects {
            if spare == 0 {
                break;
            }
            if hot.recent.swap(false, Ordering::Relaxed) || Arc::strong_count(hot) > 1 {
                continue;
            }
            let Ok(state) = hot.state.try_lock() else {
                continue;
            };
            if state.dirty == Dirty::Clean && !state.listed {
                left.push(*gfid);
                spare -= 1;
            } else if to_write.len() < EVICT_DIRTY_MAX {
                to_write.push(Arc::clone(hot));
            }
        }
        for gfid in left {
            shard.departures += 1;
            if let Some(hot) = shard.objects.remove(&gfid) {
                self.forget_descriptor(&hot);
            }
        }
    }

    fn forget_descriptor(&self, hot: &Hot) {
        if lock(&hot.descriptor).take().is_some() {
            self.descriptors.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn shard(&self, gfid: Gfid) -> MutexGuard<'_, Shard> {
        lock(&self.shards[(gfid.lo ^ gfid.hi) as usize % SHARDS])
    }
}

/// A lock whose holder panicked still guards whole values: every update here is one assignment
/// after another with no failure between.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hot(lo: u64, dirty: Dirty) -> Hot {
        let time = Time { secs: 1, nanos: 0 };
        let mut state = State::new(time, time, 1, 1);
        state.dirty = dirty;
        Hot::new(Gfid { hi: 0, lo }, libc::S_IFREG, state, None)
    }

    #[test]
    fn times_follow_the_number_not_the_order_of_applying() {
        let at = |secs| Time { secs, nanos: 0 };
        let mut state = State::new(at(10), at(10), 5, 5);
        state.touch(Touch::Content, at(20), 8);
        state.touch(Touch::Content, at(15), 7);
        assert_eq!((state.mtime, state.ctime), (at(20), at(20)));
        assert_eq!((state.data_counter, state.attr_counter), (8, 8));
        state.set_mtime(at(3), 9);
        assert_eq!(state.mtime, at(3));
        assert_eq!(state.dirty, Dirty::Times);
    }

    #[test]
    fn memory_is_bounded_and_dirty_objects_are_never_dropped() {
        let table = HotTable::new();
        let mut to_write = Vec::new();
        for lo in 0..4 * HOT_OBJECTS_MAX as u64 {
            let dirty = if lo % 5000 == 0 {
                Dirty::Attributes
            } else {
                Dirty::Clean
            };
            table.insert_new(hot(lo, dirty), &mut to_write);
            to_write.clear();
        }
        let len: usize = table
            .shards
            .iter()
            .map(|shard| lock(shard).objects.len())
            .sum();
        assert!(len <= HOT_OBJECTS_MAX, "{len}");
        for lo in (0..4 * HOT_OBJECTS_MAX as u64).step_by(5000) {
            assert!(table.find(Gfid { hi: 0, lo }).is_ok(), "{lo}");
        }
    }

    #[test]
    fn descriptors_are_bounded_and_those_in_use_stay_open() {
        let mut table = HotTable::new();
        table.descriptors_max = HOT_DESCRIPTORS_MIN;
        let mut to_write = Vec::new();
        let open = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let mut used = None;
        for lo in 0..1000 {
            let hot = table.insert_new(hot(lo, Dirty::Clean), &mut to_write);
            let descriptor = table.keep_descriptor(&hot, open());
            used.get_or_insert(descriptor);
            assert!(table.descriptors.load(Ordering::Relaxed) <= HOT_DESCRIPTORS_MIN);
        }
        assert!(rustix::fs::fstat(used.unwrap()).is_ok());
        let open = table.shards.iter().map(|shard| {
            let shard = lock(shard);
            shard
                .objects
                .values()
                .filter(|hot| hot.descriptor().is_some())
                .count()
        });
        assert_eq!(
            open.sum::<usize>(),
            table.descriptors.load(Ordering::Relaxed)
        );
    }

    #[test]
    fn what_was_read_before_a_departure_is_read_again() {
        let table = HotTable::new();
        let gfid = Gfid { hi: 0, lo: 9 };
        let Err(departures) = table.find(gfid) else {
            panic!("not there yet")
        };
        table.remove(gfid);
        let mut to_write = Vec::new();
        let inserted = table.insert(hot(9, Dirty::Clean), departures, &mut to_write);
        assert!(matches!(inserted, Inserted::Again));
    }
}
