//! Operations that change nothing, answered from what is applied here.

use mortar_common::FsError;
use mortar_proto::data::op::Op as OpKind;
use mortar_proto::data::{
    self, GetLock, GetXattr, LockType, Lookup, Object, Op, Read, ReadDir, Result as Answered, Seek,
    Whence, result,
};

use super::context::{check_name, is_dir, is_file, is_symlink, stale};
use super::lock::checked;
use super::xattr::is_private;
use super::{Context, PlanError};

/// Most that one read returns, in bytes.
pub const READ_BYTES_MAX: u32 = 1 << 20;
/// Most that one page of a listing holds, in bytes, so that a reply stays below a frame's bound.
const PAGE_BYTES_MAX: u32 = 1 << 20;

/// Answers an operation that changes nothing; what is read is appended to `payload`.
/// Of the context, `caller`, `limits`, `space` and `held` are not looked at.
///
/// # Errors
/// [`PlanError::Refused`] is the operation's answer. EINVAL also for an operation that changes
/// something.
pub fn read(
    op: &Op,
    context: &Context<'_>,
    payload: &mut Vec<u8>,
) -> Result<data::Result, PlanError> {
    match op.op.as_ref().ok_or(FsError::Invalid)? {
        OpKind::Lookup(op) => lookup(op, context),
        OpKind::Getattr(op) => Ok(of(context.object(context.named(op.gfid)?)?, None)),
        OpKind::Readlink(op) => {
            let object = context.object(context.named(op.gfid)?)?;
            if !is_symlink(&object) {
                return Err(FsError::Invalid.into());
            }
            let text = context
                .store
                .read_link(context.named(op.gfid)?)
                .map_err(stale)?;
            Ok(of(object, Some(result::Ok::Bytes(text))))
        }
        OpKind::Read(op) => read_bytes(op, context, payload),
        OpKind::Readdir(op) => read_dir(op, context),
        OpKind::Statfs(_) => Ok(Answered {
            ok: Some(result::Ok::Statfs(context.store.stat_fs()?)),
            ..Default::default()
        }),
        OpKind::Getxattr(op) => get_xattr(op, context),
        OpKind::Listxattr(op) => {
            let gfid = context.named(op.gfid)?;
            let object = context.object(gfid)?;
            let names = context.store.list_xattr(gfid).map_err(stale)?;
            Ok(of(object, Some(result::Ok::Bytes(names))))
        }
        OpKind::Seek(op) => seek(op, context),
        OpKind::Getlock(op) => get_lock(op, context),
        _ => Err(FsError::Invalid.into()),
    }
}

fn of(object: Object, ok: Option<result::Ok>) -> Answered {
    Answered {
        objects: vec![object],
        ok,
        ..Default::default()
    }
}

fn lookup(op: &Lookup, context: &Context<'_>) -> Result<Answered, PlanError> {
    let parent = context.named(op.parent)?;
    check_name(parent, &op.name)?;
    match super::context::lookup(context.store, parent, &op.name) {
        Ok(Some(object)) => Ok(of(object, None)),
        // Only now is it asked why: a lookup that finds something costs one question.
        Ok(None) => {
            context.directory(parent)?;
            Err(FsError::NotFound.into())
        }
        Err(error) => Err(error),
    }
}

fn read_bytes(
    op: &Read,
    context: &Context<'_>,
    payload: &mut Vec<u8>,
) -> Result<Answered, PlanError> {
    let gfid = context.named(op.gfid)?;
    // The attributes first: their counter may then be older than the bytes, and a cache too soon
    // thrown away, but never newer, and stale bytes kept.
    let object = context.file(gfid)?;
    let before = payload.len();
    context
        .store
        .read(gfid, op.offset, op.len.min(READ_BYTES_MAX), payload)
        .map_err(stale)?;
    // At most READ_BYTES_MAX.
    let len = (payload.len() - before) as u32;
    Ok(of(object, Some(result::Ok::PayloadLen(len))))
}

fn read_dir(op: &ReadDir, context: &Context<'_>) -> Result<Answered, PlanError> {
    let gfid = context.named(op.gfid)?;
    let object = context.directory(gfid)?;
    let page = ReadDir {
        gfid: Some(gfid),
        max_bytes: op.max_bytes.min(PAGE_BYTES_MAX),
        after_name: op.after_name.clone(),
        ..*op
    };
    let page = context.store.read_dir(&page).map_err(stale)?;
    Ok(of(object, Some(result::Ok::Readdir(page))))
}

fn get_xattr(op: &GetXattr, context: &Context<'_>) -> Result<Answered, PlanError> {
    let gfid = context.named(op.gfid)?;
    let object = context.object(gfid)?;
    if is_private(&op.name) {
        return Err(FsError::NoAttribute.into());
    }
    let value = context.store.get_xattr(gfid, &op.name).map_err(stale)?;
    Ok(of(object, Some(result::Ok::Bytes(value))))
}

fn seek(op: &Seek, context: &Context<'_>) -> Result<Answered, PlanError> {
    let gfid = context.named(op.gfid)?;
    let object = context.object(gfid)?;
    if !is_file(&object) || is_dir(&object) {
        return Err(FsError::Invalid.into());
    }
    let hole = match Whence::try_from(op.whence).map_err(|_| FsError::Invalid)? {
        Whence::Data => false,
        Whence::Hole => true,
    };
    if op.offset >= object.size {
        return Err(FsError::NoDevice.into());
    }
    let offset = context.store.seek(gfid, op.offset, hole).map_err(stale)?;
    Ok(of(object, Some(result::Ok::Offset(offset))))
}

/// The lock that stands in the way, or the one asked for with type "unlock" if none does.
fn get_lock(op: &GetLock, context: &Context<'_>) -> Result<Answered, PlanError> {
    let gfid = context.named(op.gfid)?;
    let object = context.object(gfid)?;
    let mut lock = checked(op.lock.as_ref(), context)?;
    match context.ask(|memory| memory.conflicting_lock(gfid, &lock)) {
        Some(other) => lock = other,
        None => lock.set_type(LockType::LockUnlock),
    }
    Ok(of(object, Some(result::Ok::Lock(lock))))
}
