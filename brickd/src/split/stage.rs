//! Bringing one object whole to the base: made in the folder of versions, durable before it is
//! named where it belongs.

use bytes::Bytes;
use mortar_common::{FsError, Gfid};
use mortar_proto::data::set_time::When;
use mortar_proto::data::{HealObjectStep, Object, SetAttr, SetTime, Time};

use super::base::{Hands, Place};
use super::merge::MergeError;
use crate::brick::HealSource;

/// Bytes brought, or compared, in one request.
const PIECE_BYTES: u32 = 512 << 10;

/// Makes `gfid` at `place` on the base as `of` is on this side.
pub(super) fn stage(
    side: &dyn HealSource,
    base: Hands<'_>,
    of: Gfid,
    gfid: Gfid,
    place: &Place,
) -> Result<(), MergeError> {
    let whole = side.heal_object(of)?;
    let object = whole.object.unwrap_or_default();
    if let Some(left) = base.lookup(place)?.and_then(|left| left.gfid) {
        // Of an attempt that was cut off.
        base.unlink(place, left)?;
    }
    base.make(place, gfid, &object, &whole.target)?;
    if object.mode & libc::S_IFMT == libc::S_IFREG {
        content(side, base, of, gfid)?;
    }
    set_all(base, gfid, &whole)?;
    base.sync(gfid)?;
    Ok(())
}

fn content(side: &dyn HealSource, base: Hands<'_>, of: Gfid, gfid: Gfid) -> Result<(), MergeError> {
    let mut at = 0;
    while let Some((offset, len, hole)) = side.next_extent(of, at)? {
        at = offset + len;
        let mut from = offset;
        while !hole && from < at {
            let mut piece = Vec::new();
            let wanted = u64::from(PIECE_BYTES).min(at - from) as u32;
            side.read(of, from, wanted, &mut piece)?;
            if piece.is_empty() {
                break;
            }
            base.write(gfid, from, &piece)?;
            from += piece.len() as u64;
        }
    }
    Ok(())
}

/// xattrs, owner, mode, size and times, in an order in which none undoes another.
///
/// # Errors
/// What the base answers.
pub fn set_all(base: Hands<'_>, gfid: Gfid, whole: &HealObjectStep) -> Result<(), MergeError> {
    let object = whole.object.unwrap_or_default();
    for xattr in &whole.xattrs {
        base.set_xattr(gfid, &xattr.name, &xattr.value)?;
    }
    let regular = object.mode & libc::S_IFMT == libc::S_IFREG;
    let symlink = object.mode & libc::S_IFMT == libc::S_IFLNK;
    base.set(SetAttr {
        gfid: Some(gfid),
        mode: None,
        size: regular.then_some(object.size),
        ..owner(&object)
    })?;
    base.set(SetAttr {
        gfid: Some(gfid),
        mode: (!symlink).then_some(object.mode & 0o7777),
        atime: at(object.atime),
        mtime: at(object.mtime),
        ..Default::default()
    })?;
    Ok(())
}

/// Owner, mode and xattrs of a directory.
pub(super) fn set_directory(
    side: &dyn HealSource,
    base: Hands<'_>,
    of: Gfid,
    gfid: Gfid,
) -> Result<(), MergeError> {
    let whole = side.heal_object(of)?;
    let object = whole.object.unwrap_or_default();
    for xattr in &whole.xattrs {
        base.set_xattr(gfid, &xattr.name, &xattr.value)?;
    }
    base.set(SetAttr {
        gfid: Some(gfid),
        ..owner(&object)
    })?;
    base.set(SetAttr {
        gfid: Some(gfid),
        mode: Some(object.mode & 0o7777),
        ..Default::default()
    })?;
    Ok(())
}

fn owner(object: &Object) -> SetAttr {
    SetAttr {
        uid: Some(object.uid),
        gid: Some(object.gid),
        ..Default::default()
    }
}

fn at(time: Option<Time>) -> Option<SetTime> {
    time.map(|time| SetTime {
        when: Some(When::At(time)),
    })
}

/// Whether both sides hold the same under different circumstances: type, owner, mode, content.
pub(super) fn is_same(
    side: &dyn HealSource,
    base: Hands<'_>,
    mine: Gfid,
    theirs: &Object,
) -> Result<bool, MergeError> {
    let whole = side.heal_object(mine)?;
    let object = whole.object.unwrap_or_default();
    let gfid = theirs.gfid.unwrap_or_default();
    let alike = object.mode == theirs.mode
        && (object.uid, object.gid) == (theirs.uid, theirs.gid)
        && object.rdev == theirs.rdev
        && object.size == theirs.size
        && whole.xattrs.is_empty()
        && theirs.presence == 0;
    if !alike {
        return Ok(false);
    }
    match object.mode & libc::S_IFMT {
        libc::S_IFREG => same_content(side, base, mine, gfid, object.size),
        libc::S_IFLNK => Ok(base.read_link(gfid)? == whole.target),
        _ => Ok(true),
    }
}

fn same_content(
    side: &dyn HealSource,
    base: Hands<'_>,
    mine: Gfid,
    theirs: Gfid,
    size: u64,
) -> Result<bool, MergeError> {
    let mut at = 0;
    while at < size {
        let mut piece = Vec::new();
        side.read(mine, at, PIECE_BYTES, &mut piece)?;
        let other = match base.read(theirs, at, PIECE_BYTES) {
            Ok(other) => other,
            Err(FsError::Stale | FsError::NotFound) => Bytes::new(),
            Err(error) => return Err(error.into()),
        };
        if piece.is_empty() || piece[..] != other[..] {
            return Ok(false);
        }
        at += piece.len() as u64;
    }
    Ok(true)
}
