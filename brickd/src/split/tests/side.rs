//! One side: a real brick, planned and applied as a primary does, without anybody else.

use std::collections::BTreeMap;
use std::sync::Mutex;

use bytes::Bytes;
use mortar_common::ids::GfidMaker;
use mortar_common::placement::name_slot;
use mortar_common::{BrickId, FsError, Gfid, SessionId, VolumeId};
use mortar_proto::data::op::Op as OpKind;
use mortar_proto::data::{
    Caller, Change, Create, Link, Op, ReadDir, Rename, RmDir, SetAttr, SplitWork, Time, Unlink,
    Write,
};
use mortar_proto::registry::Limits;

use super::super::base::{Base, Told};
use crate::brick::{Brick, BrickIdentity, Reserve, Store};
use crate::heal::Marks;
use crate::heal::marks::Link as Taken;
use crate::replica::keys::{Keys, keys_of_op};
use crate::replica::memory::Memory;
use crate::replica::plan::{Context, Plan, PlanError, Space, is_read, plan, read, reply_of};

/// All operations are of one session.
const SESSION: SessionId = SessionId(7);

/// A small generator (splitmix64), so that a seed tells all.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % bound.max(1)
    }
}

/// What a path holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub mode: u32,
    /// Of a file.
    pub content: Option<Vec<u8>>,
}

pub struct Side {
    brick: Brick,
    /// The last field but the brick: the folder goes after it.
    _folder: tempfile::TempDir,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    memory: Memory,
    number: u64,
    maker: GfidMaker,
    /// What changed since the sides are apart; `None` before.
    alone: Option<Marks>,
}

impl Side {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("brick");
        let identity = BrickIdentity {
            volume: VolumeId([9; 16]),
            volume_name: "vol".to_owned(),
            brick: BrickId(77),
            set: 0,
        };
        Brick::make(&path, &identity, true).unwrap();
        Side {
            brick: Brick::open(&path, &identity, Reserve::default()).unwrap(),
            _folder: folder,
            inner: Mutex::default(),
        }
    }

    pub fn brick(&self) -> &Brick {
        &self.brick
    }

    /// From here on what changes is changed alone.
    pub fn is_alone(&self) {
        self.inner.lock().unwrap().alone = Some(Marks::new());
    }

    pub fn alone(&self) -> Marks {
        self.inner.lock().unwrap().alone.clone().unwrap_or_default()
    }

    /// Applies a change that the other side ordered while both were one.
    pub fn apply(&self, change: &Change, payload: &[u8]) {
        let mut inner = self.inner.lock().unwrap();
        inner.number = inner.number.max(change.number);
        self.brick.apply(change, payload).unwrap();
    }

    fn context<'a>(&'a self, inner: &'a Inner, held: &'a Keys, split: SplitWork) -> Context<'a> {
        const ROOT: Caller = Caller {
            uid: 0,
            gid: 0,
            pid: 0,
            umask: 0,
        };
        const UNLIMITED: Limits = Limits {
            links: 0,
            xattr_bytes: 0,
            file_bytes: 0,
        };
        Context {
            caller: &ROOT,
            session: SESSION,
            previous: None,
            store: &self.brick,
            memory: &inner.memory,
            limits: UNLIMITED,
            space: Space {
                bytes_left: 1 << 40,
                objects_left: 1 << 20,
            },
            held,
            split,
        }
    }

    fn carry_out(
        &self,
        work: SplitWork,
        op: OpKind,
        payload: &[u8],
    ) -> Result<(Told, Option<Change>), FsError> {
        let mut inner = self.inner.lock().unwrap();
        let op = Op { op: Some(op) };
        let mut held = keys_of_op(&op, SESSION, None);
        if is_read(&op) {
            let mut output = Vec::new();
            let result =
                read(&op, &self.context(&inner, &held, work), &mut output).map_err(errno)?;
            let payload = Bytes::from(output);
            return Ok((Told { result, payload }, None));
        }
        let mut planned = loop {
            match plan(&op, &self.context(&inner, &held, work)).map_err(errno)? {
                Plan::Ready(planned) => break *planned,
                Plan::MoreKeys(more) => held = more,
            }
        };
        let number = inner.number + 1;
        let time = Time {
            secs: 1_600_000_000 + number as i64,
            nanos: 0,
        };
        planned.stamp(time);
        let step = planned.step().cloned();
        if work == SplitWork::SplitMerge
            && let Some((step, alone)) = step.as_ref().zip(inner.alone.as_ref())
        {
            let taken = if planned.frees() {
                Taken::Last
            } else {
                Taken::OneOfMany
            };
            if alone.would_lose(step, taken) {
                return Err(FsError::ChangedByBoth);
            }
        }
        let change = step.map(|step| Change {
            number,
            time: Some(time),
            step: Some(step),
            ..Default::default()
        });
        if let Some(change) = &change {
            inner.number = number;
            self.brick.apply(change, payload).unwrap();
            inner.memory.apply(change);
            if work == SplitWork::SplitNone
                && let Some(alone) = &mut inner.alone
            {
                alone.add(change);
            }
        }
        let result = reply_of(&planned, &self.brick).map_err(errno)?;
        let payload = Bytes::new();
        Ok((Told { result, payload }, change))
    }

    fn step(&self, op: OpKind, payload: &[u8]) -> Option<(Change, Vec<u8>)> {
        let done = self.carry_out(SplitWork::SplitNone, op, payload).ok()?;
        Some((done.1?, payload.to_vec()))
    }

    pub fn make_directory(&self, name: &str) -> (Change, Vec<u8>) {
        self.step(self.create(Gfid::ROOT, name, libc::S_IFDIR | 0o755), &[])
            .unwrap()
    }

    /// An empty file.
    pub fn make_file(&self, name: &str) -> (Change, Vec<u8>) {
        self.step(self.create(Gfid::ROOT, name, libc::S_IFREG | 0o644), &[])
            .unwrap()
    }

    /// An empty file in the directory of this path.
    pub fn make_file_in(&self, path: &str, name: &str) -> (Change, Vec<u8>) {
        let (gfid, _) = self.at(path);
        self.step(self.create(gfid, name, libc::S_IFREG | 0o644), &[])
            .unwrap()
    }

    /// Removes a file, or an empty directory.
    pub fn remove(&self, path: &str) {
        let (gfid, entry) = self.at(path);
        let (above, name) = self.place_of(path);
        let (parent, gfid) = (Some(above), Some(gfid));
        let op = match entry.content {
            None => OpKind::Rmdir(RmDir { parent, name, gfid }),
            Some(_) => OpKind::Unlink(Unlink { parent, name, gfid }),
        };
        self.step(op, &[]).unwrap();
    }

    /// Moves what the path holds into another directory.
    pub fn move_to(&self, path: &str, directory: &str, name: &str) {
        let (above, from) = self.place_of(path);
        let rename = Rename {
            from_parent: Some(above),
            from_name: from,
            gfid: Some(self.at(path).0),
            to_parent: Some(self.at(directory).0),
            to_name: Bytes::copy_from_slice(name.as_bytes()),
            ..Default::default()
        };
        self.step(OpKind::Rename(rename), &[]).unwrap();
    }

    fn at(&self, path: &str) -> (Gfid, Entry) {
        let found = self.walk().into_iter().find(|(at, ..)| at == path);
        let (_, gfid, entry) = found.unwrap();
        (gfid, entry)
    }

    fn place_of(&self, path: &str) -> (Gfid, Bytes) {
        let (above, name) = path.rsplit_once('/').unwrap();
        (self.at(above).0, Bytes::copy_from_slice(name.as_bytes()))
    }

    pub fn overwrite(&self, path: &str, content: &[u8]) {
        let (gfid, _) = self.at(path);
        self.step(write(gfid, content), content).unwrap();
    }

    fn create(&self, parent: Gfid, name: &str, mode: u32) -> OpKind {
        let gfid = self
            .inner
            .lock()
            .unwrap()
            .maker
            .make(name_slot(parent, name.as_bytes()));
        OpKind::Create(Create {
            parent: Some(parent),
            name: Bytes::copy_from_slice(name.as_bytes()),
            gfid: Some(gfid),
            mode,
            exclusive: true,
            ..Default::default()
        })
    }

    /// One random change below `place`; `None` when it was not valid.
    pub fn random_step(&self, random: &mut Random, place: &str) -> Option<(Change, Vec<u8>)> {
        let all = self.walk();
        let inside: Vec<_> = all
            .iter()
            .filter(|(path, ..)| path.starts_with(place))
            .collect();
        let directories: Vec<_> = inside
            .iter()
            .filter(|(_, _, entry)| entry.content.is_none())
            .collect();
        let parent = directories[random.below(directories.len() as u64) as usize];
        let name = format!("n{}", random.below(6));
        let picked = inside[random.below(inside.len() as u64) as usize];
        let content = format!("content {:016x}", random.below(u64::MAX)).into_bytes();
        let (path, gfid, entry) = picked;
        let at = |path: &str| -> (Gfid, Bytes) {
            let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
            let above = all
                .iter()
                .find(|(at, ..)| at == above)
                .map_or(Gfid::ROOT, |it| it.1);
            (above, Bytes::copy_from_slice(name.as_bytes()))
        };
        let is_directory = entry.content.is_none();
        // A place itself stays.
        let removable = path.as_str() != place && !path.is_empty();
        match random.below(12) {
            0..=2 => self.step(self.create(parent.1, &name, libc::S_IFREG | 0o644), &[]),
            3 => self.step(self.create(parent.1, &name, libc::S_IFDIR | 0o755), &[]),
            4..=7 if !is_directory => self.step(write(*gfid, &content), &content),
            8 if removable => {
                let (above, name) = at(path);
                let op = match is_directory {
                    true => OpKind::Rmdir(RmDir {
                        parent: Some(above),
                        name,
                        gfid: Some(*gfid),
                    }),
                    false => OpKind::Unlink(Unlink {
                        parent: Some(above),
                        name,
                        gfid: Some(*gfid),
                    }),
                };
                self.step(op, &[])
            }
            9 if removable => {
                let (above, from) = at(path);
                let rename = Rename {
                    from_parent: Some(above),
                    from_name: from,
                    gfid: Some(*gfid),
                    to_parent: Some(parent.1),
                    to_name: Bytes::from(name.into_bytes()),
                    ..Default::default()
                };
                self.step(OpKind::Rename(rename), &[])
            }
            10 if !is_directory => {
                let link = Link {
                    gfid: Some(*gfid),
                    parent: Some(parent.1),
                    name: Bytes::from(name.into_bytes()),
                    unnamed: false,
                };
                self.step(OpKind::Link(link), &[])
            }
            11 if removable => {
                let set = SetAttr {
                    gfid: Some(*gfid),
                    mode: Some(0o700 + random.below(64) as u32),
                    ..Default::default()
                };
                self.step(OpKind::Setattr(set), &[])
            }
            _ => None,
        }
    }

    pub fn tree(&self) -> BTreeMap<String, Entry> {
        self.walk()
            .into_iter()
            .map(|(path, _, entry)| (path, entry))
            .collect()
    }

    /// Every path, the root's is empty.
    fn walk(&self) -> Vec<(String, Gfid, Entry)> {
        let mut found = Vec::new();
        let mut left = vec![(String::new(), Gfid::ROOT)];
        while let Some((path, gfid)) = left.pop() {
            let object = self.brick.object(gfid).unwrap();
            let mut content = None;
            if object.mode & libc::S_IFMT == libc::S_IFDIR {
                let page = ReadDir {
                    gfid: Some(gfid),
                    max_bytes: 1 << 20,
                    ..Default::default()
                };
                for entry in self.brick.read_dir(&page).unwrap().entries {
                    let name = String::from_utf8(entry.name.to_vec()).unwrap();
                    left.push((format!("{path}/{name}"), entry.gfid.unwrap()));
                }
            } else {
                let mut bytes = Vec::new();
                self.brick.read(gfid, 0, 1 << 20, &mut bytes).unwrap();
                content = Some(bytes);
            }
            let mode = object.mode;
            found.push((path, gfid, Entry { mode, content }));
        }
        found.sort_by(|one, other| one.0.cmp(&other.0));
        found
    }
}

impl Base for Side {
    fn call(&self, work: SplitWork, op: OpKind, payload: &[u8]) -> Result<Told, FsError> {
        self.carry_out(work, op, payload).map(|(told, _)| told)
    }
}

fn write(gfid: Gfid, content: &[u8]) -> OpKind {
    OpKind::Write(Write {
        gfid: Some(gfid),
        offset: 0,
        len: content.len() as u32,
        ..Default::default()
    })
}

fn errno(error: PlanError) -> FsError {
    match error {
        PlanError::Refused(error) => error,
        PlanError::Brick(failure) => panic!("{failure}"),
    }
}
