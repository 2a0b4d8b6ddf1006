//! The objects of a brick in memory: strict where the real one is, and careless with times in heal
//! changes, so that nothing that ought to be sent again is forgotten.

use std::collections::BTreeMap;

use bytes::Bytes;
use mortar_common::{FsError, Gfid};
use mortar_proto::data::change::Step;
use mortar_proto::data::{Change, HealObjectStep, Object, RenameMode, RenameStep, Time};

/// One object.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub object: Object,
    pub target: Bytes,
    pub xattrs: BTreeMap<Bytes, Bytes>,
    pub data: Vec<u8>,
    pub names: BTreeMap<Bytes, Gfid>,
    pub parent: Option<Gfid>,
}

impl Node {
    fn new(object: Object) -> Self {
        let (target, xattrs, data) = (Bytes::new(), BTreeMap::new(), Vec::new());
        Node {
            object,
            target,
            xattrs,
            data,
            names: BTreeMap::new(),
            parent: None,
        }
    }

    pub fn is_dir(&self) -> bool {
        self.object.mode & libc::S_IFMT == libc::S_IFDIR
    }
}

/// All objects of a brick. `object.nlink` of what is no directory counts its names.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree {
    pub nodes: BTreeMap<Gfid, Node>,
}

type Applied = Result<(), FsError>;

impl Tree {
    pub fn new() -> Self {
        let object = Object {
            gfid: Some(Gfid::ROOT),
            mode: libc::S_IFDIR | 0o755,
            ..Default::default()
        };
        let mut root = Node::new(object);
        root.parent = Some(Gfid::ROOT);
        Tree {
            nodes: BTreeMap::from([(Gfid::ROOT, root)]),
        }
    }

    pub fn node(&self, gfid: Gfid) -> Result<&Node, FsError> {
        self.nodes.get(&gfid).ok_or(FsError::NotFound)
    }

    fn node_mut(&mut self, gfid: Option<Gfid>) -> Result<&mut Node, FsError> {
        self.nodes
            .get_mut(&gfid.unwrap_or_default())
            .ok_or(FsError::NotFound)
    }

    pub fn dir(&self, gfid: Option<Gfid>) -> Result<&Node, FsError> {
        let node = self.node(gfid.unwrap_or_default())?;
        if node.is_dir() {
            Ok(node)
        } else {
            Err(FsError::NotDirectory)
        }
    }

    pub fn held(&self, parent: Option<Gfid>, name: &Bytes) -> Result<Option<Gfid>, FsError> {
        Ok(self.dir(parent)?.names.get(name).copied())
    }

    fn touch(&mut self, gfid: Option<Gfid>, time: Option<Time>) {
        if let Ok(node) = self.node_mut(gfid) {
            node.object.mtime = time;
            node.object.ctime = time;
            node.object.attr_counter += 1;
        }
    }

    /// Whether `gfid` is `above` or below it.
    pub fn is_below(&self, gfid: Gfid, above: Gfid) -> bool {
        let mut at = gfid;
        loop {
            if at == above {
                return true;
            }
            match self.nodes.get(&at).and_then(|node| node.parent) {
                Some(parent) if parent != at => at = parent,
                _ => return false,
            }
        }
    }

    fn put(&mut self, parent: Option<Gfid>, name: &Bytes, gfid: Gfid) {
        if let Ok(dir) = self.node_mut(parent) {
            dir.names.insert(name.clone(), gfid);
        }
        if let Ok(node) = self.node_mut(Some(gfid)) {
            if node.is_dir() {
                node.parent = parent;
            } else {
                node.object.nlink += 1;
            }
        }
    }

    fn take(&mut self, parent: Option<Gfid>, name: &Bytes) -> Option<Gfid> {
        let gfid = self.node_mut(parent).ok()?.names.remove(name)?;
        if let Ok(node) = self.node_mut(Some(gfid)) {
            if node.is_dir() {
                node.parent = None;
            } else {
                node.object.nlink -= 1;
            }
        }
        Some(gfid)
    }

    /// Removes what has no name left, unless it stays as an orphan.
    fn drop_unnamed(&mut self, gfid: Gfid, orphan: bool, time: Option<Time>) {
        self.touch(Some(gfid), time);
        if let Some(node) = self.nodes.get(&gfid)
            && (node.is_dir() || node.object.nlink == 0 && !orphan)
        {
            self.nodes.remove(&gfid);
        }
    }

    /// Applies a change, or refuses it and leaves all as it was.
    pub fn apply(&mut self, change: &Change, payload: &[u8]) -> Applied {
        let time = change.time;
        match change.step.as_ref().ok_or(FsError::Invalid)? {
            Step::Create(step) => {
                let has_name = !step.name.is_empty();
                if has_name && self.held(step.parent, &step.name)?.is_some() {
                    return Err(FsError::Exists);
                }
                let gfid = step.gfid.ok_or(FsError::Invalid)?;
                let (mode, uid, gid) = (step.mode, step.uid, step.gid);
                let mut node = Node::new(Object {
                    gfid: Some(gfid),
                    mode,
                    uid,
                    gid,
                    ..Default::default()
                });
                node.target = step.target.clone();
                self.nodes.insert(gfid, node);
                self.touch(step.gfid, time);
                if has_name {
                    self.put(step.parent, &step.name, gfid);
                    self.touch(step.parent, time);
                }
            }
            Step::Link(step) => {
                let gfid = step.gfid.ok_or(FsError::Invalid)?;
                self.node(gfid)?;
                if self.held(step.parent, &step.name)?.is_some() {
                    return Err(FsError::Exists);
                }
                self.put(step.parent, &step.name, gfid);
                self.touch(step.gfid, time);
                self.touch(step.parent, time);
            }
            Step::Unlink(step) => {
                self.remove(step.parent, &step.name, step.gfid, step.orphan, time)?
            }
            Step::Rmdir(step) => self.remove(step.parent, &step.name, step.gfid, false, time)?,
            Step::Rename(step) => self.rename(step, time)?,
            Step::HealObject(step) => self.heal_object(step)?,
            Step::HealName(step) => {
                self.heal_name(step.parent, &step.name, step.gfid)?;
                self.scramble(step.parent);
            }
            Step::Free(step) => {
                let gfid = step.gfid.ok_or(FsError::Invalid)?;
                let node = self.node(gfid)?;
                if node.object.nlink > 0 || node.parent.is_some() || !node.names.is_empty() {
                    return Err(FsError::Busy);
                }
                self.nodes.remove(&gfid);
            }
            step => self.apply_to_one(step, payload, time)?,
        }
        Ok(())
    }

    fn apply_to_one(&mut self, step: &Step, payload: &[u8], time: Option<Time>) -> Applied {
        match step {
            Step::Setattr(step) => {
                let node = self.node_mut(step.gfid)?;
                node.object.mode = step.mode.unwrap_or(node.object.mode);
                if let Some(size) = step.size {
                    node.data.resize(size as usize, 0);
                }
                self.wrote(step.gfid, time);
            }
            Step::Write(step) => self.write(step.gfid, step.offset, payload, time)?,
            Step::Fallocate(step) => {
                let node = self.node_mut(step.gfid)?;
                let end = (step.offset + step.len).min(node.data.len() as u64) as usize;
                let start = (step.offset as usize).min(end);
                node.data[start..end].fill(0);
                self.wrote(step.gfid, time);
            }
            Step::CopyRange(step) => {
                let from = &self.node(step.from.unwrap_or_default())?.data;
                let range = step.from_offset as usize..(step.from_offset + step.len) as usize;
                let copied = from.get(range).ok_or(FsError::Invalid)?.to_vec();
                self.write(step.to, step.to_offset, &copied, time)?;
            }
            Step::Setxattr(step) => {
                let node = self.node_mut(step.gfid)?;
                node.xattrs.insert(step.name.clone(), step.value.clone());
                self.touch(step.gfid, time);
            }
            Step::Removexattr(step) => {
                let node = self.node_mut(step.gfid)?;
                node.xattrs.remove(&step.name).ok_or(FsError::NoAttribute)?;
                self.touch(step.gfid, time);
            }
            Step::Fsync(step) => {
                self.node_mut(step.gfid)?;
            }
            Step::HealData(step) => {
                let (start, end) = (step.offset as usize, (step.offset + step.len) as usize);
                let node = self.node_mut(step.gfid)?;
                if end > node.data.len() {
                    node.data.resize(end, 0);
                }
                if step.hole {
                    node.data[start..end].fill(0);
                } else {
                    node.data[start..end].copy_from_slice(payload);
                }
                node.object.size = node.data.len() as u64;
                self.scramble(step.gfid);
            }
            _ => return Err(FsError::NotSupported),
        }
        Ok(())
    }

    fn write(&mut self, gfid: Option<Gfid>, at: u64, bytes: &[u8], time: Option<Time>) -> Applied {
        let node = self.node_mut(gfid)?;
        let (start, end) = (at as usize, at as usize + bytes.len());
        if end > node.data.len() {
            node.data.resize(end, 0);
        }
        node.data[start..end].copy_from_slice(bytes);
        self.wrote(gfid, time);
        Ok(())
    }

    fn wrote(&mut self, gfid: Option<Gfid>, time: Option<Time>) {
        if let Ok(node) = self.node_mut(gfid) {
            node.object.size = node.data.len() as u64;
            node.object.data_counter += 1;
        }
        self.touch(gfid, time);
    }

    fn scramble(&mut self, gfid: Option<Gfid>) {
        if let Ok(node) = self.node_mut(gfid) {
            node.object.mtime = Some(Time { secs: -1, nanos: 1 });
            node.object.ctime = node.object.mtime;
        }
    }

    fn remove(
        &mut self,
        parent: Option<Gfid>,
        name: &Bytes,
        gfid: Option<Gfid>,
        orphan: bool,
        time: Option<Time>,
    ) -> Applied {
        let held = self.held(parent, name)?.ok_or(FsError::NotFound)?;
        if Some(held) != gfid {
            return Err(FsError::Stale);
        }
        if !self.node(held)?.names.is_empty() {
            return Err(FsError::NotEmpty);
        }
        self.take(parent, name);
        self.drop_unnamed(held, orphan, time);
        self.touch(parent, time);
        Ok(())
    }

    fn rename(&mut self, step: &RenameStep, time: Option<Time>) -> Applied {
        let gfid = step.gfid.ok_or(FsError::Invalid)?;
        if self.held(step.from_parent, &step.from_name)? != Some(gfid)
            || self.held(step.to_parent, &step.to_name)? != step.replaced
            || step.replaced == Some(gfid)
        {
            return Err(FsError::Stale);
        }
        let (from, to) = (
            step.from_parent.unwrap_or_default(),
            step.to_parent.unwrap_or_default(),
        );
        let exchange = step.how() == RenameMode::RenameExchange;
        if self.is_below(to, gfid) {
            return Err(FsError::Invalid);
        }
        if let Some(replaced) = step.replaced {
            let node = self.node(replaced)?;
            if exchange && self.is_below(from, replaced) {
                return Err(FsError::Invalid);
            }
            if !exchange && (node.is_dir() != self.node(gfid)?.is_dir() || !node.names.is_empty()) {
                return Err(FsError::NotEmpty);
            }
        }
        self.take(step.from_parent, &step.from_name);
        self.take(step.to_parent, &step.to_name);
        self.put(step.to_parent, &step.to_name, gfid);
        match step.replaced {
            Some(replaced) if exchange => {
                self.put(step.from_parent, &step.from_name, replaced);
                self.touch(Some(replaced), time);
            }
            Some(replaced) => self.drop_unnamed(replaced, step.replaced_orphan, time),
            None => {}
        }
        for touched in [step.gfid, step.from_parent, step.to_parent] {
            self.touch(touched, time);
        }
        Ok(())
    }

    fn heal_object(&mut self, step: &HealObjectStep) -> Applied {
        let healed = step.object.ok_or(FsError::Invalid)?;
        let gfid = healed.gfid.ok_or(FsError::Invalid)?;
        if let Some(node) = self.nodes.get(&gfid)
            && (node.object.mode ^ healed.mode) & libc::S_IFMT != 0
        {
            if !step.replace {
                return Err(FsError::Exists);
            }
            // What bears the gfid loses it: its names hold nothing that is visible any more.
            self.nodes.remove(&gfid);
            for node in self.nodes.values_mut() {
                node.names.retain(|_, held| *held != gfid);
            }
        }
        let node = self
            .nodes
            .entry(gfid)
            .or_insert_with(|| Node::new(Object::default()));
        let nlink = node.object.nlink;
        node.object = Object { nlink, ..healed };
        node.target = step.target.clone();
        node.xattrs = step
            .xattrs
            .iter()
            .map(|x| (x.name.clone(), x.value.clone()))
            .collect();
        if healed.mode & libc::S_IFMT == libc::S_IFREG {
            node.data.resize(healed.size as usize, 0);
        }
        Ok(())
    }

    fn heal_name(&mut self, parent: Option<Gfid>, name: &Bytes, gfid: Option<Gfid>) -> Applied {
        if self.held(parent, name)? == gfid {
            return Ok(());
        }
        if let Some(gfid) = gfid {
            let directory = self.node(gfid)?.is_dir();
            if directory && self.is_below(parent.unwrap_or_default(), gfid) {
                return Err(FsError::Invalid);
            }
        }
        self.take(parent, name);
        let Some(gfid) = gfid else { return Ok(()) };
        if let Some(above) = self
            .node(gfid)?
            .parent
            .filter(|_| self.nodes[&gfid].is_dir())
        {
            let place = self
                .node(above)?
                .names
                .iter()
                .find(|(_, held)| **held == gfid);
            if let Some(place) = place.map(|(place, _)| place.clone()) {
                self.take(Some(above), &place);
            }
        }
        self.put(parent, name, gfid);
        Ok(())
    }
}
