//! The inodes the kernel knows.
//!
//! For each: its gfid, how often it was looked up, the newest attributes given, and the data
//! counter of the pages the kernel may have cached. The newest attributes live in a box that is
//! dropped when they have been out of date for a while, so that an idle inode costs about 60 bytes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mortar_common::{FsError, Gfid};
use mortar_proto::data::Object;

use super::{Attrs, NodeId};

#[cfg(test)]
mod tests;

/// Parts of the table, each behind a lock of its own.
const SHARDS: usize = 16;
/// Inodes whose attributes are kept at a time; beyond this, those out of date are dropped.
const ATTRS_MAX: usize = 65_536;
/// Attributes are dropped only when they are at least this old, and this often.
const SWEEP_AGE: Duration = Duration::from_secs(2);

/// Whether the listing that the kernel has cached of a directory is still right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pages {
    /// It is of the same data counter.
    Current,
    /// It may be of another: to be dropped.
    Stale,
}

/// What the kernel has cached of a file that is opened or locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cached {
    /// Nothing, since it knows the file.
    Nothing,
    /// The content as it is.
    Current,
    /// Perhaps another: to be dropped before the caller goes on.
    Stale,
}

/// How a change of this mount reaches the kernel's cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wrote {
    /// A call of a program: the kernel drops size and times of the file itself.
    ByCall,
    /// A page that a mapping has changed: the kernel keeps the size.
    FromPageCache,
}

/// The table. All times are those of the answered request's sending.
#[derive(Debug)]
pub struct Inodes {
    shards: Vec<Mutex<HashMap<NodeId, Inode>>>,
    root: Gfid,
    attribute_timeout: Duration,
    started: Instant,
    count: AtomicUsize,
    boxed: AtomicUsize,
    swept_ms: AtomicU64,
}

/// Of pages that are being dropped, or that nobody knows the content of.
const UNKNOWN: u64 = u64::MAX;

#[derive(Debug)]
struct Inode {
    gfid_hi: u64,
    gfid_lo: u64,
    lookups: u64,
    /// The newest attributes given.
    known: Option<Box<Known>>,
    /// Their attr counter, kept when they are dropped.
    attr_counter: u64,
    /// Data counter of the cached pages or listing; 0 = nothing is cached, [`UNKNOWN`] = something.
    pages: u64,
    /// This mount has written since the last open: the kernel keeps what it wrote only until it
    /// sees the new mtime.
    written: bool,
    /// This mount removed the last name: no entry of its kernel leads here any more.
    unnamed_here: bool,
}

#[derive(Debug)]
struct Known {
    attrs: Attrs,
    /// When the request that brought them was sent: they were true then or later.
    sent_at: Instant,
    /// When they came: a request sent later cannot rightly bring older ones.
    came_at: Instant,
    expired: bool,
    /// The data counter of what the kernel was told last.
    told: Option<u64>,
}

impl Inodes {
    /// A table that holds the root alone.
    pub fn new(root: Gfid, attribute_timeout: Duration) -> Self {
        let inodes = Inodes {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            root,
            attribute_timeout,
            started: Instant::now(),
            count: AtomicUsize::new(1),
            boxed: AtomicUsize::new(0),
            swept_ms: AtomicU64::new(0),
        };
        inodes
            .shard(NodeId::ROOT)
            .insert(NodeId::ROOT, Inode::new(root, 1));
        inodes
    }

    /// Inodes in the table.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Never: the root stays.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The object of a node.
    ///
    /// # Errors
    /// [`FsError::Stale`] when the table does not know it.
    pub fn gfid(&self, node: NodeId) -> Result<Gfid, FsError> {
        self.shard(node)
            .get(&node)
            .map(Inode::gfid)
            .ok_or(FsError::Stale)
    }

    /// The node that an object has or would have.
    pub fn node(&self, gfid: Gfid) -> NodeId {
        if gfid == self.root {
            NodeId::ROOT
        } else {
            NodeId(gfid.ino())
        }
    }

    /// Takes in an object that is about to be given to the kernel as an entry, and counts the
    /// lookup; when it is, [`Inodes::tell`] is to follow. Returns the attributes to give, which may be newer than the object.
    ///
    /// # Errors
    /// [`FsError::Io`] when the object has no gfid, or one whose node is another object's.
    pub fn look_up(&self, object: &Object, sent_at: Instant) -> Result<(NodeId, Attrs), FsError> {
        let (gfid, attrs) = Attrs::of(object).ok_or(FsError::Io)?;
        let node = self.node(gfid);
        let attrs = {
            let mut shard = self.shard(node);
            let inode = shard.entry(node).or_insert_with(|| {
                self.count.fetch_add(1, Ordering::Relaxed);
                Inode::new(gfid, 0)
            });
            if inode.gfid() != gfid {
                tracing::error!(
                    "objects {} and {gfid} have the same inode number; the second cannot be shown",
                    inode.gfid()
                );
                return Err(FsError::Io);
            }
            inode.lookups += 1;
            self.admit(inode, attrs, sent_at)
        };
        self.sweep_if_due();
        Ok((node, attrs))
    }

    /// Takes in an object of a reply. Returns the attributes to give for it, which may be newer;
    /// `None` when there are none, as of an object that is gone.
    pub fn learn(&self, object: &Object, sent_at: Instant) -> Option<Attrs> {
        let (gfid, attrs) = Attrs::of(object)?;
        let node = self.node(gfid);
        let mut shard = self.shard(node);
        match shard.get_mut(&node) {
            // Gone, and told of by its gfid alone.
            Some(inode) if inode.gfid() == gfid && attrs.mode == 0 => {
                if let Some(known) = &mut inode.known {
                    known.expired = true;
                }
                None
            }
            Some(inode) if inode.gfid() == gfid => Some(self.admit(inode, attrs, sent_at)),
            _ => Some(attrs),
        }
    }

    /// Takes back lookups; at zero the inode is forgotten.
    pub fn forget(&self, node: NodeId, lookups: u64) {
        if node == NodeId::ROOT {
            return;
        }
        let mut shard = self.shard(node);
        if let Some(inode) = shard.get_mut(&node) {
            inode.lookups = inode.lookups.saturating_sub(lookups);
            if inode.lookups == 0 {
                if inode.known.is_some() {
                    self.boxed.fetch_sub(1, Ordering::Relaxed);
                }
                shard.remove(&node);
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Attributes that are still believed, and for how long.
    pub fn fresh(&self, node: NodeId) -> Option<(Attrs, Duration)> {
        let shard = self.shard(node);
        let known = shard.get(&node)?.known.as_ref()?;
        let left = self
            .attribute_timeout
            .checked_sub(known.sent_at.elapsed())?;
        (!known.expired && !left.is_zero()).then_some((known.attrs, left))
    }

    /// Attributes as last known, however old.
    pub fn last(&self, node: NodeId) -> Option<Attrs> {
        self.shard(node)
            .get(&node)?
            .known
            .as_ref()
            .map(|known| known.attrs)
    }

    /// The kernel is being told attributes of this data counter.
    pub fn tell(&self, node: NodeId, data_counter: u64) {
        let mut shard = self.shard(node);
        if let Some(known) = shard.get_mut(&node).and_then(|it| it.known.as_mut()) {
            known.told = Some(data_counter);
        }
    }

    /// Whether the kernel may believe in a size that belongs to other content than this: it does
    /// not look at a file's attributes when it opens it.
    ///
    /// How long the kernel believes what it was told is not counted here: its time begins when it
    /// takes the reply, and the thread that sends one may have to wait for a processor first.
    pub fn kernel_is_behind(&self, node: NodeId, data_counter: u64) -> bool {
        let shard = self.shard(node);
        let told = shard.get(&node).and_then(|it| it.known.as_ref()?.told);
        told.is_some_and(|of| of != data_counter)
    }

    /// How long attributes sent for at `sent_at` may be believed from now on.
    pub fn time_left(&self, sent_at: Instant) -> Duration {
        self.attribute_timeout.saturating_sub(sent_at.elapsed())
    }

    /// When the attributes kept were sent for; `None` = none are believed.
    pub fn sent_at(&self, node: NodeId) -> Option<Instant> {
        let shard = self.shard(node);
        let known = shard.get(&node)?.known.as_ref()?;
        (!known.expired).then_some(known.sent_at)
    }

    /// The attributes kept are not to be believed any more.
    pub fn expire(&self, node: NodeId) {
        if let Some(known) = self
            .shard(node)
            .get_mut(&node)
            .and_then(|inode| inode.known.as_mut())
        {
            known.expired = true;
        }
    }

    /// This mount removed a name, after which this is how the object is.
    pub fn name_removed(&self, object: &Object) {
        let Some(gfid) = object.gfid.filter(|_| object.nlink == 0) else {
            return;
        };
        let node = self.node(gfid);
        if let Some(inode) = self.shard(node).get_mut(&node) {
            inode.unnamed_here = true;
        }
    }

    /// This mount gave it a name.
    pub fn name_made(&self, node: NodeId) {
        if let Some(inode) = self.shard(node).get_mut(&node) {
            inode.unnamed_here = false;
        }
    }

    /// Whether this mount removed the last name of it, or made it without one: whoever opens it
    /// then has it open already.
    pub fn is_unnamed_here(&self, node: NodeId) -> bool {
        let shard = self.shard(node);
        shard.get(&node).is_some_and(|inode| inode.unnamed_here)
    }

    /// A directory that this mount removed, for whoever has it open or works in it: as it was, without
    /// a link.
    pub fn removed_dir(&self, node: NodeId) -> Option<Attrs> {
        let attrs = self.last(node).filter(|_| self.is_unnamed_here(node))?;
        (attrs.kind() == libc::S_IFDIR).then_some(Attrs { nlink: 0, ..attrs })
    }

    /// The data counter of what the kernel has cached; 0 = nothing is known.
    pub fn pages(&self, node: NodeId) -> u64 {
        self.shard(node).get(&node).map_or(0, |inode| inode.pages)
    }

    /// Whether the kernel probably still has the pages of this content.
    pub fn has_pages(&self, node: NodeId, data_counter: u64) -> bool {
        let shard = self.shard(node);
        shard
            .get(&node)
            .is_some_and(|inode| inode.pages == data_counter && !inode.written)
    }

    /// A directory is opened at this data counter: the listing that the kernel has cached is kept
    /// exactly when it is of the same. From now on the cache is of this counter.
    pub fn opened(&self, node: NodeId, data_counter: u64) -> Pages {
        let mut shard = self.shard(node);
        let Some(inode) = shard.get_mut(&node) else {
            return Pages::Stale;
        };
        let same = data_counter != 0 && inode.pages == data_counter;
        inode.pages = data_counter;
        inode.written = false;
        if same { Pages::Current } else { Pages::Stale }
    }

    /// A file is opened or locked at this data counter: what the kernel has cached of it may be used
    /// exactly when it is of the same.
    ///
    /// After [`Cached::Stale`] the kernel is to drop them before the caller goes on, and then
    /// [`Inodes::dropped`] says so. Until then nobody else is told that they are right: another
    /// process may be granted a lock in that moment, and would read them.
    pub fn validate(&self, node: NodeId, data_counter: u64) -> Cached {
        let mut shard = self.shard(node);
        let Some(inode) = shard.get_mut(&node) else {
            return Cached::Stale;
        };
        inode.written = false;
        match inode.pages {
            of if of == data_counter && data_counter != 0 => Cached::Current,
            0 if data_counter != 0 => {
                inode.pages = data_counter;
                Cached::Nothing
            }
            _ => {
                inode.pages = UNKNOWN;
                Cached::Stale
            }
        }
    }

    /// The kernel has dropped its pages: what it reads from now on is of this content or newer.
    pub fn dropped(&self, node: NodeId, data_counter: u64) {
        if let Some(inode) = self.shard(node).get_mut(&node)
            && data_counter != 0
        {
            inode.pages = data_counter;
        }
    }

    /// This mount has changed the content; the kernel's pages hold the change too. They are of the
    /// new counter only when nobody else's change lies between.
    pub fn wrote(&self, node: NodeId, data_counter: u64, how: Wrote) {
        let mut shard = self.shard(node);
        let Some(inode) = shard.get_mut(&node) else {
            return;
        };
        inode.written = true;
        if inode.pages != 0 && inode.pages.checked_add(1) == Some(data_counter) {
            inode.pages = data_counter;
        }
        if let Some(known) = &mut inode.known
            && how == Wrote::ByCall
        {
            // The kernel drops size and times itself then; for a page it keeps the size.
            known.told = None;
        }
    }

    fn admit(&self, inode: &mut Inode, attrs: Attrs, sent_at: Instant) -> Attrs {
        if let Some(known) = &inode.known
            && attrs.attr_counter < inode.attr_counter
            && sent_at <= known.came_at
        {
            // It was overtaken by a newer one.
            return known.attrs;
        }
        inode.attr_counter = attrs.attr_counter;
        let told = inode.known.as_ref().and_then(|known| known.told);
        let known = Known {
            told,
            attrs,
            sent_at,
            came_at: Instant::now(),
            expired: false,
        };
        match &mut inode.known {
            // Of two replies with one counter the one sent for later is believed longer.
            Some(old) if old.attrs == attrs && old.sent_at > sent_at && !old.expired => {}
            Some(old) => **old = known,
            none => {
                *none = Some(Box::new(known));
                self.boxed.fetch_add(1, Ordering::Relaxed);
            }
        }
        attrs
    }

    /// Drops attributes that are out of date when there are too many.
    fn sweep_if_due(&self) {
        if self.boxed.load(Ordering::Relaxed) <= ATTRS_MAX {
            return;
        }
        let now_ms = self.started.elapsed().as_millis() as u64;
        let swept_ms = self.swept_ms.load(Ordering::Relaxed);
        let age = SWEEP_AGE.max(self.attribute_timeout);
        if now_ms < swept_ms + age.as_millis() as u64
            || self
                .swept_ms
                .compare_exchange(swept_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_err()
        {
            return;
        }
        for shard in &self.shards {
            for inode in shard
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .values_mut()
            {
                if inode
                    .known
                    .as_ref()
                    .is_some_and(|known| known.came_at.elapsed() > age)
                {
                    inode.known = None;
                    self.boxed.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn shard(&self, node: NodeId) -> MutexGuard<'_, HashMap<NodeId, Inode>> {
        let at = (node.0 >> 8) as usize % SHARDS;
        self.shards[at]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inode {
    fn new(gfid: Gfid, lookups: u64) -> Self {
        Inode {
            gfid_hi: gfid.hi,
            gfid_lo: gfid.lo,
            lookups,
            known: None,
            attr_counter: 0,
            pages: 0,
            written: false,
            unnamed_here: false,
        }
    }

    fn gfid(&self) -> Gfid {
        Gfid {
            hi: self.gfid_hi,
            lo: self.gfid_lo,
        }
    }
}
