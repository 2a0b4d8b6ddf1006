//! FALLOCATE, LSEEK, COPY_FILE_RANGE.

use mortar_common::FsError;
use mortar_proto::data::{Caller, CopyRange, Fallocate, Seek, Whence, op, result};

use super::handles::File;
use super::{Fs, FsResult, is_ordinary, object_of};
use crate::cache::{NodeId, Wrote};
use crate::session::Effect;

/// Copied in one request; callers ask again for the rest. Bounds how long one change takes.
const COPY_BYTES_MAX: u64 = 64 << 20;

impl Fs {
    /// Reserves, punches or zeroes a range; `mode` as fallocate(2) has it.
    pub fn fallocate(
        &self,
        caller: Caller,
        node: NodeId,
        handle: u64,
        mode: u32,
        range: (u64, u64),
    ) -> FsResult<()> {
        let file = self.handles.file(handle)?;
        let fallocate = Fallocate {
            gfid: Some(file.gfid),
            mode,
            offset: range.0,
            len: range.1,
            kill_suidgid: is_ordinary(&caller),
        };
        let (result, _) = self.change_through(&[&file], caller, op::Op::Fallocate(fallocate))?;
        if let Some(object) = object_of(&result, file.gfid) {
            self.inodes.wrote(node, object.data_counter, Wrote::ByCall);
        }
        Ok(())
    }

    /// SEEK_DATA and SEEK_HOLE; the others the kernel does itself.
    pub fn lseek(&self, caller: Caller, handle: u64, offset: i64, whence: i32) -> FsResult<i64> {
        let file = self.handles.file(handle)?;
        let whence = match whence {
            libc::SEEK_DATA => Whence::Data,
            libc::SEEK_HOLE => Whence::Hole,
            _ => return Err(FsError::Invalid),
        };
        let offset = u64::try_from(offset).map_err(|_| FsError::NoDevice)?;
        let seek = Seek {
            gfid: Some(file.gfid),
            offset,
            whence: whence.into(),
        };
        let ops = vec![op::Op::Seek(seek)];
        let mut answer = self.ask_through(&[&file], caller, ops, &[], Effect::Read)?;
        match answer.take(0)?.ok {
            Some(result::Ok::Offset(found)) => i64::try_from(found).map_err(|_| FsError::Overflow),
            _ => Err(FsError::Io),
        }
    }

    /// Copies on the brick, up to 64 MiB; returns how many bytes were copied.
    pub fn copy_range(
        &self,
        caller: Caller,
        from: (u64, u64),
        to: (NodeId, u64, u64),
        len: u64,
    ) -> FsResult<u32> {
        let (from_file, to_file) = (self.handles.file(from.0)?, self.handles.file(to.1)?);
        let copy = CopyRange {
            from: Some(from_file.gfid),
            from_offset: from.1,
            to: Some(to_file.gfid),
            to_offset: to.2,
            len: len.min(COPY_BYTES_MAX),
            kill_suidgid: is_ordinary(&caller),
        };
        let files: [&File; 2] = [&from_file, &to_file];
        let (result, _) = self.change_through(&files, caller, op::Op::CopyRange(copy))?;
        if let Some(object) = object_of(&result, to_file.gfid) {
            self.inodes.wrote(to.0, object.data_counter, Wrote::ByCall);
        }
        match result.ok {
            Some(result::Ok::Count(count)) => u32::try_from(count).map_err(|_| FsError::Io),
            _ => Err(FsError::Io),
        }
    }
}
