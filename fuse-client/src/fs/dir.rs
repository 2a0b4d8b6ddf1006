//! OPENDIR, READDIR, READDIRPLUS, RELEASEDIR.
//!
//! A listing goes in order of (hash, name). On the wire it continues after a (hash, name); towards
//! the kernel an entry has a cookie of 63 bits: the top 59 of the hash and 4 that number those
//! which share them. So it goes on rightly after a failover, and after seekdir(3) anywhere.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mortar_common::{FsError, Gfid};
use mortar_proto::data::{
    Caller, DirEntry, GetAttr, ReadDir, ReadDirPage, Result as OpResult, op, result,
};

use super::handles::{Dir, Durable};
use super::{Fs, FsResult, own_object};
use crate::cache::{Attrs, NodeId, Pages};
use crate::options::ListingAttributes;
use crate::session::Effect;

/// Names asked for at a time, in bytes: some hundred entries.
const PAGE_BYTES: u32 = 16 << 10;
/// Cookies of the start, of `.` and of `..`; entries come after.
const START: u64 = 0;
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;
/// Bits that number entries whose hashes share the top 59.
const NUMBER_BITS: u32 = 4;
const NUMBER_MAX: u64 = (1 << NUMBER_BITS) - 1;
/// Bits of the hash that a cookie does not hold.
const HASH_BITS_LOST: u32 = 5;

/// Whether an entry found room in the kernel's buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// It did.
    Taken,
    /// It did not: the answer is full.
    Full,
}

/// One entry of a listing.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Where the listing goes on after it.
    pub cookie: u64,
    /// Its inode number.
    pub ino: u64,
    /// Its node and attributes; `None` in a plain listing.
    pub plus: Option<(NodeId, Attrs)>,
    /// How long those are believed.
    pub timeout: Duration,
    /// S_IFMT bits.
    pub kind: u32,
}

/// The kernel's buffer.
pub trait DirSink {
    /// Adds an entry if there is room.
    fn add(&mut self, entry: Listed<'_>) -> Room;
}

/// Whether a listing carries attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Detail {
    /// Names and types.
    #[default]
    Names,
    /// Objects too.
    Objects,
}

/// Where the reader of an open directory is: the page it reads from.
#[derive(Debug, Default)]
pub struct Listing {
    entries: Vec<Item>,
    /// The cookie after which the page begins; `None` = there is no page.
    from: Option<u64>,
    /// No entries follow the page.
    end: bool,
    detail: Detail,
    /// Came with the open and has not been read.
    unread: bool,
    sent_at: Option<Instant>,
}

#[derive(Debug)]
struct Item {
    cookie: u64,
    entry: DirEntry,
}

impl Fs {
    /// Opens a directory: one request, which brings its attributes and, if the kernel has no
    /// listing cached, the first page. Returns the handle and whether a cached listing is right.
    pub fn opendir(&self, caller: Caller, node: NodeId) -> FsResult<(u64, Pages)> {
        let gfid = self.inodes.gfid(node)?;
        let mut ops = vec![op::Op::Getattr(GetAttr {
            gfid: Some(gfid),
            ..Default::default()
        })];
        let detail = match self.settings.listing {
            ListingAttributes::Auto => Detail::Objects,
            ListingAttributes::Never => Detail::Names,
        };
        if self.inodes.pages(node) == 0 {
            ops.push(op::Op::Readdir(page_after(gfid, 0, Bytes::new(), detail)));
        }
        let answer = self.ask(caller, ops, &[], Effect::Read);
        let answer = answer.and_then(|mut answer| Ok((answer.take(0)?, answer)));
        if let (Err(FsError::Stale), Some(_)) = (&answer, self.inodes.removed_dir(node)) {
            // The kernel lists nothing of it.
            let listing = Listing::default().into();
            let dir = Dir {
                gfid,
                node,
                durable: Durable::new(self.session.losses()),
                listing,
            };
            return Ok((self.handles.add_dir(dir), Pages::Stale));
        }
        let (result, mut answer) = answer?;
        let attrs = self
            .inodes
            .learn(own_object(&result)?, answer.sent_at)
            .ok_or(FsError::Io)?;
        let pages = self.inodes.opened(node, attrs.data_counter);
        let mut listing = Listing::default();
        if let Ok(page) = answer.take(1).and_then(page_of) {
            listing.begin(DOT_DOT, page, detail, answer.sent_at);
            listing.unread = true;
        }
        let dir = Dir {
            gfid,
            node,
            durable: Durable::new(self.session.losses()),
            listing: listing.into(),
        };
        Ok((self.handles.add_dir(dir), pages))
    }

    /// Fills the kernel's buffer with what follows `offset`.
    pub fn readdir(
        &self,
        caller: Caller,
        handle: u64,
        offset: u64,
        detail: Detail,
        sink: &mut dyn DirSink,
    ) -> FsResult<()> {
        let dir = self.handles.dir(handle)?;
        let mut listing = dir.listing.lock().unwrap_or_else(PoisonError::into_inner);
        if offset == START && !listing.unread {
            // rewinddir(3) sees the directory as it is now.
            *listing = Listing::default();
        }
        listing.unread = false;
        let mut offset = offset;
        if offset < DOT_DOT {
            match self.add_dots(caller, &dir, offset, detail, sink)? {
                Room::Taken => offset = DOT_DOT,
                Room::Full => return Ok(()),
            }
        }
        self.add_entries(caller, &dir, &mut listing, offset, detail, sink)
    }

    /// Closes a directory.
    pub fn releasedir(&self, handle: u64) {
        self.handles.remove_dir(handle);
    }

    fn add_dots(
        &self,
        caller: Caller,
        dir: &Dir,
        offset: u64,
        detail: Detail,
        sink: &mut dyn DirSink,
    ) -> FsResult<Room> {
        let (attrs, _) = self.getattr(caller, dir.node).map_err(removed)?;
        // The kernel makes no inode of these two, whatever the answer says of them.
        for (name, cookie) in [(&b"."[..], DOT), (b"..", DOT_DOT)] {
            let entry = Listed {
                name,
                cookie,
                ino: attrs.ino,
                plus: (detail == Detail::Objects).then_some((dir.node, attrs)),
                timeout: Duration::ZERO,
                kind: libc::S_IFDIR,
            };
            if cookie > offset && sink.add(entry) == Room::Full {
                return Ok(Room::Full);
            }
        }
        Ok(Room::Taken)
    }

    fn add_entries(
        &self,
        caller: Caller,
        dir: &Dir,
        listing: &mut MutexGuard<'_, Listing>,
        mut offset: u64,
        detail: Detail,
        sink: &mut dyn DirSink,
    ) -> FsResult<()> {
        let mut added = false;
        loop {
            let at = match listing.position(offset, detail) {
                Some(at) => at,
                None => {
                    self.fetch_at(caller, dir, listing, offset, detail)?;
                    listing
                        .position(offset, detail)
                        .unwrap_or(listing.entries.len())
                }
            };
            let sent_at = listing.sent_at.unwrap_or_else(Instant::now);
            for item in &listing.entries[at..] {
                match self.add_entry(caller, dir, item, detail, sent_at, sink)? {
                    Some(Room::Full) => return Ok(()),
                    Some(Room::Taken) => added = true,
                    None => {}
                }
                offset = item.cookie;
            }
            // An answer with entries is not the end: the kernel asks again if it wants more.
            if listing.end || added {
                return Ok(());
            }
            self.fetch_next(caller, dir, listing, detail)?;
        }
    }

    /// Adds one entry; `None` = it is gone meanwhile.
    fn add_entry(
        &self,
        caller: Caller,
        dir: &Dir,
        item: &Item,
        detail: Detail,
        sent_at: Instant,
        sink: &mut dyn DirSink,
    ) -> FsResult<Option<Room>> {
        let Some(gfid) = item.entry.gfid else {
            return Ok(None);
        };
        let name = &item.entry.name[..];
        let mut listed = Listed {
            name,
            cookie: item.cookie,
            ino: gfid.ino(),
            plus: None,
            timeout: Duration::ZERO,
            kind: item.entry.r#type << 12 & libc::S_IFMT,
        };
        if detail == Detail::Names {
            self.names.put(dir.gfid, name, gfid);
            return Ok(Some(sink.add(listed)));
        }
        let entry = match &item.entry.object {
            Some(object) => self.entry_to_offer(object, sent_at)?,
            None => {
                let get = op::Op::Getattr(GetAttr {
                    gfid: Some(gfid),
                    ..Default::default()
                });
                let Ok((result, _, sent_at)) = self.read_op(caller, get) else {
                    return Ok(None);
                };
                self.entry_to_offer(own_object(&result)?, sent_at)?
            }
        };
        let age = sent_at.elapsed();
        listed.plus = Some((entry.node, entry.attrs));
        listed.kind = entry.attrs.kind();
        listed.timeout = entry
            .entry_timeout
            .saturating_sub(age)
            .min(entry.attr_timeout);
        let room = sink.add(listed);
        match room {
            Room::Taken => {
                self.inodes.tell(entry.node, entry.attrs.data_counter);
                self.saw_name(dir.node, dir.gfid, name, &entry, gfid);
            }
            Room::Full => self.inodes.forget(entry.node, 1),
        }
        Ok(Some(room))
    }

    /// The page after the one that is there.
    fn fetch_next(
        &self,
        caller: Caller,
        dir: &Dir,
        listing: &mut Listing,
        detail: Detail,
    ) -> FsResult<()> {
        let Some(last) = listing.entries.last() else {
            let from = listing.from.unwrap_or(DOT_DOT);
            return self.fetch_at(caller, dir, listing, from, detail);
        };
        let (cookie, hash, name) = (last.cookie, last.entry.hash, last.entry.name.clone());
        self.fetch(
            caller,
            listing,
            cookie,
            page_after(dir.gfid, hash, name, detail),
            detail,
        )
    }

    /// The page in which the entry after `offset` is, from the cookie alone.
    fn fetch_at(
        &self,
        caller: Caller,
        dir: &Dir,
        listing: &mut Listing,
        offset: u64,
        detail: Detail,
    ) -> FsResult<()> {
        let hash = if offset <= DOT_DOT {
            0
        } else {
            offset >> NUMBER_BITS << HASH_BITS_LOST
        };
        let page = page_after(dir.gfid, hash, Bytes::new(), detail);
        self.fetch(caller, listing, DOT_DOT, page, detail)?;
        // The page begins with all that share the hash, those up to `offset` included.
        while let Some(last) = listing.entries.last()
            && last.cookie <= offset
            && !listing.end
        {
            self.fetch_next(caller, dir, listing, detail)?;
        }
        listing.from = Some(offset);
        listing.entries.retain(|item| item.cookie > offset);
        Ok(())
    }

    fn fetch(
        &self,
        caller: Caller,
        listing: &mut Listing,
        after: u64,
        page: ReadDir,
        detail: Detail,
    ) -> FsResult<()> {
        let answer = self.read_op(caller, op::Op::Readdir(page));
        let (result, _, sent_at) = answer.map_err(removed)?;
        listing.begin(after, page_of(result)?, detail, sent_at);
        Ok(())
    }
}

/// What a disk says of an open directory that was removed, whoever did it: readdir(3) takes it for
/// the end of the listing.
fn removed(error: FsError) -> FsError {
    match error {
        FsError::Stale => FsError::NotFound,
        error => error,
    }
}

impl Listing {
    fn begin(&mut self, after: u64, page: ReadDirPage, detail: Detail, sent_at: Instant) {
        let mut last = after;
        self.end = page.end || page.entries.is_empty();
        self.entries = page
            .entries
            .into_iter()
            .map(|entry| {
                last = cookie_after(last, entry.hash);
                Item {
                    cookie: last,
                    entry,
                }
            })
            .collect();
        self.from = Some(after);
        self.detail = detail;
        self.sent_at = Some(sent_at);
    }

    /// Where in the page the entry after `offset` is; `None` = it is not in it.
    fn position(&self, offset: u64, detail: Detail) -> Option<usize> {
        if detail == Detail::Objects && self.detail == Detail::Names {
            return None;
        }
        if self.from? == offset {
            return Some(0);
        }
        let at = self.entries.partition_point(|item| item.cookie <= offset);
        (at > 0 && self.entries[at - 1].cookie == offset).then_some(at)
    }
}

fn page_after(gfid: Gfid, after_hash: u64, after_name: Bytes, detail: Detail) -> ReadDir {
    ReadDir {
        gfid: Some(gfid),
        after_hash,
        after_name,
        max_bytes: PAGE_BYTES,
        plus: detail == Detail::Objects,
    }
}

fn page_of(result: OpResult) -> FsResult<ReadDirPage> {
    match result.ok {
        Some(result::Ok::Readdir(page)) => Ok(page),
        _ => Err(FsError::Io),
    }
}

/// The cookie of an entry with this hash that follows the entry with cookie `last`.
fn cookie_after(last: u64, hash: u64) -> u64 {
    let first = (hash >> HASH_BITS_LOST << NUMBER_BITS).max(DOT_DOT + 1);
    if last > DOT_DOT && last >> NUMBER_BITS == first >> NUMBER_BITS {
        (last + 1).min(first | NUMBER_MAX)
    } else {
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_have_63_bits_and_number_equals() {
        assert_eq!(cookie_after(DOT_DOT, 0), 3);
        assert_eq!(cookie_after(3, 31), 4);
        assert_eq!(cookie_after(3, 32), 16);
        assert_eq!(cookie_after(16, 63), 17);
        assert_eq!(cookie_after(31, 63), 31);
        assert!(cookie_after(16, u64::MAX) < 1 << 63);
    }

    #[test]
    fn a_page_knows_where_its_entries_are() {
        let entry = |hash| DirEntry {
            hash,
            ..Default::default()
        };
        let page = ReadDirPage {
            entries: vec![entry(32), entry(33), entry(64)],
            end: true,
        };
        let mut listing = Listing::default();
        listing.begin(DOT_DOT, page, Detail::Objects, Instant::now());
        assert_eq!(listing.position(DOT_DOT, Detail::Objects), Some(0));
        assert_eq!(listing.position(16, Detail::Names), Some(1));
        assert_eq!(listing.position(17, Detail::Objects), Some(2));
        assert_eq!(listing.position(32, Detail::Objects), Some(3));
        assert_eq!(listing.position(40, Detail::Objects), None);
    }
}
