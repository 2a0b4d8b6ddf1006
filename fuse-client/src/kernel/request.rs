//! What the kernel asks, whatever loop brought it.

use mortar_proto::data::Caller;

use crate::cache::NodeId;
use crate::fs::{AttrChange, Detail, KillSetId, LockAsk, OpenHow, WriteHow};

/// One request.
#[derive(Debug)]
pub struct Request<'a> {
    /// On whose behalf; its umask is set for what makes an object.
    pub caller: Caller,
    /// The inode it is about; of names, the directory.
    pub node: NodeId,
    /// What is asked.
    pub op: Operation<'a>,
}

/// What is asked, named as the kernel names it.
#[derive(Debug)]
pub enum Operation<'a> {
    Lookup {
        name: &'a [u8],
    },
    GetAttr,
    SetAttr(AttrChange),
    ReadLink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    /// Of mkdir(2) as well: then the mode says so.
    MkNod {
        name: &'a [u8],
        mode: u32,
        /// As `makedev` puts it together.
        rdev: u64,
    },
    Unlink {
        name: &'a [u8],
    },
    RmDir {
        name: &'a [u8],
    },
    Rename {
        name: &'a [u8],
        to: NodeId,
        to_name: &'a [u8],
        /// As renameat2(2) has them.
        flags: u32,
    },
    /// The request's node is the directory of the new name.
    Link {
        of: NodeId,
        name: &'a [u8],
    },
    Open(OpenHow),
    Create {
        name: &'a [u8],
        mode: u32,
        how: OpenHow,
    },
    /// A file without a name in the request's directory (O_TMPFILE).
    CreateUnnamed {
        mode: u32,
        how: OpenHow,
    },
    Read {
        handle: u64,
        offset: u64,
        len: u32,
    },
    Write {
        handle: u64,
        offset: u64,
        bytes: &'a [u8],
        how: WriteHow,
    },
    Flush {
        handle: u64,
        owner: u64,
    },
    Release {
        handle: u64,
    },
    Fsync {
        handle: u64,
        data_only: bool,
    },
    OpenDir,
    ReadDir {
        handle: u64,
        offset: u64,
        detail: Detail,
    },
    ReleaseDir {
        handle: u64,
    },
    FsyncDir {
        handle: u64,
        data_only: bool,
    },
    StatFs,
    SetXattr {
        name: &'a [u8],
        value: &'a [u8],
        /// As setxattr(2) has them.
        flags: u32,
        kill_sgid: KillSetId,
    },
    GetXattr {
        name: &'a [u8],
        room: u32,
    },
    ListXattr {
        room: u32,
    },
    RemoveXattr {
        name: &'a [u8],
    },
    Access,
    GetLock(LockAsk),
    SetLock {
        ask: LockAsk,
        may_wait: bool,
    },
    Fallocate {
        handle: u64,
        /// As fallocate(2) has it.
        mode: u32,
        offset: u64,
        len: u64,
    },
    Seek {
        handle: u64,
        offset: i64,
        whence: i32,
    },
    CopyRange {
        handle: u64,
        offset: u64,
        to: NodeId,
        to_handle: u64,
        to_offset: u64,
        len: u64,
    },
    /// There are no controls of ioctl(2).
    Control,
    /// Something this file system leaves to the kernel, which then does without and, as a rule,
    /// does not ask again.
    NotOffered,
}

impl Operation<'_> {
    /// As the kernel calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Operation::Lookup { .. } => "LOOKUP",
            Operation::GetAttr => "GETATTR",
            Operation::SetAttr(_) => "SETATTR",
            Operation::ReadLink => "READLINK",
            Operation::Symlink { .. } => "SYMLINK",
            Operation::MkNod { .. } => "MKNOD",
            Operation::Unlink { .. } => "UNLINK",
            Operation::RmDir { .. } => "RMDIR",
            Operation::Rename { .. } => "RENAME2",
            Operation::Link { .. } => "LINK",
            Operation::Open(_) => "OPEN",
            Operation::Create { .. } => "CREATE",
            Operation::CreateUnnamed { .. } => "TMPFILE",
            Operation::Read { .. } => "READ",
            Operation::Write { .. } => "WRITE",
            Operation::Flush { .. } => "FLUSH",
            Operation::Release { .. } => "RELEASE",
            Operation::Fsync { .. } => "FSYNC",
            Operation::OpenDir => "OPENDIR",
            Operation::ReadDir { .. } => "READDIR",
            Operation::ReleaseDir { .. } => "RELEASEDIR",
            Operation::FsyncDir { .. } => "FSYNCDIR",
            Operation::StatFs => "STATFS",
            Operation::SetXattr { .. } => "SETXATTR",
            Operation::GetXattr { .. } => "GETXATTR",
            Operation::ListXattr { .. } => "LISTXATTR",
            Operation::RemoveXattr { .. } => "REMOVEXATTR",
            Operation::Access => "ACCESS",
            Operation::GetLock(_) => "GETLK",
            Operation::SetLock { .. } => "SETLK",
            Operation::Fallocate { .. } => "FALLOCATE",
            Operation::Seek { .. } => "LSEEK",
            Operation::CopyRange { .. } => "COPY_FILE_RANGE",
            Operation::Control => "IOCTL",
            Operation::NotOffered => "request that is not offered",
        }
    }
}
