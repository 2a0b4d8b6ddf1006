//! Answers in fuser's forms.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use mortar_common::FsError;
use mortar_common::name::NAME_BYTES_MAX;
use mortar_proto::data::{Lock, StatFs};

use crate::cache::{Attrs, NodeId, Pages, Timestamp};
use crate::fs::{DirSink, Entry, Interrupt, Listed, PageUse, Room};
use crate::kernel::convert::{device_to_kernel, lock_type_to_kernel};
use crate::kernel::reply::{Answerer, BLOCK_BYTES, GENERATION, Reply};

/// The form in which fuser wants the answer of one request.
pub enum Form {
    Attr(ReplyAttr),
    Create(ReplyCreate),
    Data(ReplyData),
    Directory(ReplyDirectory),
    DirectoryPlus(ReplyDirectoryPlus),
    Empty(ReplyEmpty),
    Entry(ReplyEntry),
    Ioctl(ReplyIoctl),
    Lock(ReplyLock),
    Lseek(ReplyLseek),
    Open(ReplyOpen),
    Statfs(ReplyStatfs),
    Write(ReplyWrite),
    Xattr(ReplyXattr),
}

impl Answerer for Form {
    fn listing(&mut self) -> &mut dyn DirSink {
        self
    }

    fn interrupt(&mut self) -> Option<Arc<Interrupt>> {
        None
    }

    fn answer(self, reply: Reply) {
        let generation = Generation(GENERATION);
        match (self, reply) {
            (form, Reply::Error(error)) => form.fail(errno(error)),
            (form, Reply::NoControl) => form.fail(Errno::ENOTTY),
            (Form::Empty(to), Reply::Done) => to.ok(),
            (Form::Entry(to), Reply::Entry(entry)) => to.entry_with_ttls(
                &entry.attr_timeout,
                &entry.entry_timeout,
                &attr_of(entry.node, &entry.attrs),
                generation,
            ),
            (Form::Entry(to), Reply::Absent(timeout)) => {
                let nothing = attr_of(NodeId(0), &Attrs::default());
                to.entry_with_ttls(&Duration::ZERO, &timeout, &nothing, generation);
            }
            (Form::Attr(to), Reply::Attrs(attrs, timeout)) => {
                to.attr(&timeout, &attr_of(NodeId(attrs.ino), &attrs));
            }
            (Form::Data(to), Reply::Data(bytes)) => to.data(&bytes),
            (Form::Xattr(to), Reply::Data(bytes)) => to.data(&bytes),
            (Form::Xattr(to), Reply::Len(len)) => to.size(len),
            (Form::Write(to), Reply::Written(bytes)) => to.written(bytes),
            (Form::Lseek(to), Reply::Offset(offset)) => to.offset(offset),
            (Form::Open(to), Reply::Opened { handle, pages }) => {
                to.opened(FileHandle(handle), page_flags(pages));
            }
            (Form::Open(to), Reply::DirOpened { handle, listing }) => {
                to.opened(FileHandle(handle), listing_flags(listing));
            }
            (
                Form::Create(to),
                Reply::Created {
                    entry,
                    handle,
                    pages,
                },
            ) => created(to, &entry, FileHandle(handle), page_flags(pages)),
            (Form::Statfs(to), Reply::StatFs(sizes)) => statfs(to, &sizes),
            (Form::Lock(to), Reply::Lock(lock)) => locked(to, &lock),
            (Form::Directory(to), Reply::Listing) => to.ok(),
            (Form::DirectoryPlus(to), Reply::Listing) => to.ok(),
            (form, reply) => {
                tracing::error!("an answer of another form than the request's: {reply:?}");
                form.fail(Errno::EIO);
            }
        }
    }
}

impl Form {
    fn fail(self, errno: Errno) {
        match self {
            Form::Attr(to) => to.error(errno),
            Form::Create(to) => to.error(errno),
            Form::Data(to) => to.error(errno),
            Form::Directory(to) => to.error(errno),
            Form::DirectoryPlus(to) => to.error(errno),
            Form::Empty(to) => to.error(errno),
            Form::Entry(to) => to.error(errno),
            Form::Ioctl(to) => to.error(errno),
            Form::Lock(to) => to.error(errno),
            Form::Lseek(to) => to.error(errno),
            Form::Open(to) => to.error(errno),
            Form::Statfs(to) => to.error(errno),
            Form::Write(to) => to.error(errno),
            Form::Xattr(to) => to.error(errno),
        }
    }
}

impl DirSink for Form {
    fn add(&mut self, entry: Listed<'_>) -> Room {
        let (ino, cookie) = (INodeNo(entry.ino), entry.cookie);
        let name = OsStr::from_bytes(entry.name);
        let full = match (self, entry.plus) {
            (Form::Directory(to), _) => to.add(ino, cookie, file_type(entry.kind), name),
            (Form::DirectoryPlus(to), Some((node, attrs))) => {
                let (attr, generation) = (attr_of(node, &attrs), Generation(GENERATION));
                to.add(ino, cookie, name, &entry.timeout, &attr, generation)
            }
            _ => true,
        };
        match full {
            true => Room::Full,
            false => Room::Taken,
        }
    }
}

/// fuser has one timeout for the name and the attributes of what was made.
fn created(to: ReplyCreate, entry: &Entry, handle: FileHandle, flags: FopenFlags) {
    to.created(
        &entry.attr_timeout.min(entry.entry_timeout),
        &attr_of(entry.node, &entry.attrs),
        Generation(GENERATION),
        handle,
        flags,
    );
}

fn statfs(to: ReplyStatfs, sizes: &StatFs) {
    let block_bytes = u32::try_from(sizes.block_size).unwrap_or(4096);
    to.statfs(
        sizes.blocks,
        sizes.blocks_free,
        sizes.blocks_available,
        sizes.files,
        sizes.files_free,
        block_bytes,
        NAME_BYTES_MAX as u32,
        block_bytes,
    );
}

fn locked(to: ReplyLock, lock: &Lock) {
    let typ = lock_type_to_kernel(lock.r#type());
    to.locked(lock.start, lock.end, typ, lock.pid);
}

fn page_flags(pages: PageUse) -> FopenFlags {
    match pages {
        PageUse::Fresh => FopenFlags::empty(),
        PageUse::Kept => FopenFlags::FOPEN_KEEP_CACHE,
        PageUse::Direct => FopenFlags::FOPEN_DIRECT_IO,
    }
}

fn listing_flags(listing: Pages) -> FopenFlags {
    match listing {
        Pages::Current => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
        Pages::Stale => FopenFlags::FOPEN_CACHE_DIR,
    }
}

fn errno(error: FsError) -> Errno {
    Errno::from_i32(error.errno())
}

/// `node` is both nodeid and `st_ino` of what the kernel is told: see [`NodeId`].
fn attr_of(node: NodeId, attrs: &Attrs) -> FileAttr {
    FileAttr {
        ino: INodeNo(node.0),
        size: attrs.size,
        blocks: attrs.blocks,
        atime: system_time(attrs.atime),
        mtime: system_time(attrs.mtime),
        ctime: system_time(attrs.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attrs.mode),
        perm: (attrs.mode & 0o7777) as u16,
        nlink: attrs.nlink,
        uid: attrs.uid,
        gid: attrs.gid,
        rdev: device_to_kernel(attrs.rdev),
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

fn file_type(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

pub(super) fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let second = if time.secs < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    second
        .and_then(|second| second.checked_add(Duration::from_nanos(u64::from(time.nanos))))
        .unwrap_or(UNIX_EPOCH)
}
