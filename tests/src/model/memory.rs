//! The tree as it must be, kept in memory: names, types, contents and links, by what POSIX says an
//! operation that succeeded does. Who may do what, and what an operation that failed answers, is
//! the disk's to say; this one cannot be wrong in the same way as the disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, RenameFlags};
use xxhash_rust::xxh3::xxh3_64;

use super::look::Look;
use super::op::{Act, How, SLOTS, Special, Spot};
use super::side::Seen;

/// Symlinks followed in one path.
const LINKS_MAX: usize = 40;

/// Number of an object.
type Id = usize;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Dir(BTreeMap<String, Id>),
    File(Vec<u8>),
    Symlink(&'static str),
    Special(u32),
}

/// The tree and what is open in it.
#[derive(Debug)]
pub struct Memory {
    /// The first is the folder itself. Objects without a name stay: they may be open.
    nodes: Vec<Node>,
    slots: [Option<(Id, How)>; SLOTS],
}

/// A name in a directory, and what it names.
struct Place {
    dir: Id,
    name: String,
    id: Option<Id>,
}

impl Default for Memory {
    fn default() -> Self {
        Memory {
            nodes: vec![Node::Dir(BTreeMap::new())],
            slots: [None; SLOTS],
        }
    }
}

impl Memory {
    /// Does what an operation that succeeded does, and says what its caller must have been told.
    ///
    /// # Errors
    /// In words, when it cannot have succeeded.
    pub fn apply(&mut self, act: &Act, told: &Seen) -> Result<(), String> {
        match act {
            Act::Mkdir { at, .. } => self.make(at, Node::Dir(BTreeMap::new())),
            Act::Symlink { at, target } => self.make(at, Node::Symlink(target)),
            Act::Mknod { at, special, .. } => self.make(
                at,
                match special {
                    Special::File => Node::File(Vec::new()),
                    Special::Fifo => Node::Special(0o010_000),
                    Special::Socket => Node::Special(0o140_000),
                    Special::Device | Special::Whiteout => Node::Special(0o020_000),
                },
            ),
            Act::Link { from, to } => {
                let id = self.existing(from, Last::Kept)?.1;
                self.put(to, id)
            }
            Act::Rename { from, to, flags } => self.rename(from, to, *flags),
            Act::Unlink { at } | Act::Rmdir { at } => self.remove(at),
            Act::List { at } => self.list(at, told),
            Act::Resize { at, len } => {
                let id = self.existing(at, Last::Followed)?.1;
                self.content(id)?.resize(*len as usize, 0);
                Ok(())
            }
            Act::Open { slot, at, how, .. } => self.open(*slot, at, *how),
            Act::Close { slot } => {
                self.slots[*slot] = None;
                Ok(())
            }
            Act::Chmod { .. }
            | Act::Chown { .. }
            | Act::Utimens { .. }
            | Act::SetXattr { .. }
            | Act::RemoveXattr { .. }
            | Act::SetAcl { .. }
            | Act::Outage(_) => Ok(()),
            _ => self.on_slots(act, told),
        }
    }

    /// Where a look at a folder is not what the tree is, one line each.
    pub fn differences(&self, look: &Look) -> Vec<String> {
        let mut expected = BTreeMap::new();
        self.walk(0, PathBuf::new(), &mut expected);
        let mut links: BTreeMap<Id, u64> = BTreeMap::new();
        for id in expected.values() {
            *links.entry(*id).or_default() += 1;
        }
        let mut lines = Vec::new();
        for (path, id) in &expected {
            match look.objects.get(path) {
                None => lines.push(format!("{path:?} must be there")),
                Some(object) => {
                    let node = &self.nodes[*id];
                    let (kind, size, content, target) = match node {
                        Node::Dir(_) => (0o040_000, 0, 0, ""),
                        Node::File(bytes) => (0o100_000, bytes.len(), xxh3_64(bytes), ""),
                        Node::Symlink(target) => (0o120_000, target.len(), 0, *target),
                        Node::Special(kind) => (*kind, 0, 0, ""),
                    };
                    let nlink = match node {
                        Node::Dir(entries) => 2 + self.folders_in(entries),
                        _ => links[id],
                    };
                    let must = (kind, size as u64, content, Path::new(target), nlink);
                    let is = (
                        object.mode & 0o170_000,
                        object.size,
                        object.content,
                        object.target.as_path(),
                        object.nlink,
                    );
                    if must != is {
                        lines.push(format!("{path:?} must be {must:x?} and is {is:x?}"));
                    }
                }
            }
        }
        let strange = look
            .objects
            .keys()
            .filter(|path| !expected.contains_key(*path));
        lines.extend(strange.map(|path| format!("{path:?} must not be there")));
        lines
    }

    fn walk(&self, id: Id, path: PathBuf, into: &mut BTreeMap<PathBuf, Id>) {
        if let Node::Dir(entries) = &self.nodes[id] {
            for (name, below) in entries {
                self.walk(*below, path.join(name), into);
            }
        }
        into.insert(path, id);
    }

    fn folders_in(&self, entries: &BTreeMap<String, Id>) -> u64 {
        let folders = entries
            .values()
            .filter(|id| matches!(self.nodes[**id], Node::Dir(_)));
        folders.count() as u64
    }

    fn entries(&self, id: Id) -> Option<&BTreeMap<String, Id>> {
        match self.nodes.get(id) {
            Some(Node::Dir(entries)) => Some(entries),
            _ => None,
        }
    }

    fn entries_mut(&mut self, id: Id) -> &mut BTreeMap<String, Id> {
        match &mut self.nodes[id] {
            Node::Dir(entries) => entries,
            other => unreachable!("{other:?} was a directory"),
        }
    }

    fn content(&mut self, id: Id) -> Result<&mut Vec<u8>, String> {
        match &mut self.nodes[id] {
            Node::File(bytes) => Ok(bytes),
            other => Err(format!("{other:?} has no content")),
        }
    }

    /// Follows a path from the folder; the directory of its last name must be there.
    fn place(&self, spot: &Spot, last: Last) -> Result<Place, String> {
        let mut left: Vec<String> = spot.names().map(str::to_owned).collect();
        left.reverse();
        let (mut dir, mut links) = (0, 0);
        while let Some(name) = left.pop() {
            let entries = self.entries(dir).ok_or("a path leads through a file")?;
            let id = entries.get(&name).copied();
            match id.map(|id| &self.nodes[id]) {
                Some(Node::Symlink(target)) if !left.is_empty() || last == Last::Followed => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err("a path goes in a circle".to_owned());
                    }
                    left.extend(target.split('/').rev().map(str::to_owned));
                }
                _ if left.is_empty() => return Ok(Place { dir, name, id }),
                _ => dir = id.ok_or("a directory of a path is not there")?,
            }
        }
        Err("an empty path".to_owned())
    }

    fn existing(&self, spot: &Spot, last: Last) -> Result<(Place, Id), String> {
        let place = self.place(spot, last)?;
        let id = place.id.ok_or_else(|| format!("{spot:?} is not there"))?;
        Ok((place, id))
    }

    fn put(&mut self, at: &Spot, id: Id) -> Result<(), String> {
        let place = self.place(at, Last::Kept)?;
        if place.id.is_some() {
            return Err(format!("{at:?} is there already"));
        }
        self.entries_mut(place.dir).insert(place.name, id);
        Ok(())
    }

    fn make(&mut self, at: &Spot, node: Node) -> Result<(), String> {
        self.nodes.push(node);
        self.put(at, self.nodes.len() - 1)
    }

    fn remove(&mut self, at: &Spot) -> Result<(), String> {
        let (place, id) = self.existing(at, Last::Kept)?;
        if self.entries(id).is_some_and(|entries| !entries.is_empty()) {
            return Err(format!("{at:?} is not empty"));
        }
        self.entries_mut(place.dir).remove(&place.name);
        Ok(())
    }

    fn rename(&mut self, from: &Spot, to: &Spot, flags: RenameFlags) -> Result<(), String> {
        let (old, id) = self.existing(from, Last::Kept)?;
        let new = self.place(to, Last::Kept)?;
        if new.id.is_some() && flags.contains(RenameFlags::NOREPLACE) {
            return Err(format!("{to:?} is there already"));
        }
        if new.id == Some(id) {
            return Ok(());
        }
        if flags.contains(RenameFlags::EXCHANGE) {
            let other = new.id.ok_or_else(|| format!("{to:?} is not there"))?;
            self.entries_mut(old.dir).insert(old.name, other);
        } else {
            self.entries_mut(old.dir).remove(&old.name);
            if flags.contains(RenameFlags::WHITEOUT) {
                self.make(from, Node::Special(0o020_000))?;
            }
        }
        self.entries_mut(new.dir).insert(new.name, id);
        Ok(())
    }

    fn list(&self, at: &Spot, told: &Seen) -> Result<(), String> {
        let id = self.existing(at, Last::Followed)?.1;
        let entries = self.entries(id).ok_or("a file was listed")?;
        let names = entries.keys().map(|name| name.into()).collect();
        same(told, &Seen::Names(names))
    }

    fn open(&mut self, slot: usize, at: &Spot, how: How) -> Result<(), String> {
        let last = if how == How::CreateNew {
            Last::Kept
        } else {
            Last::Followed
        };
        let place = self.place(at, last)?;
        let id = match (place.id, how) {
            (Some(_), How::CreateNew) => return Err(format!("{at:?} is there already")),
            (Some(id), _) => id,
            (None, How::Append | How::Create | How::CreateNew) => {
                self.nodes.push(Node::File(Vec::new()));
                let id = self.nodes.len() - 1;
                self.entries_mut(place.dir).insert(place.name, id);
                id
            }
            (None, How::Read | How::Write | How::Truncate) => {
                return Err(format!("{at:?} is not there"));
            }
        };
        if how == How::Truncate {
            self.content(id)?.clear();
        }
        self.slots[slot] = Some((id, how));
        Ok(())
    }

    fn on_slots(&mut self, act: &Act, told: &Seen) -> Result<(), String> {
        match act {
            Act::Read { slot, offset, len } => {
                let bytes = self.content(self.slot(*slot)?.0)?;
                let from = (*offset as usize).min(bytes.len());
                let to = (from + *len as usize).min(bytes.len());
                same(told, &Seen::Bytes(bytes[from..to].to_vec()))
            }
            Act::Write {
                slot,
                offset,
                len,
                fill,
            } => {
                let (id, how) = self.slot(*slot)?;
                let content = self.content(id)?;
                let offset = if how == How::Append {
                    content.len()
                } else {
                    *offset as usize
                };
                write(content, offset, &vec![*fill; *len as usize]);
                same(told, &Seen::Number(u64::from(*len)))
            }
            Act::Store {
                slot,
                offset,
                len,
                fill,
            } => {
                let content = self.content(self.slot(*slot)?.0)?;
                let from = (*offset as usize).min(content.len());
                let to = (from + *len as usize).min(content.len());
                content[from..to].fill(*fill);
                same(told, &Seen::Number((to - from) as u64))
            }
            Act::Truncate { slot, len } => {
                let id = self.slot(*slot)?.0;
                self.content(id)?.resize(*len as usize, 0);
                Ok(())
            }
            Act::Allocate {
                slot,
                flags,
                offset,
                len,
            } => {
                let content = self.content(self.slot(*slot)?.0)?;
                allocate(content, *flags, *offset as usize, *len as usize);
                Ok(())
            }
            Act::Copy {
                from,
                to,
                from_offset,
                to_offset,
                len,
            } => {
                let source = self.content(self.slot(*from)?.0)?;
                let start = (*from_offset as usize).min(source.len());
                let end = (start + *len as usize).min(source.len());
                let bytes = source[start..end].to_vec();
                let target = self.content(self.slot(*to)?.0)?;
                write(target, *to_offset as usize, &bytes);
                same(told, &Seen::Number(bytes.len() as u64))
            }
            Act::SeekData { slot, offset } => self.sought(*slot, *offset, told, true),
            Act::SeekHole { slot, offset } => self.sought(*slot, *offset, told, false),
            _ => Ok(()),
        }
    }

    /// What was passed over on the way to data is zeros; where a hole begins are zeros, or the end.
    fn sought(&mut self, slot: usize, offset: u32, told: &Seen, data: bool) -> Result<(), String> {
        let Seen::Number(found) = told else {
            return Err(format!("{told:?} is no place"));
        };
        let bytes = self.content(self.slot(slot)?.0)?;
        let (from, found) = (offset as usize, *found as usize);
        let zero = |from: usize, to: usize| {
            let to = to.min(bytes.len());
            bytes[from.min(to)..to].iter().all(|byte| *byte == 0)
        };
        let right = found >= from
            && found <= bytes.len()
            && if data {
                zero(from, found)
            } else {
                zero(found, found + 1)
            };
        if right {
            Ok(())
        } else {
            Err(format!("{found} is not the next place from {from} on"))
        }
    }

    fn slot(&self, slot: usize) -> Result<(Id, How), String> {
        self.slots[slot].ok_or_else(|| format!("nothing is open in slot {slot}"))
    }
}

/// Whether a path's last name is followed when it is a symlink.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Followed,
    Kept,
}

fn same(told: &Seen, must: &Seen) -> Result<(), String> {
    if told == must {
        Ok(())
    } else {
        Err("the caller was told something else than is there".to_owned())
    }
}

fn write(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

fn allocate(content: &mut Vec<u8>, flags: FallocateFlags, offset: usize, len: usize) {
    let end = offset + len;
    if !flags.contains(FallocateFlags::KEEP_SIZE) && content.len() < end {
        content.resize(end, 0);
    }
    if flags.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE) {
        let end = end.min(content.len());
        content[offset.min(end)..end].fill(0);
    }
}
