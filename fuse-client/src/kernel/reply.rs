//! What the kernel is answered, whatever loop takes it there.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mortar_common::FsError;
use mortar_proto::data::{Lock, StatFs};

use crate::cache::{Attrs, Pages};
use crate::fs::{DirSink, Entry, Interrupt, PageUse};

/// Inodes are never used again for another object, so one generation is enough.
pub const GENERATION: u64 = 0;
/// What `st_blksize` shows: writes of this size and more cost one request each.
pub const BLOCK_BYTES: u32 = 128 << 10;

/// One answer.
#[derive(Debug)]
pub enum Reply {
    /// It failed.
    Error(FsError),
    /// There is no such control of ioctl(2).
    NoControl,
    /// It is done.
    Done,
    /// What a name holds.
    Entry(Entry),
    /// The name holds nothing, and that may be believed for so long.
    Absent(Duration),
    /// Attributes, and how long they may be believed.
    Attrs(Attrs, Duration),
    /// Bytes of a file, a link's text, a value.
    Data(Bytes),
    /// A file is open.
    Opened { handle: u64, pages: PageUse },
    /// A directory is open; what the kernel has cached of its listing is right or not.
    DirOpened { handle: u64, listing: Pages },
    /// A file was made and is open.
    Created {
        entry: Entry,
        handle: u64,
        pages: PageUse,
    },
    /// So many bytes were written or copied.
    Written(u32),
    /// A value or list has so many bytes.
    Len(u32),
    /// Sizes of the file system.
    StatFs(StatFs),
    /// The lock that is in the way, or one that is none.
    Lock(Lock),
    /// Where data or a hole begins.
    Offset(i64),
    /// What [`Answerer::listing`] took.
    Listing,
}

/// Takes the answer of one request to the kernel. If it is dropped without one, the request is
/// answered EIO.
pub trait Answerer: Send + 'static {
    /// The kernel's buffer of a READDIR; of any other request it is full.
    fn listing(&mut self) -> &mut dyn DirSink;

    /// Something that is set when the caller of this request is interrupted from now on, or was
    /// before; `None` = this loop does not get to know.
    fn interrupt(&mut self) -> Option<Arc<Interrupt>>;

    /// Answers.
    fn answer(self, reply: Reply);
}
