//! Making things: CREATE, TMPFILE, MKNOD, MKDIR, SYMLINK, LINK; and READLINK.

use std::time::Instant;

use bytes::Bytes;
use mortar_common::name::check_entry_name;
use mortar_common::{FsError, Gfid};
use mortar_proto::data::{self, Caller, Create, Link, ReadLink, op, result};

use super::open::{OpenHow, Opened};
use super::{Entry, Fs, FsResult, is_ordinary, is_uncertain, own_object};
use crate::cache::NodeId;
use crate::session::Effect;

/// Longest text of a symlink, in bytes.
const TARGET_BYTES_MAX: usize = 4095;

/// What is to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewNode<'a> {
    /// Type and permissions, before the umask.
    pub mode: u32,
    /// Of a device: major and minor as `makedev` puts them together.
    pub rdev: u64,
    /// Of a symlink.
    pub target: &'a [u8],
}

impl Fs {
    /// Makes a file, directory, symlink or special file under a name that must be free.
    pub fn make(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &[u8],
        new: NewNode<'_>,
    ) -> FsResult<Entry> {
        if new.target.len() > TARGET_BYTES_MAX {
            return Err(FsError::NameTooLong);
        }
        let parent_gfid = self.inodes.gfid(parent)?;
        let create = Create {
            rdev: new.rdev,
            target: Bytes::copy_from_slice(new.target),
            exclusive: true,
            ..self.new_object(parent_gfid, name, new.mode)?
        };
        let (result, sent_at) = self.change_op(caller, op::Op::Create(create), Effect::Once)?;
        let object = own_object(&result)?;
        let entry = self.entry(object, sent_at)?;
        self.saw_name(
            parent,
            parent_gfid,
            name,
            &entry,
            object.gfid.ok_or(FsError::Io)?,
        );
        Ok(entry)
    }

    /// Makes and opens a regular file, or opens the one that has come to be there meanwhile.
    ///
    /// The kernel checks no permission on what CREATE opens. So only root is given an existing
    /// file here; for anybody else ESTALE makes the kernel look the name up again and open it in
    /// the ordinary way.
    pub fn create(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        how: OpenHow,
    ) -> FsResult<(Entry, Opened)> {
        let parent_gfid = self.inodes.gfid(parent)?;
        let mode = libc::S_IFREG | mode & !libc::S_IFMT;
        let must_be_new = how.flags & libc::O_EXCL != 0;
        let create = Create {
            exclusive: must_be_new || is_ordinary(&caller),
            open: true,
            ..self.new_object(parent_gfid, name, mode)?
        };
        let (result, sent_at) = match self.create_open(caller, create) {
            Err(FsError::Exists) if !must_be_new => return Err(FsError::Stale),
            outcome => outcome?,
        };
        let object = own_object(&result)?;
        let gfid = object.gfid.ok_or(FsError::Io)?;
        let entry = self.entry(object, sent_at)?;
        self.saw_name(parent, parent_gfid, name, &entry, gfid);
        let opened = if result.created {
            self.register_open(gfid);
            Ok(self.opened(entry.node, gfid, &entry.attrs, how.flags, None))
        } else {
            self.open(caller, entry.node, how)
        };
        match opened {
            Ok(opened) => Ok((entry, opened)),
            Err(error) => {
                self.inodes.forget(entry.node, 1);
                Err(error)
            }
        }
    }

    /// Makes and opens a regular file that has no name, as open(2) with O_TMPFILE does: it goes
    /// with its last descriptor unless [`Fs::link`] names it.
    pub fn create_unnamed(
        &self,
        caller: Caller,
        parent: NodeId,
        mode: u32,
        how: OpenHow,
    ) -> FsResult<(Entry, Opened)> {
        let parent_gfid = self.inodes.gfid(parent)?;
        let gfid = self.new_gfid(parent_gfid, b"");
        let create = Create {
            parent: Some(parent_gfid),
            gfid: Some(gfid),
            mode: libc::S_IFREG | mode & !libc::S_IFMT,
            exclusive: true,
            open: true,
            ..Default::default()
        };
        let (result, sent_at) = self.create_open(caller, create)?;
        let object = own_object(&result)?;
        let entry = self.entry(object, sent_at)?;
        self.inodes.name_removed(object);
        self.register_open(gfid);
        let opened = self.opened(entry.node, gfid, &entry.attrs, how.flags, None);
        Ok((entry, opened))
    }

    /// Gives an object one more name, or its first.
    pub fn link(
        &self,
        caller: Caller,
        node: NodeId,
        parent: NodeId,
        name: &[u8],
    ) -> FsResult<Entry> {
        check_entry_name(name)?;
        let parent_gfid = self.inodes.gfid(parent)?;
        let gfid = self.inodes.gfid(node)?;
        let link = Link {
            gfid: Some(gfid),
            parent: Some(parent_gfid),
            name: Bytes::copy_from_slice(name),
            // The kernel lets nothing else without a name come here.
            unnamed: self.inodes.is_unnamed_here(node),
        };
        let (result, sent_at) = self.change_op(caller, op::Op::Link(link), Effect::Once)?;
        self.inodes.name_made(node);
        let entry = self.entry(own_object(&result)?, sent_at)?;
        self.saw_name(parent, parent_gfid, name, &entry, gfid);
        Ok(entry)
    }

    /// The text of a symlink.
    pub fn readlink(&self, caller: Caller, node: NodeId) -> FsResult<Bytes> {
        let gfid = self.inodes.gfid(node)?;
        let (result, _, _) =
            self.read_op(caller, op::Op::Readlink(ReadLink { gfid: Some(gfid) }))?;
        match result.ok {
            Some(result::Ok::Bytes(target)) => Ok(target),
            _ => Err(FsError::Io),
        }
    }

    fn create_open(&self, caller: Caller, create: Create) -> FsResult<(data::Result, Instant)> {
        let made = create.gfid;
        let outcome = self.change_op(caller, op::Op::Create(create), Effect::Once);
        if let Err(error) = &outcome
            && let Some(gfid) = made.filter(|_| is_uncertain(*error))
        {
            self.register_open(gfid);
            self.session.holdings().close(gfid);
        }
        outcome
    }

    /// The primary has registered an open of an object that nobody else knows yet.
    fn register_open(&self, gfid: Gfid) {
        // Nobody releases it yet, so that this waits for nothing.
        let _ = self.session.holdings().begin_open(gfid, &|| Ok(()));
        self.session.holdings().registered(gfid);
    }

    fn new_object(&self, parent: Gfid, name: &[u8], mode: u32) -> FsResult<Create> {
        check_entry_name(name)?;
        Ok(Create {
            parent: Some(parent),
            name: Bytes::copy_from_slice(name),
            gfid: Some(self.new_gfid(parent, name)),
            mode,
            ..Default::default()
        })
    }
}
