//! The file system proper, one file per family of operations. It names no type of the kernel
//! interface: [`crate::kernel`] could be replaced by another loop.
//!
//! A method takes what the kernel asked and returns what it is answered. Objects that come with a
//! reply are taken into the inode table before the method returns, so that what the kernel is given
//! is never older than what it has.

mod attr;
mod background;
mod dir;
mod file;
mod handles;
mod lock;
mod lookup;
mod make;
pub mod notes;
mod open;
mod remove;
mod retries;
mod space;
mod statfs;
mod xattr;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mortar_common::ids::GfidMaker;
use mortar_common::placement::name_slot;
use mortar_common::{FsError, Gfid};
use mortar_proto::data::{Caller, Object, Op, Result as OpResult, SplitWork, op};

use crate::cache::{Attrs, Inodes, Names, NodeId};
use crate::options::{ListingAttributes, PageCache};
use crate::session::{Answer, Call, Effect, Session};
use handles::{File, Handles};
use notes::{Note, Notes};
use retries::Retries;

pub use attr::{AttrChange, TimeChange};
pub use dir::{Detail, DirSink, Listed, Room};
pub use file::WriteHow;
pub use lock::{Interrupt, LockAnswer, LockAsk, LockRange, LockWait};
pub use make::NewNode;
pub use open::{DropFirst, OpenHow, Opened, PageUse};
pub use remove::RenameHow;
pub use xattr::XattrAnswer;

/// What an operation comes to.
pub type FsResult<T> = Result<T, FsError>;

/// How the mount was asked to behave.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long attributes are believed.
    pub attribute_timeout: Duration,
    /// How long names are believed.
    pub entry_timeout: Duration,
    /// How long the absence of a name is believed.
    pub negative_timeout: Duration,
    /// Whether the kernel caches pages.
    pub page_cache: PageCache,
    /// Whether listings bring attributes.
    pub listing: ListingAttributes,
    /// Inodes the kernel may know before some are asked back.
    pub inode_limit: usize,
}

/// An entry as the kernel gets it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its node.
    pub node: NodeId,
    /// Its attributes.
    pub attrs: Attrs,
    /// How long the name is believed.
    pub entry_timeout: Duration,
    /// How long the attributes are believed.
    pub attr_timeout: Duration,
}

/// The file system of one mount.
#[derive(Debug)]
pub struct Fs {
    session: Arc<Session>,
    settings: Settings,
    inodes: Inodes,
    names: Names,
    handles: Handles,
    gfids: GfidMaker,
    notes: Arc<Notes>,
    retries: Retries,
    /// Renames among them, counted apart: what their threads look up is not what they open.
    renames: Retries,
    lock_waiters: lock::Waiters,
}

impl Fs {
    /// The file system whose root is the directory `subdir` of the volume (empty = its root).
    ///
    /// # Errors
    /// In words, when there is no such directory.
    pub fn new(
        session: Arc<Session>,
        settings: Settings,
        subdir: &[Vec<u8>],
    ) -> Result<Arc<Fs>, String> {
        // The volume's root is known without asking: a mount of it can wait for its bricks.
        let found = if session.is_open() {
            Some(lookup::find_root(&session, subdir)?)
        } else if subdir.is_empty() {
            None
        } else {
            return Err(
                "no brick of the volume may serve yet, so its folder cannot be looked up: \
                 try again"
                    .to_owned(),
            );
        };
        let root = found.as_ref().map_or(Gfid::ROOT, |(root, ..)| *root);
        let inodes = Inodes::new(root, settings.attribute_timeout);
        if let Some((_, object, sent_at)) = &found {
            inodes.learn(object, *sent_at);
        }
        let fs = Arc::new(Fs {
            session,
            settings,
            inodes,
            names: Names::default(),
            handles: Handles::default(),
            gfids: GfidMaker::default(),
            notes: Arc::default(),
            retries: Retries::default(),
            renames: Retries::default(),
            lock_waiters: lock::Waiters::default(),
        });
        let weak = Arc::downgrade(&fs);
        fs.session.when_locks_are_lost(move |files| {
            if let Some(fs) = weak.upgrade() {
                fs.locks_lost(files);
            }
        });
        background::start(&fs).map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(fs)
    }

    /// What is to be told to the kernel, by a thread that is not serving a request.
    pub fn notes(&self) -> &Arc<Notes> {
        &self.notes
    }

    /// The session behind it.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Ends what runs in the background; call when the kernel has let go.
    pub fn stop(&self) {
        self.notes.stop();
        self.session.close();
    }

    /// Sends operations and takes in every object of the answer.
    fn ask(
        &self,
        caller: Caller,
        ops: Vec<op::Op>,
        payload: &[u8],
        effect: Effect,
    ) -> FsResult<Answer> {
        self.ask_through(&[], caller, ops, payload, effect)
    }

    /// The same through open files: it fails when a lock that was held through one is lost.
    fn ask_through(
        &self,
        files: &[&File],
        caller: Caller,
        ops: Vec<op::Op>,
        payload: &[u8],
        effect: Effect,
    ) -> FsResult<Answer> {
        files.iter().try_for_each(|file| file.usable())?;
        let ops = ops.into_iter().map(|op| Op { op: Some(op) }).collect();
        let locks_lost: Vec<&AtomicBool> = files.iter().map(|file| &*file.locks_lost).collect();
        let answer = self.session.call(Call {
            caller,
            ops,
            payload,
            effect,
            split: SplitWork::SplitNone,
            locks_lost: &locks_lost,
        })?;
        for result in &answer.results {
            for object in &result.objects {
                self.inodes.learn(object, answer.sent_at);
            }
        }
        Ok(answer)
    }

    /// One operation that reads.
    fn read_op(&self, caller: Caller, op: op::Op) -> FsResult<(OpResult, Bytes, Instant)> {
        let mut answer = self.ask(caller, vec![op], &[], Effect::Read)?;
        Ok((answer.take(0)?, answer.payload, answer.sent_at))
    }

    /// One operation that changes.
    fn change_op(
        &self,
        caller: Caller,
        op: op::Op,
        effect: Effect,
    ) -> FsResult<(OpResult, Instant)> {
        let mut answer = self.ask(caller, vec![op], &[], effect)?;
        Ok((answer.take(0)?, answer.sent_at))
    }

    /// The same through open files.
    fn change_through(
        &self,
        files: &[&File],
        caller: Caller,
        op: op::Op,
    ) -> FsResult<(OpResult, Instant)> {
        let mut answer = self.ask_through(files, caller, vec![op], &[], Effect::Overwrites)?;
        Ok((answer.take(0)?, answer.sent_at))
    }

    /// The session lost the locks on these files. What was cached under them is dropped: the kernel
    /// would answer from it without asking us. Nobody waits for that: the kernel drops a page that
    /// is being read only when the read is answered, which it is when the session is renewed.
    fn locks_lost(&self, files: &[Gfid]) {
        for gfid in files {
            self.handles
                .of(*gfid)
                .iter()
                .for_each(|file| file.drop_head());
            let node = self.inodes.node(*gfid);
            self.inodes.expire(node);
            // Never left out: what was locked is not much.
            let then = Some(Box::new(|| ()) as notes::Then);
            self.notes.push(Note::DropPages { node, then });
        }
    }

    /// The entry for an object that a reply brought, which the kernel is given: its lookup counted.
    fn entry(&self, object: &Object, sent_at: Instant) -> FsResult<Entry> {
        let entry = self.entry_to_offer(object, sent_at)?;
        self.inodes.tell(entry.node, entry.attrs.data_counter);
        Ok(entry)
    }

    /// The same of an entry that the kernel may have no room for.
    fn entry_to_offer(&self, object: &Object, sent_at: Instant) -> FsResult<Entry> {
        let (node, attrs) = self.inodes.look_up(object, sent_at)?;
        Ok(Entry {
            node,
            attrs,
            entry_timeout: self.settings.entry_timeout,
            attr_timeout: self.inodes.time_left(sent_at),
        })
    }

    /// Remembers that a name holds an object, and asks the kernel to give some names back when it
    /// knows too many inodes. Never that of a directory: with it the kernel lets go of all below,
    /// also of what is mounted there, and a process that works in it has no path any more.
    fn saw_name(&self, parent: NodeId, parent_gfid: Gfid, name: &[u8], entry: &Entry, gfid: Gfid) {
        self.names.put(parent_gfid, name, gfid);
        if entry.attrs.kind() != libc::S_IFDIR {
            self.notes
                .saw_name(parent, name, self.inodes.len() > self.settings.inode_limit);
        }
    }

    /// A new object's gfid: in the slot of its name.
    fn new_gfid(&self, parent: Gfid, name: &[u8]) -> Gfid {
        self.gfids.make(name_slot(parent, name))
    }
}

/// Whether a change clears setuid, setgid and capabilities.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum KillSetId {
    /// The kernel says that it does.
    Yes,
    /// The kernel says that it does not.
    No,
    /// The kernel does not say: who asks decides.
    #[default]
    NotTold,
}

impl KillSetId {
    fn judged(self, guess: impl FnOnce() -> bool) -> bool {
        match self {
            KillSetId::Yes => true,
            KillSetId::No => false,
            KillSetId::NotTold => guess(),
        }
    }
}

/// The object itself in a result.
/// The object that a result is about. One that somebody else has removed before the answer left
/// comes without a mode: it is no object to show to the kernel.
fn own_object(result: &OpResult) -> FsResult<&Object> {
    match result.objects.first() {
        Some(object) if object.mode == 0 => Err(FsError::Stale),
        Some(object) => Ok(object),
        None => Err(FsError::Io),
    }
}

/// What a result says of an object.
fn object_of(result: &OpResult, gfid: Gfid) -> Option<&Object> {
    result
        .objects
        .iter()
        .find(|object| object.gfid == Some(gfid))
}

/// Whether a change that failed so may have been made all the same.
fn is_uncertain(error: FsError) -> bool {
    matches!(error, FsError::Interrupted | FsError::TimedOut)
}

/// The same caller, but the request goes on even when it is killed: closing must not be cut short.
fn to_the_end(caller: Caller) -> Caller {
    Caller { pid: 0, ..caller }
}

/// A caller without CAP_FSETID, as far as can be seen.
fn is_ordinary(caller: &Caller) -> bool {
    caller.uid != 0
}
