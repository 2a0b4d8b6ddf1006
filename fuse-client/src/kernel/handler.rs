//! Requests become calls of [`Fs`], and what these return becomes answers.
//!
//! A request is served to its end by the thread that read it; only a lock that must be waited for
//! is handed on, together with its answer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use mortar_common::FsError;
use mortar_proto::data::Caller;

use super::convert::rename_how;
use super::reply::{Answerer, Reply};
use super::request::{Operation, Request};
use crate::cache::NodeId;
use crate::fs::notes::{Note, Then};
use crate::fs::{
    DirSink, DropFirst, Entry, Fs, FsResult, Listed, LockAsk, LockWait, NewNode, Opened, Room,
    XattrAnswer,
};

/// Serves requests, each with exactly one answer.
pub trait Serve: Send + Sync + 'static {
    /// Serves one request.
    fn serve(&self, request: Request<'_>, answer: impl Answerer);

    /// The kernel lets go of `lookups` of an inode; there is no answer.
    fn forget(&self, node: NodeId, lookups: u64);
}

/// Serves a request. A panic ends that request, with EIO, and nothing else.
pub fn serve_whatever_comes(to: &impl Serve, request: Request<'_>, answer: impl Answerer) {
    let (name, node, pid) = (request.op.name(), request.node, request.caller.pid);
    guarded(name, node, pid, || to.serve(request, answer));
}

/// Does something for a request; a panic is told of and goes no further.
pub fn guarded(name: &str, node: NodeId, pid: u32, work: impl FnOnce()) {
    let Err(panic) = catch_unwind(AssertUnwindSafe(work)) else {
        return;
    };
    let words = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no words");
    tracing::error!(
        "a {name} of process {pid} on inode {} is a bug of this client and failed with EIO; please \
         report it: {words}",
        node.0
    );
}

/// The file system as a loop sees it.
pub struct Handler {
    fs: Arc<Fs>,
}

impl Handler {
    /// Serves from this file system.
    pub fn new(fs: Arc<Fs>) -> Self {
        Handler { fs }
    }

    fn names(&self, caller: Caller, node: NodeId, op: &Operation<'_>) -> Option<Reply> {
        let fs = &self.fs;
        let new = |mode, rdev, target| NewNode { mode, rdev, target };
        Some(match *op {
            Operation::Lookup { name } => match fs.lookup(caller, node, name) {
                Err(FsError::NotFound) if !fs.absence_timeout().is_zero() => {
                    Reply::Absent(fs.absence_timeout())
                }
                outcome => or_error(outcome, Reply::Entry),
            },
            Operation::ReadLink => or_error(fs.readlink(caller, node), Reply::Data),
            Operation::Symlink { name, target } => {
                let new = new(libc::S_IFLNK | 0o777, 0, target);
                or_error(fs.make(caller, node, name, new), Reply::Entry)
            }
            Operation::MkNod { name, mode, rdev } => or_error(
                fs.make(caller, node, name, new(mode, rdev, &[])),
                Reply::Entry,
            ),
            Operation::Unlink { name } => done(fs.unlink(caller, node, name)),
            Operation::RmDir { name } => done(fs.rmdir(caller, node, name)),
            Operation::Rename {
                name,
                to,
                to_name,
                flags,
            } => done(
                rename_how(flags)
                    .and_then(|how| fs.rename(caller, (node, name), (to, to_name), how)),
            ),
            Operation::Link { of, name } => or_error(fs.link(caller, of, node, name), Reply::Entry),
            _ => return None,
        })
    }

    fn files(&self, caller: Caller, node: NodeId, op: &Operation<'_>) -> Option<Reply> {
        let fs = &self.fs;
        Some(match *op {
            Operation::Create { name, mode, how } => {
                or_error(fs.create(caller, node, name, mode, how), created)
            }
            Operation::CreateUnnamed { mode, how } => {
                or_error(fs.create_unnamed(caller, node, mode, how), created)
            }
            Operation::Read {
                handle,
                offset,
                len,
            } => or_error(fs.read(caller, node, handle, offset, len), Reply::Data),
            Operation::Write {
                handle,
                offset,
                bytes,
                how,
            } => or_error(
                fs.write(caller, node, handle, offset, bytes, how),
                Reply::Written,
            ),
            Operation::Flush { handle, owner } => done(fs.flush(caller, handle, owner)),
            Operation::Release { handle } => done(fs.release(caller, handle)),
            Operation::Fsync { handle, data_only } => {
                done(fs.fsync_file(caller, handle, data_only))
            }
            Operation::Fallocate {
                handle,
                mode,
                offset,
                len,
            } => done(fs.fallocate(caller, node, handle, mode, (offset, len))),
            Operation::Seek {
                handle,
                offset,
                whence,
            } => or_error(fs.lseek(caller, handle, offset, whence), Reply::Offset),
            Operation::CopyRange {
                handle,
                offset,
                to,
                to_handle,
                to_offset,
                len,
            } => {
                let (from, to) = ((handle, offset), (to, to_handle, to_offset));
                or_error(fs.copy_range(caller, from, to, len), Reply::Written)
            }
            Operation::GetLock(ask) => or_error(fs.getlk(caller, ask), Reply::Lock),
            _ => return None,
        })
    }

    fn rest(&self, caller: Caller, node: NodeId, op: &Operation<'_>) -> Reply {
        let fs = &self.fs;
        match *op {
            Operation::GetAttr => or_error(fs.getattr(caller, node), |(attrs, timeout)| {
                Reply::Attrs(attrs, timeout)
            }),
            Operation::SetAttr(change) => {
                or_error(fs.setattr(caller, node, change), |(attrs, timeout)| {
                    Reply::Attrs(attrs, timeout)
                })
            }
            Operation::OpenDir => or_error(fs.opendir(caller, node), |(handle, listing)| {
                Reply::DirOpened { handle, listing }
            }),
            Operation::ReleaseDir { handle } => {
                fs.releasedir(handle);
                Reply::Done
            }
            Operation::FsyncDir { handle, data_only } => {
                done(fs.fsync_dir(caller, handle, data_only))
            }
            Operation::StatFs => or_error(fs.statfs(caller), Reply::StatFs),
            Operation::SetXattr {
                name,
                value,
                flags,
                kill_sgid,
            } => done(fs.setxattr(caller, node, name, value, flags, kill_sgid)),
            Operation::GetXattr { name, room } => {
                or_error(fs.getxattr(caller, node, name, room), xattr)
            }
            Operation::ListXattr { room } => or_error(fs.listxattr(caller, node, room), xattr),
            Operation::RemoveXattr { name } => done(fs.removexattr(caller, node, name)),
            // The kernel checks permissions itself (default_permissions).
            Operation::Access => Reply::Done,
            Operation::Control => Reply::NoControl,
            _ => Reply::Error(FsError::NotImplemented),
        }
    }

    /// If the kernel's attributes are behind, it is told to drop them first, by another thread: a
    /// read through the new handle must not end at an old size.
    fn opened(&self, node: NodeId, outcome: FsResult<Opened>, answer: impl Answerer) {
        let Opened {
            handle,
            pages,
            first,
        } = match outcome {
            Ok(opened) => opened,
            Err(error) => return answer.answer(Reply::Error(error)),
        };
        let reply = Reply::Opened { handle, pages };
        let note = match first {
            DropFirst::Nothing => return answer.answer(reply),
            DropFirst::Attributes => Note::DropAttributes {
                node,
                then: Box::new(move || answer.answer(reply)),
            },
            DropFirst::Pages { data_counter } => {
                let fs = self.fs.clone();
                let then: Then = Box::new(move || {
                    fs.pages_dropped(node, data_counter);
                    answer.answer(reply);
                });
                let then = Some(then);
                Note::DropPages { node, then }
            }
        };
        self.fs.notes().push(note);
    }

    fn set_lock(&self, caller: Caller, ask: LockAsk, may_wait: bool, mut answer: impl Answerer) {
        let wait = match may_wait {
            false => LockWait::No,
            true => match answer.interrupt() {
                Some(interrupt) => LockWait::UntilInterrupt(interrupt),
                None => LockWait::UntilSignal,
            },
        };
        let answer = Box::new(move |outcome| answer.answer(done(outcome)));
        self.fs.setlk(caller, ask, wait, answer);
    }
}

impl Serve for Handler {
    fn serve(&self, request: Request<'_>, mut answer: impl Answerer) {
        let Request { caller, node, op } = request;
        match op {
            Operation::Open(how) => self.opened(node, self.fs.open(caller, node, how), answer),
            Operation::SetLock { ask, may_wait } => self.set_lock(caller, ask, may_wait, answer),
            Operation::ReadDir {
                handle,
                offset,
                detail,
            } => {
                let mut listing = Counted {
                    sink: answer.listing(),
                    entries: 0,
                };
                let outcome = self
                    .fs
                    .readdir(caller, handle, offset, detail, &mut listing);
                let reply = match outcome {
                    // What was added has been looked up, so it must reach the kernel.
                    Err(error) if listing.entries == 0 => Reply::Error(error),
                    _ => Reply::Listing,
                };
                answer.answer(reply);
            }
            op => {
                let reply = self
                    .names(caller, node, &op)
                    .or_else(|| self.files(caller, node, &op))
                    .unwrap_or_else(|| self.rest(caller, node, &op));
                answer.answer(reply);
            }
        }
    }

    fn forget(&self, node: NodeId, lookups: u64) {
        self.fs.forget(node, lookups);
    }
}

/// Counts what a listing takes.
struct Counted<'a> {
    sink: &'a mut dyn DirSink,
    entries: usize,
}

impl DirSink for Counted<'_> {
    fn add(&mut self, entry: Listed<'_>) -> Room {
        let room = self.sink.add(entry);
        self.entries += usize::from(room == Room::Taken);
        room
    }
}

fn or_error<T>(outcome: FsResult<T>, reply: impl FnOnce(T) -> Reply) -> Reply {
    outcome.map_or_else(Reply::Error, reply)
}

fn created((entry, opened): (Entry, Opened)) -> Reply {
    Reply::Created {
        entry,
        handle: opened.handle,
        pages: opened.pages,
    }
}

fn done(outcome: FsResult<()>) -> Reply {
    or_error(outcome, |()| Reply::Done)
}

fn xattr(answer: XattrAnswer) -> Reply {
    match answer {
        XattrAnswer::Len(len) => Reply::Len(len),
        XattrAnswer::Bytes(bytes) => Reply::Data(bytes),
    }
}
