//! A store in memory for tests of planning: applies the steps that planning makes, strictly, so
//! that a step which could fail on a copy fails the test.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use mortar_common::placement::name_hash;
use mortar_common::{FsError, Gfid};
use mortar_proto::data::change::Step;
use mortar_proto::data::{
    Change, CreateStep, DirEntry, Object, Presence, ReadDir, ReadDirPage, RenameMode, RenameStep,
    StatFs, Time,
};

use super::acl;
use crate::brick::store::{BrickError, Store, StoredState};

#[derive(Clone, Debug, Default, PartialEq)]
struct Node {
    object: Object,
    bytes: Vec<u8>,
    target: Bytes,
    xattrs: BTreeMap<Bytes, Bytes>,
    entries: BTreeMap<Bytes, Gfid>,
    parent: Option<Gfid>,
}

/// The double.
pub(super) struct Double(Mutex<HashMap<Gfid, Node>>);

fn no(error: FsError) -> BrickError {
    BrickError::Refused {
        what: "double".to_owned(),
        error,
    }
}

fn node(nodes: &mut HashMap<Gfid, Node>, gfid: Option<Gfid>) -> Result<&mut Node, BrickError> {
    nodes
        .get_mut(&gfid.unwrap_or_default())
        .ok_or(no(FsError::NotFound))
}

fn is_dir(object: &Object) -> bool {
    object.mode & libc::S_IFMT == libc::S_IFDIR
}

impl Double {
    /// A store that holds an empty root, owned by root, 0755.
    pub(super) fn new() -> Self {
        let root = Node {
            object: Object {
                gfid: Some(Gfid::ROOT),
                mode: libc::S_IFDIR | 0o755,
                nlink: 2,
                ..Default::default()
            },
            parent: Some(Gfid::ROOT),
            ..Default::default()
        };
        Double(Mutex::new(HashMap::from([(Gfid::ROOT, root)])))
    }

    /// Changes an object behind everybody's back.
    pub(super) fn edit(&self, gfid: Gfid, edit: impl FnOnce(&mut Object)) {
        edit(&mut self.nodes().get_mut(&gfid).unwrap().object);
    }

    /// Everything in it, to compare two of them.
    pub(super) fn dump(&self) -> BTreeMap<Gfid, String> {
        self.nodes()
            .iter()
            .map(|(gfid, node)| (*gfid, format!("{node:?}")))
            .collect()
    }

    /// Every object that is there.
    pub(super) fn gfids(&self) -> Vec<Gfid> {
        let mut gfids: Vec<Gfid> = self.nodes().keys().copied().collect();
        gfids.sort();
        gfids
    }

    /// The size changes, and all of it is holes.
    pub(super) fn make_sparse(&self, gfid: Gfid, size: u64) {
        self.edit(gfid, |object| (object.size, object.blocks) = (size, 0));
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<Gfid, Node>> {
        self.0.lock().unwrap()
    }

    fn apply_step(
        &self,
        step: &Step,
        time: Option<Time>,
        payload: &[u8],
    ) -> Result<(), BrickError> {
        let nodes = &mut *self.nodes();
        match step {
            Step::Create(step) => create(nodes, step, time)?,
            Step::Link(step) => {
                enter(
                    nodes,
                    step.parent,
                    &step.name,
                    step.gfid.unwrap_or_default(),
                )?;
                node(nodes, step.gfid)?.object.nlink += 1;
            }
            Step::Unlink(step) => {
                leave(nodes, step.parent, &step.name, step.gfid)?;
                drop_link(nodes, step.gfid, step.orphan)?;
            }
            Step::Rmdir(step) => {
                leave(nodes, step.parent, &step.name, step.gfid)?;
                drop_link(nodes, step.gfid, false)?;
            }
            Step::Rename(step) => rename(nodes, step)?,
            Step::Setattr(step) => {
                let node = node(nodes, step.gfid)?;
                let object = &mut node.object;
                object.mode = step.mode.unwrap_or(object.mode);
                object.uid = step.uid.unwrap_or(object.uid);
                object.gid = step.gid.unwrap_or(object.gid);
                object.atime = step.atime.or(object.atime);
                object.mtime = step.mtime.or(object.mtime);
                node.kill(None, step.drop_capability);
                if let Some(size) = step.size {
                    node.bytes.resize(size as usize, 0);
                    node.measure();
                }
            }
            Step::Write(_) | Step::Fallocate(_) | Step::CopyRange(_) => {
                return change_data(nodes, step, payload);
            }
            Step::Setxattr(step) => {
                let node = node(nodes, step.gfid)?;
                node.set_xattr(step.name.clone(), step.value.clone());
                node.kill(step.new_mode, false);
            }
            Step::Removexattr(step) => {
                let node = node(nodes, step.gfid)?;
                node.xattrs
                    .remove(&step.name)
                    .ok_or(no(FsError::NoAttribute))?;
                node.measure();
            }
            Step::Fsync(step) => drop(node(nodes, step.gfid)?),
            Step::Free(step) => drop(nodes.remove(&step.gfid.unwrap_or_default())),
            _ => {}
        }
        Ok(())
    }
}

impl Node {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset as usize + bytes.len();
        self.bytes.resize(self.bytes.len().max(end), 0);
        self.bytes[offset as usize..end].copy_from_slice(bytes);
        self.measure();
    }

    fn kill(&mut self, new_mode: Option<u32>, drop_capability: bool) {
        self.object.mode = new_mode.unwrap_or(self.object.mode);
        if drop_capability {
            self.xattrs.remove(&b"security.capability"[..]);
            self.measure();
        }
    }

    fn set_xattr(&mut self, name: Bytes, value: Bytes) {
        self.xattrs.insert(name, value);
        self.measure();
    }

    fn measure(&mut self) {
        self.object.size = self.bytes.len() as u64;
        self.object.blocks = self.object.size.div_ceil(512);
        self.object.presence = 0;
        for name in self.xattrs.keys() {
            self.object.presence |= match &name[..] {
                b"security.capability" => Presence::Capability as u32,
                name if name == acl::ACCESS => Presence::AclAccess as u32,
                name if name == acl::DEFAULT => Presence::AclDefault as u32,
                _ => Presence::User as u32,
            };
        }
    }
}

fn create(
    nodes: &mut HashMap<Gfid, Node>,
    step: &CreateStep,
    time: Option<Time>,
) -> Result<(), BrickError> {
    let mut made = Node {
        object: Object {
            gfid: step.gfid,
            mode: step.mode,
            nlink: match step.mode & libc::S_IFMT {
                libc::S_IFDIR => 2,
                _ => u32::from(!step.name.is_empty()),
            },
            uid: step.uid,
            gid: step.gid,
            rdev: step.rdev,
            size: step.target.len() as u64,
            mtime: time,
            ..Default::default()
        },
        target: step.target.clone(),
        parent: step.parent,
        ..Default::default()
    };
    for (name, value) in [
        (acl::ACCESS, &step.acl_access),
        (acl::DEFAULT, &step.acl_default),
    ] {
        if !value.is_empty() {
            made.set_xattr(name.to_vec().into(), value.clone());
        }
    }
    let gfid = step.gfid.unwrap_or_default();
    assert!(nodes.insert(gfid, made).is_none(), "created twice");
    if step.name.is_empty() {
        return Ok(());
    }
    enter(nodes, step.parent, &step.name, gfid)
}

fn change_data(
    nodes: &mut HashMap<Gfid, Node>,
    step: &Step,
    payload: &[u8],
) -> Result<(), BrickError> {
    match step {
        Step::Write(step) => {
            assert_eq!(payload.len(), step.len as usize);
            let node = node(nodes, step.gfid)?;
            node.put(step.offset, payload);
            node.kill(step.new_mode, step.drop_capability);
        }
        Step::Fallocate(step) => {
            let node = node(nodes, step.gfid)?;
            node.kill(step.new_mode, step.drop_capability);
        }
        Step::CopyRange(step) => {
            let range = step.from_offset as usize..(step.from_offset + step.len) as usize;
            let bytes = node(nodes, step.from)?.bytes[range].to_vec();
            let node = node(nodes, step.to)?;
            node.put(step.to_offset, &bytes);
            node.kill(step.new_mode, step.drop_capability);
        }
        _ => {}
    }
    Ok(())
}

fn enter(
    nodes: &mut HashMap<Gfid, Node>,
    parent: Option<Gfid>,
    name: &Bytes,
    gfid: Gfid,
) -> Result<(), BrickError> {
    let entered = node(nodes, Some(gfid))?;
    let links = u32::from(is_dir(&entered.object));
    entered.parent = parent;
    let directory = node(nodes, parent)?;
    assert!(
        directory.entries.insert(name.clone(), gfid).is_none(),
        "the name is taken"
    );
    directory.object.nlink += links;
    Ok(())
}

fn leave(
    nodes: &mut HashMap<Gfid, Node>,
    parent: Option<Gfid>,
    name: &Bytes,
    gfid: Option<Gfid>,
) -> Result<(), BrickError> {
    let links = u32::from(is_dir(&node(nodes, gfid)?.object));
    let directory = node(nodes, parent)?;
    assert_eq!(
        directory.entries.remove(name),
        gfid,
        "the name holds something else"
    );
    directory.object.nlink -= links;
    Ok(())
}

fn drop_link(
    nodes: &mut HashMap<Gfid, Node>,
    gfid: Option<Gfid>,
    orphan: bool,
) -> Result<(), BrickError> {
    let left = node(nodes, gfid)?;
    if is_dir(&left.object) {
        assert!(
            left.entries.is_empty(),
            "a directory with names was removed"
        );
        left.object.nlink = 0;
    } else {
        left.object.nlink -= 1;
    }
    if left.object.nlink == 0 && !orphan {
        nodes.remove(&gfid.unwrap_or_default());
    }
    Ok(())
}

/// As a disk's rename does: a directory cannot go below itself.
fn refuse_loop(
    nodes: &mut HashMap<Gfid, Node>,
    to: Option<Gfid>,
    moved: Option<Gfid>,
) -> Result<(), BrickError> {
    let mut at = to;
    while at != Some(Gfid::ROOT) {
        if at == moved {
            return Err(no(FsError::Invalid));
        }
        at = node(nodes, at)?.parent;
    }
    Ok(())
}

fn rename(nodes: &mut HashMap<Gfid, Node>, step: &RenameStep) -> Result<(), BrickError> {
    refuse_loop(nodes, step.to_parent, step.gfid)?;
    if step.how() == RenameMode::RenameExchange {
        refuse_loop(nodes, step.from_parent, step.replaced)?;
    }
    leave(nodes, step.from_parent, &step.from_name, step.gfid)?;
    if step.replaced.is_some() {
        leave(nodes, step.to_parent, &step.to_name, step.replaced)?;
        if step.how() == RenameMode::RenameExchange {
            let other = step.replaced.unwrap_or_default();
            enter(nodes, step.from_parent, &step.from_name, other)?;
        } else {
            drop_link(nodes, step.replaced, step.replaced_orphan)?;
        }
    }
    enter(
        nodes,
        step.to_parent,
        &step.to_name,
        step.gfid.unwrap_or_default(),
    )?;
    if let Some(gfid) = step.whiteout {
        let object = Object {
            gfid: Some(gfid),
            mode: libc::S_IFCHR,
            uid: step.whiteout_uid,
            gid: step.whiteout_gid,
            nlink: 1,
            ..Default::default()
        };
        nodes.insert(
            gfid,
            Node {
                object,
                ..Default::default()
            },
        );
        enter(nodes, step.from_parent, &step.from_name, gfid)?;
    }
    Ok(())
}

impl Store for Double {
    fn read_soon(&self, _gfid: Gfid, _bytes: u64) {}

    fn apply(&self, change: &Change, payload: &[u8]) -> Result<(), BrickError> {
        change
            .step
            .as_ref()
            .map_or(Ok(()), |step| self.apply_step(step, change.time, payload))
    }

    fn object(&self, gfid: Gfid) -> Result<Object, BrickError> {
        Ok(node(&mut self.nodes(), Some(gfid))?.object)
    }

    fn lookup(&self, parent: Gfid, name: &[u8]) -> Result<Object, BrickError> {
        let mut nodes = self.nodes();
        let directory = node(&mut nodes, Some(parent))?;
        let gfid = directory
            .entries
            .get(name)
            .copied()
            .ok_or(no(FsError::NotFound))?;
        Ok(node(&mut nodes, Some(gfid))?.object)
    }

    fn read_link(&self, gfid: Gfid) -> Result<Bytes, BrickError> {
        Ok(node(&mut self.nodes(), Some(gfid))?.target.clone())
    }

    fn read(
        &self,
        gfid: Gfid,
        offset: u64,
        len: u32,
        into: &mut Vec<u8>,
    ) -> Result<(), BrickError> {
        let mut nodes = self.nodes();
        let bytes = &node(&mut nodes, Some(gfid))?.bytes;
        let start = bytes.len().min(offset as usize);
        into.extend_from_slice(&bytes[start..bytes.len().min(start + len as usize)]);
        Ok(())
    }

    fn read_dir(&self, page: &ReadDir) -> Result<ReadDirPage, BrickError> {
        let parent = page.gfid.unwrap_or_default();
        let mut nodes = self.nodes();
        let entries = node(&mut nodes, page.gfid)?
            .entries
            .iter()
            .map(|(name, gfid)| DirEntry {
                name: name.clone(),
                hash: name_hash(parent, name),
                gfid: Some(*gfid),
                ..Default::default()
            })
            .collect();
        Ok(ReadDirPage { entries, end: true })
    }

    fn is_empty_dir(&self, gfid: Gfid) -> Result<bool, BrickError> {
        Ok(node(&mut self.nodes(), Some(gfid))?.entries.is_empty())
    }

    fn parent_of_dir(&self, gfid: Gfid) -> Result<Gfid, BrickError> {
        node(&mut self.nodes(), Some(gfid))?
            .parent
            .ok_or(no(FsError::NotFound))
    }

    fn get_xattr(&self, gfid: Gfid, name: &[u8]) -> Result<Bytes, BrickError> {
        let mut nodes = self.nodes();
        let value = node(&mut nodes, Some(gfid))?.xattrs.get(name).cloned();
        value.ok_or(no(FsError::NoAttribute))
    }

    fn list_xattr(&self, gfid: Gfid) -> Result<Bytes, BrickError> {
        let mut names = Vec::new();
        for name in node(&mut self.nodes(), Some(gfid))?.xattrs.keys() {
            names.extend_from_slice(name);
            names.push(0);
        }
        Ok(names.into())
    }

    fn seek(&self, gfid: Gfid, offset: u64, hole: bool) -> Result<u64, BrickError> {
        let size = self.object(gfid)?.size;
        Ok(if hole { size } else { offset })
    }

    fn stat_fs(&self) -> Result<StatFs, BrickError> {
        Ok(StatFs {
            block_size: 4096,
            ..Default::default()
        })
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
        Ok(())
    }

    fn append_record(&self, _: &str, _: &[u8], _: bool) -> Result<(), BrickError> {
        Ok(())
    }

    fn read_records(&self, _: &str) -> Result<Vec<Vec<u8>>, BrickError> {
        Ok(Vec::new())
    }

    fn replace_records(&self, _: &str, _: &[Vec<u8>]) -> Result<(), BrickError> {
        Ok(())
    }

    fn record_files(&self) -> Result<Vec<String>, BrickError> {
        Ok(Vec::new())
    }

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
