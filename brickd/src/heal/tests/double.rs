//! A brick in memory.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use mortar_common::placement::name_hash;
use mortar_common::{FsError, Gfid};
use mortar_proto::data::{
    Change, DirEntry, HealObjectStep, Object, ReadDir, ReadDirPage, StatFs, Xattr,
};
use xxhash_rust::xxh3::xxh3_64;

use super::tree::{Node, Tree};
use crate::brick::store::handle_bucket;
use crate::brick::{BrickError, HealSource, Store, StoredState};

const PAGE: u64 = 4096;

/// A brick in memory.
pub struct Double {
    pub tree: Mutex<Tree>,
    pub records: Mutex<BTreeMap<String, Vec<Vec<u8>>>>,
    /// Of the records, what a power cut leaves.
    durable: Mutex<BTreeMap<String, Vec<Vec<u8>>>>,
    /// `.mortar/touched`, and how often it was made durable.
    touched: Mutex<(Option<BTreeMap<u32, u32>>, usize)>,
    summed: AtomicU64,
}

impl Double {
    pub fn new(tree: Tree) -> Self {
        Double {
            tree: Mutex::new(tree),
            records: Mutex::default(),
            durable: Mutex::default(),
            touched: Mutex::new((Some(BTreeMap::new()), 0)),
            summed: AtomicU64::new(0),
        }
    }

    /// The records that are left after a power cut.
    pub fn after_power_cut(&self) -> Self {
        let left = Double::new(self.tree.lock().unwrap().clone());
        *left.records.lock().unwrap() = self.durable.lock().unwrap().clone();
        left
    }

    /// How often something was made durable in `.mortar/touched`.
    pub fn touched_writes(&self) -> usize {
        self.touched.lock().unwrap().1
    }

    /// As on a brick of before there was one.
    pub fn lose_touched(&self) {
        self.touched.lock().unwrap().0 = None;
    }

    /// Bytes that were summed.
    pub fn summed(&self) -> u64 {
        self.summed.load(Ordering::Relaxed)
    }

    fn with<T>(
        &self,
        what: &str,
        f: impl FnOnce(&Tree) -> Result<T, FsError>,
    ) -> Result<T, BrickError> {
        f(&self.tree.lock().unwrap()).map_err(|error| refused(what, error))
    }
}

fn refused(what: &str, error: FsError) -> BrickError {
    BrickError::Refused {
        what: what.to_owned(),
        error,
    }
}

fn unused<T>() -> Result<T, BrickError> {
    Err(refused(
        "nothing that healing asks for",
        FsError::NotSupported,
    ))
}

impl Store for Double {
    fn read_soon(&self, _gfid: Gfid, _bytes: u64) {}

    fn apply(&self, change: &Change, payload: &[u8]) -> Result<(), BrickError> {
        let mut tree = self.tree.lock().unwrap();
        tree.apply(change, payload)
            .map_err(|error| refused(&format!("{change:?}"), error))
    }
    fn object(&self, gfid: Gfid) -> Result<Object, BrickError> {
        self.with("object", |tree| Ok(tree.node(gfid)?.object))
    }
    fn lookup(&self, parent: Gfid, name: &[u8]) -> Result<Object, BrickError> {
        self.with("lookup", |tree| {
            let held = tree.held(Some(parent), &Bytes::copy_from_slice(name))?;
            Ok(tree.node(held.ok_or(FsError::NotFound)?)?.object)
        })
    }
    fn read_link(&self, _: Gfid) -> Result<Bytes, BrickError> {
        unused()
    }
    fn read(
        &self,
        gfid: Gfid,
        offset: u64,
        len: u32,
        into: &mut Vec<u8>,
    ) -> Result<(), BrickError> {
        self.with("read", |tree| {
            let data = &tree.node(gfid)?.data;
            let start = data.len().min(offset as usize);
            into.extend_from_slice(&data[start..data.len().min(start + len as usize)]);
            Ok(())
        })
    }
    fn read_dir(&self, page: &ReadDir) -> Result<ReadDirPage, BrickError> {
        let gfid = page.gfid.unwrap_or_default();
        self.with("read_dir", |tree| {
            let mut entries: Vec<DirEntry> = tree
                .dir(Some(gfid))?
                .names
                .iter()
                .map(|(name, held)| {
                    let hash = name_hash(gfid, name);
                    DirEntry {
                        name: name.clone(),
                        hash,
                        gfid: Some(*held),
                        r#type: tree
                            .nodes
                            .get(held)
                            .map_or(0, |node| node.object.mode >> 12),
                        ..Default::default()
                    }
                })
                .collect();
            entries.sort_by(|a, b| (a.hash, &a.name).cmp(&(b.hash, &b.name)));
            let after = (page.after_hash, page.after_name.clone());
            entries.retain(|entry| {
                after == (0, Bytes::new()) || (entry.hash, entry.name.clone()) > after
            });
            let end = entries.len() <= 50;
            entries.truncate(50);
            Ok(ReadDirPage { entries, end })
        })
    }
    fn is_empty_dir(&self, _: Gfid) -> Result<bool, BrickError> {
        unused()
    }
    fn parent_of_dir(&self, gfid: Gfid) -> Result<Gfid, BrickError> {
        self.with("parent_of_dir", |tree| {
            tree.node(gfid)?.parent.ok_or(FsError::NotFound)
        })
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
        Ok(())
    }
    fn check(&self) -> Result<(), BrickError> {
        Ok(())
    }
    fn stored_state(&self) -> StoredState {
        StoredState::default()
    }
    fn store_state(&self, _: &StoredState) -> Result<(), BrickError> {
        unused()
    }
    fn append_record(&self, name: &str, record: &[u8], durable: bool) -> Result<(), BrickError> {
        let mut records = self.records.lock().unwrap();
        let file = records.entry(name.to_owned()).or_default();
        file.push(record.to_vec());
        if durable {
            let synced = file.clone();
            self.durable.lock().unwrap().insert(name.to_owned(), synced);
        }
        Ok(())
    }
    fn read_records(&self, name: &str) -> Result<Vec<Vec<u8>>, BrickError> {
        Ok(self
            .records
            .lock()
            .unwrap()
            .get(name)
            .cloned()
            .unwrap_or_default())
    }
    fn replace_records(&self, name: &str, records: &[Vec<u8>]) -> Result<(), BrickError> {
        let mut all = self.records.lock().unwrap();
        if records.is_empty() {
            all.remove(name);
        } else {
            all.insert(name.to_owned(), records.to_vec());
        }
        *self.durable.lock().unwrap() = all.clone();
        Ok(())
    }
    fn record_files(&self) -> Result<Vec<String>, BrickError> {
        Ok(self.records.lock().unwrap().keys().cloned().collect())
    }
    fn read_touched(&self) -> Result<Option<Vec<(u32, u32)>>, BrickError> {
        let (codes, _) = &*self.touched.lock().unwrap();
        Ok(codes
            .as_ref()
            .map(|codes| codes.iter().map(|(slot, code)| (*slot, *code)).collect()))
    }
    fn write_touched(&self, slot: u32, code: Option<u32>) -> Result<(), BrickError> {
        let (codes, writes) = &mut *self.touched.lock().unwrap();
        let codes = codes.as_mut().unwrap();
        match code {
            Some(code) => {
                *writes += 1;
                codes.insert(slot, code);
            }
            None => drop(codes.remove(&slot)),
        }
        Ok(())
    }
    fn replace_touched(&self, with: &[u32]) -> Result<(), BrickError> {
        let (codes, writes) = &mut *self.touched.lock().unwrap();
        *writes += 1;
        *codes = Some((0..).zip(with.iter().copied()).collect());
        Ok(())
    }
}

impl HealSource for Double {
    fn forget_cached(&self, _gfid: Gfid, _offset: u64, _len: u64) {}

    fn heal_object(&self, gfid: Gfid) -> Result<HealObjectStep, BrickError> {
        self.with("heal_object", |tree| {
            let node = tree.node(gfid)?;
            let xattr = |(name, value): (&Bytes, &Bytes)| Xattr {
                name: name.clone(),
                value: value.clone(),
            };
            Ok(HealObjectStep {
                object: Some(node.object),
                target: node.target.clone(),
                xattrs: node.xattrs.iter().map(xattr).collect(),
                replace: false,
            })
        })
    }
    fn next_extent(&self, gfid: Gfid, offset: u64) -> Result<Option<(u64, u64, bool)>, BrickError> {
        self.with("next_extent", |tree| {
            let data = &tree.node(gfid)?.data;
            let size = data.len() as u64;
            if offset >= size {
                return Ok(None);
            }
            let is_hole = |at: u64| {
                let page = at / PAGE * PAGE;
                data[page as usize..(page + PAGE).min(size) as usize]
                    .iter()
                    .all(|byte| *byte == 0)
            };
            let hole = is_hole(offset);
            let mut end = (offset / PAGE + 1) * PAGE;
            while end < size && is_hole(end) == hole {
                end += PAGE;
            }
            Ok(Some((offset, end.min(size) - offset, hole)))
        })
    }
    fn sum(&self, gfid: Gfid, offset: u64, len: u64) -> Result<u64, BrickError> {
        let mut bytes = Vec::new();
        self.read(gfid, offset, len as u32, &mut bytes)?;
        self.summed.fetch_add(len, Ordering::Relaxed);
        Ok(xxh3_64(&bytes))
    }
    fn path_of(&self, gfid: Gfid) -> Option<String> {
        Some(format!("/{gfid}"))
    }
    fn each_handle(
        &self,
        wanted: &dyn Fn(u32) -> bool,
        each: &mut dyn FnMut(Gfid) -> bool,
    ) -> Result<(), BrickError> {
        let gfids: Vec<Gfid> = self.tree.lock().unwrap().nodes.keys().copied().collect();
        gfids
            .into_iter()
            .filter(|gfid| wanted(handle_bucket(*gfid)))
            .all(each);
        Ok(())
    }
    fn orphans(&self) -> Result<Vec<Gfid>, BrickError> {
        let tree = self.tree.lock().unwrap();
        let lost = |node: &Node| {
            if node.is_dir() {
                node.parent.is_none()
            } else {
                node.object.nlink == 0
            }
        };
        Ok(tree
            .nodes
            .iter()
            .filter(|(_, node)| lost(node))
            .map(|(gfid, _)| *gfid)
            .collect())
    }
}
