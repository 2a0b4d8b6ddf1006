//! OPEN, FLUSH, RELEASE of files.

use mortar_common::{FsError, Gfid};
use mortar_proto::data::{Caller, GetAttr, LockKind, Open, Read, ReleaseOwner, op, result};

use super::handles::{File, Head};
use super::{Fs, FsResult, KillSetId, is_ordinary, is_uncertain, own_object, to_the_end};
use crate::cache::{Attrs, Cached, NodeId};
use crate::options::PageCache;
use crate::session::holdings::Registration;
use crate::session::{Answer, Effect};

/// A file up to this long comes with its open.
const HEAD_BYTES_MAX: u32 = 64 << 10;

/// How a file is to be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenHow {
    /// As open(2) has them.
    pub flags: i32,
    /// Whether O_TRUNC clears setuid, setgid and capabilities.
    pub kill: KillSetId,
}

/// How an open file uses the kernel's page cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageUse {
    /// What is cached is dropped.
    Fresh,
    /// What is cached is of the same content and kept.
    Kept,
    /// Not at all.
    Direct,
}

/// An open file as the kernel gets it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// Its handle.
    pub handle: u64,
    /// How it uses the page cache.
    pub pages: PageUse,
    /// What the kernel must forget before it is answered.
    pub first: DropFirst,
}

/// What the kernel knows of an opened file and is to forget before the open is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DropFirst {
    /// Nothing: all belongs to the content as it is.
    Nothing,
    /// Attributes: the file was changed by somebody else, its size may be another.
    Attributes,
    /// Attributes and pages; [`Fs::pages_dropped`] is to follow, with the counter they are of then.
    /// The kernel would drop them by itself, but only when it takes the reply: until then another
    /// process could be told that they are right.
    Pages {
        /// Of the content as it is.
        data_counter: u64,
    },
}

impl Fs {
    /// Opens a file: one request, that revalidates it, registers the open if this mount had none,
    /// truncates it if asked to, and brings the bytes of a small file.
    pub fn open(&self, caller: Caller, node: NodeId, how: OpenHow) -> FsResult<Opened> {
        let OpenHow { flags, kill } = how;
        let gfid = self.inodes.gfid(node)?;
        let truncate = flags & libc::O_TRUNC != 0;
        let unnamed =
            self.inodes.is_unnamed_here(node) || self.retries.is_second_try(caller.pid, node);
        let waiting = self.session.patience(&caller);
        let go_on = || self.session.may_go_on(&waiting);
        let registration = self.session.holdings().begin_open(gfid, &go_on)?;
        let (first, effect) = if truncate || registration == Registration::Needed {
            let kill_suidgid = truncate && kill.judged(|| is_ordinary(&caller));
            let open = Open {
                gfid: Some(gfid),
                truncate,
                kill_suidgid,
                unnamed,
            };
            let effect = match truncate {
                true => Effect::Overwrites,
                false => Effect::Repeatable,
            };
            (op::Op::Open(open), effect)
        } else {
            let get = GetAttr {
                gfid: Some(gfid),
                for_open: true,
            };
            (op::Op::Getattr(get), Effect::Read)
        };
        let mut ops = vec![first];
        if self.wants_head(node, flags) {
            ops.push(op::Op::Read(Read {
                gfid: Some(gfid),
                offset: 0,
                len: HEAD_BYTES_MAX,
            }));
        }
        let answer = self.ask(caller, ops, &[], effect).and_then(|mut answer| {
            let object = answer
                .take(0)
                .and_then(|result| own_object(&result).cloned())?;
            // Another mount removed its last name: the kernel came by an entry that it may still
            // believe in, and looks again on ESTALE.
            if object.nlink == 0 && !unnamed {
                self.session.holdings().registered(gfid);
                return Err(FsError::Stale);
            }
            Ok((answer, object))
        });
        let (answer, object) = answer.map_err(|error| self.open_failed(caller, gfid, error))?;
        self.session.holdings().registered(gfid);
        let attrs = self
            .inodes
            .learn(&object, answer.sent_at)
            .ok_or(FsError::Io)?;
        let head = head_of(&answer, &attrs);
        Ok(self.opened(node, gfid, &attrs, flags, head))
    }

    fn open_failed(&self, caller: Caller, gfid: Gfid, error: FsError) -> FsError {
        if is_uncertain(error) {
            // Then it is released like any other.
            self.session.holdings().registered(gfid);
        }
        self.session.holdings().close(gfid);
        if error == FsError::Stale {
            self.retries.refused(caller.pid);
        }
        error
    }

    /// The handle and the page rules of a file that was opened or made.
    pub(super) fn opened(
        &self,
        node: NodeId,
        gfid: Gfid,
        attrs: &Attrs,
        flags: i32,
        head: Option<Head>,
    ) -> Opened {
        let cached = self.inodes.validate(node, attrs.data_counter);
        let direct = self.is_direct(flags);
        let head = head.filter(|_| !direct);
        let handle = self
            .handles
            .add_file(File::new(gfid, head, self.session.losses()));
        // With O_TRUNC the kernel itself drops what it knew of the content.
        let truncated = flags & libc::O_TRUNC != 0;
        let is_behind = self.inodes.kernel_is_behind(node, attrs.data_counter);
        let first = match (cached, is_behind) {
            _ if truncated => DropFirst::Nothing,
            (Cached::Stale, _) => DropFirst::Pages {
                data_counter: attrs.data_counter,
            },
            (Cached::Nothing | Cached::Current, true) => DropFirst::Attributes,
            (Cached::Nothing | Cached::Current, false) => DropFirst::Nothing,
        };
        let pages = match cached {
            _ if direct => PageUse::Direct,
            Cached::Current => PageUse::Kept,
            Cached::Nothing | Cached::Stale => PageUse::Fresh,
        };
        Opened {
            handle,
            pages,
            first,
        }
    }

    /// The kernel has dropped the pages of a file: see [`DropFirst::Pages`].
    pub fn pages_dropped(&self, node: NodeId, data_counter: u64) {
        self.inodes.dropped(node, data_counter);
    }

    /// close(2) of one descriptor. Nothing is buffered here, so there is nothing to send but the
    /// end of the POSIX locks of this owner, if it has any.
    pub fn flush(&self, caller: Caller, handle: u64, owner: u64) -> FsResult<()> {
        let file = self.handles.file(handle)?;
        let holdings = self.session.holdings();
        let life = self.session.life_number();
        // Out before they are given up: see `Fs::unlock`.
        let taken = holdings.take_locks_of(file.gfid, owner, LockKind::LockPosix);
        if !taken.is_empty() {
            let release = ReleaseOwner {
                gfid: Some(file.gfid),
                owner,
                kind: LockKind::LockPosix.into(),
                ..Default::default()
            };
            let outcome = self.release_locks(caller, release);
            if outcome.is_err() {
                holdings.put_back(file.gfid, taken, life);
            }
            outcome?;
        }
        file.usable()
    }

    fn release_locks(&self, caller: Caller, release: ReleaseOwner) -> FsResult<()> {
        let op = op::Op::ReleaseOwner(release);
        self.change_op(to_the_end(caller), op, Effect::Repeatable)
            .map(|_| ())
    }

    /// The last descriptor of a handle is closed: every lock taken through it goes, whatever its
    /// kind. The open itself is released in the background.
    pub fn release(&self, caller: Caller, handle: u64) -> FsResult<()> {
        let file = self.handles.remove_file(handle).ok_or(FsError::BadHandle)?;
        let holdings = self.session.holdings();
        let mut outcome = Ok(());
        if !holdings.take_locks_through(file.gfid, handle).is_empty() {
            let release = ReleaseOwner {
                gfid: Some(file.gfid),
                handle,
                whole_handle: true,
                ..Default::default()
            };
            // Where that fails, they go when the primary hears that nobody has the file open.
            outcome = self.release_locks(caller, release);
        }
        holdings.close(file.gfid);
        outcome
    }

    /// O_APPEND goes past the page cache: the primary picks the offset, so the kernel cannot know
    /// which page a record went to.
    fn is_direct(&self, flags: i32) -> bool {
        flags & libc::O_APPEND != 0 || self.settings.page_cache == PageCache::Bypassed
    }

    /// Whether the bytes should come with the open: a small file that will be read and is not in
    /// the page cache already.
    fn wants_head(&self, node: NodeId, flags: i32) -> bool {
        if flags & libc::O_ACCMODE == libc::O_WRONLY
            || flags & (libc::O_TRUNC | libc::O_DIRECT) != 0
            || self.is_direct(flags)
        {
            return false;
        }
        self.inodes.last(node).is_some_and(|attrs| {
            attrs.kind() == libc::S_IFREG
                && (1..=u64::from(HEAD_BYTES_MAX)).contains(&attrs.size)
                && !self.inodes.has_pages(node, attrs.data_counter)
        })
    }
}

/// The bytes that came with an open, if it was asked for them and they were read.
fn head_of(answer: &Answer, attrs: &Attrs) -> Option<Head> {
    let read = answer.results.get(1).filter(|read| read.errno == 0)?;
    let Some(result::Ok::PayloadLen(len)) = read.ok else {
        return None;
    };
    let len = len as usize;
    if answer.payload.len() < len {
        return None;
    }
    let data_counter = read
        .objects
        .first()
        .map_or(attrs.data_counter, |it| it.data_counter);
    Some(Head {
        bytes: answer.payload.slice(..len),
        whole: len < HEAD_BYTES_MAX as usize,
        data_counter,
        sent_at: answer.sent_at,
    })
}
