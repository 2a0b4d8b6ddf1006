//! What the layers above ask of a brick. The real one is [`super::Brick`]; simulators have doubles.

use bytes::Bytes;
use mortar_common::{FsError, Gfid};
use mortar_proto::data::{
    Change, CopySynced, EpochRef, HealObjectStep, Object, ReadDir, ReadDirPage, StatFs,
};
use mortar_proto::registry::Epoch;

/// Why a brick could not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum BrickError {
    /// The change or read is not valid on this brick's state. On a copy that applies an ordered
    /// change this is a difference between copies: the copy is out.
    #[error("{what}: {error}")]
    Refused {
        /// What was tried, with the object's gfid or path.
        what: String,
        /// What an application would see.
        error: FsError,
    },
    /// The disk failed (EIO, EROFS, a short write, a writeback error): final, the copy is out.
    #[error("{what}: the disk failed: {source}")]
    Disk {
        /// What was tried.
        what: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The folder is not (or no longer) the brick it should be, in words for an administrator.
    #[error("{0}")]
    NotThisBrick(String),
}

impl BrickError {
    /// What an application sees of it.
    pub fn fs_error(&self) -> FsError {
        match self {
            BrickError::Refused { error, .. } => *error,
            BrickError::Disk { .. } | BrickError::NotThisBrick(_) => FsError::Io,
        }
    }
}

/// Entries that `.mortar/touched` has room for.
pub const TOUCHED_MAX: u32 = 511;
/// Bits of a gfid's clock that its folder of handles does not tell.
const CLOCK_BITS_IN_BUCKET: u32 = 28;
/// Bits of [`handle_bucket`].
pub const HANDLE_BUCKET_BITS: u32 = 50 - CLOCK_BITS_IN_BUCKET;

/// Which folder of `.mortar/handle` an object's handle is in: those made in the same 268 seconds
/// share one.
pub fn handle_bucket(gfid: Gfid) -> u32 {
    (gfid.clock_us() >> CLOCK_BITS_IN_BUCKET) as u32
}

/// What `.mortar/volume` keeps of the replica set's history, replaced atomically and fsynced.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredState {
    /// The newest epoch this copy has been part of or has learned of.
    pub epoch: Option<Epoch>,
    /// Epochs before it, newest last.
    pub history: Vec<EpochRef>,
    /// Set while this copy has gone alone without the registry's word: the epoch it made.
    pub alone: Option<EpochRef>,
    /// Every change up to this number is durable here.
    pub synced: u64,
    /// Highest change number known to be used in the set.
    pub last_number: u64,
    /// What the other copies said they had recorded as `synced`: one that comes back with less was
    /// rolled back.
    pub recorded: Vec<CopySynced>,
}

/// One copy of a replica set on a local disk. All calls block; all may be made from any thread.
///
/// The caller keeps changes that share an object or a (directory, name) in number order.
pub trait Store: Send + Sync {
    /// Applies one ordered change, with its payload (a write's or heal block's bytes).
    ///
    /// When it returns, every read sees the change; it is durable only after a sync. Steps that
    /// live in memory alone (sessions, opens, locks) are accepted and do nothing here.
    /// Applying again a create, link, unlink, rmdir, rename that is already in place succeeds.
    fn apply(&self, change: &Change, payload: &[u8]) -> Result<(), BrickError>;

    /// The object, with times, counters and presence bits as clients are to see them.
    fn object(&self, gfid: Gfid) -> Result<Object, BrickError>;
    /// What a name holds. ENOENT when nothing, or something without a gfid.
    fn lookup(&self, parent: Gfid, name: &[u8]) -> Result<Object, BrickError>;
    /// A symlink's text.
    fn read_link(&self, gfid: Gfid) -> Result<Bytes, BrickError>;
    /// Up to `len` bytes from `offset`, appended to `into`; fewer only at the end of the file.
    fn read(&self, gfid: Gfid, offset: u64, len: u32, into: &mut Vec<u8>)
    -> Result<(), BrickError>;
    /// A file's first `bytes` will be read soon: the disk may fetch them meanwhile. Only a hint.
    fn read_soon(&self, gfid: Gfid, bytes: u64);
    /// A page of a directory in order of (name hash, name), `.mortar` and strays left out.
    fn read_dir(&self, page: &ReadDir) -> Result<ReadDirPage, BrickError>;
    /// Whether a directory holds nothing (but `.mortar` and strays).
    fn is_empty_dir(&self, gfid: Gfid) -> Result<bool, BrickError>;
    /// The parent of a directory; the root's is the root.
    fn parent_of_dir(&self, gfid: Gfid) -> Result<Gfid, BrickError>;
    /// One xattr's value; `trusted.mortar` does not exist for callers.
    fn get_xattr(&self, gfid: Gfid, name: &[u8]) -> Result<Bytes, BrickError>;
    /// Names of all xattrs, each ended by NUL; `trusted.mortar` left out.
    fn list_xattr(&self, gfid: Gfid) -> Result<Bytes, BrickError>;
    /// SEEK_DATA or (hole) SEEK_HOLE.
    fn seek(&self, gfid: Gfid, offset: u64, hole: bool) -> Result<u64, BrickError>;
    /// Sizes of the disk below, what is reserved taken off.
    fn stat_fs(&self) -> Result<StatFs, BrickError>;
    /// Makes everything applied so far durable (syncfs). An error is final.
    fn sync_all(&self) -> Result<(), BrickError>;
    /// Whether the brick can still be used: its disk has not failed, and its folder is still at its
    /// place. An error is final.
    fn check(&self) -> Result<(), BrickError>;

    /// What `.mortar/volume` holds.
    fn stored_state(&self) -> StoredState;
    /// Replaces it, durably.
    fn store_state(&self, state: &StoredState) -> Result<(), BrickError>;

    /// Appends one record to `.mortar/heal/<name>` (length and checksum are added here).
    /// `durable` also fdatasyncs. Read back by [`Store::read_records`].
    fn append_record(&self, name: &str, record: &[u8], durable: bool) -> Result<(), BrickError>;
    /// All whole records of `.mortar/heal/<name>`; a torn tail is cut off.
    fn read_records(&self, name: &str) -> Result<Vec<Vec<u8>>, BrickError>;
    /// Replaces the file by these records, atomically and durably; none removes it.
    fn replace_records(&self, name: &str, records: &[Vec<u8>]) -> Result<(), BrickError>;
    /// Names of the files in `.mortar/heal`.
    fn record_files(&self) -> Result<Vec<String>, BrickError>;

    /// The entries of `.mortar/touched`, (slot, code) each; `None` when there is no whole file.
    fn read_touched(&self) -> Result<Option<Vec<(u32, u32)>>, BrickError>;
    /// Sets the entry in a slot (below [`TOUCHED_MAX`]), durably, or clears it, which a crash may
    /// undo. The file must be there.
    fn write_touched(&self, slot: u32, code: Option<u32>) -> Result<(), BrickError>;
    /// Replaces the file by one that holds these codes from slot 0 on, atomically and durably.
    fn replace_touched(&self, codes: &[u32]) -> Result<(), BrickError>;
}

/// What healing reads from a source and compares on a target.
pub trait HealSource: Store {
    /// The object whole: attributes, xattrs, symlink text.
    fn heal_object(&self, gfid: Gfid) -> Result<HealObjectStep, BrickError>;
    /// The next extent at or after `offset`: (offset, len, is a hole); `None` at the end.
    fn next_extent(&self, gfid: Gfid, offset: u64) -> Result<Option<(u64, u64, bool)>, BrickError>;
    /// xxh3 of the bytes of a range.
    fn sum(&self, gfid: Gfid, offset: u64, len: u64) -> Result<u64, BrickError>;
    /// The next read of this range comes from the disk, as far as it has been written there.
    fn forget_cached(&self, gfid: Gfid, offset: u64, len: u64);
    /// The path from the root at which the object is found, for people to read.
    fn path_of(&self, gfid: Gfid) -> Option<String>;
    /// Every gfid this brick has a handle of in the `wanted` folders ([`handle_bucket`]), in no
    /// order, handed to `each` until it says stop.
    fn each_handle(
        &self,
        wanted: &dyn Fn(u32) -> bool,
        each: &mut dyn FnMut(Gfid) -> bool,
    ) -> Result<(), BrickError>;
    /// Gfids of orphans: handles with no name left.
    fn orphans(&self) -> Result<Vec<Gfid>, BrickError>;
}
