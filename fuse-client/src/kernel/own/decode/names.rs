//! Requests about names and attributes.

use super::{
    ACCESS, DecodeError, Fields, GETATTR, GETXATTR, Head, LINK, LISTXATTR, LOOKUP, MKDIR, MKNOD,
    READLINK, REMOVEXATTR, RENAME, RENAME2, RMDIR, SETATTR, SETXATTR, STATFS, SYMLINK, UNLINK,
};
use crate::cache::{NodeId, Timestamp};
use crate::fs::{AttrChange, KillSetId, TimeChange};
use crate::kernel::convert::device_from_kernel;
use crate::kernel::request::{Operation, Request};

/// `None` = the operation is none of these.
pub(super) fn decode<'a>(
    opcode: u32,
    head: Head,
    fields: &mut Fields<'a>,
) -> Result<Option<Request<'a>>, DecodeError> {
    Ok(Some(head.request(match opcode {
        MKNOD => return mknod(head, fields).map(Some),
        MKDIR => return mkdir(head, fields).map(Some),
        LOOKUP => Operation::Lookup {
            name: fields.name()?,
        },
        GETATTR => Operation::GetAttr,
        SETATTR => Operation::SetAttr(attr_change(fields)?),
        READLINK => Operation::ReadLink,
        SYMLINK => Operation::Symlink {
            name: fields.name()?,
            target: fields.name()?,
        },
        UNLINK => Operation::Unlink {
            name: fields.name()?,
        },
        RMDIR => Operation::RmDir {
            name: fields.name()?,
        },
        RENAME | RENAME2 => rename(opcode, fields)?,
        LINK => Operation::Link {
            of: NodeId(fields.u64()?),
            name: fields.name()?,
        },
        STATFS => Operation::StatFs,
        SETXATTR => set_xattr(fields)?,
        GETXATTR => {
            let room = room(fields)?;
            let name = fields.name()?;
            Operation::GetXattr { name, room }
        }
        LISTXATTR => Operation::ListXattr {
            room: room(fields)?,
        },
        REMOVEXATTR => Operation::RemoveXattr {
            name: fields.name()?,
        },
        ACCESS => Operation::Access,
        _ => return Ok(None),
    })))
}

fn mknod<'a>(head: Head, fields: &mut Fields<'a>) -> Result<Request<'a>, DecodeError> {
    let (mode, rdev, umask) = (fields.u32()?, fields.u32()?, fields.u32()?);
    fields.u32()?;
    let op = Operation::MkNod {
        name: fields.name()?,
        mode,
        rdev: device_from_kernel(rdev),
    };
    Ok(head.with_umask(umask).request(op))
}

fn mkdir<'a>(head: Head, fields: &mut Fields<'a>) -> Result<Request<'a>, DecodeError> {
    let (mode, umask) = (fields.u32()?, fields.u32()?);
    let op = Operation::MkNod {
        name: fields.name()?,
        mode: libc::S_IFDIR | mode & !libc::S_IFMT,
        rdev: 0,
    };
    Ok(head.with_umask(umask).request(op))
}

fn rename<'a>(opcode: u32, fields: &mut Fields<'a>) -> Result<Operation<'a>, DecodeError> {
    let to = NodeId(fields.u64()?);
    let flags = if opcode == RENAME2 {
        let flags = fields.u32()?;
        fields.u32()?;
        flags
    } else {
        0
    };
    Ok(Operation::Rename {
        name: fields.name()?,
        to,
        to_name: fields.name()?,
        flags,
    })
}

/// The longer form, which is asked for in INIT.
fn set_xattr<'a>(fields: &mut Fields<'a>) -> Result<Operation<'a>, DecodeError> {
    const ACL_KILL_SGID: u32 = 1 << 0;
    let (len, flags, more) = (fields.u32()?, fields.u32()?, fields.u32()?);
    fields.u32()?;
    Ok(Operation::SetXattr {
        name: fields.name()?,
        value: fields.bytes(len as usize)?,
        flags,
        kill_sgid: kill(more & ACL_KILL_SGID != 0),
    })
}

fn room(fields: &mut Fields<'_>) -> Result<u32, DecodeError> {
    let room = fields.u32()?;
    fields.u32()?;
    Ok(room)
}

/// SETATTR: which fields count is said first.
fn attr_change(fields: &mut Fields<'_>) -> Result<AttrChange, DecodeError> {
    const MODE: u32 = 1 << 0;
    const UID: u32 = 1 << 1;
    const GID: u32 = 1 << 2;
    const SIZE: u32 = 1 << 3;
    const ATIME: u32 = 1 << 4;
    const MTIME: u32 = 1 << 5;
    const HANDLE: u32 = 1 << 6;
    const ATIME_NOW: u32 = 1 << 7;
    const MTIME_NOW: u32 = 1 << 8;
    const KILL_SUIDGID: u32 = 1 << 11;
    let valid = fields.u32()?;
    fields.u32()?;
    let (handle, size, _lock_owner) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let (atime, mtime, _ctime) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let (atime_nanos, mtime_nanos, _ctime_nanos) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let mode = fields.u32()?;
    fields.u32()?;
    let (uid, gid) = (fields.u32()?, fields.u32()?);
    let time = |set: u32, now: u32, secs: u64, nanos: u32| {
        if valid & set == 0 {
            None
        } else if valid & now != 0 {
            Some(TimeChange::Now)
        } else {
            Some(TimeChange::To(Timestamp {
                // Of any value: before 1970 it is negative.
                secs: secs as i64,
                nanos: nanos.min(999_999_999),
            }))
        }
    };
    // Of a size the kernel says whether bits go; of nothing at all, which it sends before a write
    // to a file that has such bits or a capability, it does not.
    let kill = match valid {
        valid if valid & KILL_SUIDGID != 0 => KillSetId::Yes,
        valid if valid & SIZE != 0 => KillSetId::No,
        _ => KillSetId::NotTold,
    };
    Ok(AttrChange {
        handle: (valid & HANDLE != 0).then_some(handle),
        mode: (valid & MODE != 0).then_some(mode),
        uid: (valid & UID != 0).then_some(uid),
        gid: (valid & GID != 0).then_some(gid),
        size: (valid & SIZE != 0).then_some(size),
        atime: time(ATIME, ATIME_NOW, atime, atime_nanos),
        mtime: time(MTIME, MTIME_NOW, mtime, mtime_nanos),
        kill,
    })
}

pub(super) fn kill(told: bool) -> KillSetId {
    match told {
        true => KillSetId::Yes,
        false => KillSetId::No,
    }
}
