//! Directories that this side moved.

use bytes::Bytes;
use mortar_common::{FsError, Gfid};
use mortar_proto::data::RenameMode;

use super::super::base::Place;
use super::super::decide::Held;
use super::super::version::ASIDE;
use super::{DEPTH_MAX, MergeError, Merger, refusable};

/// A directory of the base that is not where this side moved it.
pub(super) struct Unmoved {
    gfid: Gfid,
    from: Place,
    to: Place,
    /// Where the base had it, once it is put aside.
    was: Option<Place>,
}

impl Unmoved {
    pub(super) fn new(from: Place, gfid: Gfid, to: Place) -> Self {
        Unmoved {
            gfid,
            from,
            to,
            was: None,
        }
    }
}

/// Whether a directory of the base makes way for a new one of this side.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// It was moved: its name is free.
    Free,
    /// It will be, when what has its new name is gone.
    Later,
    /// It stays: the new one is joined with it.
    Never,
}

impl Merger<'_> {
    /// Moves a directory as this side did. Where the base moved it too, or would close a circle, its
    /// way stands.
    pub(super) fn move_directory(
        &mut self,
        from: &Place,
        gfid: Gfid,
        to: &Place,
    ) -> Result<bool, MergeError> {
        let how = RenameMode::RenameNoreplace;
        let moved = refusable(self.base.rename(from, gfid, to, how))?;
        self.report.brought += u64::from(moved);
        Ok(moved)
    }

    /// Moves a directory of the base out of the way of `new`, which this side put in its place: to
    /// where this side moved it. What is brought for the new one must not move away with the old.
    pub(super) fn give_way(
        &mut self,
        from: &Place,
        there: Gfid,
        new: Gfid,
        depth: u32,
    ) -> Result<Way, MergeError> {
        if self.left.get(&there) != Some(from) || !self.is_elsewhere(there, Gfid::default()) {
            return Ok(Way::Never);
        }
        let depth = depth.checked_sub(1).ok_or(FsError::Loop)?;
        let parent = self.source.parent_of_dir(there)?;
        let name = self.name_of(parent, there)?;
        if !self.alone.has_name(parent, &name) {
            return Ok(Way::Never);
        }
        if self.is_below(parent, new)? {
            // Its way goes through the new one; it is moved on when it is met there.
            let aside = aside(there);
            let moved = self.move_directory(from, there, &aside)?;
            if moved {
                self.left.insert(there, aside);
            }
            return Ok(if moved { Way::Free } else { Way::Never });
        }
        // It has one try, or two that moved into each other would wait for one another.
        self.left.remove(&there);
        let to = Place::new(self.directory(parent, depth)?, name);
        if self.kept.contains(&to.parent) {
            return Ok(Way::Never);
        }
        let free = match Held::of(self.base.lookup(&to)?.as_ref()) {
            Held::Nothing => true,
            Held::Directory(next) => self.give_way(&to, next, there, depth)? == Way::Free,
            Held::File(_) => false,
        };
        if free && self.move_directory(from, there, &to)? {
            return Ok(Way::Free);
        }
        self.unmoved.push(Unmoved::new(from.clone(), there, to));
        Ok(Way::Later)
    }

    /// Whether the place of a directory that this side made is taken by one of the base that will be
    /// moved away, and cannot be yet.
    pub(super) fn waits_for_its_place(
        &mut self,
        parent: Gfid,
        name: &Bytes,
        new: Gfid,
    ) -> Result<bool, MergeError> {
        if self.directories.contains_key(&new) || self.base.object(new)?.is_some() {
            return Ok(false);
        }
        let place = Place::new(self.directory(parent, DEPTH_MAX)?, name.clone());
        match Held::of(self.base.lookup(&place)?.as_ref()) {
            Held::Directory(there) => {
                Ok(self.give_way(&place, there, new, DEPTH_MAX)? == Way::Later)
            }
            Held::Nothing | Held::File(_) => Ok(false),
        }
    }

    /// Whether a directory of this side is `above` itself, or below it.
    fn is_below(&self, directory: Gfid, above: Gfid) -> Result<bool, MergeError> {
        let mut at = directory;
        for _ in 0..DEPTH_MAX {
            if at == above || at == Gfid::ROOT {
                return Ok(at == above);
            }
            at = self.source.parent_of_dir(at)?;
        }
        Err(FsError::Loop.into())
    }

    /// Moves what could not be moved when it was met: another had to go first. Those that wait for
    /// each other in a circle have one put aside. What the base moved too, or has its place taken,
    /// stays.
    pub(super) fn move_the_rest(&mut self) -> Result<(), MergeError> {
        loop {
            let before = self.unmoved.len();
            let mut left = Vec::new();
            for it in std::mem::take(&mut self.unmoved) {
                if !self.move_directory(&it.from, it.gfid, &it.to)? {
                    left.push(it);
                }
            }
            self.unmoved = left;
            if self.unmoved.is_empty() {
                return Ok(());
            }
            if self.unmoved.len() == before && !self.put_one_aside()? {
                return self.put_back();
            }
        }
    }

    /// Puts the next directory aside that stands in a circle, each at most once.
    fn put_one_aside(&mut self) -> Result<bool, MergeError> {
        for at in 0..self.unmoved.len() {
            let Unmoved { gfid, from, to, .. } = &self.unmoved[at];
            let (gfid, from) = (*gfid, from.clone());
            let held = Held::of(self.base.lookup(to)?.as_ref());
            let waits = |there| self.unmoved.iter().any(|other| other.gfid == there);
            if from.parent == Gfid::SPLIT || !matches!(held, Held::Directory(there) if waits(there))
            {
                continue;
            }
            let aside = aside(gfid);
            if self.move_directory(&from, gfid, &aside)? {
                self.unmoved[at].from = aside;
                self.unmoved[at].was = Some(from);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What was put aside in vain goes where it was.
    fn put_back(&mut self) -> Result<(), MergeError> {
        for it in std::mem::take(&mut self.unmoved) {
            if let Some(was) = it.was {
                self.move_directory(&it.from, it.gfid, &was)?;
            }
        }
        Ok(())
    }
}

fn aside(gfid: Gfid) -> Place {
    Place::version([gfid.to_string().as_bytes(), ASIDE].concat())
}
