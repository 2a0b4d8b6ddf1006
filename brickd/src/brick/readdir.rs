//! Listings of directories, in order of (name hash, name).
//!
//! Readers of a directory share one sorted snapshot. It stays right while the directory changes:
//! names that come are added to it, names that went are noticed when a page asks for their gfid.
//! A directory too big for a snapshot is listed in passes, each holding the next range of hashes.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use mortar_common::Gfid;
use mortar_common::name::PRIVATE_DIR;
use mortar_common::placement::name_hash;
use mortar_proto::data::{DirEntry, ReadDir, ReadDirPage};
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::handle::each_entry;
use super::hot::lock;
use super::inner::Inner;
use super::layout::EntryName;

/// Memory of all snapshots of a brick (`brick.readdir-memory`).
const SNAPSHOTS_BYTES_MAX: usize = 64 << 20;
/// Memory of one.
const SNAPSHOT_BYTES_MAX: usize = 16 << 20;
/// What a snapshot takes beside its names.
const SNAPSHOT_OVERHEAD_BYTES: usize = 512;
/// Names added to a snapshot before it is made anew.
const ADDED_MAX: usize = 8_192;
/// What one takes beside the name itself.
const ADDED_OVERHEAD_BYTES: usize = 96;
/// Longest page, whatever is asked for.
const PAGE_BYTES_MAX: u32 = 4 << 20;
/// Of a page when nothing is asked for.
const PAGE_BYTES_DEFAULT: u32 = 64 << 10;
/// What an entry takes in a page beside its name, without and with the object.
const ENTRY_BYTES: usize = 40;
const ENTRY_PLUS_BYTES: usize = 160;

/// All snapshots of a brick.
pub(super) struct Listings {
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    snapshots: HashMap<Gfid, Arc<Snapshot>>,
    /// Counts uses, to find the least recently used.
    clock: u64,
    used: HashMap<Gfid, Use>,
    bytes: usize,
    /// What was not used since the clock showed this is idle.
    idle_before: u64,
}

#[derive(Default)]
struct Use {
    clock: u64,
    /// Of the scan, with the snapshot's own.
    scanned_bytes: usize,
    /// Of the names that came since.
    added_bytes: usize,
}

struct Snapshot {
    /// Names that came since the scan began. Locked before `base` is.
    added: Mutex<BTreeMap<(u64, Vec<u8>), u32>>,
    base: Mutex<Option<Arc<Base>>>,
}

/// A sorted range of a directory's entries.
struct Base {
    /// Holds everything after this.
    after: (u64, Vec<u8>),
    /// And up to this; `None` = to the end.
    upto: Option<(u64, Vec<u8>)>,
    entries: Vec<Entry>,
    names: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Entry {
    hash: u64,
    at: u32,
    len: u8,
    /// S_IFMT bits >> 12; 0 = the disk does not say.
    kind: u8,
}

type Position<'a> = (u64, &'a [u8]);

impl Base {
    fn name(&self, entry: &Entry) -> &[u8] {
        &self.names[entry.at as usize..][..usize::from(entry.len)]
    }

    fn covers(&self, after: Position<'_>) -> bool {
        (self.after.0, &*self.after.1) <= after
            && self
                .upto
                .as_ref()
                .is_none_or(|upto| after < (upto.0, &*upto.1))
    }

    fn bytes(&self) -> usize {
        self.entries.len() * size_of::<Entry>() + self.names.len()
    }

    /// Keeps the lower half: the rest is for a later pass.
    fn halve(&mut self) {
        self.sort();
        self.entries.truncate(self.entries.len().div_ceil(2));
        let mut names = Vec::with_capacity(self.names.len() / 2);
        for index in 0..self.entries.len() {
            let entry = self.entries[index];
            let at = names.len() as u32;
            names.extend_from_slice(self.name(&entry));
            self.entries[index].at = at;
        }
        self.names = names;
        let last = self
            .entries
            .last()
            .map(|last| (last.hash, self.name(last).to_vec()));
        self.upto = last;
    }

    fn sort(&mut self) {
        let names = std::mem::take(&mut self.names);
        self.entries.sort_unstable_by(|a, b| {
            let name = |entry: &Entry| &names[entry.at as usize..][..usize::from(entry.len)];
            (a.hash, name(a)).cmp(&(b.hash, name(b)))
        });
        self.names = names;
    }
}

impl Listings {
    pub fn new() -> Self {
        Listings {
            all: Mutex::new(All::default()),
        }
    }

    /// A name was put into a directory, with this type (S_IFMT bits).
    pub fn added(&self, dir: Gfid, name: &[u8], file_type: u32) {
        let snapshot = {
            let mut all = lock(&self.all);
            let Some(snapshot) = all.snapshots.get(&dir).cloned() else {
                return;
            };
            all.charge_added(dir, ADDED_OVERHEAD_BYTES + name.len());
            snapshot
        };
        let mut added = lock(&snapshot.added);
        added.insert((name_hash(dir, name), name.to_vec()), file_type >> 12);
        if added.len() > ADDED_MAX {
            drop(added);
            self.forget(dir);
        }
    }

    /// The directory is gone, or its snapshot is not worth keeping.
    pub fn forget(&self, dir: Gfid) {
        lock(&self.all).drop_one(dir);
    }

    /// Drops what was not used since the last call.
    pub fn drop_idle(&self) {
        let mut all = lock(&self.all);
        let clock = all.clock;
        let idle_before = std::mem::replace(&mut all.idle_before, clock);
        let idle: Vec<Gfid> = all
            .used
            .iter()
            .filter(|(_, used)| used.clock <= idle_before)
            .map(|(dir, _)| *dir)
            .collect();
        idle.into_iter().for_each(|dir| all.drop_one(dir));
        if all.used.is_empty() {
            all.snapshots.shrink_to_fit();
            all.used.shrink_to_fit();
        }
    }

    fn get(&self, dir: Gfid) -> Arc<Snapshot> {
        let mut all = lock(&self.all);
        all.clock += 1;
        let clock = all.clock;
        all.used.entry(dir).or_default().clock = clock;
        if let Some(there) = all.snapshots.get(&dir) {
            return Arc::clone(there);
        }
        let snapshot = Arc::new(Snapshot {
            added: Mutex::default(),
            base: Mutex::default(),
        });
        all.snapshots.insert(dir, Arc::clone(&snapshot));
        all.charge_scan(dir, 0);
        snapshot
    }

    /// Counts a scan that was put in its snapshot, making room for it.
    fn keep(&self, dir: Gfid, snapshot: &Arc<Snapshot>, bytes: usize) {
        let mut all = lock(&self.all);
        if all
            .snapshots
            .get(&dir)
            .is_some_and(|there| Arc::ptr_eq(there, snapshot))
        {
            all.charge_scan(dir, bytes);
        }
    }
}

impl All {
    fn charge_scan(&mut self, dir: Gfid, bytes: usize) {
        let bytes = SNAPSHOT_OVERHEAD_BYTES + bytes;
        let used = self.used.entry(dir).or_default();
        let before = std::mem::replace(&mut used.scanned_bytes, bytes);
        self.bytes = self.bytes - before + bytes;
        self.make_room(dir);
    }

    fn charge_added(&mut self, dir: Gfid, bytes: usize) {
        self.used.entry(dir).or_default().added_bytes += bytes;
        self.bytes += bytes;
        self.make_room(dir);
    }

    /// Drops the least recently used but `keep`; some more than must go, so that this is not done
    /// for each name.
    fn make_room(&mut self, keep: Gfid) {
        if self.bytes <= SNAPSHOTS_BYTES_MAX {
            return;
        }
        let mut oldest: Vec<(u64, Gfid)> = self
            .used
            .iter()
            .filter(|(dir, _)| **dir != keep)
            .map(|(dir, used)| (used.clock, *dir))
            .collect();
        oldest.sort_unstable_by_key(|(clock, _)| *clock);
        for (_, dir) in oldest {
            if self.bytes <= SNAPSHOTS_BYTES_MAX / 4 * 3 {
                return;
            }
            self.drop_one(dir);
        }
    }

    fn drop_one(&mut self, dir: Gfid) {
        self.snapshots.remove(&dir);
        let used = self.used.remove(&dir);
        self.bytes -= used.map_or(0, |used| used.scanned_bytes + used.added_bytes);
    }
}

impl Inner {
    /// See [`super::Store::read_dir`].
    pub fn read_dir(&self, page: &ReadDir) -> Result<ReadDirPage, Errno> {
        let gfid = page.gfid.ok_or(Errno::INVAL)?;
        let (_, dir) = self.dir(gfid)?;
        let bytes = if page.max_bytes == 0 {
            PAGE_BYTES_DEFAULT
        } else {
            page.max_bytes
        };
        let mut room = bytes.min(PAGE_BYTES_MAX) as usize;
        let overhead = if page.plus {
            ENTRY_PLUS_BYTES
        } else {
            ENTRY_BYTES
        };
        let mut out = ReadDirPage::default();
        let mut after = (page.after_hash, page.after_name.to_vec());
        loop {
            let batch = self.next_names(gfid, &dir, (after.0, &after.1), room / overhead + 1)?;
            for (position, kind) in batch.names {
                if position.1.len() + overhead > room && !out.entries.is_empty() {
                    return Ok(out);
                }
                if let Some(entry) = self.dir_entry(&dir, &position, kind, page.plus)? {
                    room = room.saturating_sub(position.1.len() + overhead);
                    out.entries.push(entry);
                }
                after = position;
            }
            if batch.end {
                out.end = true;
                return Ok(out);
            }
            if let Some(covered) = batch.covered {
                after = after.max(covered);
            }
        }
    }

    /// Whether a directory holds no entry with a gfid.
    pub fn is_empty_dir(&self, gfid: Gfid) -> Result<bool, Errno> {
        let (_, dir) = self.dir(gfid)?;
        let found = each_entry(&dir, &mut |name, _| match self.gfid_at(dir.as_fd(), name) {
            Ok(Some(_)) => Err(Errno::EXIST),
            Ok(None) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        });
        match found {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn dir_entry(
        &self,
        dir: &OwnedFd,
        position: &(u64, Vec<u8>),
        kind: u32,
        plus: bool,
    ) -> Result<Option<DirEntry>, Errno> {
        let name = EntryName::unchecked(&position.1);
        let mut entry = DirEntry {
            name: position.1.clone().into(),
            hash: position.0,
            r#type: kind,
            ..DirEntry::default()
        };
        if plus {
            let Some(object) = present(self.object_at(dir, &name))? else {
                return Ok(None);
            };
            entry.r#type = object.mode >> 12;
            entry.gfid = object.gfid;
            entry.object = Some(object);
            return Ok(Some(entry));
        }
        entry.gfid = present(self.gfid_at(dir.as_fd(), name.c_str()))?.flatten();
        if entry.gfid.is_none() {
            return Ok(None);
        }
        if kind == 0 {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let Some(stat) = present(rustix::fs::statat(dir, name.c_str(), flags))? else {
                return Ok(None);
            };
            entry.r#type = stat.st_mode >> 12;
        }
        Ok(Some(entry))
    }

    /// The next names after a position, at most `count` (or a few more), in order.
    fn next_names(
        &self,
        gfid: Gfid,
        dir: &OwnedFd,
        after: Position<'_>,
        count: usize,
    ) -> Result<Batch, Errno> {
        let snapshot = self.listings.get(gfid);
        let base = {
            // One scans, the others wait for it.
            let mut slot = lock(&snapshot.base);
            match &*slot {
                Some(base) if base.covers(after) => Arc::clone(base),
                _ => {
                    let base = Arc::new(scan(gfid, dir, after)?);
                    *slot = Some(Arc::clone(&base));
                    drop(slot);
                    self.listings.keep(gfid, &snapshot, base.bytes());
                    base
                }
            }
        };
        Ok(merge(&base, &lock(&snapshot.added), after, count))
    }
}

/// `None` when it has just gone.
fn present<T>(found: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Names of a part of a listing.
struct Batch {
    names: Vec<((u64, Vec<u8>), u32)>,
    /// There is nothing after them.
    end: bool,
    /// Everything up to this is in `names` or gone: the next batch goes on after it.
    covered: Option<(u64, Vec<u8>)>,
}

/// Both in order; a name added later than the scan wins over the scanned one.
fn merge(
    base: &Base,
    added: &BTreeMap<(u64, Vec<u8>), u32>,
    after: Position<'_>,
    count: usize,
) -> Batch {
    let first = base
        .entries
        .partition_point(|entry| (entry.hash, base.name(entry)) <= after);
    let mut scanned = base.entries[first..].iter().peekable();
    let start = std::ops::Bound::Excluded((after.0, after.1.to_vec()));
    let mut later = added.range((start, std::ops::Bound::Unbounded)).peekable();
    let upto = base.upto.as_ref();
    let mut names = Vec::with_capacity(count.min(base.entries.len() - first + added.len()));
    while names.len() < count {
        let next_later = later
            .peek()
            .filter(|(key, _)| upto.is_none_or(|upto| *key <= upto));
        match (scanned.peek(), next_later) {
            (None, None) => {
                let end = upto.is_none();
                return Batch {
                    names,
                    end,
                    covered: base.upto.clone(),
                };
            }
            (Some(entry), later_entry) => {
                let key = (entry.hash, base.name(entry));
                let order = later_entry.map(|(there, _)| (there.0, &*there.1).cmp(&key));
                if order.is_none_or(|order| order.is_gt()) {
                    names.push(((key.0, key.1.to_vec()), u32::from(entry.kind)));
                    scanned.next();
                    continue;
                }
                if order.is_some_and(|order| order.is_eq()) {
                    scanned.next();
                }
            }
            (None, Some(_)) => {}
        }
        if let Some((key, kind)) = later.next() {
            names.push((key.clone(), *kind));
        }
    }
    Batch {
        names,
        end: false,
        covered: None,
    }
}

/// Reads a directory; keeps what comes after a position, as much of it as a snapshot may hold.
fn scan(gfid: Gfid, dir: &OwnedFd, after: Position<'_>) -> Result<Base, Errno> {
    let mut base = Base {
        after: (after.0, after.1.to_vec()),
        upto: None,
        entries: Vec::new(),
        names: Vec::new(),
    };
    each_entry(dir, &mut |name, entry| {
        let name = name.to_bytes();
        if gfid == Gfid::ROOT && name == PRIVATE_DIR.as_bytes() {
            return Ok(());
        }
        let hash = name_hash(gfid, name);
        let beyond = base
            .upto
            .as_ref()
            .is_some_and(|upto| (hash, name) > (upto.0, &*upto.1));
        if (hash, name) <= after || beyond {
            return Ok(());
        }
        let (at, len) = (base.names.len() as u32, name.len().min(255) as u8);
        base.names.extend_from_slice(&name[..usize::from(len)]);
        let kind = (entry.file_type().as_raw_mode() >> 12) as u8;
        base.entries.push(Entry {
            hash,
            at,
            len,
            kind,
        });
        if base.bytes() > SNAPSHOT_BYTES_MAX {
            base.halve();
        }
        Ok(())
    })?;
    base.sort();
    base.entries.shrink_to_fit();
    base.names.shrink_to_fit();
    Ok(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base_of(names: &[(u64, &str)]) -> Base {
        let mut base = Base {
            after: (0, vec![]),
            upto: None,
            entries: vec![],
            names: vec![],
        };
        for (hash, name) in names {
            let (at, len) = (base.names.len() as u32, name.len() as u8);
            base.names.extend_from_slice(name.as_bytes());
            base.entries.push(Entry {
                hash: *hash,
                at,
                len,
                kind: 8,
            });
        }
        base.sort();
        base
    }

    fn listed(batch: &Batch) -> Vec<(u64, String, u32)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        batch
            .names
            .iter()
            .map(|((hash, name), kind)| (*hash, text(name), *kind))
            .collect()
    }

    #[test]
    fn equal_hashes_are_told_apart_by_name_and_late_names_are_merged() {
        let base = base_of(&[(5, "b"), (5, "a"), (9, "c")]);
        let added = BTreeMap::from([
            ((5, b"b".to_vec()), 4),
            ((7, b"x".to_vec()), 4),
            ((9, b"d".to_vec()), 8),
        ]);
        let batch = merge(&base, &added, (5, b"a"), 2);
        assert_eq!(listed(&batch), [(5, "b".into(), 4), (7, "x".into(), 4)]);
        assert!(!batch.end);
        let batch = merge(&base, &added, (7, b"x"), 10);
        assert_eq!(listed(&batch), [(9, "c".into(), 8), (9, "d".into(), 8)]);
        assert!(batch.end);
    }

    #[test]
    fn snapshots_of_many_small_folders_are_bounded_and_idle_ones_go() {
        let listings = Listings::new();
        let dir = |number| Gfid { hi: 1, lo: number };
        let most = (SNAPSHOTS_BYTES_MAX / SNAPSHOT_OVERHEAD_BYTES) as u64;
        for number in 0..most + 10 {
            listings.get(dir(number));
        }
        let len = || lock(&listings.all).snapshots.len() as u64;
        assert!(len() <= most && len() >= most / 2, "{}", len());
        listings.drop_idle();
        let last = dir(most + 9);
        let snapshot = listings.get(last);
        listings.keep(last, &snapshot, 100);
        listings.added(last, b"name", libc::S_IFREG);
        let expected = SNAPSHOT_OVERHEAD_BYTES + 100 + ADDED_OVERHEAD_BYTES + 4;
        listings.drop_idle();
        let all = lock(&listings.all);
        assert_eq!(
            (all.snapshots.len(), all.used.len(), all.bytes),
            (1, 1, expected)
        );
        drop(all);
        listings.drop_idle();
        assert_eq!((len(), lock(&listings.all).bytes), (0, 0));
    }

    #[test]
    fn what_does_not_fit_is_left_to_the_next_pass() {
        let mut base = base_of(&[(1, "a"), (2, "bb"), (3, "c"), (4, "dd")]);
        base.halve();
        assert_eq!(base.upto, Some((2, b"bb".to_vec())));
        assert!(base.covers((1, b"z")) && !base.covers((2, b"bb")) && base.covers((0, b"")));
        let added = BTreeMap::from([((3, b"late".to_vec()), 8)]);
        let batch = merge(&base, &added, (0, b""), 10);
        assert_eq!(listed(&batch), [(1, "a".into(), 8), (2, "bb".into(), 8)]);
        assert_eq!(
            (batch.end, batch.covered),
            (false, Some((2, b"bb".to_vec())))
        );
    }
}
