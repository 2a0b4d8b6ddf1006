//! What the product's heal index needs of a copy: its folder of records, and the product's words
//! for what happens to a register.
//!
//! Registers `0..FILES` are blocks of files, two a file; the others are names in the root.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use brickd::brick::{BrickError, HealSource, Store, StoredState};
use brickd::heal::Marks;
use bytes::Bytes;
use mortar_common::{FsError, Gfid};
use mortar_proto::data;
use mortar_proto::data::change::Step as Does;
use mortar_proto::data::{
    CreateStep, FallocateStep, FsyncStep, HealDataStep, HealNameStep, HealObjectStep, Lock,
    LockStep, LockType, Object, ReadDir, ReadDirPage, RenameStep, SessionEndStep, SessionOpenStep,
    SettledStep, StatFs, SyncStep, UnlinkStep, WriteStep,
};

use super::message::{Change, Key, Step};
use super::random::Random;
use super::world::KEYS;

/// Registers below this are blocks of files.
pub const FILES: Key = 4;
/// Bytes of one block.
const BLOCK: u64 = 4096;

/// The file that a register is a block of; the root, if it is a name.
pub fn object_of(key: Key) -> Gfid {
    if key < FILES {
        Gfid {
            hi: 1,
            lo: u64::from(key / 2),
        }
    } else {
        Gfid::ROOT
    }
}

/// The registers of an object; of any object but the files, those that are names.
pub fn keys_of(object: Gfid) -> Range<Key> {
    if object.hi == 1 {
        let first = object.lo as Key * 2;
        first..first + 2
    } else {
        FILES..KEYS
    }
}

/// The bytes of a register that is a block.
pub fn bytes_of(key: Key) -> Range<u64> {
    let start = u64::from(key % 2) * BLOCK;
    start..start + BLOCK
}

/// The name of a register that is one.
pub fn name_of(key: Key) -> Bytes {
    Bytes::from(vec![b'a' + key])
}

/// The register of this name, if any: others are those from which an object is moved.
pub fn key_of_name(name: &[u8]) -> Option<Key> {
    (FILES..KEYS).find(|key| name_of(*key) == name)
}

/// What a name holds.
fn held(value: u64) -> Option<Gfid> {
    Some(Gfid { hi: 2, lo: value })
}

/// The object that a register which is a lock is on.
pub fn locked_object(key: Key) -> Gfid {
    Gfid {
        hi: 3,
        lo: u64::from(key),
    }
}

/// A session's lock, or the giving up of it.
pub fn lock_of(session: u64, unlock: bool) -> Lock {
    let mut lock = Lock {
        session,
        owner: session,
        end: 9,
        ..Default::default()
    };
    lock.set_type(if unlock {
        LockType::LockUnlock
    } else {
        LockType::LockWrite
    });
    lock
}

/// A change as the product has it.
pub fn product_change(change: &Change) -> data::Change {
    let does = match change.step {
        Step::Fsync => Does::Fsync(FsyncStep {
            gfid: Some(object_of(change.key)),
            data_only: false,
        }),
        Step::Set { before, value } if change.key < FILES => set_block(change.key, before, value),
        Step::Set { before, value } => set_name(change.key, before, value),
        Step::Heal(Some(_)) if change.key < FILES => Does::HealData(HealDataStep {
            gfid: Some(object_of(change.key)),
            offset: bytes_of(change.key).start,
            len: BLOCK,
            hole: false,
        }),
        Step::Heal(Some(cell)) => Does::HealName(HealNameStep {
            parent: Some(Gfid::ROOT),
            name: name_of(change.key),
            gfid: cell.value.and_then(held),
            directory: false,
        }),
        Step::Heal(None) => Does::HealObject(HealObjectStep::default()),
        Step::Sync => Does::Sync(SyncStep {}),
        Step::Begin => Does::SessionOpen(SessionOpenStep {
            session: change.session,
            ..Default::default()
        }),
        Step::End(session) => Does::SessionEnd(SessionEndStep { session }),
        Step::Lock { unlock } => Does::Lock(LockStep {
            gfid: Some(locked_object(change.key)),
            lock: Some(lock_of(change.session, unlock)),
            ..Default::default()
        }),
        Step::Settled(outcome) => Does::Settled(SettledStep {
            errno: outcome.errno(),
            gfid: None,
        }),
    };
    data::Change {
        number: change.number,
        epoch: Some(change.epoch),
        time: Some(change.time),
        session: change.session,
        seq: change.seq,
        step: Some(does),
        ..Default::default()
    }
}

fn set_block(key: Key, _before: Option<u64>, value: Option<u64>) -> Does {
    let gfid = Some(object_of(key));
    let offset = bytes_of(key).start;
    match value {
        Some(_) => Does::Write(WriteStep {
            gfid,
            offset,
            len: BLOCK as u32,
            ..Default::default()
        }),
        None => Does::Fallocate(FallocateStep {
            gfid,
            mode: (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32,
            offset,
            len: BLOCK,
            ..Default::default()
        }),
    }
}

fn set_name(key: Key, before: Option<u64>, value: Option<u64>) -> Does {
    let parent = Some(Gfid::ROOT);
    let name = name_of(key);
    match (before, value) {
        (before, None) => Does::Unlink(UnlinkStep {
            parent,
            name,
            gfid: before.and_then(held),
            orphan: false,
        }),
        (None, Some(value)) => Does::Create(CreateStep {
            parent,
            name,
            gfid: held(value),
            ..Default::default()
        }),
        (Some(before), Some(value)) => Does::Rename(RenameStep {
            from_parent: parent,
            from_name: Bytes::from([&b"new-"[..], &name].concat()),
            gfid: held(value),
            to_parent: parent,
            to_name: name,
            replaced: held(before),
            ..Default::default()
        }),
    }
}

/// The registers that these marks speak of, in any state.
pub fn marked(marks: &Marks) -> Vec<bool> {
    let mut found = vec![false; KEYS as usize];
    let all = 0..KEYS;
    for record in marks.records() {
        for key in all.clone() {
            let object = object_of(key);
            let named = key >= FILES;
            let by_name = || {
                record.listings.contains(&object)
                    || record
                        .names
                        .iter()
                        .any(|mark| mark.parent == Some(object) && mark.name == name_of(key))
            };
            let by_bytes = || {
                let bytes = bytes_of(key);
                record.ranges.iter().any(|mark| {
                    mark.gfid == Some(object) && mark.start <= bytes.start && bytes.end <= mark.end
                })
            };
            found[key as usize] |= record.everything || if named { by_name() } else { by_bytes() };
        }
    }
    found
}

/// A file of records: how many of them a power cut leaves for certain.
#[derive(Debug, Default)]
struct File {
    records: Vec<Vec<u8>>,
    durable: usize,
}

/// The `.mortar/heal` of one copy. Outlives the process.
#[derive(Debug, Default)]
pub struct Records(Mutex<BTreeMap<String, File>>);

impl Records {
    /// Of what was not made durable a power cut leaves the first part.
    pub fn lose_power(&self, random: &mut Random) {
        for file in self.lock().values_mut() {
            let unsynced = (file.records.len() - file.durable) as u64;
            let left = file.durable + random.between(0, unsynced) as usize;
            file.records.truncate(left);
            file.durable = left;
        }
    }

    /// All that was written is on the disk.
    pub fn sync(&self) {
        for file in self.lock().values_mut() {
            file.durable = file.records.len();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unused<T>() -> Result<T, BrickError> {
    Err(BrickError::Refused {
        what: "nothing that the heal index asks for".to_owned(),
        error: FsError::NotSupported,
    })
}

impl Store for Records {
    fn append_record(&self, name: &str, record: &[u8], durable: bool) -> Result<(), BrickError> {
        let mut files = self.lock();
        let file = files.entry(name.to_owned()).or_default();
        file.records.push(record.to_vec());
        if durable {
            file.durable = file.records.len();
        }
        Ok(())
    }
    fn read_records(&self, name: &str) -> Result<Vec<Vec<u8>>, BrickError> {
        let files = self.lock();
        Ok(files
            .get(name)
            .map_or(Vec::new(), |file| file.records.clone()))
    }
    fn replace_records(&self, name: &str, records: &[Vec<u8>]) -> Result<(), BrickError> {
        let mut files = self.lock();
        if records.is_empty() {
            files.remove(name);
        } else {
            let file = File {
                records: records.to_vec(),
                durable: records.len(),
            };
            files.insert(name.to_owned(), file);
        }
        Ok(())
    }
    fn record_files(&self) -> Result<Vec<String>, BrickError> {
        Ok(self.lock().keys().cloned().collect())
    }
    fn apply(&self, _: &data::Change, _: &[u8]) -> Result<(), BrickError> {
        unused()
    }
    fn object(&self, _: Gfid) -> Result<Object, BrickError> {
        unused()
    }
    fn lookup(&self, _: Gfid, _: &[u8]) -> Result<Object, BrickError> {
        unused()
    }
    fn read_link(&self, _: Gfid) -> Result<Bytes, BrickError> {
        unused()
    }
    fn read(&self, _: Gfid, _: u64, _: u32, _: &mut Vec<u8>) -> Result<(), BrickError> {
        unused()
    }
    fn read_dir(&self, _: &ReadDir) -> Result<ReadDirPage, BrickError> {
        unused()
    }
    fn is_empty_dir(&self, _: Gfid) -> Result<bool, BrickError> {
        unused()
    }
    fn parent_of_dir(&self, _: Gfid) -> Result<Gfid, BrickError> {
        unused()
    }
    fn get_xattr(&self, _: Gfid, _: &[u8]) -> Result<Bytes, BrickError> {
        unused()
    }
    fn list_xattr(&self, _: Gfid) -> Result<Bytes, BrickError> {
        unused()
    }
    fn seek(&self, _: Gfid, _: u64, _: bool) -> Result<u64, BrickError> {
        unused()
    }
    fn stat_fs(&self) -> Result<StatFs, BrickError> {
        unused()
    }
    fn sync_all(&self) -> Result<(), BrickError> {
        unused()
    }
    fn stored_state(&self) -> StoredState {
        StoredState::default()
    }
    fn store_state(&self, _: &StoredState) -> Result<(), BrickError> {
        unused()
    }
    fn read_soon(&self, _: Gfid, _: u64) {}
    fn check(&self) -> Result<(), BrickError> {
        Ok(())
    }
    // What was touched is not modelled: all is compared where the product compares that.
    fn read_touched(&self) -> Result<Option<Vec<(u32, u32)>>, BrickError> {
        Ok(None)
    }
    fn write_touched(&self, _: u32, _: Option<u32>) -> Result<(), BrickError> {
        Ok(())
    }
    fn replace_touched(&self, _: &[u32]) -> Result<(), BrickError> {
        Ok(())
    }
}

impl HealSource for Records {
    fn forget_cached(&self, _gfid: Gfid, _offset: u64, _len: u64) {}

    fn heal_object(&self, _: Gfid) -> Result<HealObjectStep, BrickError> {
        unused()
    }
    fn next_extent(&self, _: Gfid, _: u64) -> Result<Option<(u64, u64, bool)>, BrickError> {
        unused()
    }
    fn sum(&self, _: Gfid, _: u64, _: u64) -> Result<u64, BrickError> {
        unused()
    }
    fn path_of(&self, _: Gfid) -> Option<String> {
        None
    }
    fn each_handle(
        &self,
        _: &dyn Fn(u32) -> bool,
        _: &mut dyn FnMut(Gfid) -> bool,
    ) -> Result<(), BrickError> {
        unused()
    }
    fn orphans(&self) -> Result<Vec<Gfid>, BrickError> {
        unused()
    }
}
