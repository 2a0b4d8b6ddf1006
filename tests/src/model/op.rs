//! What a random sequence is made of. An operation means something in every state: it names a path
//! that may or may not be there and a slot whose file may or may not be open, so that a sequence
//! from which operations were taken is still a sequence.

use std::fmt;
use std::path::PathBuf;

use rustix::fs::{FallocateFlags, RenameFlags};

use crate::users::User;

/// Files that a sequence may have open at a time.
pub const SLOTS: usize = 3;
/// Names in one directory.
pub const NAMES: usize = 4;

/// One operation and who does it.
#[derive(Clone, Debug)]
pub struct Op {
    /// Who.
    pub who: Who,
    /// What.
    pub act: Act,
}

/// Who does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Root.
    Root,
    /// An ordinary user.
    Alice,
    /// Another, who is in a group with Alice.
    Bob,
}

impl Who {
    /// As the system knows them.
    pub fn user(self) -> User {
        match self {
            Who::Root => User::ROOT,
            Who::Alice => User {
                uid: 1001,
                gid: 1001,
                groups: &[1003],
                umask: 0o022,
            },
            Who::Bob => User {
                uid: 1002,
                gid: 1002,
                groups: &[1003],
                umask: 0,
            },
        }
    }
}

/// A path below the sequence's own folder, as numbers of names.
#[derive(Clone, PartialEq, Eq)]
pub struct Spot(pub Vec<usize>);

impl Spot {
    /// It as a relative path.
    pub fn path(&self) -> PathBuf {
        self.names().collect()
    }

    /// Its names, the outermost directory first.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.0.iter().map(|name| NAME[*name])
    }
}

const NAME: [&str; NAMES] = ["a", "b", "c", "d"];

impl fmt::Debug for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path().display())
    }
}

/// How a file is opened into a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// O_RDONLY.
    Read,
    /// O_RDWR.
    Write,
    /// O_RDWR | O_APPEND | O_CREAT.
    Append,
    /// O_RDWR | O_CREAT.
    Create,
    /// O_RDWR | O_CREAT | O_EXCL.
    CreateNew,
    /// O_RDWR | O_TRUNC.
    Truncate,
}

/// What mknod(2) makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    Device,
    /// The device 0:0, a whiteout of overlayfs.
    Whiteout,
    /// A plain file.
    File,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// UTIME_NOW.
    Now,
    /// UTIME_OMIT.
    Omit,
    /// This long after 1970, or before: always before [`super::look::SET_BEFORE`].
    At(i64, i64),
}

/// An ACL to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acl {
    /// What mode bits say.
    Minimal,
    /// Bob may read and write.
    Bob,
    /// The shared group may everything, but the mask takes writing away.
    Group,
    /// No ACL at all, though it is one by its length.
    Broken,
}

/// One of the operations.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is the system call of its name")]
pub enum Act {
    Mkdir {
        at: Spot,
        mode: u32,
    },
    Mknod {
        at: Spot,
        special: Special,
        mode: u32,
    },
    Symlink {
        at: Spot,
        target: &'static str,
    },
    Link {
        from: Spot,
        to: Spot,
    },
    Rename {
        from: Spot,
        to: Spot,
        flags: RenameFlags,
    },
    Unlink {
        at: Spot,
    },
    Rmdir {
        at: Spot,
    },
    List {
        at: Spot,
    },
    Chmod {
        at: Spot,
        mode: u32,
    },
    Chown {
        at: Spot,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    Utimens {
        at: Spot,
        mtime: When,
    },
    Resize {
        at: Spot,
        len: u32,
    },
    SetXattr {
        at: Spot,
        name: &'static str,
        len: u16,
        flags: XattrHow,
    },
    RemoveXattr {
        at: Spot,
        name: &'static str,
    },
    SetAcl {
        at: Spot,
        name: &'static str,
        acl: Acl,
    },
    Open {
        slot: usize,
        at: Spot,
        how: How,
        mode: u32,
    },
    Close {
        slot: usize,
    },
    Stat {
        slot: usize,
    },
    Read {
        slot: usize,
        offset: u32,
        len: u32,
    },
    Write {
        slot: usize,
        offset: u32,
        len: u32,
        fill: u8,
    },
    Store {
        slot: usize,
        offset: u32,
        len: u32,
        fill: u8,
    },
    Truncate {
        slot: usize,
        len: u32,
    },
    Allocate {
        slot: usize,
        flags: FallocateFlags,
        offset: u32,
        len: u32,
    },
    Copy {
        from: usize,
        to: usize,
        from_offset: u32,
        to_offset: u32,
        len: u32,
    },
    SeekData {
        slot: usize,
        offset: u32,
    },
    SeekHole {
        slot: usize,
        offset: u32,
    },
    Sync {
        slot: usize,
    },
    Fchmod {
        slot: usize,
        mode: u32,
    },
    Fchown {
        slot: usize,
        uid: u32,
        gid: u32,
    },
    Outage(Outage),
}

/// How setxattr(2) treats what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrHow {
    /// 0.
    Set,
    /// XATTR_CREATE.
    Create,
    /// XATTR_REPLACE.
    Replace,
}

/// What happens to a brick in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// SIGKILL of the primary's brickd; what was lost before is in sync again first.
    KillPrimary,
    /// SIGKILL of the backup's; the same.
    KillBackup,
    /// What was killed is started; the sequence goes on while it heals.
    Return,
}
