//! An in-memory file tree that does what a replica set does for one request after the other.

mod locks;

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use mortar_common::placement::name_hash;
use mortar_common::{FsError, Gfid};
use mortar_proto::data::{
    Caller, DirEntry, Lock, Object, Op, Presence, ReadDirPage, RenameMode, Result as OpResult,
    SetTime, StatFs, Time, Whence, op, result, set_time,
};

type Fallible<T> = Result<T, FsError>;

#[derive(Clone, Default)]
struct Node {
    object: Object,
    data: Vec<u8>,
    children: BTreeMap<Vec<u8>, Gfid>,
    target: Bytes,
    xattrs: BTreeMap<Vec<u8>, Bytes>,
}

/// The tree, and what sessions hold.
pub struct Tree {
    nodes: HashMap<Gfid, Node>,
    clock: u64,
    /// (session, gfid)
    pub opens: Vec<(u64, Gfid)>,
    pub locks: Vec<(Gfid, Lock)>,
}

impl Default for Tree {
    fn default() -> Self {
        let mut tree = Tree {
            nodes: HashMap::new(),
            clock: 1_700_000_000,
            opens: vec![],
            locks: vec![],
        };
        let object = Object {
            gfid: Some(Gfid::ROOT),
            mode: libc::S_IFDIR | 0o755,
            nlink: 2,
            data_counter: 1,
            attr_counter: 1,
            ..Default::default()
        };
        tree.nodes.insert(
            Gfid::ROOT,
            Node {
                object,
                ..Default::default()
            },
        );
        tree
    }
}

impl Tree {
    /// Does one operation. `payload` holds the bytes of writes and takes those of reads.
    pub fn apply(
        &mut self,
        session: u64,
        caller: &Caller,
        op: Op,
        input: &mut Bytes,
        output: &mut Vec<u8>,
    ) -> OpResult {
        let outcome = match op.op {
            Some(op) => self.judge(session, caller, op, input, output),
            None => Err(FsError::Invalid),
        };
        outcome.unwrap_or_else(|e| OpResult {
            errno: e.errno(),
            ..Default::default()
        })
    }

    /// The bytes of a file, by path below the root.
    pub fn bytes_of(&self, name: &[u8]) -> Option<Vec<u8>> {
        let gfid = self.nodes[&Gfid::ROOT].children.get(name)?;
        Some(self.nodes[gfid].data.clone())
    }

    /// Somebody else changes a file.
    pub fn replace(&mut self, name: &[u8], bytes: &[u8]) {
        let gfid = self.nodes[&Gfid::ROOT].children[name];
        self.changed(gfid, true).unwrap().data = bytes.to_vec();
        self.node(gfid).unwrap().object.size = bytes.len() as u64;
    }

    fn node(&mut self, gfid: Gfid) -> Fallible<&mut Node> {
        self.nodes.get_mut(&gfid).ok_or(FsError::Stale)
    }

    fn changed(&mut self, gfid: Gfid, content: bool) -> Fallible<&mut Node> {
        self.clock += 1;
        let now = Some(Time {
            secs: self.clock as i64,
            nanos: 0,
        });
        let node = self.node(gfid)?;
        node.object.ctime = now;
        node.object.attr_counter += 1;
        if content {
            node.object.mtime = now;
            node.object.data_counter += 1;
        }
        Ok(node)
    }

    fn done(&mut self, gfids: &[Gfid]) -> Fallible<OpResult> {
        let objects = gfids
            .iter()
            .filter_map(|gfid| Some(self.nodes.get(gfid)?.object))
            .collect();
        Ok(OpResult {
            objects,
            ..Default::default()
        })
    }

    fn child(&mut self, parent: Gfid, name: &[u8]) -> Fallible<Gfid> {
        self.node(parent)?
            .children
            .get(name)
            .copied()
            .ok_or(FsError::NotFound)
    }

    fn judge(
        &mut self,
        session: u64,
        caller: &Caller,
        op: op::Op,
        input: &mut Bytes,
        output: &mut Vec<u8>,
    ) -> Fallible<OpResult> {
        match op {
            op::Op::Getlock(_) | op::Op::Setlock(_) | op::Op::ReleaseOwner(_) => {
                self.judge_lock(session, op)
            }
            op::Op::Getxattr(_)
            | op::Op::Listxattr(_)
            | op::Op::Setxattr(_)
            | op::Op::Removexattr(_) => self.judge_xattr(op),
            op::Op::Create(_)
            | op::Op::Link(_)
            | op::Op::Unlink(_)
            | op::Op::Rmdir(_)
            | op::Op::Rename(_) => self.judge_names(session, caller, op),
            op::Op::SessionOpen(_)
            | op::Op::Keepalive(_)
            | op::Op::SessionClose(_)
            | op::Op::Open(_)
            | op::Op::Release(_) => self.judge_session(session, op),
            op::Op::Setattr(_)
            | op::Op::Write(_)
            | op::Op::Fallocate(_)
            | op::Op::CopyRange(_)
            | op::Op::Fsync(_) => self.judge_content(op, input),
            op => self.judge_read(op, output),
        }
    }

    fn judge_read(&mut self, op: op::Op, output: &mut Vec<u8>) -> Fallible<OpResult> {
        let need = |gfid: Option<Gfid>| gfid.ok_or(FsError::Invalid);
        match op {
            op::Op::Lookup(o) => {
                let parent = need(o.parent)?;
                let child = self.child(parent, &o.name)?;
                self.done(&[child, parent])
            }
            op::Op::Getattr(o) => {
                let gfid = need(o.gfid)?;
                self.node(gfid)?;
                self.done(&[gfid])
            }
            op::Op::Readlink(o) => {
                let target = self.node(need(o.gfid)?)?.target.clone();
                Ok(OpResult {
                    ok: Some(result::Ok::Bytes(target)),
                    ..Default::default()
                })
            }
            op::Op::Read(o) => {
                let gfid = need(o.gfid)?;
                let data = &self.node(gfid)?.data;
                let start = (o.offset as usize).min(data.len());
                let end = (start + o.len as usize).min(data.len());
                output.extend_from_slice(&data[start..end]);
                let ok = Some(result::Ok::PayloadLen((end - start) as u32));
                Ok(OpResult {
                    ok,
                    ..self.done(&[gfid])?
                })
            }
            op::Op::Readdir(o) => self.read_dir(o),
            op::Op::Statfs(_) => {
                let sizes = StatFs {
                    block_size: 4096,
                    blocks: 1000,
                    blocks_free: 500,
                    blocks_available: 400,
                    files: 100,
                    files_free: 50,
                };
                Ok(OpResult {
                    ok: Some(result::Ok::Statfs(sizes)),
                    ..Default::default()
                })
            }
            op::Op::Seek(o) => {
                let size = self.node(need(o.gfid)?)?.data.len() as u64;
                let found = match o.whence() {
                    _ if o.offset >= size => return Err(FsError::NoDevice),
                    Whence::Data => o.offset,
                    Whence::Hole => size,
                };
                Ok(OpResult {
                    ok: Some(result::Ok::Offset(found)),
                    ..Default::default()
                })
            }
            _ => Err(FsError::NotSupported),
        }
    }

    fn judge_session(&mut self, session: u64, op: op::Op) -> Fallible<OpResult> {
        let need = |gfid: Option<Gfid>| gfid.ok_or(FsError::Invalid);
        match op {
            op::Op::SessionOpen(_) | op::Op::Keepalive(_) => Ok(OpResult::default()),
            op::Op::SessionClose(_) => {
                self.opens.retain(|(of, _)| *of != session);
                self.locks.retain(|(_, lock)| lock.session != session);
                Ok(OpResult::default())
            }
            op::Op::Open(o) => {
                let gfid = need(o.gfid)?;
                self.node(gfid)?;
                if o.truncate {
                    let node = self.changed(gfid, true)?;
                    node.data.clear();
                    node.object.size = 0;
                }
                if !self.opens.contains(&(session, gfid)) {
                    self.opens.push((session, gfid));
                }
                self.done(&[gfid])
            }
            op::Op::Release(o) => {
                let gfid = need(o.gfid)?;
                self.opens.retain(|held| *held != (session, gfid));
                Ok(OpResult::default())
            }
            _ => Err(FsError::NotSupported),
        }
    }

    fn judge_names(&mut self, session: u64, caller: &Caller, op: op::Op) -> Fallible<OpResult> {
        let need = |gfid: Option<Gfid>| gfid.ok_or(FsError::Invalid);
        match op {
            op::Op::Create(o) => self.create(session, caller, o),
            op::Op::Link(o) => {
                let (gfid, parent) = (need(o.gfid)?, need(o.parent)?);
                if self.child(parent, &o.name).is_ok() {
                    return Err(FsError::Exists);
                }
                self.changed(parent, true)?
                    .children
                    .insert(o.name.to_vec(), gfid);
                self.changed(gfid, false)?.object.nlink += 1;
                self.done(&[gfid, parent])
            }
            op::Op::Unlink(o) => self.remove(need(o.parent)?, &o.name, o.gfid, false),
            op::Op::Rmdir(o) => self.remove(need(o.parent)?, &o.name, o.gfid, true),
            op::Op::Rename(o) => {
                let (from, to) = (need(o.from_parent)?, need(o.to_parent)?);
                let moved = self.child(from, &o.from_name)?;
                if o.gfid.is_some_and(|gfid| gfid != moved) {
                    return Err(FsError::Stale);
                }
                let there = self.child(to, &o.to_name).ok();
                match (o.how(), there) {
                    (RenameMode::RenameNoreplace, Some(_)) => return Err(FsError::Exists),
                    (RenameMode::RenameExchange, None) => return Err(FsError::NotFound),
                    (RenameMode::RenameExchange, Some(there))
                        if o.to_gfid.is_some_and(|meant| meant != there) =>
                    {
                        return Err(FsError::Stale);
                    }
                    _ => {}
                }
                self.changed(from, true)?.children.remove(&o.from_name[..]);
                if let Some(there) = there {
                    if o.how() == RenameMode::RenameExchange {
                        self.node(from)?
                            .children
                            .insert(o.from_name.to_vec(), there);
                    } else {
                        self.changed(there, false)?.object.nlink -= 1;
                    }
                }
                self.changed(to, true)?
                    .children
                    .insert(o.to_name.to_vec(), moved);
                self.changed(moved, false)?;
                self.done(&[moved, from, to])
            }
            _ => Err(FsError::NotSupported),
        }
    }

    fn judge_content(&mut self, op: op::Op, input: &mut Bytes) -> Fallible<OpResult> {
        let need = |gfid: Option<Gfid>| gfid.ok_or(FsError::Invalid);
        match op {
            op::Op::Setattr(o) => self.set_attributes(o),
            op::Op::Write(o) => {
                let gfid = need(o.gfid)?;
                let bytes = input.split_to(o.len as usize);
                let node = self.changed(gfid, true)?;
                let offset = if o.append {
                    node.data.len()
                } else {
                    o.offset as usize
                };
                let end = offset + bytes.len();
                if node.data.len() < end {
                    node.data.resize(end, 0);
                }
                node.data[offset..end].copy_from_slice(&bytes);
                node.object.size = node.data.len() as u64;
                let ok = Some(match o.append {
                    true => result::Ok::Offset(offset as u64),
                    false => result::Ok::Count(bytes.len() as u64),
                });
                Ok(OpResult {
                    ok,
                    ..self.done(&[gfid])?
                })
            }
            op::Op::Fallocate(o) => {
                let gfid = need(o.gfid)?;
                let node = self.changed(gfid, true)?;
                let end = (o.offset + o.len) as usize;
                if o.mode == 0 && node.data.len() < end {
                    node.data.resize(end, 0);
                    node.object.size = end as u64;
                } else if o.mode != 0 {
                    let end = end.min(node.data.len());
                    node.data[o.offset as usize..end].fill(0);
                }
                self.done(&[gfid])
            }
            op::Op::CopyRange(o) => {
                let (from, to) = (need(o.from)?, need(o.to)?);
                let data = &self.node(from)?.data;
                let start = (o.from_offset as usize).min(data.len());
                let bytes = data[start..(start + o.len as usize).min(data.len())].to_vec();
                let node = self.changed(to, true)?;
                let end = o.to_offset as usize + bytes.len();
                if node.data.len() < end {
                    node.data.resize(end, 0);
                }
                node.data[o.to_offset as usize..end].copy_from_slice(&bytes);
                node.object.size = node.data.len() as u64;
                let ok = Some(result::Ok::Count(bytes.len() as u64));
                Ok(OpResult {
                    ok,
                    ..self.done(&[to])?
                })
            }
            op::Op::Fsync(o) => self.done(&[need(o.gfid)?]),
            _ => Err(FsError::NotSupported),
        }
    }

    fn set_attributes(&mut self, o: mortar_proto::data::SetAttr) -> Fallible<OpResult> {
        let gfid = o.gfid.ok_or(FsError::Invalid)?;
        self.clock += 1;
        let now = self.clock as i64;
        let at = |time: Option<SetTime>| match time.and_then(|time| time.when) {
            Some(set_time::When::At(time)) => Some(time),
            Some(set_time::When::Now(_)) => Some(Time {
                secs: now,
                nanos: 0,
            }),
            None => None,
        };
        let node = self.changed(gfid, o.size.is_some())?;
        if let Some(mode) = o.mode {
            node.object.mode = node.object.mode & libc::S_IFMT | mode & 0o7777;
        }
        if o.kill_suidgid {
            node.object.mode &= !0o6000;
        }
        node.object.uid = o.uid.unwrap_or(node.object.uid);
        node.object.gid = o.gid.unwrap_or(node.object.gid);
        if let Some(size) = o.size {
            node.data.resize(size as usize, 0);
            node.object.size = size;
        }
        node.object.atime = at(o.atime).or(node.object.atime);
        node.object.mtime = at(o.mtime).or(node.object.mtime);
        self.done(&[gfid])
    }

    fn create(
        &mut self,
        session: u64,
        caller: &Caller,
        o: mortar_proto::data::Create,
    ) -> Fallible<OpResult> {
        let (parent, gfid) = (
            o.parent.ok_or(FsError::Invalid)?,
            o.gfid.ok_or(FsError::Invalid)?,
        );
        if let Ok(there) = self.child(parent, &o.name) {
            if o.exclusive {
                return Err(FsError::Exists);
            }
            return self.done(&[there, parent]);
        }
        let is_dir = o.mode & libc::S_IFMT == libc::S_IFDIR;
        let object = Object {
            gfid: Some(gfid),
            mode: o.mode & !caller.umask,
            nlink: if is_dir { 2 } else { 1 },
            uid: caller.uid,
            gid: caller.gid,
            rdev: o.rdev,
            size: o.target.len() as u64,
            ..Default::default()
        };
        self.nodes.insert(
            gfid,
            Node {
                object,
                target: o.target,
                ..Default::default()
            },
        );
        self.changed(gfid, true)?;
        let dir = self.changed(parent, true)?;
        dir.children.insert(o.name.to_vec(), gfid);
        dir.object.nlink += u32::from(is_dir);
        if o.open {
            self.opens.push((session, gfid));
        }
        Ok(OpResult {
            created: true,
            ..self.done(&[gfid, parent])?
        })
    }

    fn remove(
        &mut self,
        parent: Gfid,
        name: &[u8],
        meant: Option<Gfid>,
        dir: bool,
    ) -> Fallible<OpResult> {
        let gfid = self.child(parent, name)?;
        if meant != Some(gfid) {
            return Err(FsError::Stale);
        }
        if dir && !self.node(gfid)?.children.is_empty() {
            return Err(FsError::NotEmpty);
        }
        let node = self.changed(parent, true)?;
        node.children.remove(name);
        node.object.nlink -= u32::from(dir);
        self.changed(gfid, false)?.object.nlink -= 1;
        self.done(&[gfid, parent])
    }

    fn read_dir(&mut self, o: mortar_proto::data::ReadDir) -> Fallible<OpResult> {
        let gfid = o.gfid.ok_or(FsError::Invalid)?;
        let mut names: Vec<(u64, Vec<u8>, Gfid)> = self
            .node(gfid)?
            .children
            .iter()
            .map(|(name, child)| (name_hash(gfid, name), name.clone(), *child))
            .filter(|(hash, name, _)| (*hash, &name[..]) > (o.after_hash, &o.after_name[..]))
            .collect();
        names.sort();
        let mut left = o.max_bytes as usize;
        let mut page = ReadDirPage {
            end: true,
            ..Default::default()
        };
        for (hash, name, child) in names {
            if left < name.len() {
                page.end = false;
                break;
            }
            left -= name.len();
            let object = self.node(child)?.object;
            page.entries.push(DirEntry {
                name: name.into(),
                hash,
                gfid: Some(child),
                r#type: (object.mode & libc::S_IFMT) >> 12,
                object: o.plus.then_some(object),
            });
        }
        Ok(OpResult {
            ok: Some(result::Ok::Readdir(page)),
            ..Default::default()
        })
    }

    fn judge_xattr(&mut self, op: op::Op) -> Fallible<OpResult> {
        let need = |gfid: Option<Gfid>| gfid.ok_or(FsError::Invalid);
        match op {
            op::Op::Getxattr(o) => {
                let node = self.node(need(o.gfid)?)?;
                let value = node
                    .xattrs
                    .get(&o.name[..])
                    .cloned()
                    .ok_or(FsError::NoAttribute)?;
                Ok(OpResult {
                    ok: Some(result::Ok::Bytes(value)),
                    ..Default::default()
                })
            }
            op::Op::Listxattr(o) => {
                let node = self.node(need(o.gfid)?)?;
                let names: Vec<u8> = node
                    .xattrs
                    .keys()
                    .flat_map(|name| [&name[..], b"\0"].concat())
                    .collect();
                Ok(OpResult {
                    ok: Some(result::Ok::Bytes(names.into())),
                    ..Default::default()
                })
            }
            op::Op::Setxattr(o) => {
                let gfid = need(o.gfid)?;
                let node = self.changed(gfid, false)?;
                node.xattrs.insert(o.name.to_vec(), o.value);
                node.object.presence |= Presence::User as u32;
                self.done(&[gfid])
            }
            op::Op::Removexattr(o) => {
                let gfid = need(o.gfid)?;
                let node = self.changed(gfid, false)?;
                node.xattrs
                    .remove(&o.name[..])
                    .ok_or(FsError::NoAttribute)?;
                self.done(&[gfid])
            }
            _ => Err(FsError::NotSupported),
        }
    }
}
