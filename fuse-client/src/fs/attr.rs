//! GETATTR and SETATTR.

use std::time::Duration;

use mortar_common::FsError;
use mortar_proto::data::{Caller, GetAttr, SetAttr, SetTime, op, set_time};

use super::handles::File;
use super::{Fs, FsResult, KillSetId, is_ordinary, own_object};
use crate::cache::{Attrs, NodeId, Timestamp, Wrote};

/// A time to be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimeChange {
    /// To the primary's clock.
    Now,
    /// To this.
    To(Timestamp),
}

/// What SETATTR changes. Nothing at all means: clear capabilities, and setuid and setgid unless root
/// asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)] // Named as in stat(2).
pub struct AttrChange {
    /// The open file that it goes through.
    pub handle: Option<u64>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<TimeChange>,
    pub mtime: Option<TimeChange>,
    pub kill: KillSetId,
}

impl Fs {
    /// Attributes, and how long they may be believed: from the last reply while that is fresh.
    pub fn getattr(&self, caller: Caller, node: NodeId) -> FsResult<(Attrs, Duration)> {
        let gfid = self.inodes.gfid(node)?;
        if let Some(fresh) = self.inodes.fresh(node) {
            self.inodes.tell(node, fresh.0.data_counter);
            return Ok(fresh);
        }
        let get = GetAttr {
            gfid: Some(gfid),
            ..Default::default()
        };
        let answer = self.read_op(caller, op::Op::Getattr(get));
        if let (Err(FsError::Stale), Some(removed)) = (&answer, self.inodes.removed_dir(node)) {
            return Ok((removed, Duration::ZERO));
        }
        let (result, _, sent_at) = answer?;
        let attrs = self
            .inodes
            .learn(own_object(&result)?, sent_at)
            .ok_or(FsError::Io)?;
        self.inodes.tell(node, attrs.data_counter);
        Ok((attrs, self.inodes.time_left(sent_at)))
    }

    /// Changes attributes.
    ///
    /// A change of owner always clears setuid and setgid of a file. Where the kernel does not say
    /// more, a change of size does so for an ordinary user; and a request that sets nothing was sent
    /// before a write, for that alone: root's writes take a capability only.
    pub fn setattr(
        &self,
        caller: Caller,
        node: NodeId,
        change: AttrChange,
    ) -> FsResult<(Attrs, Duration)> {
        let gfid = self.inodes.gfid(node)?;
        let chowns = change.uid.is_some() || change.gid.is_some();
        let clears_only = AttrChange {
            kill: KillSetId::default(),
            handle: None,
            ..change
        } == AttrChange::default();
        let through = change.handle.map(|handle| self.handles.file(handle));
        let through = through.transpose()?;
        let kills = change
            .kill
            .judged(|| (change.size.is_some() || clears_only) && is_ordinary(&caller));
        let setattr = SetAttr {
            gfid: Some(gfid),
            mode: change.mode,
            uid: change.uid,
            gid: change.gid,
            size: change.size,
            atime: change.atime.map(set_time),
            mtime: change.mtime.map(set_time),
            kill_suidgid: chowns || kills,
            drop_capability: clears_only,
        };
        let files: Vec<&File> = through.iter().map(|file| &**file).collect();
        let (result, sent_at) = self.change_through(&files, caller, op::Op::Setattr(setattr))?;
        let attrs = self
            .inodes
            .learn(own_object(&result)?, sent_at)
            .ok_or(FsError::Io)?;
        if change.size.is_some() {
            self.inodes.wrote(node, attrs.data_counter, Wrote::ByCall);
        }
        self.inodes.tell(node, attrs.data_counter);
        Ok((attrs, self.inodes.time_left(sent_at)))
    }
}

fn set_time(change: TimeChange) -> SetTime {
    let when = match change {
        TimeChange::Now => set_time::When::Now(true),
        TimeChange::To(time) => set_time::When::At(time.into()),
    };
    SetTime { when: Some(when) }
}
