//! Replies and notifications become bytes, as `linux/fuse.h` has them.

#![expect(
    clippy::host_endian_bytes,
    reason = "the kernel of this host speaks in this host's order"
)]

use std::time::Duration;

use bytes::Bytes;
use mortar_common::name::NAME_BYTES_MAX;
use mortar_proto::data::{Lock, StatFs};

use super::decode::Room as ListingRoom;
use crate::cache::{Attrs, NodeId, Pages};
use crate::fs::{DirSink, Entry, Listed, PageUse, Room};
use crate::kernel::convert::{device_to_kernel, lock_type_to_kernel};
use crate::kernel::reply::{BLOCK_BYTES, GENERATION, Reply};

/// Bytes before an answer's own.
const HEADER_BYTES: usize = 16;
/// The longest answer but for its data: entry and open of CREATE.
const FIXED_BYTES_MAX: usize = HEADER_BYTES + 128 + 16;
/// Longest listing answered at a time, whatever the kernel has room for.
const LISTING_BYTES_MAX: usize = 1 << 20;
/// Entries of a listing begin at multiples of this.
const ALIGN_BYTES: usize = 8;
/// Fixed bytes of an entry of READDIR, and of the inode before it in READDIRPLUS.
const DIRENT_BYTES: usize = 24;
const ENTRY_BYTES: usize = 128;

/// A message to the kernel, in two pieces.
#[derive(Debug)]
pub struct Outgoing {
    /// Header and fixed fields.
    pub head: Vec<u8>,
    /// Bytes after them.
    pub data: Bytes,
}

/// The kernel's buffer for a listing, filled.
#[derive(Debug)]
pub struct Listing {
    room: ListingRoom,
    bytes: Vec<u8>,
}

impl Listing {
    /// An empty one.
    pub fn new(room: ListingRoom) -> Self {
        let bytes = Vec::with_capacity((room.bytes as usize).min(LISTING_BYTES_MAX));
        Listing { room, bytes }
    }

    /// Of a request that is no listing: always full.
    pub fn none() -> Self {
        Listing::new(ListingRoom {
            bytes: 0,
            plus: false,
        })
    }
}

impl DirSink for Listing {
    fn add(&mut self, entry: Listed<'_>) -> Room {
        let inode_bytes = if self.room.plus { ENTRY_BYTES } else { 0 };
        let size = (inode_bytes + DIRENT_BYTES + entry.name.len()).next_multiple_of(ALIGN_BYTES);
        let end = self.bytes.len() + size;
        if end > (self.room.bytes as usize).min(LISTING_BYTES_MAX) {
            return Room::Full;
        }
        let mut out = Out(&mut self.bytes);
        if self.room.plus {
            let Some((node, attrs)) = entry.plus else {
                return Room::Taken;
            };
            out.entry(&Entry {
                node,
                attrs,
                entry_timeout: entry.timeout,
                attr_timeout: entry.timeout,
            });
        }
        out.u64(entry.ino);
        out.u64(entry.cookie);
        out.u32(entry.name.len() as u32);
        out.u32((entry.kind & libc::S_IFMT) >> 12);
        self.bytes.extend_from_slice(entry.name);
        self.bytes.resize(end, 0);
        Room::Taken
    }
}

/// The answer of a request. `listing` is sent with [`Reply::Listing`].
pub fn answer(unique: u64, reply: Reply, listing: Listing) -> Outgoing {
    let errno = match &reply {
        Reply::Error(error) => error.errno(),
        Reply::NoControl => libc::ENOTTY,
        _ => 0,
    };
    let mut head = Vec::with_capacity(FIXED_BYTES_MAX);
    let mut out = Out(&mut head);
    out.header(-errno, unique);
    let mut data = Bytes::new();
    match reply {
        Reply::Error(_) | Reply::NoControl | Reply::Done => {}
        Reply::Entry(entry) => out.entry(&entry),
        Reply::Absent(entry_timeout) => out.entry(&Entry {
            node: NodeId(0),
            attrs: Attrs::default(),
            entry_timeout,
            attr_timeout: Duration::ZERO,
        }),
        Reply::Attrs(attrs, timeout) => {
            out.u64(timeout.as_secs());
            out.u32(timeout.subsec_nanos());
            out.u32(0);
            out.attrs(&attrs);
        }
        Reply::Data(bytes) => data = bytes,
        Reply::Opened { handle, pages } => out.open(handle, page_flags(pages)),
        Reply::DirOpened { handle, listing } => out.open(handle, listing_flags(listing)),
        Reply::Created {
            entry,
            handle,
            pages,
        } => {
            out.entry(&entry);
            out.open(handle, page_flags(pages));
        }
        Reply::Written(bytes) | Reply::Len(bytes) => {
            out.u32(bytes);
            out.u32(0);
        }
        Reply::StatFs(sizes) => out.statfs(&sizes),
        Reply::Lock(lock) => out.lock(&lock),
        Reply::Offset(offset) => out.u64(offset as u64),
        Reply::Listing => data = listing.bytes.into(),
    }
    finished(head, data)
}

/// What INIT is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // As in fuse_init_out.
pub struct InitOut {
    pub major: u32,
    pub minor: u32,
    pub max_readahead: u32,
    pub flags: u64,
    pub max_background: u16,
    pub congestion_threshold: u16,
    pub max_write: u32,
    pub time_gran: u32,
    pub max_pages: u16,
}

/// The answer of INIT.
pub fn init(unique: u64, init: &InitOut) -> Outgoing {
    /// Fields this loop has no use for, at the end.
    const UNUSED_WORDS: usize = 7;
    let mut head = Vec::with_capacity(FIXED_BYTES_MAX);
    let mut out = Out(&mut head);
    out.header(0, unique);
    out.u32(init.major);
    out.u32(init.minor);
    out.u32(init.max_readahead);
    out.u32(init.flags as u32);
    out.u16(init.max_background);
    out.u16(init.congestion_threshold);
    out.u32(init.max_write);
    out.u32(init.time_gran);
    out.u16(init.max_pages);
    out.u16(0);
    out.u32((init.flags >> 32) as u32);
    for _ in 0..UNUSED_WORDS {
        out.u32(0);
    }
    finished(head, Bytes::new())
}

/// What the kernel is told without having asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notification<'a> {
    /// Attributes of this inode are out of date; with `pages` its pages too.
    InvalidInode { node: NodeId, pages: bool },
    /// This name is out of date.
    InvalidName { parent: NodeId, name: &'a [u8] },
}

/// A notification's bytes.
pub fn notification(note: &Notification<'_>) -> Outgoing {
    const INVAL_INODE: i32 = 2;
    const INVAL_ENTRY: i32 = 3;
    let mut head = Vec::with_capacity(FIXED_BYTES_MAX);
    let mut out = Out(&mut head);
    let data = match *note {
        Notification::InvalidInode { node, pages } => {
            out.header(INVAL_INODE, 0);
            out.u64(node.0);
            // A negative offset: the pages stay. A length of 0: to the end.
            out.u64(if pages { 0 } else { u64::MAX });
            out.u64(0);
            Bytes::new()
        }
        Notification::InvalidName { parent, name } => {
            out.header(INVAL_ENTRY, 0);
            out.u64(parent.0);
            out.u32(name.len() as u32);
            out.u32(0);
            Bytes::from([name, &[0]].concat())
        }
    };
    finished(head, data)
}

/// Puts the length of the whole into its header.
fn finished(mut head: Vec<u8>, data: Bytes) -> Outgoing {
    let len = (head.len() + data.len()) as u32;
    head[..4].copy_from_slice(&len.to_ne_bytes());
    Outgoing { head, data }
}

fn page_flags(pages: PageUse) -> u32 {
    match pages {
        PageUse::Fresh => 0,
        PageUse::Kept => KEEP_CACHE,
        PageUse::Direct => DIRECT_IO,
    }
}

fn listing_flags(listing: Pages) -> u32 {
    match listing {
        Pages::Current => CACHE_DIR | KEEP_CACHE,
        Pages::Stale => CACHE_DIR,
    }
}

const DIRECT_IO: u32 = 1 << 0;
const KEEP_CACHE: u32 = 1 << 1;
const CACHE_DIR: u32 = 1 << 3;

struct Out<'a>(&'a mut Vec<u8>);

impl Out<'_> {
    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    /// The length comes last, see [`finished`].
    fn header(&mut self, error: i32, unique: u64) {
        self.u32(0);
        self.0.extend_from_slice(&error.to_ne_bytes());
        self.u64(unique);
    }

    fn entry(&mut self, entry: &Entry) {
        self.u64(entry.node.0);
        self.u64(GENERATION);
        self.u64(entry.entry_timeout.as_secs());
        self.u64(entry.attr_timeout.as_secs());
        self.u32(entry.entry_timeout.subsec_nanos());
        self.u32(entry.attr_timeout.subsec_nanos());
        self.attrs(&entry.attrs);
    }

    fn attrs(&mut self, attrs: &Attrs) {
        self.u64(attrs.ino);
        self.u64(attrs.size);
        self.u64(attrs.blocks);
        for time in [&attrs.atime, &attrs.mtime, &attrs.ctime] {
            self.u64(time.secs as u64);
        }
        for time in [&attrs.atime, &attrs.mtime, &attrs.ctime] {
            self.u32(time.nanos);
        }
        self.u32(attrs.mode);
        self.u32(attrs.nlink);
        self.u32(attrs.uid);
        self.u32(attrs.gid);
        self.u32(device_to_kernel(attrs.rdev));
        self.u32(BLOCK_BYTES);
        self.u32(0);
    }

    fn open(&mut self, handle: u64, flags: u32) {
        self.u64(handle);
        self.u32(flags);
        self.u32(0);
    }

    fn statfs(&mut self, sizes: &StatFs) {
        let block_bytes = u32::try_from(sizes.block_size).unwrap_or(4096);
        self.u64(sizes.blocks);
        self.u64(sizes.blocks_free);
        self.u64(sizes.blocks_available);
        self.u64(sizes.files);
        self.u64(sizes.files_free);
        self.u32(block_bytes);
        self.u32(NAME_BYTES_MAX as u32);
        self.u32(block_bytes);
        // Padding and room for more.
        for _ in 0..7 {
            self.u32(0);
        }
    }

    fn lock(&mut self, lock: &Lock) {
        self.u64(lock.start);
        self.u64(lock.end);
        self.u32(lock_type_to_kernel(lock.r#type()) as u32);
        self.u32(lock.pid);
    }
}
