//! fuser's calls become requests.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs,
    ReplyWrite, ReplyXattr, TimeOrNow, WriteFlags,
};
use mortar_proto::data::Caller;

use super::answer::Form;
use super::convert::{caller_of, lock_ask, maker, open_how, time_change};
use crate::cache::NodeId;
use crate::fs::{AttrChange, Detail, KillSetId};
use crate::kernel::convert::{device_from_kernel, write_how};
use crate::kernel::handler::{Handler, Serve, serve_whatever_comes};
use crate::kernel::request::{Operation, Request};
use crate::kernel::{MAX_BACKGROUND, MAX_WRITE_BYTES};
use crate::options::ListingAttributes;

/// fuser's view of the file system.
pub struct Adapter {
    /// What serves.
    pub handler: Handler,
    /// Whether listings bring attributes.
    pub listing: ListingAttributes,
}

impl Adapter {
    fn serve(&self, caller: Caller, node: INodeNo, op: Operation<'_>, form: Form) {
        let node = NodeId(node.0);
        serve_whatever_comes(&self.handler, Request { caller, node, op }, form);
    }
}

impl Filesystem for Adapter {
    /// Asks the kernel for what the file system builds on; see `own/init.rs` for why.
    fn init(&mut self, _req: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_POSIX_LOCKS
            | InitFlags::FUSE_FLOCK_LOCKS
            | InitFlags::FUSE_POSIX_ACL
            | InitFlags::FUSE_DONT_MASK
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_MAX_PAGES;
        if self.listing == ListingAttributes::Auto {
            wanted |= InitFlags::FUSE_DO_READDIRPLUS;
        }
        if let Err(missing) = config.add_capabilities(wanted) {
            tracing::info!("this kernel's FUSE lacks {missing:?}; the mount does without");
            // What is left is offered by the kernel, so this cannot be refused.
            let _ = config.add_capabilities(wanted & !missing);
        }
        // Both refuse only zero and what is above fuser's own limits.
        let _ = config.set_max_write(MAX_WRITE_BYTES as u32);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, req: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes();
        let op = Operation::Lookup { name };
        self.serve(caller_of(req), parent, op, Form::Entry(reply));
    }

    fn forget(&self, _req: &fuser::Request, ino: INodeNo, nlookup: u64) {
        self.handler.forget(NodeId(ino.0), nlookup);
    }

    fn getattr(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        _fh: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        self.serve(caller_of(req), ino, Operation::GetAttr, Form::Attr(reply));
    }

    fn setattr(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = AttrChange {
            handle: fh.map(|handle| handle.0),
            mode,
            uid,
            gid,
            size,
            atime: atime.map(time_change),
            mtime: mtime.map(time_change),
            kill: KillSetId::NotTold,
        };
        let op = Operation::SetAttr(change);
        self.serve(caller_of(req), ino, op, Form::Attr(reply));
    }

    fn readlink(&self, req: &fuser::Request, ino: INodeNo, reply: ReplyData) {
        self.serve(caller_of(req), ino, Operation::ReadLink, Form::Data(reply));
    }

    fn mknod(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let op = Operation::MkNod {
            name: name.as_bytes(),
            mode,
            rdev: device_from_kernel(rdev),
        };
        self.serve(maker(req, umask), parent, op, Form::Entry(reply));
    }

    fn mkdir(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let op = Operation::MkNod {
            name: name.as_bytes(),
            mode: libc::S_IFDIR | mode & !libc::S_IFMT,
            rdev: 0,
        };
        self.serve(maker(req, umask), parent, op, Form::Entry(reply));
    }

    fn symlink(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let op = Operation::Symlink {
            name: link_name.as_bytes(),
            target: target.as_os_str().as_bytes(),
        };
        self.serve(caller_of(req), parent, op, Form::Entry(reply));
    }

    fn link(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let op = Operation::Link {
            of: NodeId(ino.0),
            name: newname.as_bytes(),
        };
        self.serve(caller_of(req), newparent, op, Form::Entry(reply));
    }

    fn unlink(&self, req: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes();
        let op = Operation::Unlink { name };
        self.serve(caller_of(req), parent, op, Form::Empty(reply));
    }

    fn rmdir(&self, req: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes();
        let op = Operation::RmDir { name };
        self.serve(caller_of(req), parent, op, Form::Empty(reply));
    }

    fn rename(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let op = Operation::Rename {
            name: name.as_bytes(),
            to: NodeId(newparent.0),
            to_name: newname.as_bytes(),
            flags: flags.bits(),
        };
        self.serve(caller_of(req), parent, op, Form::Empty(reply));
    }

    fn open(&self, req: &fuser::Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let op = Operation::Open(open_how(flags.0));
        self.serve(caller_of(req), ino, op, Form::Open(reply));
    }

    fn create(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let op = Operation::Create {
            name: name.as_bytes(),
            mode,
            how: open_how(flags),
        };
        self.serve(maker(req, umask), parent, op, Form::Create(reply));
    }

    fn read(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let op = Operation::Read {
            handle: fh.0,
            offset,
            len: size,
        };
        self.serve(caller_of(req), ino, op, Form::Data(reply));
    }

    fn write(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let op = Operation::Write {
            handle: fh.0,
            offset,
            bytes: data,
            how: write_how(write_flags.bits(), flags.0),
        };
        self.serve(caller_of(req), ino, op, Form::Write(reply));
    }

    fn flush(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let op = Operation::Flush {
            handle: fh.0,
            owner: lock_owner.0,
        };
        self.serve(caller_of(req), ino, op, Form::Empty(reply));
    }

    fn release(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let op = Operation::Release { handle: fh.0 };
        self.serve(caller_of(req), ino, op, Form::Empty(reply));
    }

    fn fsync(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let op = Operation::Fsync {
            handle: fh.0,
            data_only: datasync,
        };
        self.serve(caller_of(req), ino, op, Form::Empty(reply));
    }

    fn opendir(&self, req: &fuser::Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.serve(caller_of(req), ino, Operation::OpenDir, Form::Open(reply));
    }

    fn readdir(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let op = Operation::ReadDir {
            handle: fh.0,
            offset,
            detail: Detail::Names,
        };
        self.serve(caller_of(req), ino, op, Form::Directory(reply));
    }

    fn readdirplus(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let op = Operation::ReadDir {
            handle: fh.0,
            offset,
            detail: Detail::Objects,
        };
        self.serve(caller_of(req), ino, op, Form::DirectoryPlus(reply));
    }

    fn releasedir(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let op = Operation::ReleaseDir { handle: fh.0 };
        self.serve(caller_of(req), ino, op, Form::Empty(reply));
    }

    fn fsyncdir(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let op = Operation::FsyncDir {
            handle: fh.0,
            data_only: datasync,
        };
        self.serve(caller_of(req), ino, op, Form::Empty(reply));
    }

    fn statfs(&self, req: &fuser::Request, ino: INodeNo, reply: ReplyStatfs) {
        self.serve(caller_of(req), ino, Operation::StatFs, Form::Statfs(reply));
    }

    fn setxattr(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let op = Operation::SetXattr {
            name: name.as_bytes(),
            value,
            flags: flags as u32,
            kill_sgid: KillSetId::NotTold,
        };
        self.serve(caller_of(req), ino, op, Form::Empty(reply));
    }

    fn getxattr(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let op = Operation::GetXattr {
            name: name.as_bytes(),
            room: size,
        };
        self.serve(caller_of(req), ino, op, Form::Xattr(reply));
    }

    fn listxattr(&self, req: &fuser::Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let op = Operation::ListXattr { room: size };
        self.serve(caller_of(req), ino, op, Form::Xattr(reply));
    }

    fn removexattr(&self, req: &fuser::Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes();
        let op = Operation::RemoveXattr { name };
        self.serve(caller_of(req), ino, op, Form::Empty(reply));
    }

    fn access(&self, req: &fuser::Request, ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        self.serve(caller_of(req), ino, Operation::Access, Form::Empty(reply));
    }

    fn getlk(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        match lock_ask(ino, fh, lock_owner, (start, end), typ, pid) {
            Ok(ask) => {
                let op = Operation::GetLock(ask);
                self.serve(caller_of(req), ino, op, Form::Lock(reply));
            }
            Err(error) => reply.error(Errno::from_i32(error.errno())),
        }
    }

    fn setlk(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        match lock_ask(ino, fh, lock_owner, (start, end), typ, pid) {
            Ok(ask) => {
                let may_wait = sleep;
                let op = Operation::SetLock { ask, may_wait };
                self.serve(caller_of(req), ino, op, Form::Empty(reply));
            }
            Err(error) => reply.error(Errno::from_i32(error.errno())),
        }
    }

    fn fallocate(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let op = Operation::Fallocate {
            handle: fh.0,
            mode: mode as u32,
            offset,
            len: length,
        };
        self.serve(caller_of(req), ino, op, Form::Empty(reply));
    }

    fn lseek(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let op = Operation::Seek {
            handle: fh.0,
            offset,
            whence,
        };
        self.serve(caller_of(req), ino, op, Form::Lseek(reply));
    }

    fn copy_file_range(
        &self,
        req: &fuser::Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let op = Operation::CopyRange {
            handle: fh_in.0,
            offset: offset_in,
            to: NodeId(ino_out.0),
            to_handle: fh_out.0,
            to_offset: offset_out,
            len,
        };
        self.serve(caller_of(req), ino_in, op, Form::Write(reply));
    }

    fn bmap(&self, _req: &fuser::Request, _ino: INodeNo, _block: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.serve(caller_of(req), ino, Operation::Control, Form::Ioctl(reply));
    }

    fn poll(
        &self,
        _req: &fuser::Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // The kernel then takes every file for ready, which they are, and does not ask again.
        reply.error(Errno::ENOSYS);
    }
}
