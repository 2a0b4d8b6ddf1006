//! LOOKUP, FORGET, and finding the root.

use std::time::{Duration, Instant};

use bytes::Bytes;
use mortar_common::name::check_entry_name;
use mortar_common::{FsError, Gfid};
use mortar_proto::data::{Caller, GetAttr, Lookup, Object, Op, SplitWork, op};

use super::{Entry, Fs, FsResult, own_object};
use crate::cache::NodeId;
use crate::session::{Call, Effect, Session};

impl Fs {
    /// What a name holds. Absence is [`FsError::NotFound`], and [`Fs::absence_timeout`] says how
    /// long it is believed.
    pub fn lookup(&self, caller: Caller, parent: NodeId, name: &[u8]) -> FsResult<Entry> {
        check_entry_name(name)?;
        let parent_gfid = self.inodes.gfid(parent)?;
        let lookup = Lookup {
            parent: Some(parent_gfid),
            name: Bytes::copy_from_slice(name),
        };
        match self.read_op(caller, op::Op::Lookup(lookup)) {
            Ok((result, _, sent_at)) => {
                let object = own_object(&result)?;
                let entry = self.entry(object, sent_at)?;
                self.retries.looked_up(caller.pid, Some(entry.node));
                self.saw_name(
                    parent,
                    parent_gfid,
                    name,
                    &entry,
                    object.gfid.ok_or(FsError::Io)?,
                );
                Ok(entry)
            }
            Err(error) => {
                self.retries.looked_up(caller.pid, None);
                if error == FsError::NotFound {
                    self.names.remove(parent_gfid, name);
                }
                Err(error)
            }
        }
    }

    /// How long the kernel may believe that a name is absent.
    pub fn absence_timeout(&self) -> Duration {
        self.settings.negative_timeout
    }

    /// The kernel lets go of an inode.
    pub fn forget(&self, node: NodeId, lookups: u64) {
        self.inodes.forget(node, lookups);
    }
}

/// Walks from the volume's root to the directory that is to be the mount's.
pub(super) fn find_root(
    session: &Session,
    subdir: &[Vec<u8>],
) -> Result<(Gfid, Object, Instant), String> {
    let path = |depth: usize| {
        let parts: Vec<_> = subdir[..depth]
            .iter()
            .map(|part| String::from_utf8_lossy(part))
            .collect();
        format!("/{}", parts.join("/"))
    };
    let ask = |op: op::Op, depth: usize| {
        let words = |error: FsError| match error {
            FsError::NotFound => format!("the volume has no folder {}", path(depth)),
            FsError::NotDirectory => format!("{} of the volume is not a folder", path(depth)),
            error => format!(
                "the volume's folder {} cannot be read: {error}",
                path(depth)
            ),
        };
        let ops = vec![Op { op: Some(op) }];
        let call = Call {
            caller: Caller::default(),
            ops,
            payload: &[],
            effect: Effect::Read,
            split: SplitWork::SplitNone,
            locks_lost: &[],
        };
        let mut answer = session.call(call).map_err(words)?;
        let result = answer.take(0).map_err(words)?;
        let object = *own_object(&result).map_err(words)?;
        if object.mode & libc::S_IFMT != libc::S_IFDIR {
            return Err(words(FsError::NotDirectory));
        }
        let gfid = object.gfid.ok_or_else(|| words(FsError::Io))?;
        Ok((gfid, object, answer.sent_at))
    };
    let mut found = ask(
        op::Op::Getattr(GetAttr {
            gfid: Some(Gfid::ROOT),
            ..Default::default()
        }),
        0,
    )?;
    for (at, name) in subdir.iter().enumerate() {
        let lookup = Lookup {
            parent: Some(found.0),
            name: Bytes::copy_from_slice(name),
        };
        found = ask(op::Op::Lookup(lookup), at + 1)?;
    }
    Ok(found)
}
