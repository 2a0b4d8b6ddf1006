//! The kernel interface: the only module that names fuser.
//!
//! It turns what the kernel asks into calls of [`Fs`] and answers with what they return. A request
//! is served to its end by the thread that read it; only a lock that must be waited for is handed
//! on, together with its reply.
//!
//! What fuser 0.18 does not pass on, and what follows from it: FUSE_INTERRUPT (waiting requests look
//! at `/proc` for the caller's signals instead), `lk_flags` (flock and fcntl locks exclude each
//! other), FATTR_KILL_SUIDGID and FUSE_OPEN_KILL_SUIDGID (guessed from the caller), a nodeid apart
//! from `st_ino`, O_TMPFILE. A time of `i64::MIN` seconds makes one of its threads panic before it
//! calls us: the request that carried it is never answered and that thread is lost.

mod answer;
mod convert;
mod loops;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use mortar_common::FsError;
use mortar_proto::data::Caller;

use crate::cache::NodeId;
use crate::fs::{AttrChange, Detail, Fs, NewNode, WriteHow};
use convert::{
    Listing, ListingPlus, attr_of, caller_of, device_from_kernel, errno, rename_how, time_change,
};

pub use loops::{Loop, LoopError, Unmounter, mount, serve};

/// Inodes are never used again for another object, so one generation is enough.
const GENERATION: Generation = Generation(0);

/// fuser's view of the file system.
struct Adapter {
    fs: Arc<Fs>,
    readdir_plus: bool,
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let listing = if self.readdir_plus {
            // Not READDIRPLUS_AUTO: it leaves the attributes out after the first page unless
            // something was looked up meanwhile, so each removal of a listed tree would ask for
            // its name first. On the brick an entry with attributes costs a tenth of that request.
            InitFlags::FUSE_DO_READDIRPLUS
        } else {
            InitFlags::empty()
        };
        answer::init(config, listing);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let outcome = self
            .fs
            .lookup(caller_of(req), NodeId(parent.0), name.as_bytes());
        let absence = self.fs.absence_timeout();
        match outcome {
            Err(FsError::NotFound) if !absence.is_zero() => {
                let nothing = attr_of(NodeId(0), &Default::default());
                reply.entry_with_ttls(&Duration::ZERO, &absence, &nothing, GENERATION);
            }
            outcome => answer::entry(reply, outcome),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.fs.forget(NodeId(ino.0), nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        answer::attr(reply, self.fs.getattr(caller_of(req), NodeId(ino.0)));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = AttrChange {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(time_change),
            mtime: mtime.map(time_change),
        };
        answer::attr(
            reply,
            self.fs.setattr(caller_of(req), NodeId(ino.0), change),
        );
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        answer::data(reply, self.fs.readlink(caller_of(req), NodeId(ino.0)));
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let caller = Caller {
            umask,
            ..caller_of(req)
        };
        let new = NewNode {
            mode,
            rdev: device_from_kernel(rdev),
            target: &[],
        };
        answer::entry(
            reply,
            self.fs.make(caller, NodeId(parent.0), name.as_bytes(), new),
        );
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let caller = Caller {
            umask,
            ..caller_of(req)
        };
        let mode = libc::S_IFDIR | mode & !libc::S_IFMT;
        let new = NewNode {
            mode,
            rdev: 0,
            target: &[],
        };
        answer::entry(
            reply,
            self.fs.make(caller, NodeId(parent.0), name.as_bytes(), new),
        );
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes();
        let new = NewNode {
            mode: libc::S_IFLNK | 0o777,
            rdev: 0,
            target,
        };
        let outcome = self
            .fs
            .make(caller_of(req), NodeId(parent.0), link_name.as_bytes(), new);
        answer::entry(reply, outcome);
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let (node, parent) = (NodeId(ino.0), NodeId(newparent.0));
        answer::entry(
            reply,
            self.fs
                .link(caller_of(req), node, parent, newname.as_bytes()),
        );
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer::empty(
            reply,
            self.fs
                .unlink(caller_of(req), NodeId(parent.0), name.as_bytes()),
        );
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer::empty(
            reply,
            self.fs
                .rmdir(caller_of(req), NodeId(parent.0), name.as_bytes()),
        );
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let from = (NodeId(parent.0), name.as_bytes());
        let to = (NodeId(newparent.0), newname.as_bytes());
        let outcome =
            rename_how(flags).and_then(|how| self.fs.rename(caller_of(req), from, to, how));
        answer::empty(reply, outcome);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let node = NodeId(ino.0);
        answer::opened(
            reply,
            node,
            self.fs.open(caller_of(req), node, flags.0),
            self.fs.notes(),
        );
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let caller = Caller {
            umask,
            ..caller_of(req)
        };
        let name = name.as_bytes();
        let outcome = self.fs.create(caller, NodeId(parent.0), name, mode, flags);
        answer::created(reply, outcome);
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        answer::data(
            reply,
            self.fs
                .read(caller_of(req), NodeId(ino.0), fh.0, offset, size),
        );
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let from_page_cache = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let how = WriteHow {
            // A page that is written back knows its place.
            append: flags.0 & libc::O_APPEND != 0 && !from_page_cache,
            sync: flags.0 & libc::O_DSYNC != 0,
            from_page_cache,
            kill_suidgid: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        let outcome = self
            .fs
            .write(caller_of(req), NodeId(ino.0), fh.0, offset, data, how);
        answer::written(reply, outcome);
    }

    fn flush(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        answer::empty(reply, self.fs.flush(caller_of(req), fh.0, lock_owner.0));
    }

    fn release(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        answer::empty(reply, self.fs.release(caller_of(req), fh.0));
    }

    fn fsync(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        answer::empty(reply, self.fs.fsync_file(caller_of(req), fh.0, datasync));
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        answer::dir_opened(reply, self.fs.opendir(caller_of(req), NodeId(ino.0)));
    }

    fn readdir(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let mut listing = Listing(&mut reply);
        match self
            .fs
            .readdir(caller_of(req), fh.0, offset, Detail::Names, &mut listing)
        {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdirplus(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let mut listing = ListingPlus {
            reply: &mut reply,
            added: false,
        };
        let outcome = self
            .fs
            .readdir(caller_of(req), fh.0, offset, Detail::Objects, &mut listing);
        match outcome {
            // What was added has been looked up, so it must reach the kernel.
            Err(error) if !listing.added => reply.error(errno(error)),
            _ => reply.ok(),
        }
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.fs.releasedir(fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        answer::empty(
            reply,
            self.fs.fsync_dir(caller_of(req), NodeId(ino.0), datasync),
        );
    }

    fn statfs(&self, req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        answer::statfs(reply, self.fs.statfs(caller_of(req)));
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (node, name) = (NodeId(ino.0), name.as_bytes());
        answer::empty(
            reply,
            self.fs
                .setxattr(caller_of(req), node, name, value, flags as u32),
        );
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let outcome = self
            .fs
            .getxattr(caller_of(req), NodeId(ino.0), name.as_bytes(), size);
        answer::xattr(reply, outcome);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        answer::xattr(
            reply,
            self.fs.listxattr(caller_of(req), NodeId(ino.0), size),
        );
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer::empty(
            reply,
            self.fs
                .removexattr(caller_of(req), NodeId(ino.0), name.as_bytes()),
        );
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks permissions itself (default_permissions).
        reply.ok();
    }

    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let outcome = answer::lock_ask(ino, fh, lock_owner, (start, end), typ, pid)
            .and_then(|ask| self.fs.getlk(caller_of(req), ask));
        answer::lock(reply, outcome);
    }

    fn setlk(
        &self,
        req: &Request,
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
        match answer::lock_ask(ino, fh, lock_owner, (start, end), typ, pid) {
            Ok(ask) => {
                let answer = Box::new(move |outcome| answer::empty(reply, outcome));
                self.fs.setlk(caller_of(req), ask, sleep, answer);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let range = (offset, length);
        let node = NodeId(ino.0);
        answer::empty(
            reply,
            self.fs
                .fallocate(caller_of(req), node, fh.0, mode as u32, range),
        );
    }

    fn lseek(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.fs.lseek(caller_of(req), fh.0, offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let from = (fh_in.0, offset_in);
        let to = (NodeId(ino_out.0), fh_out.0, offset_out);
        answer::written(reply, self.fs.copy_range(caller_of(req), from, to, len));
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _block: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _req: &Request,
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
