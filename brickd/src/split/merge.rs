//! The side that merges: brings what it changed alone to the base.
//!
//! Its own brick stands still meanwhile. Its tree is walked once, from the root, so that every
//! directory is there before what is in it; then what it removed is removed.

mod look;
mod moves;
mod tidy;

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use mortar_common::{BrickId, FsError, Gfid};
use mortar_proto::data::{EpochRef, Object, ReadDir, RenameMode, SplitWork};

use moves::{Unmoved, Way};

use super::base::{Base, Hands, Place};
use super::decide::{self, Change, Favorite, Held, Mine, Step, Winner};
use super::stage::{is_same, set_directory, stage};
use super::version::{PAGE_BYTES, PATH_XATTR, Version};
use crate::brick::{BrickError, HealSource};
use crate::heal::Marks;

/// How often a name is looked at again that changes under the merge's eyes; then its turn is over
/// until the merge begins anew.
const ATTEMPTS_MAX: u32 = 8;
/// Directories between the root and what is merged; deeper is taken for a damaged tree.
const DEPTH_MAX: u32 = 4_096;

/// Tells the ids of versions from those of what was brought.
const VERSION_SEED: u64 = 1;

/// Why a merge was cut off. It begins anew later, and finds in place what is done.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// The base answers otherwise than it should.
    #[error("the other side: {0}")]
    Base(#[from] FsError),
    /// The own brick cannot be read.
    #[error(transparent)]
    Side(#[from] BrickError),
    /// A name did not come to rest.
    #[error("{0} changes all the time")]
    Restless(String),
}

/// What a merge came to.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Report {
    /// Files and names that were brought.
    pub brought: u64,
    /// Names that were removed.
    pub removed: u64,
    /// Files in conflict.
    pub conflicts: u64,
}

/// Of which side's time alone a merge is.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    /// The brick that merges.
    pub brick: BrickId,
    /// The epoch it made.
    pub epoch: EpochRef,
    /// Which version of a conflict is taken without asking.
    pub favorite: Favorite,
}

/// One merge.
pub struct Merger<'a> {
    source: &'a dyn HealSource,
    alone: Marks,
    base: Hands<'a>,
    side: Side,
    /// Directories of this side and what they are at the base.
    directories: HashMap<Gfid, Gfid>,
    /// Objects that the base has under names that this side gave up.
    left: HashMap<Gfid, Place>,
    /// Objects of this side and what was brought for them.
    brought: HashMap<Gfid, Gfid>,
    /// Changed objects that the base has otherwise.
    unlike: HashSet<Gfid>,
    /// Directories of the base that are versions, or lie in one: nothing of the base's own may get
    /// there.
    kept: HashSet<Gfid>,
    /// Directories that could not be moved yet.
    unmoved: Vec<Unmoved>,
    /// Directories that this side made where the base has one that is moved away later: what is
    /// brought for them must not move away with it.
    postponed: Vec<(Gfid, Bytes, Gfid)>,
    /// Names of files where the base has a directory: it may go, or be moved, later.
    blocked: Vec<(Gfid, Bytes, Gfid)>,
    report: Report,
}

impl<'a> Merger<'a> {
    /// Of what `alone` says that this side changed.
    pub fn new(source: &'a dyn HealSource, alone: Marks, base: &'a dyn Base, side: Side) -> Self {
        Merger {
            source,
            alone,
            base: Hands::new(base, SplitWork::SplitMerge),
            side,
            directories: HashMap::from([(Gfid::ROOT, Gfid::ROOT)]),
            left: HashMap::new(),
            brought: HashMap::new(),
            unlike: HashSet::new(),
            kept: HashSet::new(),
            unmoved: Vec::new(),
            postponed: Vec::new(),
            blocked: Vec::new(),
            report: Report::default(),
        }
    }

    /// Merges all of it.
    ///
    /// # Errors
    /// Why it was cut off.
    pub fn run(mut self) -> Result<Report, MergeError> {
        if self.alone.is_empty() {
            return Ok(self.report);
        }
        self.base.ensure_versions()?;
        self.clear_unfinished()?;
        self.find_kept()?;
        self.find_what_was_left()?;
        if self.alone.has_changed(Gfid::ROOT) {
            self.bring_directory(Gfid::ROOT, Gfid::ROOT)?;
        }
        self.walk_from(Gfid::ROOT)?;
        loop {
            // A passing name counts as a link: none may be left where links are counted.
            self.clear_unfinished()?;
            self.remove()?;
            self.move_the_rest()?;
            let postponed = std::mem::take(&mut self.postponed);
            if postponed.is_empty() {
                break;
            }
            // Each has one more turn: where the base's directory is still in its place, that stays.
            for (parent, name, gfid) in postponed {
                self.visit_directory(parent, &name, gfid, Blocked::Keep)?;
                self.walk_from(gfid)?;
            }
        }
        for (parent, name, gfid) in std::mem::take(&mut self.blocked) {
            self.visit_file(parent, &name, gfid, Blocked::Keep)?;
        }
        // What had to wait for these.
        self.clear_unfinished()?;
        self.remove()?;
        self.clear_unfinished()?;
        self.base.remove_empty_versions()?;
        Ok(self.report)
    }

    /// Names that the base still has and this side gave up: what they hold may have moved.
    fn find_what_was_left(&mut self) -> Result<(), MergeError> {
        for (parent, name) in self.alone.all_names() {
            let place = Place::new(parent, name);
            let there = self.base.lookup(&place)?.and_then(|object| object.gfid);
            if let Some(gfid) = there
                && self.at_side(parent, &place.name)?.and_then(|it| it.gfid) != Some(gfid)
            {
                self.left.insert(gfid, place);
            }
        }
        Ok(())
    }

    fn walk_from(&mut self, top: Gfid) -> Result<(), MergeError> {
        let mut directories = vec![top];
        while let Some(directory) = directories.pop() {
            self.walk(directory, &mut directories)?;
        }
        Ok(())
    }

    fn walk(&mut self, directory: Gfid, below: &mut Vec<Gfid>) -> Result<(), MergeError> {
        let mut page = ReadDir {
            gfid: Some(directory),
            max_bytes: PAGE_BYTES,
            ..Default::default()
        };
        loop {
            let listed = self.source.read_dir(&page)?;
            for entry in &listed.entries {
                let Some(gfid) = entry.gfid.filter(|gfid| *gfid != Gfid::SPLIT) else {
                    continue;
                };
                if entry.r#type << 12 == libc::S_IFDIR {
                    let come_back = Blocked::ComeBack;
                    match self.visit_directory(directory, &entry.name, gfid, come_back)? {
                        Settled::Done => below.push(gfid),
                        Settled::Blocked => {
                            self.postponed.push((directory, entry.name.clone(), gfid));
                        }
                    }
                } else {
                    self.visit_file(directory, &entry.name, gfid, Blocked::ComeBack)?;
                }
            }
            let Some(last) = listed.entries.last().filter(|_| !listed.end) else {
                return Ok(());
            };
            (page.after_hash, page.after_name) = (last.hash, last.name.clone());
        }
    }

    fn visit_directory(
        &mut self,
        parent: Gfid,
        name: &Bytes,
        gfid: Gfid,
        blocked: Blocked,
    ) -> Result<Settled, MergeError> {
        if self.alone.has_name(parent, name) {
            if let Some(from) = self.left.get(&gfid).cloned() {
                let to = Place::new(self.directory(parent, DEPTH_MAX)?, name.clone());
                let free = !self.kept.contains(&to.parent);
                if free && !self.move_directory(&from, gfid, &to)? {
                    self.unmoved.push(Unmoved::new(from, gfid, to));
                }
            }
            if blocked == Blocked::ComeBack && self.waits_for_its_place(parent, name, gfid)? {
                return Ok(Settled::Blocked);
            }
            self.directory(gfid, DEPTH_MAX)?;
        }
        if self.alone.has_changed(gfid) {
            let there = self.directory(gfid, DEPTH_MAX)?;
            self.bring_directory(gfid, there)?;
        }
        Ok(Settled::Done)
    }

    /// Owner, mode and xattrs of a directory, unless the base changed them too: then its stay.
    fn bring_directory(&self, gfid: Gfid, there: Gfid) -> Result<(), MergeError> {
        match set_directory(self.source, self.base, gfid, there) {
            Err(MergeError::Base(FsError::ChangedByBoth)) => Ok(()),
            done => done,
        }
    }

    /// The directory that stands for this side's at the base: itself; one of the same name, which
    /// it is joined with; or one made now.
    fn directory(&mut self, gfid: Gfid, depth: u32) -> Result<Gfid, MergeError> {
        if let Some(known) = self.directories.get(&gfid) {
            return Ok(*known);
        }
        let there = self.base.object(gfid)?;
        let found = if there.is_some_and(|it| is_directory(&it)) {
            gfid
        } else {
            self.make_directory(gfid, depth)?
        };
        self.directories.insert(gfid, found);
        Ok(found)
    }

    fn make_directory(&mut self, gfid: Gfid, depth: u32) -> Result<Gfid, MergeError> {
        let depth = depth.checked_sub(1).ok_or(FsError::Loop)?;
        let parent = self.source.parent_of_dir(gfid)?;
        let name = self.name_of(parent, gfid)?;
        let place = Place::new(self.directory(parent, depth)?, name);
        let object = self.source.object(gfid)?;
        for _ in 0..ATTEMPTS_MAX {
            match Held::of(self.base.lookup(&place)?.as_ref()) {
                Held::Directory(there)
                    if self.give_way(&place, there, gfid, depth)? == Way::Free => {}
                Held::Directory(there) => return Ok(there),
                Held::Nothing => match self.base.make(&place, gfid, &object, &Bytes::new()) {
                    Ok(()) => {
                        self.report.brought += 1;
                        if self.kept.contains(&place.parent) {
                            self.kept.insert(gfid);
                        }
                        set_directory(self.source, self.base.deciding(), gfid, gfid)?;
                        return Ok(gfid);
                    }
                    Err(FsError::Exists) => {}
                    Err(error) => return Err(error.into()),
                },
                // This side put the directory in the place of a file.
                Held::File(there) => {
                    if !refusable(self.base.unlink(&place, there))? {
                        return self.keep_directory(gfid, there, &object);
                    }
                }
            }
        }
        Err(self.restless(gfid))
    }

    /// A directory where the base has a file: it is kept, with all that is below, as a version.
    fn keep_directory(
        &mut self,
        gfid: Gfid,
        there: Gfid,
        object: &Object,
    ) -> Result<Gfid, MergeError> {
        let version = self.version(there, gfid);
        let place = Place::version(version.name());
        if let Some(found) = self.base.lookup(&place)?.and_then(|found| found.gfid) {
            return Ok(found);
        }
        self.kept.insert(gfid);
        self.base.make(&place, gfid, object, &Bytes::new())?;
        self.say_path(gfid, gfid)?;
        self.report.conflicts += 1;
        Ok(gfid)
    }

    fn visit_file(
        &mut self,
        parent: Gfid,
        name: &Bytes,
        gfid: Gfid,
        blocked: Blocked,
    ) -> Result<(), MergeError> {
        let change = |alone: bool| if alone { Change::Alone } else { Change::Common };
        let mine = Mine {
            gfid,
            name: change(self.alone.has_name(parent, name)),
            object: change(self.alone.has_changed(gfid)),
        };
        if (mine.name, mine.object) == (Change::Common, Change::Common) {
            return Ok(());
        }
        let place = Place::new(self.directory(parent, DEPTH_MAX)?, name.clone());
        for _ in 0..ATTEMPTS_MAX {
            match self.settle(mine, &place, blocked) {
                Ok(Settled::Blocked) => {
                    self.blocked.push((parent, name.clone(), gfid));
                    return Ok(());
                }
                Ok(Settled::Done) => return Ok(()),
                // Somebody was faster: what is there now is looked at again.
                Err(MergeError::Base(
                    FsError::Exists | FsError::IsDirectory | FsError::Stale | FsError::NotFound,
                )) => {}
                Err(error) => return Err(error),
            }
        }
        Err(self.restless(gfid))
    }

    fn settle(
        &mut self,
        mine: Mine,
        place: &Place,
        blocked: Blocked,
    ) -> Result<Settled, MergeError> {
        let held = self.base.lookup(place)?;
        let known = self.find_brought(mine)?;
        let brought = match self.brought.get(&mine.gfid) {
            Some(brought) => *brought,
            None => self.id_of(mine.gfid),
        };
        match decide::file(mine, Held::of(held.as_ref()), brought, known) {
            Step::Nothing => {}
            Step::Name if self.kept.contains(&place.parent) => {
                let (gfid, part) = self.part(mine.gfid, Gfid::default(), known)?;
                let gfid = self.own_copy(mine.gfid, gfid, &part)?;
                let how = RenameMode::RenameNoreplace;
                self.base.rename(&part, gfid, place, how)?;
            }
            Step::Name => self.name(mine.gfid, place)?,
            Step::Bring => {
                let (gfid, part) = self.part(mine.gfid, Gfid::default(), known)?;
                let how = RenameMode::RenameNoreplace;
                self.base.rename(&part, gfid, place, how)?;
                self.now_brought(mine.gfid, gfid, place)?;
            }
            // What is here has its place elsewhere, and may yet be moved there.
            Step::Replace(there)
                if blocked == Blocked::ComeBack && self.is_elsewhere(there, mine.gfid) =>
            {
                return Ok(Settled::Blocked);
            }
            Step::Replace(_) => {
                if let Some(held) = held {
                    self.replace(mine.gfid, place, &held, known)?;
                }
            }
            Step::Keep(_) if blocked == Blocked::ComeBack => return Ok(Settled::Blocked),
            Step::Keep(there) => {
                let version = self.version(there, mine.gfid);
                if self.base.lookup(&Place::version(version.name()))?.is_none() {
                    let (gfid, part) = self.part(mine.gfid, there, known)?;
                    let gfid = self.own_copy(mine.gfid, gfid, &part)?;
                    self.keep(version, gfid, &part)?;
                }
            }
        }
        Ok(Settled::Done)
    }

    /// Whether the base has the object. One that it has as it is here needs not be brought: it is
    /// the same still, or an earlier attempt brought it.
    fn find_brought(&mut self, mine: Mine) -> Result<bool, MergeError> {
        let Some(there) = self.base.object(mine.gfid)? else {
            return Ok(false);
        };
        if self.brought.contains_key(&mine.gfid) || self.unlike.contains(&mine.gfid) {
            return Ok(true);
        }
        let earlier = self.id_of(mine.gfid);
        if self.base.object(earlier)?.is_some() {
            self.brought.insert(mine.gfid, earlier);
        } else if mine.object == Change::Common
            || is_same(self.source, self.base.deciding(), mine.gfid, &there)?
        {
            self.brought.insert(mine.gfid, mine.gfid);
        } else {
            self.unlike.insert(mine.gfid);
        }
        Ok(true)
    }

    /// The base has the object, but not here.
    fn name(&mut self, gfid: Gfid, place: &Place) -> Result<(), MergeError> {
        if let Some(from) = self.left.get(&gfid) {
            let how = RenameMode::RenameNoreplace;
            if refusable(self.base.rename(from, gfid, place, how))? {
                self.report.brought += 1;
                return Ok(());
            }
        }
        self.base.link(gfid, place)?;
        self.report.brought += 1;
        Ok(())
    }

    fn replace(
        &mut self,
        mine: Gfid,
        place: &Place,
        held: &Object,
        known: bool,
    ) -> Result<(), MergeError> {
        let there = held.gfid.unwrap_or_default();
        let same = !self.is_elsewhere(there, mine)
            && is_same(self.source, self.base.deciding(), mine, held)?;
        if same {
            self.brought.insert(mine, there);
            return Ok(());
        }
        let version = self.version(there, mine);
        if self.base.lookup(&Place::version(version.name()))?.is_some() {
            return Ok(()); // A conflict that is known.
        }
        let (gfid, part) = self.part(mine, there, known)?;
        match self
            .base
            .rename(&part, gfid, place, RenameMode::RenameReplace)
        {
            Ok(()) => self.now_brought(mine, gfid, place),
            Err(FsError::ChangedByBoth) => {
                let object = self.source.object(mine)?;
                match decide::favorite(self.side.favorite, held, &object) {
                    Winner::Nobody => {
                        let gfid = self.own_copy(mine, gfid, &part)?;
                        self.keep(version, gfid, &part)
                    }
                    Winner::Base => Ok(self.base.deciding().unlink(&part, gfid)?),
                    Winner::Other => {
                        let deciding = self.base.deciding();
                        deciding.rename(&part, gfid, place, RenameMode::RenameReplace)?;
                        self.now_brought(mine, gfid, place)
                    }
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The object whole in the folder of versions, under a passing name: made now, or one more name
    /// of what was brought for it.
    fn part(&mut self, mine: Gfid, there: Gfid, known: bool) -> Result<(Gfid, Place), MergeError> {
        let part = Place::version(self.version(there, mine).part_name());
        let made = match self.brought.get(&mine) {
            Some(brought) => *brought,
            None if known => self.id_of(mine),
            None => mine,
        };
        if self.base.object(made)?.is_some() {
            match self.base.link(made, &part) {
                Ok(()) | Err(FsError::Exists) => {}
                Err(error) => return Err(error.into()),
            }
        } else {
            stage(self.source, self.base.deciding(), mine, made, &part)?;
        }
        Ok((made, part))
    }

    /// A version is this side's content: not one more name of an object that the base has too, and
    /// may have changed.
    fn own_copy(&mut self, mine: Gfid, made: Gfid, part: &Place) -> Result<Gfid, MergeError> {
        if made != mine || self.brought.get(&mine) != Some(&mine) {
            return Ok(made);
        }
        let base = self.base.deciding();
        base.unlink(part, made)?;
        let copy = self.id_for(mine, VERSION_SEED);
        if base.object(copy)?.is_some() {
            base.link(copy, part)?;
        } else {
            stage(self.source, base, mine, copy, part)?;
        }
        Ok(copy)
    }

    fn now_brought(&mut self, mine: Gfid, gfid: Gfid, place: &Place) -> Result<(), MergeError> {
        self.brought.insert(mine, gfid);
        self.report.brought += 1;
        Ok(self.base.sync(place.parent)?)
    }

    /// Keeps what was brought as the other side's version of a file in conflict.
    fn keep(&mut self, version: Version, gfid: Gfid, part: &Place) -> Result<(), MergeError> {
        self.say_path(version.other, gfid)?;
        let place = Place::version(version.name());
        let how = RenameMode::RenameNoreplace;
        self.base.deciding().rename(part, gfid, &place, how)?;
        self.base.sync(Gfid::SPLIT)?;
        self.report.conflicts += 1;
        Ok(())
    }

    fn say_path(&self, mine: Gfid, there: Gfid) -> Result<(), MergeError> {
        let path = self.source.path_of(mine).unwrap_or_default();
        let value = Bytes::from(path.into_bytes());
        Ok(self.base.deciding().set_xattr(there, PATH_XATTR, &value)?)
    }
}

/// What to do about a directory in the way of a file, or of a new directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Blocked {
    /// Look again at the end.
    ComeBack,
    /// For a file it is a conflict; a directory is joined with it.
    Keep,
}

/// How a name was left.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Settled {
    Done,
    /// A directory is in the way.
    Blocked,
}

/// Whether a change was made; `false` when the base would lose something by it, or it makes no
/// sense there any more.
fn refusable(done: Result<(), FsError>) -> Result<bool, MergeError> {
    match done {
        Ok(()) => Ok(true),
        Err(
            FsError::ChangedByBoth
            | FsError::Exists
            | FsError::Invalid
            | FsError::NotEmpty
            | FsError::NotFound
            | FsError::NotDirectory
            | FsError::IsDirectory
            | FsError::Loop
            | FsError::Stale,
        ) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_directory(object: &Object) -> bool {
    object.mode & libc::S_IFMT == libc::S_IFDIR
}
