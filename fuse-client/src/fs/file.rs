//! READ, WRITE, FSYNC, FSYNCDIR.

use bytes::Bytes;
use mortar_common::{FsError, Gfid};
use mortar_proto::data::{Caller, Fsync, Read, Write, op, result};

use super::handles::File;
use super::notes::Note;
use super::{Fs, FsResult, object_of};
use crate::cache::{NodeId, Wrote};
use crate::session::Effect;

/// What the kernel says of a write besides its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WriteHow {
    /// O_APPEND: the primary picks the offset.
    pub append: bool,
    /// O_SYNC or O_DSYNC.
    pub sync: bool,
    /// A page of a shared mapping: never extends the file.
    pub from_page_cache: bool,
    /// Clears setuid, setgid and capabilities.
    pub kill_suidgid: bool,
}

impl Fs {
    /// Up to `len` bytes from `offset`; fewer only at the end of the file.
    pub fn read(
        &self,
        caller: Caller,
        node: NodeId,
        handle: u64,
        offset: u64,
        len: u32,
    ) -> FsResult<Bytes> {
        let file = self.handles.file(handle)?;
        file.usable()?;
        let counter = self.inodes.last(node).map_or(0, |attrs| attrs.data_counter);
        let believed = self.settings.attribute_timeout;
        if let Some(bytes) = file.head(offset, len, counter, believed) {
            return Ok(bytes);
        }
        let read = Read {
            gfid: Some(file.gfid),
            offset,
            len,
        };
        let ops = vec![op::Op::Read(read)];
        let mut answer = self.ask_through(&[&file], caller, ops, &[], Effect::Read)?;
        let (result, payload) = (answer.take(0)?, answer.payload);
        match result.ok {
            Some(result::Ok::PayloadLen(got)) if got <= len && got as usize <= payload.len() => {
                Ok(payload.slice(..got as usize))
            }
            _ => Err(FsError::Io),
        }
    }

    /// Writes all of `bytes`, or fails; returns how many were written.
    pub fn write(
        &self,
        caller: Caller,
        node: NodeId,
        handle: u64,
        offset: u64,
        bytes: &[u8],
        how: WriteHow,
    ) -> FsResult<u32> {
        let file = self.handles.file(handle)?;
        let len = u32::try_from(bytes.len()).map_err(|_| FsError::Invalid)?;
        let write = Write {
            gfid: Some(file.gfid),
            offset,
            len,
            append: how.append,
            kill_suidgid: how.kill_suidgid,
            from_page_cache: how.from_page_cache,
            sync: how.sync,
        };
        let effect = if how.append {
            Effect::Once
        } else {
            Effect::Overwrites
        };
        let ops = vec![op::Op::Write(write)];
        // The kernel writes a page through any handle that may write, whoever changed it: one that
        // a lock was lost on holds up them all.
        let all = match how.from_page_cache {
            true => self.handles.of(file.gfid),
            false => Vec::new(),
        };
        let mut through: Vec<&File> = all.iter().map(|one| &**one).collect();
        through.push(&file);
        let mut answer = self.ask_through(&through, caller, ops, bytes, effect)?;
        let result = answer.take(0)?;
        if let Some(object) = object_of(&result, file.gfid) {
            let wrote = match how.from_page_cache {
                true => Wrote::FromPageCache,
                false => Wrote::ByCall,
            };
            self.inodes.wrote(node, object.data_counter, wrote);
        }
        match result.ok {
            Some(result::Ok::Offset(chosen)) if chosen != offset => {
                // The kernel thinks the bytes lie elsewhere than they do.
                self.notes.push(Note::DropPages { node, then: None });
                Ok(len)
            }
            Some(result::Ok::Count(count)) => Ok(u32::try_from(count).unwrap_or(len).min(len)),
            _ => Ok(len),
        }
    }

    /// Makes a file or directory durable on every in-sync copy.
    pub fn fsync(&self, caller: Caller, gfid: Gfid, data_only: bool) -> FsResult<()> {
        self.change_op(caller, fsync_of(gfid, data_only), Effect::Repeatable)
            .map(|_| ())
    }

    /// [`Fs::fsync`] of an open file.
    pub fn fsync_file(&self, caller: Caller, handle: u64, data_only: bool) -> FsResult<()> {
        let file = self.handles.file(handle)?;
        let ops = vec![fsync_of(file.gfid, data_only)];
        let answer = self.ask_through(&[&file], caller, ops, &[], Effect::Repeatable);
        // Also when it came to pass meanwhile: the sync was made of what was left.
        file.durable.tell(self.session.losses())?;
        answer?.take(0).map(|_| ())
    }

    /// [`Fs::fsync`] of an open directory.
    pub fn fsync_dir(&self, caller: Caller, handle: u64, data_only: bool) -> FsResult<()> {
        let dir = self.handles.dir(handle)?;
        let synced = self.fsync(caller, dir.gfid, data_only);
        dir.durable.tell(self.session.losses())?;
        synced
    }
}

fn fsync_of(gfid: Gfid, data_only: bool) -> op::Op {
    op::Op::Fsync(Fsync {
        gfid: Some(gfid),
        data_only,
    })
}
