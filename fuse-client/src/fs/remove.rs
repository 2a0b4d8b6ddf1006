//! UNLINK, RMDIR, RENAME: each names the object it means, as the name was last seen to hold it; if
//! the brick finds another there, the name is looked up anew.

use bytes::Bytes;
use mortar_common::name::check_entry_name;
use mortar_common::{FsError, Gfid};
use mortar_proto::data::{Caller, Lookup, Release, Rename, RenameMode, RmDir, Unlink, op};

use super::notes::Note;
use super::{Fs, FsResult, own_object};
use crate::cache::NodeId;
use crate::session::Effect;

/// How often a name may turn out to hold yet another object before the removal is given up.
const TRIES: usize = 4;

/// What RENAME does when the new name is taken, or to the old one.
pub type RenameHow = RenameMode;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Removal {
    Unlink,
    RmDir,
}

impl Fs {
    /// Removes a name of something that is not a directory.
    pub fn unlink(&self, caller: Caller, parent: NodeId, name: &[u8]) -> FsResult<()> {
        self.remove(caller, parent, name, Removal::Unlink)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, caller: Caller, parent: NodeId, name: &[u8]) -> FsResult<()> {
        self.remove(caller, parent, name, Removal::RmDir)
    }

    /// Moves a name.
    pub fn rename(
        &self,
        caller: Caller,
        from: (NodeId, &[u8]),
        to: (NodeId, &[u8]),
        how: RenameHow,
    ) -> FsResult<()> {
        check_entry_name(from.1)?;
        check_entry_name(to.1)?;
        let (from_gfid, to_gfid) = (self.inodes.gfid(from.0)?, self.inodes.gfid(to.0)?);
        let mut moved = self.names.get(from_gfid, from.1);
        let mut replaced = self.names.get(to_gfid, to.1);
        let leaves_whiteout = matches!(
            how,
            RenameMode::RenameWhiteout | RenameMode::RenameWhiteoutNoreplace
        );
        let whiteout = leaves_whiteout.then(|| self.new_gfid(from_gfid, from.1));
        let mut rename = Rename {
            from_parent: Some(from_gfid),
            from_name: Bytes::copy_from_slice(from.1),
            gfid: moved,
            to_parent: Some(to_gfid),
            to_name: Bytes::copy_from_slice(to.1),
            how: how.into(),
            whiteout,
            // Of an exchange alone: the kernel looks up any other new name for the rename itself.
            to_gfid: replaced.filter(|_| how == RenameMode::RenameExchange),
        };
        let is_sure = moved.is_some() || rename.to_gfid.is_some();
        let is_second_try = self.renames.was_refused(caller.pid);
        let outcome = self.change_op(caller, op::Op::Rename(rename.clone()), Effect::Once);
        let (result, _) = match outcome {
            // The kernel would give the new name to the object that it knows by the old one, which
            // another mount has put another in the place of. On ESTALE it looks both names up anew.
            Err(FsError::Stale) if is_sure && !is_second_try => {
                self.names.remove(from_gfid, from.1);
                self.names.remove(to_gfid, to.1);
                self.renames.refused(caller.pid);
                return Err(FsError::Stale);
            }
            // That goes on while the kernel looks: a program gets no error by it.
            Err(FsError::Stale) if is_sure => {
                (rename.gfid, rename.to_gfid) = (None, None);
                (moved, replaced) = (None, None);
                self.change_op(caller, op::Op::Rename(rename), Effect::Once)?
            }
            outcome => outcome?,
        };
        let was_guessed = moved.is_none();
        let moved = moved.or_else(|| result.objects.first().and_then(|object| object.gfid));
        self.names_moved((from_gfid, from.1), (to_gfid, to.1), how, moved, replaced);
        // What the kernel will take the names for may be other objects.
        if how == RenameMode::RenameExchange && replaced.is_none() {
            self.drop_name(from);
        }
        if was_guessed {
            self.drop_name(to);
        }
        if let Some(replaced) = replaced {
            self.inodes.expire(self.inodes.node(replaced));
        }
        // Nothing else can have lost its last name by this.
        result
            .objects
            .iter()
            .for_each(|object| self.inodes.name_removed(object));
        Ok(())
    }

    fn drop_name(&self, (parent, name): (NodeId, &[u8])) {
        let name = name.into();
        self.notes.push(Note::DropName { parent, name });
    }

    fn names_moved(
        &self,
        from: (Gfid, &[u8]),
        to: (Gfid, &[u8]),
        how: RenameHow,
        moved: Option<Gfid>,
        replaced: Option<Gfid>,
    ) {
        match moved {
            Some(moved) => self.names.put(to.0, to.1, moved),
            None => self.names.remove(to.0, to.1),
        }
        match (how, replaced) {
            (RenameMode::RenameExchange, Some(replaced)) => {
                self.names.put(from.0, from.1, replaced);
            }
            _ => self.names.remove(from.0, from.1),
        }
    }

    fn remove(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &[u8],
        removal: Removal,
    ) -> FsResult<()> {
        check_entry_name(name)?;
        let parent_gfid = self.inodes.gfid(parent)?;
        let mut remembered = self.names.get(parent_gfid, name);
        for _ in 0..TRIES {
            let gfid = match remembered.take() {
                Some(gfid) => gfid,
                None => self.look_again(caller, parent_gfid, name)?,
            };
            match self.remove_this(caller, parent_gfid, name, gfid, removal) {
                // Another object, or nothing, is there now: only a new lookup can tell.
                Err(FsError::NotFound | FsError::Stale) => {}
                outcome => {
                    if outcome.is_ok() {
                        self.names.remove(parent_gfid, name);
                    }
                    return outcome;
                }
            }
        }
        Err(FsError::Stale)
    }

    fn look_again(&self, caller: Caller, parent: Gfid, name: &[u8]) -> FsResult<Gfid> {
        let lookup = Lookup {
            parent: Some(parent),
            name: Bytes::copy_from_slice(name),
        };
        let (result, _, _) = self.read_op(caller, op::Op::Lookup(lookup))?;
        own_object(&result)?.gfid.ok_or(FsError::Io)
    }

    /// A file that was just closed is released in the same request, so that it does not have to
    /// be kept as an orphan for a moment.
    fn remove_this(
        &self,
        caller: Caller,
        parent: Gfid,
        name: &[u8],
        gfid: Gfid,
        removal: Removal,
    ) -> FsResult<()> {
        let (parent, gfid_meant) = (Some(parent), Some(gfid));
        let name = Bytes::copy_from_slice(name);
        let op = match removal {
            Removal::Unlink => op::Op::Unlink(Unlink {
                parent,
                name,
                gfid: gfid_meant,
            }),
            Removal::RmDir => op::Op::Rmdir(RmDir {
                parent,
                name,
                gfid: gfid_meant,
            }),
        };
        let holdings = self.session.holdings();
        let waiting = self.session.patience(&caller);
        let go_on = || self.session.may_go_on(&waiting);
        if removal == Removal::RmDir || !holdings.take_if_idle(gfid, &go_on)? {
            return self.remove_alone(caller, op);
        }
        let release = op::Op::Release(Release { gfid: gfid_meant });
        let answer = self.ask(caller, vec![release, op.clone()], &[], Effect::Once);
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                holdings.not_released(&[gfid]);
                return Err(error);
            }
        };
        holdings.released(&[gfid]);
        if answer.take(0).is_err() {
            // The primary knew of no open; the removal was not come to.
            return self.remove_alone(caller, op);
        }
        if let Some(object) = answer.take(1)?.objects.first() {
            self.inodes.name_removed(object);
        }
        Ok(())
    }

    fn remove_alone(&self, caller: Caller, op: op::Op) -> FsResult<()> {
        let (result, _) = self.change_op(caller, op, Effect::Once)?;
        if let Some(object) = result.objects.first() {
            self.inodes.name_removed(object);
        }
        Ok(())
    }
}
