//! Attributes as they are kept: an [`Object`] of the wire in fewer bytes.

use mortar_common::Gfid;
use mortar_proto::data::{Object, Presence, Time};

/// A point in time, seconds and nanoseconds since 1970, nanoseconds always forward.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Timestamp {
    /// May be negative.
    pub secs: i64,
    /// Below 1,000,000,000.
    pub nanos: u32,
}

impl From<Timestamp> for Time {
    fn from(time: Timestamp) -> Time {
        Time {
            secs: time.secs,
            nanos: time.nanos,
        }
    }
}

/// Attributes of one object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)] // As in data.proto's Object.
pub struct Attrs {
    pub ino: u64,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub size: u64,
    pub blocks: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub data_counter: u64,
    pub attr_counter: u64,
    pub presence: u32,
}

impl Attrs {
    /// From the wire; `None` when the object has no gfid.
    pub fn of(object: &Object) -> Option<(Gfid, Attrs)> {
        let gfid = object.gfid?;
        let time = |time: &Option<Time>| {
            time.as_ref()
                .map_or(Timestamp::default(), |time| Timestamp {
                    secs: time.secs,
                    nanos: time.nanos.min(999_999_999),
                })
        };
        let attrs = Attrs {
            ino: gfid.ino(),
            mode: object.mode,
            nlink: object.nlink,
            uid: object.uid,
            gid: object.gid,
            rdev: object.rdev,
            size: object.size,
            blocks: object.blocks,
            atime: time(&object.atime),
            mtime: time(&object.mtime),
            ctime: time(&object.ctime),
            data_counter: object.data_counter,
            attr_counter: object.attr_counter,
            presence: object.presence,
        };
        Some((gfid, attrs))
    }

    /// The type bits of the mode.
    pub fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// Whether the object has anything of this kind.
    pub fn has(&self, presence: Presence) -> bool {
        self.presence & presence as u32 != 0
    }
}
