//! Questions every kind of operation asks of the present state.

use mortar_common::name::{PRIVATE_DIR, check_entry_name};
use mortar_common::placement::name_slot;
use mortar_common::{FsError, Gfid};
use mortar_proto::data::{Caller, Object, Presence, SplitWork};

use super::{Context, PlanError};
use crate::brick::store::{BrickError, Store};
use crate::replica::memory::{Memory, Standing};

pub(super) const S_IFMT: u32 = libc::S_IFMT;
pub(super) const S_IFREG: u32 = libc::S_IFREG;
pub(super) const S_IFDIR: u32 = libc::S_IFDIR;
pub(super) const S_IFLNK: u32 = libc::S_IFLNK;
pub(super) const S_ISUID: u32 = libc::S_ISUID;
pub(super) const S_ISGID: u32 = libc::S_ISGID;
/// Permission bits with setuid, setgid and sticky.
pub(super) const PERMISSIONS: u32 = 0o7777;
/// What a new name or object may take of metadata: a block of a directory, an inode, a journal's
/// share.
pub(super) const METADATA_BYTES: u64 = 8192;

pub(super) fn is_dir(object: &Object) -> bool {
    object.mode & S_IFMT == S_IFDIR
}

pub(super) fn is_file(object: &Object) -> bool {
    object.mode & S_IFMT == S_IFREG
}

pub(super) fn is_symlink(object: &Object) -> bool {
    object.mode & S_IFMT == S_IFLNK
}

pub(super) fn has(object: &Object, bit: Presence) -> bool {
    object.presence & bit as u32 != 0
}

/// What a store says of an object's absence, as its answer to one that is named by gfid.
pub(super) fn stale(error: BrickError) -> PlanError {
    match PlanError::from(error) {
        PlanError::Refused(FsError::NotFound) => FsError::Stale.into(),
        other => other,
    }
}

/// An object by its gfid; ESTALE when it is gone.
pub(super) fn object_of(store: &dyn Store, gfid: Gfid) -> Result<Object, PlanError> {
    store.object(gfid).map_err(stale)
}

/// Checks a name that is looked for: the brick's own folder is not there.
pub(super) fn check_name(parent: Gfid, name: &[u8]) -> Result<(), FsError> {
    check_entry_name(name)?;
    if is_private(parent, name) {
        Err(FsError::NotFound)
    } else {
        Ok(())
    }
}

/// Checks a name that is made.
pub(super) fn check_new_name(parent: Gfid, name: &[u8]) -> Result<(), FsError> {
    check_entry_name(name)?;
    if is_private(parent, name) {
        Err(FsError::NotPermitted)
    } else {
        Ok(())
    }
}

fn is_private(parent: Gfid, name: &[u8]) -> bool {
    parent == Gfid::ROOT && name == PRIVATE_DIR.as_bytes()
}

/// What a name holds, `None` = nothing. The parent is known to be a directory.
pub(super) fn lookup(
    store: &dyn Store,
    parent: Gfid,
    name: &[u8],
) -> Result<Option<Object>, PlanError> {
    match store.lookup(parent, name).map_err(PlanError::from) {
        Ok(object) => Ok(Some(object)),
        Err(PlanError::Refused(FsError::NotFound)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The id of an object that came from the store.
pub(super) fn gfid_of(object: &Object) -> Result<Gfid, PlanError> {
    object.gfid.ok_or(PlanError::Refused(FsError::Io))
}

/// The group of what is made in a directory: the directory's own where that is setgid.
pub(super) fn group_of_new(parent: &Object, caller: &Caller) -> u32 {
    match parent.mode & S_ISGID {
        0 => caller.gid,
        _ => parent.gid,
    }
}

/// Mode after setuid and (where the group may execute) setgid are cleared, if that changes it;
/// and whether a capability goes. Only regular files lose them.
pub(super) fn killed(object: &Object, mode: u32) -> (Option<u32>, bool) {
    if !is_file(object) {
        return (None, false);
    }
    let mut after = mode & !S_ISUID;
    if mode & libc::S_IXGRP != 0 {
        after &= !S_ISGID;
    }
    (
        (after != mode).then_some(after),
        has(object, Presence::Capability),
    )
}

impl Context<'_> {
    /// The gfid named, or the previous operation's.
    pub(super) fn named(&self, gfid: Option<Gfid>) -> Result<Gfid, PlanError> {
        gfid.or(self.previous)
            .ok_or(PlanError::Refused(FsError::Invalid))
    }

    pub(super) fn object(&self, gfid: Gfid) -> Result<Object, PlanError> {
        object_of(self.store, gfid)
    }

    /// A directory by its gfid.
    pub(super) fn directory(&self, gfid: Gfid) -> Result<Object, PlanError> {
        let object = self.object(gfid)?;
        if is_dir(&object) {
            Ok(object)
        } else {
            Err(FsError::NotDirectory.into())
        }
    }

    /// A regular file by its gfid: EISDIR for a directory, EINVAL for anything else.
    pub(super) fn file(&self, gfid: Gfid) -> Result<Object, PlanError> {
        let object = self.object(gfid)?;
        if is_file(&object) {
            Ok(object)
        } else if is_dir(&object) {
            Err(FsError::IsDirectory.into())
        } else {
            Err(FsError::Invalid.into())
        }
    }

    /// What an existing name holds, which must be the object meant, if one was named.
    pub(super) fn entry(
        &self,
        parent: Gfid,
        name: &[u8],
        meant: Option<Gfid>,
    ) -> Result<(Gfid, Object), PlanError> {
        let object = lookup(self.store, parent, name)?.ok_or(FsError::NotFound)?;
        let gfid = gfid_of(&object)?;
        if meant.is_some_and(|meant| meant != gfid) {
            return Err(FsError::Stale.into());
        }
        Ok((gfid, object))
    }

    /// Checks the id a client picked for a new object: of its name's slot, and not in use.
    pub(super) fn check_new_gfid(
        &self,
        gfid: Gfid,
        parent: Gfid,
        name: &[u8],
    ) -> Result<(), PlanError> {
        // What a merge makes has, or will have, another name.
        let placed = self.split != SplitWork::SplitNone || gfid.slot() == name_slot(parent, name);
        if !placed || gfid == Gfid::ROOT {
            return Err(FsError::Invalid.into());
        }
        match self.object(gfid) {
            Err(PlanError::Refused(FsError::Stale)) => Ok(()),
            Ok(_) => Err(FsError::Invalid.into()),
            Err(error) => Err(error),
        }
    }

    /// EMLINK when one more link or subdirectory would be above the volume's limit.
    pub(super) fn check_links(&self, object: &Object) -> Result<(), PlanError> {
        if self.limits.links != 0 && object.nlink >= self.limits.links {
            return Err(FsError::TooManyLinks.into());
        }
        Ok(())
    }

    /// Largest size of a file.
    pub(super) fn file_bytes_max(&self) -> u64 {
        let most = i64::MAX as u64;
        if self.limits.file_bytes == 0 {
            most
        } else {
            self.limits.file_bytes.min(most)
        }
    }

    /// ENOSPC when a copy would fall under its reserve.
    pub(super) fn check_space(&self, bytes: u64, objects: u64) -> Result<(), PlanError> {
        if bytes > self.space.bytes_left || objects > self.space.objects_left {
            return Err(FsError::NoSpace.into());
        }
        Ok(())
    }

    /// Asks the memory something.
    pub(super) fn ask<R>(&self, question: impl Fn(&Memory) -> R) -> R
    where
        R: Default,
    {
        let mut answer = R::default();
        self.memory.recall(&mut |memory| answer = question(memory));
        answer
    }

    /// The session must be open to hold anything.
    pub(super) fn check_session(&self) -> Result<(), PlanError> {
        if self.ask(|memory| memory.standing(self.session) == Standing::Known) {
            Ok(())
        } else {
            Err(FsError::NotConnected.into())
        }
    }

    /// ... and have room for one more open.
    pub(super) fn check_open(&self) -> Result<(), PlanError> {
        self.check_session()?;
        if self.ask(|memory| memory.has_room_for_open(self.session)) {
            Ok(())
        } else {
            Err(FsError::NoMemory.into())
        }
    }

    pub(super) fn is_open(&self, gfid: Gfid) -> bool {
        self.ask(|memory| memory.is_open(gfid))
    }
}

/// Room a write of `len` bytes at `offset` may take: none where the file has no holes and does
/// not grow, so that an overwrite still works on a full disk.
pub(super) fn bytes_taken(object: &Object, offset: u64, len: u64) -> u64 {
    let is_whole = object.blocks.saturating_mul(512) >= object.size;
    if is_whole && offset.saturating_add(len) <= object.size {
        0
    } else {
        len
    }
}
