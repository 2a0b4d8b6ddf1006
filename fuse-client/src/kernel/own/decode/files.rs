//! Requests about open files and directories.

use mortar_proto::data::LockKind;

use super::names::kill;
use super::{
    Body, COPY_FILE_RANGE, CREATE, DecodeError, FALLOCATE, FLUSH, FSYNC, FSYNCDIR, Fields, GETLK,
    Head, IOCTL, LSEEK, OPEN, OPENDIR, READ, READDIRPLUS, RELEASE, RELEASEDIR, Room, SETLK, SETLKW,
    TMPFILE, WRITE,
};
use crate::cache::NodeId;
use crate::fs::{Detail, LockAsk, LockRange, OpenHow};
use crate::kernel::convert::{lock_type_from_kernel, write_how};
use crate::kernel::request::{Operation, Request};

/// Whatever is not known here is [`Operation::NotOffered`].
pub(super) fn decode<'a>(
    opcode: u32,
    head: Head,
    fields: &mut Fields<'a>,
) -> Result<Request<'a>, DecodeError> {
    Ok(head.request(match opcode {
        CREATE => return create(head, fields),
        TMPFILE => return create_unnamed(head, fields),
        OPEN => {
            let (flags, more) = (fields.u32()?, fields.u32()?);
            Operation::Open(open_how(flags, more))
        }
        READ => {
            let (handle, offset, len) = place(fields)?;
            Operation::Read {
                handle,
                offset,
                len,
            }
        }
        WRITE => write(fields)?,
        FLUSH => {
            let handle = fields.u64()?;
            fields.u64()?;
            let owner = fields.u64()?;
            Operation::Flush { handle, owner }
        }
        RELEASE => Operation::Release {
            handle: fields.u64()?,
        },
        FSYNC => {
            let (handle, data_only) = fsync(fields)?;
            Operation::Fsync { handle, data_only }
        }
        OPENDIR => Operation::OpenDir,
        RELEASEDIR => Operation::ReleaseDir {
            handle: fields.u64()?,
        },
        FSYNCDIR => {
            let (handle, data_only) = fsync(fields)?;
            Operation::FsyncDir { handle, data_only }
        }
        GETLK => Operation::GetLock(lock(head, fields)?),
        SETLK | SETLKW => Operation::SetLock {
            ask: lock(head, fields)?,
            may_wait: opcode == SETLKW,
        },
        FALLOCATE => {
            let (handle, offset, len) = (fields.u64()?, fields.u64()?, fields.u64()?);
            Operation::Fallocate {
                handle,
                mode: fields.u32()?,
                offset,
                len,
            }
        }
        LSEEK => Operation::Seek {
            handle: fields.u64()?,
            offset: fields.u64()? as i64,
            whence: fields.u32()? as i32,
        },
        COPY_FILE_RANGE => Operation::CopyRange {
            handle: fields.u64()?,
            offset: fields.u64()?,
            to: NodeId(fields.u64()?),
            to_handle: fields.u64()?,
            to_offset: fields.u64()?,
            len: fields.u64()?,
        },
        IOCTL => Operation::Control,
        _ => Operation::NotOffered,
    }))
}

pub(super) fn read_dir<'a>(
    opcode: u32,
    head: Head,
    fields: &mut Fields<'a>,
) -> Result<Body<'a>, DecodeError> {
    let (handle, offset, bytes) = place(fields)?;
    let plus = opcode == READDIRPLUS;
    let detail = match plus {
        true => Detail::Objects,
        false => Detail::Names,
    };
    let op = Operation::ReadDir {
        handle,
        offset,
        detail,
    };
    Ok(Body::Listing(head.request(op), Room { bytes, plus }))
}

fn create<'a>(head: Head, fields: &mut Fields<'a>) -> Result<Request<'a>, DecodeError> {
    let (flags, mode) = (fields.u32()?, fields.u32()?);
    let (umask, more) = (fields.u32()?, fields.u32()?);
    let op = Operation::Create {
        name: fields.name()?,
        mode,
        how: open_how(flags, more),
    };
    Ok(head.with_umask(umask).request(op))
}

/// As CREATE, with a name that says nothing.
fn create_unnamed<'a>(head: Head, fields: &mut Fields<'a>) -> Result<Request<'a>, DecodeError> {
    let (flags, mode) = (fields.u32()?, fields.u32()?);
    let (umask, more) = (fields.u32()?, fields.u32()?);
    let how = open_how(flags, more);
    let op = Operation::CreateUnnamed { mode, how };
    Ok(head.with_umask(umask).request(op))
}

fn write<'a>(fields: &mut Fields<'a>) -> Result<Operation<'a>, DecodeError> {
    let (handle, offset, len) = (fields.u64()?, fields.u64()?, fields.u32()?);
    let (write_flags, _lock_owner) = (fields.u32()?, fields.u64()?);
    let open_flags = fields.u32()?;
    fields.u32()?;
    Ok(Operation::Write {
        handle,
        offset,
        bytes: fields.bytes(len as usize)?,
        how: write_how(write_flags, open_flags as i32),
    })
}

/// Handle, offset and length of what reads; the rest of the fields says nothing needed here.
fn place(fields: &mut Fields<'_>) -> Result<(u64, u64, u32), DecodeError> {
    let place = (fields.u64()?, fields.u64()?, fields.u32()?);
    let (_read_flags, _lock_owner) = (fields.u32()?, fields.u64()?);
    let (_open_flags, _padding) = (fields.u32()?, fields.u32()?);
    Ok(place)
}

fn fsync(fields: &mut Fields<'_>) -> Result<(u64, bool), DecodeError> {
    const DATA_ONLY: u32 = 1 << 0;
    let handle = fields.u64()?;
    Ok((handle, fields.u32()? & DATA_ONLY != 0))
}

fn lock(head: Head, fields: &mut Fields<'_>) -> Result<LockAsk, DecodeError> {
    const FLOCK: u32 = 1 << 0;
    let (handle, owner) = (fields.u64()?, fields.u64()?);
    let (start, end) = (fields.u64()?, fields.u64()?);
    let (typ, pid) = (fields.u32()? as i32, fields.u32()?);
    let kind = match fields.u32()? & FLOCK {
        0 => LockKind::LockPosix,
        _ => LockKind::LockFlock,
    };
    Ok(LockAsk {
        node: head.node,
        handle,
        owner,
        pid,
        kind,
        range: LockRange { start, end },
        how: lock_type_from_kernel(typ).map_err(|_| DecodeError::Field)?,
    })
}

fn open_how(flags: u32, more: u32) -> OpenHow {
    const KILL_SUIDGID: u32 = 1 << 0;
    OpenHow {
        flags: flags as i32,
        kill: kill(more & KILL_SUIDGID != 0),
    }
}
