//! Answers, one function for each form fuser has.

use bytes::Bytes;
use fuser::{
    FileHandle, FopenFlags, INodeNo, InitFlags, KernelConfig, LockOwner, ReplyAttr, ReplyCreate,
    ReplyData, ReplyEmpty, ReplyEntry, ReplyLock, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use mortar_common::FsError;
use mortar_common::name::NAME_BYTES_MAX;
use mortar_proto::data::{Lock, LockType, StatFs};

use super::GENERATION;
use super::convert::{attr_of, errno};
use crate::cache::{Attrs, NodeId, Pages};
use crate::fs::notes::{Note, Notes};
use crate::fs::{
    Entry, FsResult, KernelAttributes, LockAsk, LockRange, Opened, PageUse, XattrAnswer,
};

/// Bytes of one WRITE, and of one READ when the read-ahead allows.
const MAX_WRITE_BYTES: u32 = 1 << 20;
/// Background requests (read-ahead, asynchronous I/O) the kernel may have under way.
const MAX_BACKGROUND: u16 = 128;

/// Asks the kernel for what the file system builds on, and for `listing`.
///
/// Never for WRITEBACK_CACHE: the kernel would then keep its own sizes and times and ignore ours.
pub fn init(config: &mut KernelConfig, listing: InitFlags) {
    let wanted = listing
        | InitFlags::FUSE_ATOMIC_O_TRUNC
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
    if let Err(missing) = config.add_capabilities(wanted) {
        tracing::info!("this kernel's FUSE lacks {missing:?}; the mount does without");
        // What is left is offered by the kernel, so this cannot be refused.
        let _ = config.add_capabilities(wanted & !missing);
    }
    // Both refuse only zero and what is above fuser's own limits.
    let _ = config.set_max_write(MAX_WRITE_BYTES);
    let _ = config.set_max_background(MAX_BACKGROUND);
}

pub fn entry(reply: ReplyEntry, outcome: FsResult<Entry>) {
    match outcome {
        Ok(entry) => reply.entry_with_ttls(
            &entry.attr_timeout,
            &entry.entry_timeout,
            &attr_of(entry.node, &entry.attrs),
            GENERATION,
        ),
        Err(error) => reply.error(errno(error)),
    }
}

pub fn attr(reply: ReplyAttr, outcome: FsResult<(Attrs, std::time::Duration)>) {
    match outcome {
        Ok((attrs, timeout)) => reply.attr(&timeout, &attr_of(NodeId(attrs.ino), &attrs)),
        Err(error) => reply.error(errno(error)),
    }
}

pub fn data(reply: ReplyData, outcome: FsResult<Bytes>) {
    match outcome {
        Ok(bytes) => reply.data(&bytes),
        Err(error) => reply.error(errno(error)),
    }
}

pub fn written(reply: ReplyWrite, outcome: FsResult<u32>) {
    match outcome {
        Ok(bytes) => reply.written(bytes),
        Err(error) => reply.error(errno(error)),
    }
}

pub fn empty(reply: ReplyEmpty, outcome: FsResult<()>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

pub fn xattr(reply: ReplyXattr, outcome: FsResult<XattrAnswer>) {
    match outcome {
        Ok(XattrAnswer::Len(len)) => reply.size(len),
        Ok(XattrAnswer::Bytes(bytes)) => reply.data(&bytes),
        Err(error) => reply.error(errno(error)),
    }
}

pub fn statfs(reply: ReplyStatfs, outcome: FsResult<StatFs>) {
    match outcome {
        Ok(sizes) => {
            let block_bytes = u32::try_from(sizes.block_size).unwrap_or(4096);
            reply.statfs(
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
        Err(error) => reply.error(errno(error)),
    }
}

pub fn lock(reply: ReplyLock, outcome: FsResult<Lock>) {
    match outcome {
        Ok(lock) => {
            let typ = match lock.r#type() {
                LockType::LockRead => libc::F_RDLCK,
                LockType::LockWrite => libc::F_WRLCK,
                LockType::LockUnlock => libc::F_UNLCK,
            };
            reply.locked(lock.start, lock.end, typ, lock.pid);
        }
        Err(error) => reply.error(errno(error)),
    }
}

/// If the kernel's attributes are behind, it is told to drop them first, by another thread: a read
/// through the new handle must not end at an old size.
pub fn opened(reply: ReplyOpen, node: NodeId, outcome: FsResult<Opened>, notes: &Notes) {
    match outcome {
        Ok(opened) => {
            let answer = move || reply.opened(FileHandle(opened.handle), pages(opened.pages));
            match opened.attributes {
                KernelAttributes::Right => answer(),
                KernelAttributes::Behind => {
                    notes.push(Note::DropAttributes {
                        node,
                        then: Box::new(answer),
                    });
                }
            }
        }
        Err(error) => reply.error(errno(error)),
    }
}

/// fuser has one timeout for the name and the attributes of what was made.
pub fn created(reply: ReplyCreate, outcome: FsResult<(Entry, Opened)>) {
    match outcome {
        Ok((entry, opened)) => reply.created(
            &entry.attr_timeout.min(entry.entry_timeout),
            &attr_of(entry.node, &entry.attrs),
            GENERATION,
            FileHandle(opened.handle),
            pages(opened.pages),
        ),
        Err(error) => reply.error(errno(error)),
    }
}

pub fn dir_opened(reply: ReplyOpen, outcome: FsResult<(u64, Pages)>) {
    match outcome {
        Ok((handle, pages)) => {
            let mut flags = FopenFlags::FOPEN_CACHE_DIR;
            if pages == Pages::Current {
                flags |= FopenFlags::FOPEN_KEEP_CACHE;
            }
            reply.opened(FileHandle(handle), flags);
        }
        Err(error) => reply.error(errno(error)),
    }
}

/// How an open file uses the page cache, as the kernel is told.
pub fn pages(pages: PageUse) -> FopenFlags {
    match pages {
        PageUse::Fresh => FopenFlags::empty(),
        PageUse::Kept => FopenFlags::FOPEN_KEEP_CACHE,
        PageUse::Direct => FopenFlags::FOPEN_DIRECT_IO,
    }
}

/// What GETLK and SETLK ask for.
pub fn lock_ask(
    ino: INodeNo,
    fh: FileHandle,
    owner: LockOwner,
    range: (u64, u64),
    typ: i32,
    pid: u32,
) -> FsResult<LockAsk> {
    let how = match typ {
        libc::F_RDLCK => LockType::LockRead,
        libc::F_WRLCK => LockType::LockWrite,
        libc::F_UNLCK => LockType::LockUnlock,
        _ => return Err(FsError::Invalid),
    };
    Ok(LockAsk {
        node: NodeId(ino.0),
        handle: fh.0,
        owner: owner.0,
        pid,
        range: LockRange {
            start: range.0,
            end: range.1,
        },
        how,
    })
}
